"""MME (Fu et al. 2023): fourteen subtasks of two yes-or-no questions on each picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval_suite.benchmark import SHORT, AnswerBenchmark, Item, Record, Sums
from eval_suite.released import asked
from eval_suite.scorers.reading import Reading
from eval_suite.scorers.yes_no import MME, mme
from factory.data.prompt import Role
from factory.errors import UserError
from factory.registry import Params, register

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
ORIGINAL = "Please answer yes or no."
PICTURES = (".jpg", ".png", ".jpeg")


class MmeParams(Params):
    """``root`` holds a folder per subtask: pictures beside their .txt files, or images/ and questions_answers_YN/."""

    root: str


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

    def items(self) -> Sequence[Item]:
        root = Path(self.params.root).expanduser()
        items = [item for task in (*PERCEPTION, *COGNITION) for item in self._subtask(root / task)]
        if not items:
            raise UserError(
                f"{root}: has no folder of an MME subtask ({', '.join(PERCEPTION[:3])}, …) with questions: root=FOLDER"
            )
        return items

    def _subtask(self, folder: Path) -> list[Item]:
        questions = folder / "questions_answers_YN" if (folder / "questions_answers_YN").is_dir() else folder
        images = folder / "images" if (folder / "images").is_dir() else folder
        items = []
        for path in sorted(questions.glob("*.txt")):
            names = [images / f"{path.stem}{suffix}" for suffix in PICTURES]
            image = next((p for p in names if p.is_file()), names[0])
            for i, line in enumerate(filter(str.strip, path.read_text(encoding="utf-8").splitlines())):
                question, tab, label = line.rpartition("\t")
                if not tab:
                    raise UserError(f"{path}:{i + 1}: should hold a question, a tab and Yes or No")
                prompt = asked(image, (Role.QUESTION, question.replace(ORIGINAL, "").strip()), (Role.OPTIONS, SHORT))
                name = f"{folder.name}/{path.stem}"
                group = "perception" if folder.name in PERCEPTION else "cognition"
                gold = label.strip().lower()
                items.append(
                    Item(f"{name}/{i}", prompt, gold, (folder.name, group), name, (image,), {"subtask": folder.name})
                )
        return items

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
        tasks = [task for task in (*PERCEPTION, *COGNITION) if f"{task}/n" in sums.values]
        plain = {task: sums.ratio(f"{task}/right", f"{task}/n") for task in tasks}
        both = {task: sums.ratio(f"{task}/both", f"{task}/images") for task in tasks}
        return {
            "points": sum(100 * (plain[task] + both[task]) for task in tasks),
            "accuracy": sum(plain.values()) / len(tasks),
            "accuracy_plus": sum(both.values()) / len(tasks),
        }
