"""ScienceQA (Lu et al. 2022), the questions with an image: LLaVA-1.5's ScienceQA-IMG."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from eval_suite.benchmark import LETTER, AnswerBenchmark, Item
from eval_suite.released import Row, asked, file, named_of, read_json
from eval_suite.scorers.exact import LETTERS, SCIENCEQA, scienceqa
from eval_suite.scorers.reading import Reading
from factory.data.prompt import Role
from factory.errors import UserError
from factory.recipe.paths import RecipePath
from factory.registry import Params, register


class ScienceQaParams(Params):
    """``root`` holds problems.json, pid_splits.json and images/SPLIT/PID/; ``images_only: false`` asks the text
    questions too.
    """

    root: RecipePath
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
        problems, items = named_of(path), []
        for pid in self._split(splits):
            if pid not in problems:
                raise UserError(f"{path}: has no problem {pid[:80]!r}, which {splits} names; is it the released file?")
            row = problems[pid]
            if "image" not in row and self.params.images_only:
                continue
            image = path.parent / "images" / self.split / pid / row.key("image") if "image" in row else None
            choices = row.texts("choices", least=2)
            options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
            hint = f"Context: {row.text('hint', blank=True)}" if row.values.get("hint") else ""
            prompt = asked(
                image,
                (Role.CONTEXT, hint),
                (Role.QUESTION, row.text("question")),
                (Role.OPTIONS, f"{options}\n{LETTER}"),
            )
            gold = len(choices), row.whole("answer", below=len(choices))
            subjects = (row.text("subject"),) if "subject" in row else ()
            items.append(Item(pid, prompt, gold, subjects, images=(image,) if image else ()))
        return items

    def _split(self, path: Path) -> list[str]:
        names = Row(str(path), read_json(path)).texts(self.split)
        if again := [name for name, times in Counter(names).items() if times > 1]:
            raise UserError(f"{path}: problem {again[0][:80]!r} is twice in {self.split}; is a part there twice?")
        return names

    def wanted(self, item: Item) -> str:
        return LETTERS[item.gold[1]]

    def read(self, item: Item, text: str) -> Reading:
        return scienceqa(text, *item.gold)
