"""What the medical benchmarks share: how they are asked and scored, and the strata that they are reported by."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from eval_suite.benchmark import SHORT, AnswerBenchmark, Item, Sums
from eval_suite.parquet import InRow
from eval_suite.released import Row, asked
from eval_suite.scorers.medical import RULE, is_closed, medical
from eval_suite.scorers.reading import Reading
from factory.data.prompt import Role


class MedicalBenchmark(AnswerBenchmark):
    """``score``: the mean of ``closed`` (accuracy on questions with few answers) and ``open`` (recall), each question
    alike.
    """

    profile = "llava-1.5"
    scorer = RULE
    main = "score"
    beside = ("closed", "open")
    shares: ClassVar[dict[str, tuple[str, str]]] = {}

    @property
    def new_tokens(self) -> int:
        return 64

    def item(self, name: str, row: Row, image: Path, unit: str = "", told: str = "", **facts: str) -> Item:
        """A question of a row that has ``question`` and ``answer``, about the picture in a file, in which a row may
        hold it; ``told``: what the file says of its sort, ``facts``: its strata.
        """
        answer = row.key("answer").strip()
        closed = is_closed(answer, told)
        shown = InRow(image, int(row.place.rpartition(":")[2])) if image.suffix == ".parquet" else image
        prompt = asked(shown, (Role.QUESTION, row.text("question").strip()), (Role.OPTIONS, SHORT))
        tasks = ("closed" if closed else "open", *([facts["content"]] if "content" in facts else []))
        return Item(name, prompt, (answer, closed), tasks, unit, (image,), facts)

    def wanted(self, item: Item) -> str:
        return item.gold[0]

    def read(self, item: Item, text: str) -> Reading:
        return medical(text, *item.gold)

    def metrics(self, sums: Sums) -> dict[str, Any]:
        shares = {sort: sums.ratio(sort, f"{sort}_n") for sort in ("closed", "open") if f"{sort}_n" in sums.values}
        both = Sums({"hit": sums["closed"] + sums["open"], "n": sums["n"]})
        return {"score": both.ratio("hit", "n"), **shares}
