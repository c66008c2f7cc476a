"""MME (Fu et al. 2023): fourteen subtasks of two yes-or-no questions on each picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval_suite.benchmark import SHORT, AnswerBenchmark, Item, Record, Sums
from eval_suite.released import RELEASED, asked
from eval_suite.scorers.reading import Reading
from eval_suite.scorers.yes_no import MME, mme
from factory.data.prompt import Role
from factory.errors import UserError, quoted
from factory.recipe.paths import RecipePath
from factory.registry import Params, register

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
ORIGINAL = "Please answer yes or no."
SUBTASKS = (*PERCEPTION, *COGNITION)
PICTURES = (".jpg", ".png", ".jpeg")


class MmeParams(Params):
    """``root`` holds a folder per subtask: pictures beside their .txt files, or images/ and questions_answers_YN/."""

    root: RecipePath


@register("benchmark", "mme")
class Mme(AnswerBenchmark):
    """MME: per subtask 100 * (accuracy + share of pictures with both answers right); perception and cognition are their
    sums.
    """

    Params = MmeParams
    scorer = MME
    main = "points"
    beside = ("accuracy", "accuracy_plus")
    shares = {}  # noqa: RUF012  questions on one picture are not independent

    @property
    def split(self) -> str:
        """Points are a sum over subtasks: a folder that lacks some is another test than the whole."""
        there = self._subtasks()
        return "test" if len(there) == len(SUBTASKS) else f"{len(there)}-of-{len(SUBTASKS)}-subtasks"

    def _subtasks(self) -> list[Path]:
        root = self.params.root.directory("root", RELEASED)
        return [root / task for task in SUBTASKS if (root / task).is_dir()]

    def items(self) -> Sequence[Item]:
        if not (there := self._subtasks()):
            raise UserError(
                f"root {quoted(self.params.root)}: has no folder of an MME subtask ({', '.join(SUBTASKS[:3])}, …):"
                " root=FOLDER"
            )
        return [item for folder in there for item in self._subtask(folder)]

    def _subtask(self, folder: Path) -> list[Item]:
        questions = folder / "questions_answers_YN" if (folder / "questions_answers_YN").is_dir() else folder
        images = folder / "images" if (folder / "images").is_dir() else folder
        items = [item for path in sorted(questions.glob("*.txt")) for item in self._picture(folder.name, images, path)]
        if not items:
            raise UserError(f"{questions}: holds no file of questions; download it again, or leave out the folder")
        return items

    def _picture(self, task: str, images: Path, path: Path) -> list[Item]:
        """The two questions on one picture (the official code counts on two)."""
        names = [images / f"{path.stem}{suffix}" for suffix in PICTURES]
        image = next((p for p in names if p.is_file()), names[0])
        unit, group = f"{task}/{path.stem}", "perception" if task in PERCEPTION else "cognition"
        asks = _questions(path)
        if len(asks) != 2 or asks[0][0] == asks[1][0]:
            raise UserError(f"{path}: should hold two questions, and holds {len({ask for ask, _ in asks})}")
        return [
            Item(
                f"{unit}/{i}",
                asked(image, (Role.QUESTION, question), (Role.OPTIONS, SHORT)),
                label,
                (task, group),
                unit,
                (image,),
                {"subtask": task},
            )
            for i, (question, label) in enumerate(asks)
        ]

    def read(self, item: Item, text: str) -> Reading:
        return mme(text, item.gold)

    def unit_sums(self, members: Sequence[Record]) -> dict[str, float]:
        task, right = members[0]["subtask"], [m["sums"]["right"] for m in members]
        return {
            f"{task}/right": sum(right),
            f"{task}/n": len(right),
            f"{task}/both": float(all(right)),
            f"{task}/images": 1.0,
        }

    def metrics(self, sums: Sums) -> dict[str, Any]:
        tasks = [task for task in SUBTASKS if f"{task}/n" in sums.values]
        plain = {task: sums.ratio(f"{task}/right", f"{task}/n") for task in tasks}
        both = {task: sums.ratio(f"{task}/both", f"{task}/images") for task in tasks}
        return {
            "points": sum(100 * (plain[task] + both[task]) for task in tasks),
            "accuracy": sum(plain.values()) / len(tasks),
            "accuracy_plus": sum(both.values()) / len(tasks),
        }


def _questions(path: Path) -> list[tuple[str, str]]:
    """Questions, without the sentence that asks for yes or no, and labels of a file with one of each on a line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            question, _, label = line.rpartition("\t")
            question, label = question.replace(ORIGINAL, "").strip(), label.strip().lower()
            if not question or label not in ("yes", "no"):
                raise UserError(f"{path}:{number}: should hold a question, a tab and Yes or No, and is {line[:60]!r}")
            found.append((question, label))
    return found
