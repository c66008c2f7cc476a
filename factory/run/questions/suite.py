"""Question benchmarks (``benchmarks:`` of a recipe) put to every arm of a run: answered in batches, scored, kept as
predictions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from os.path import isfile
from pathlib import Path
from typing import Any

import torch

from factory import files, progress
from factory.benchmark import Conflicts, Harness, Item, Questions, Rows
from factory.blame import blaming
from factory.corpus.conversation import halved
from factory.corpus.refusals import Shapes
from factory.data.pictures import short_name
from factory.data.prompt import Prompt
from factory.model.encode import images_first, written
from factory.model.load import outline
from factory.model.source import Wanted
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.schema import Node
from factory.run.inputs import answering, each_item, with_code
from factory.run.questions.arms import Arm
from factory.run.questions.harness import HarnessSuite
from factory.run.questions.responses import Responses, Unkept
from factory.run.rundir import RunDir, Stage
from factory.run.samples import check_share, unfit
from factory.steer.calls import harmless
from factory.terminal import warn

UNREAD = "its image cannot be read"


class Suite:
    """One benchmark of a recipe with its questions, or a ``control`` of its conflicts. Making it reads its files, so
    that what is missing is told at once.
    """

    def __init__(
        self, node: Node, recipe: Recipe, limit: int | None, model: Wanted | None = None, control: str = ""
    ) -> None:
        self.node, self.recipe, self.limit, self.control = node, recipe, limit, control
        made = node.make()
        self.benchmark: Questions = made.as_questions() if isinstance(made, Conflicts) else made
        items, self.protocol = self.benchmark.questions(limit), self.benchmark.protocol
        if any(i.pictures_first for i in items) and images_first(outline(model or recipe.model).writing):
            items = [replace(i, prompt=i.pictures_first or i.prompt) for i in items]
            self.protocol += "/pictures-first"
        absent = [
            {"sample": i.id, "reason": f"its image is missing: {short_name(p)}"}
            for i in items
            for p in i.images
            if not isfile(p)
        ]
        with blaming(node):
            check_share(absent, len(items), recipe.evaluate.max_skipped)
        self.absent = absent
        names = {row["sample"] for row in absent}
        self.items = [item for item in items if item.id not in names]

    @property
    def new_tokens(self) -> int:
        """The most tokens of an answer: the benchmark's own, or of a control as many as the conflicts have."""
        return self.recipe.evaluate.max_new_tokens if self.control else self.benchmark.new_tokens

    @cached_property
    def asked(self) -> dict[str, str]:
        """Of each question what tells its content: what is asked, what is right, its pictures."""
        return each_item(self.items)

    def run(self, folder: RunDir, view: ModelView, arm: Arm) -> tuple[Rows, Rows, dict[str, Any]]:
        """Rows of results.json, skipped samples, and what the arm cost on this benchmark; predictions go to files."""
        bench, size = self.benchmark, self.recipe.evaluate.batch_size
        new_tokens = arm.new_tokens(self.new_tokens)
        made_by = {
            **answering(view),
            **precision(view, size),
            "device": view.device.type,
            "steering": arm.about,
            "new_tokens": new_tokens,
        }
        inputs = {
            **made_by,
            "code": version("steering-factory"),
            "arm": {**arm.facts, "asking": arm.asking},
            "benchmark": with_code(self.node),
            "items": files.digest(list(self.asked.items())),
            "scorer": bench.scorer,
            "protocol": self.protocol,
            "limit": self.limit,
            "batch_size": size,
        }
        stage = folder.stage(files.file_name("bench", self.node.label, arm.name), inputs)
        known = Responses(Path(self.recipe.run.root), made_by)
        if known.damaged and folder.world.first:
            _tell_damaged(folder, known)

        def asked(number: int, turn: Sequence[Item], said: Mapping[str, str]) -> Rows:
            batches = {f"{begins(number)}{i:06d}": turn[i : i + size] for i in range(0, len(turn), size)}
            work = {
                key: lambda items=items: list(self._answers(view, arm, known, items, new_tokens, said))
                for key, items in batches.items()
            }
            return [row for chunk in progress.gather(stage, work) for row in chunk]

        answers = self._in_turns(asked)
        skipped = self.absent + [{"sample": a["sample"], "reason": a["unread"]} for a in answers if a.get("unread")]
        with blaming(self.node):
            check_share(skipped, len(self.items) + len(self.absent), self.recipe.evaluate.max_skipped)
        records = self._scored_once(stage, answers, folder)
        if any(record.get("again") for record in records):
            folder.world.meet(f"the scores of stage {stage.name} are known to all")
            stage.forget("scored")
        elif not stage.done:
            stage.finish({"answers": len(records), "skipped": len(skipped)})
        if folder.world.first:
            self._keep(folder.path, arm, records)
        rows = bench.rows(
            records,
            **arm.facts,
            protocol=self.protocol,
            label=self.node.label,
            seed=self.recipe.seed,
            chosen=True,
            skipped=len(skipped),
        )
        for row in rows:
            row["generation"] = {"max_new_tokens": new_tokens, "do_sample": False, **precision(view, size)}
            if self.control:
                row["control"] = self.control
        return rows, [{**s, "benchmark": self.node.label} for s in skipped], cost(arm, answers, view)

    def score(self, view: ModelView) -> float:
        """The main metric of a model as it stands, over all questions; nothing of it is kept."""
        size, known = self.recipe.evaluate.batch_size, Unkept()

        def asked(_: int, turn: Sequence[Item], said: Mapping[str, str]) -> Rows:
            batches = (turn[i : i + size] for i in range(0, len(turn), size))
            tokens = self.new_tokens
            return [row for b in batches for row in self._answers(view, Arm("now"), known, b, tokens, said)]

        rows = self.benchmark.rows(self._scored(self._in_turns(asked)), protocol=self.protocol, label=self.node.label)
        whole = next(row for row in rows if row["task"] == "all")
        return float(whole["metrics"][whole["main"]])

    def _in_turns(self, asked: Callable[[int, Sequence[Item], Mapping[str, str]], Rows]) -> Rows:
        """The answers to all questions, those of a turn ``asked`` with what was said in the turns before."""
        answers: Rows = []
        for number, turn in enumerate(in_turns(self.items)):
            answers += asked(number, turn, {a["sample"]: a["text"] for a in answers if "text" in a})
        return answers

    def _answers(
        self,
        view: ModelView,
        arm: Arm,
        known: Responses | Unkept,
        items: Sequence[Item],
        new_tokens: int,
        said: Mapping[str, str],
    ) -> Iterator[dict[str, Any]]:
        prompts: dict[str, Prompt] = {}
        plain: dict[str, Prompt] = {}
        shapes = Shapes(view)
        for item in items:
            if why := _unsaid(item, said, view):
                yield {"sample": item.id, "unread": why}
                continue
            try:
                plain[item.id] = self._prompt(item, said)
                prompt = plain[item.id] if arm.caller else arm.prompt(plain[item.id])
            except OSError as error:
                yield {"sample": item.id, "unread": f"{UNREAD}: {error}"}
                continue
            if why := _refused(prompt, shapes, view):
                yield {"sample": item.id, "unread": why}
            else:
                prompts[item.id] = prompt
        began = time.perf_counter()
        told = self._told(view, arm, known, prompts)
        if arm.caller:
            prompts = {name: arm.caller.second(p, arm.toward, told[name]) for name, p in prompts.items()}
        todo = [p for p in prompts.values() if known.get(p.digest) is None]
        for prompt, text in zip(todo, arm.answer(view, todo, new_tokens) if todo else [], strict=True):
            known.put(prompt.digest, text)
        seconds = (time.perf_counter() - began) / len(todo) if todo else 0.0
        texts = [known.known[p.digest] for p in prompts.values()]
        facts = self.benchmark.inspect(view, list(prompts.values()), texts)
        fresh = {p.digest for p in todo}
        for (sample, prompt), text, seen in zip(prompts.items(), texts, facts, strict=True):
            yield {
                "sample": sample,
                "text": text,
                "prompt": written(view.writing, prompt),
                "prompt_digest": prompt.digest,
                **({"told": told[sample]} if arm.caller else {}),
                **_pictures_left(plain[sample], prompt),
                "seconds": seconds if prompt.digest in fresh else None,
                **seen,
            }

    def _told(
        self, view: ModelView, arm: Arm, known: Responses | Unkept, prompts: Mapping[str, Prompt]
    ) -> dict[str, str]:
        """What is answered to the first prompts of an arm that asks twice; nothing of any other. They are known by
        their own length too, which is not that of the answers."""
        if arm.caller is None:
            return {}
        most = arm.caller.first_tokens
        firsts = {name: arm.caller.first(prompt, arm.toward) for name, prompt in prompts.items()}
        keys = {name: f"{prompt.digest}/{most}" for name, prompt in firsts.items()}
        todo = {keys[name]: prompt for name, prompt in firsts.items() if known.get(keys[name]) is None}
        answers = arm.answer(view, list(todo.values()), most) if todo else []
        for key, text in zip(todo, answers, strict=True):
            known.put(key, harmless(view, text))
        return {name: known.known[key] for name, key in keys.items()}

    def _prompt(self, item: Item, said: Mapping[str, str]) -> Prompt:
        """What a question asks, of a second turn after what was ``said`` in the first."""
        if item.follow is None:
            return item.prompt()
        return item.follow(self._by_id[item.after].prompt(), said[item.after])

    @cached_property
    def _by_id(self) -> dict[str, Item]:
        return {item.id: item for item in self.items}

    def _scored_once(self, stage: Stage, answers: Rows, folder: RunDir) -> Rows:
        """The records, made by the first rank alone: a judge is paid once, and what it cost is printed."""
        if folder.world.first:
            stage.chunk("scored", lambda: self._scored(answers))
        folder.world.meet(f"the answers of stage {stage.name} are scored")
        return stage.chunk("scored", lambda: self._scored(answers))

    def _scored(self, answers: Rows) -> Rows:
        items = self._by_id
        told = [a for a in answers if "text" in a]
        self.benchmark.consult([(items[a["sample"]], a["text"]) for a in told])
        return list(
            self.benchmark.settle([{**a, **self.benchmark.record(items[a["sample"]], a["text"])} for a in told])
        )

    def _keep(self, folder: Path, arm: Arm, records: Rows) -> None:
        about = {
            "benchmark": self.benchmark.name,
            "label": self.node.label,
            "protocol": self.protocol,
            "seed": self.recipe.seed,
            **arm.facts,
        }
        label, own = files.file_name(self.node.label), files.file_name(arm.name)
        files.write_jsonl(
            folder / "predictions" / label / f"{own}.jsonl",
            [{**about, **r, "item": self.asked[r["sample"]]} for r in records],
        )
        if handed_in := self.benchmark.submission(records):
            name, content = handed_in
            files.write_json(folder / "submissions" / label / own / name, content)


def in_turns(items: Sequence[Item]) -> list[list[Item]]:
    """The questions by turn: those that come after none, then those after one of these, and so on; what comes after a
    question that is not among them is left to the last turn."""
    found: list[list[Item]] = []
    rest, there = list(items), {""}
    while rest:
        turn = [item for item in rest if item.after in there] or rest
        found.append(turn)
        there |= {item.id for item in turn}
        rest = [item for item in rest if item.id not in there]
    return found


def begins(turn: int) -> str:
    """How the names of a turn's chunks begin, counted from 0; the first's have always been numbers alone."""
    return f"turn{turn + 1}-" if turn else ""


def _unsaid(item: Item, said: Mapping[str, str], view: ModelView) -> str | None:
    """Why a second turn cannot be asked; None where it can, and of a first one."""
    if item.follow is None:
        return None
    if item.after not in said:
        return "the question before it was not answered"
    spelt = view.writing.reserved(said[item.after])
    return f"the answer before it spells the special token {spelt!r}" if spelt else None


def _pictures_left(plain: Prompt, asked: Prompt) -> dict[str, list[int]]:
    """Which of a question's pictures a method kept, from 0, where it left some of several out."""
    there = {id(image) for image in asked.images}
    kept = [i for i, image in enumerate(plain.images) if id(image) in there]
    return {"pictures": kept} if len(kept) < len(plain.images) > 1 else {}


def _refused(prompt: Prompt, shapes: Shapes, view: ModelView) -> str | None:
    """Why a prompt cannot be put to the model; None where it can. Its positions are counted only where the words alone
    might take half of them.
    """
    halves = (half and f"its text holds {half}" for half in (halved(s.text) for s in prompt.segments))
    sizes = (shapes.refusal(image.size) for image in prompt.images)
    why = next(filter(None, (*halves, *sizes)), None)
    if why or view.positions is None or sum(len(s.text.encode()) for s in prompt.segments) < view.positions // 2:
        return why
    return unfit(view, [prompt])


def _tell_damaged(folder: RunDir, known: Responses) -> None:
    folder.event("answers_damaged", file=known.path.name, entries=known.damaged)
    line = f"{known.path}: {known.damaged} damaged entries are not used; what they held is answered again"
    warn(line)
    known.strike()


AnySuite = Suite | HarnessSuite


def suites(recipe: Recipe, limit: int | None, model: Wanted | None = None) -> list[AnySuite]:
    """The recipe's benchmarks. Raises ``UserError`` for missing files, before anything heavy starts."""
    return [suite_of(node)(node, recipe, limit, model) for node in recipe.asked]


def questions_of(asked: Sequence[AnySuite]) -> dict[str, tuple[Questions, Sequence[Item]]]:
    """The benchmarks whose questions lie here, by label, each with its questions."""
    return {suite.node.label: (suite.benchmark, suite.items) for suite in asked if isinstance(suite, Suite)}


def suite_of(node: Node) -> type[AnySuite]:
    """How a benchmark is put: question by question here, or as a whole by a harness of its own."""
    cls = node.plugin
    return HarnessSuite if issubclass(cls, Harness) else Suite


def put(folder: RunDir, view: ModelView, asked: Sequence[AnySuite], arms: Sequence[Arm]) -> tuple[Rows, Rows]:
    """Every benchmark to every arm: rows of results.json and skipped samples; costs go to costs.json, as no two runs
    cost the same.
    """
    rows: Rows = []
    skipped: Rows = []
    costs: dict[str, Any] = {}
    for suite in asked:
        for arm in arms:
            measured, left_out, price = suite.run(folder, view, arm)
            rows += measured
            skipped += [s for s in left_out if s not in skipped]
            costs |= {f"{label}/{arm.name}": price for label in dict.fromkeys(row["label"] for row in measured)}
    if folder.world.first:
        files.write_json(folder.path / "costs.json", costs)
    return rows, skipped


def add_prices(run: Path, prices: Mapping[str, Any]) -> None:
    """Write what arms cost, by BENCHMARK/ARM, into a run's costs.json, beside what stands there of other benchmarks."""
    path = run / "costs.json"
    kept = files.read_json(path) if path.is_file() else {}
    files.write_json(path, {**kept, **prices})


def precision(view: ModelView, batch_size: int) -> dict[str, Any]:
    """The dtype and, where it is not float32, the batch size: padding then changes roundings, and with them an answer
    now and then.
    """
    dtype = str(view.dtype).removeprefix("torch.")
    return {"dtype": dtype} if dtype == "float32" else {"dtype": dtype, "batch_size": batch_size}


def cost(arm: Arm, answers: Rows, view: ModelView) -> dict[str, Any]:
    """Fitted parameters, seconds an answer (over those generated here, not taken from the cache) and peak memory of all
    GPUs that hold the model in bytes.
    """
    seconds = [a["seconds"] for a in answers if a.get("seconds") is not None]
    gpus = {p.device for p in view.model.parameters() if p.device.type == "cuda"}
    peak = sum(torch.cuda.max_memory_allocated(gpu) for gpu in gpus) if gpus else None
    return {
        "parameters": arm.parameters,
        "generated": len(seconds),
        "seconds_per_answer": sum(seconds) / len(seconds) if seconds else None,
        "peak_bytes": peak,
    }


def dry_run(recipe: Recipe, n: int = 3) -> Iterator[tuple[Suite, list[tuple[str, str]]]]:
    """Each benchmark with its first ``n`` prompts as the model would read them, by sample; the model's weights are not
    read.
    """
    model = Wanted.of(recipe.model)
    writing = outline(model).writing
    for suite in (s for s in suites(recipe, None, model) if isinstance(s, Suite)):
        yield suite, [(item.id, written(writing, item.prompt())) for item in suite.items[:n]]
