"""ScienceQA (Lu et al. 2022), the questions with an image: LLaVA-1.5's ScienceQA-IMG."""

from __future__ import annotations

from collections.abc import Sequence

from eval_suite.benchmark import LETTER, AnswerBenchmark, Item
from eval_suite.released import asked, field_of, file, read_json
from eval_suite.scorers.exact import LETTERS, SCIENCEQA, scienceqa
from eval_suite.scorers.reading import Reading
from factory.data.prompt import Role
from factory.registry import Params, register


class ScienceQaParams(Params):
    """``root`` holds problems.json, pid_splits.json and images/SPLIT/PID/; ``images_only: false`` asks the text
    questions too.
    """

    root: str
    split: str = "test"
    images_only: bool = True


@register("benchmark", "scienceqa")
class ScienceQa(AnswerBenchmark):
    """ScienceQA-IMG: letter accuracy by LLaVA's three parsing rules; by subject too."""

    Params = ScienceQaParams
    scorer = SCIENCEQA

    @property
    def protocol(self) -> str:
        return f"{super().protocol}/{'img' if self.params.images_only else 'all'}"

    def items(self) -> Sequence[Item]:
        path, splits = file(self.params.root, "problems.json"), file(self.params.root, "pid_splits.json")
        problems, items = read_json(path), []
        for pid in field_of(splits, read_json(splits), self.split)[0]:
            (row,) = field_of(path, problems, pid)
            question, choices, answer, name = field_of(path, row, "question", "choices", "answer", "image")
            if not name and self.params.images_only:
                continue
            image = path.parent / "images" / self.split / pid / name if name else None
            options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
            hint = f"Context: {row['hint']}" if row.get("hint") else ""
            prompt = asked(
                image, (Role.CONTEXT, hint), (Role.QUESTION, question), (Role.OPTIONS, f"{options}\n{LETTER}")
            )
            items.append(
                Item(
                    pid,
                    prompt,
                    (len(choices), answer),
                    tuple(filter(None, [row.get("subject")])),
                    images=(image,) if image else (),
                )
            )
        return items

    def read(self, item: Item, text: str) -> Reading:
        return scienceqa(text, *item.gold)
