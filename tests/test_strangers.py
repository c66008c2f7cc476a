"""Files from strangers, well formed and damaged: each ends with a value or with one line, soon and in little memory.

STEERING_FACTORY_FUZZ=N tries N times as many.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval_suite.benchmarks import mc2
from eval_suite.compare.load import load as compared
from factory.corpus.source import ConversationFile
from factory.errors import UserError
from factory.files import file_name
from factory.recipe import load as load_recipe
from factory.registry import lookup
from factory.run.rundir import RunDir
from factory.steer import Steering, artefact
from factory.steer.where import Where
from tests.contract.cases import Case, steering
from tests.tiny import tiny_view

SECONDS, BYTES = 5, 500 << 20
fuzz = settings(
    max_examples=30 * int(os.environ.get("STEERING_FACTORY_FUZZ", "1")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
BIG = {"@deep": "[" * 50_000 + "]" * 50_000, "@digits": "9" * 5000, "@exponent": "1e999", "@nan": "NaN"}
TEXTS = st.sampled_from(["", "../../x", "/etc/passwd", "a\0b", "\x1b[2J", "\ud800", "x" * 5000, "=1+1", "[/b]", "{}"])
ODD = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 2**70, 1e308, [], {}, [[]], {"a": {}}, [None], *BIG]),
    TEXTS,
    st.text(st.characters(), max_size=4),
)


class Slow(Exception):
    """More processor time than a file is worth."""


def highest() -> int:
    """Bytes that this process has held at its fullest since the kernel was last told to forget (Linux; else holds)."""
    try:
        told = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    except (OSError, IndexError):
        return psutil.Process().memory_info().rss
    return int(told.split()[0]) << 10


@contextmanager
def bounded() -> Iterator[None]:
    """Ends what takes too long, and fails where memory grew too much, be it for a moment."""

    def stop(*_: object) -> None:
        raise Slow

    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest
    before, old = psutil.Process().memory_info().rss, signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
    assert highest() - before < BYTES


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="only Linux tells what was held for a moment")
def test_memory_that_is_given_back_counts_too():
    with pytest.raises(AssertionError), bounded():
        torch.ones(BYTES // 4 + (8 << 20))


def judge(work: Callable[[], Any], lines: int = 1) -> None:
    """``work`` gives a value, or a mistake in at most so many lines of a length that can be read."""
    with bounded():
        try:
            work()
        except UserError as error:
            told = str(error).splitlines()
            assert 1 <= len(told) <= lines, told[:5]
            assert all(len(line) < 1500 for line in told)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


@st.composite
def mutated(draw: Any, value: Any, odd: st.SearchStrategy = ODD) -> Any:
    """``value`` with one or two of its parts exchanged or taken out."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(places(value))))
        if not path:
            return draw(odd)
        inside = value
        for key in path[:-1]:
            inside = inside[key]
        if draw(st.booleans()):
            put = draw(odd)  # the same each time it is drawn, and the next part may be taken out of it
            inside[path[-1]] = copy.deepcopy(put) if isinstance(put, dict | list) else put
        else:
            del inside[path[-1]]
    return value


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """``data`` cut, changed or with something put in."""
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    put = draw(st.binary(max_size=4) | st.sampled_from([b"\xff\xfe", b"\0" * 8, b"[" * 20_000, b"&a [*a]"]))
    return draw(st.sampled_from([data[:at], data[:at] + put + data[at + len(put) :], data[:at] + put + data[at:]]))


def written(value: Any) -> bytes:
    text = json.dumps(value)
    for mark, text_of in BIG.items():
        text = text.replace(json.dumps(mark), text_of)
    return text.encode()


def documents(value: Any) -> st.SearchStrategy[bytes]:
    return mutated(value).map(written) | damaged(written(value))


RECIPE = {
    "name": "x",
    "seed": 1,
    "model": {"zoo": "tiny", "dtype": "float32", "tuned": ["runs/x"]},
    "data": {"type": "scenes", "scoring": "open_ended", "per_task": {"train": 1, "dev": 1, "test": 1}},
    "steering": ["none", {"type": "amps", "as": "b", "betas": [0.0, 1.0], "net": {"epochs": 1}}],
    "evaluate": {"strengths": [0.5, 1], "directions": ["vision"]},
}
CONFLICT = {"image_id": "000000000009", "task": "color", "question": "q", "context": "c", "gt": "red", "hitem": "blue"}
TURNS = [{"from": "human", "value": "<image>\nhi"}, {"from": "gpt", "value": "yes"}]
ROW = {"id": "1", "image": "a.jpg", "conversations": TURNS}
SCORED = {
    "benchmark": "pope", "label": "pope", "split": "test", "task": "all", "direction": None, "method": "none",
    "strength": None, "seed": 0, "n": 2, "metrics": {"accuracy": 0.5}, "ci": {"accuracy": [0.1, 0.9]},
    "main": "accuracy", "beside": [], "protocol": "p", "scorer": "s", "parse_failure_rate": 0.0, "chosen": True,
}  # fmt: skip
ANSWERS = [{"sample": "a", "value": 1.0, "unit": "u"}, {"sample": "b", "value": 0.0}]


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@fuzz
@given(data=documents(RECIPE))
def test_recipes(data, tmp_path):
    judge(lambda: load_recipe(put(tmp_path / "x.yaml", data)), lines=31)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return artefact.save(tmp_path_factory.mktemp("a") / "static", steering(Case("static"), 1, 1.0), tiny_view())


@fuzz
@given(st.data())
def test_artefacts(made, tmp_path, data):
    manifest = json.loads((made / artefact.MANIFEST).read_bytes())
    sealed = data.draw(st.booleans())
    content = {key: value for key, value in manifest.items() if sealed or key != "sha256"}
    put(tmp_path / artefact.MANIFEST, data.draw(st.just(written(content)) | documents(content)))
    tensors = (made / artefact.TENSORS).read_bytes()
    put(tmp_path / artefact.TENSORS, data.draw(st.just(tensors) | damaged(tensors)))
    judge(lambda: artefact.load(tmp_path, tiny_view()))


@fuzz
@given(results=documents({"schema": 1, "run": {"name": "x"}, "rows": [SCORED]}), lines=mutated(ANSWERS), costs=ODD)
def test_results_to_compare(results, lines, costs, tmp_path):
    put(tmp_path / "results.json", results)
    rows = lines if isinstance(lines, list) else [lines]
    put(tmp_path / "predictions" / "pope" / "none.jsonl", b"\n".join(written(row) for row in rows))
    put(tmp_path / "costs.json", written({"pope/none": costs}))
    judge(lambda: compared([tmp_path]))


@fuzz
@given(data=documents([CONFLICT, CONFLICT]))
def test_mc2_files(data, tmp_path):
    path = put(tmp_path / "m.json", data)

    def work() -> None:
        benchmark = mc2.Mc2(mc2.Mc2Params(file=str(path), images=str(tmp_path)))
        benchmark.absent([s for split in ("train", "dev", "test") for s in benchmark.samples(split)])

    judge(work)


@pytest.mark.parametrize("image_id", ["x" * 5000, "../../../etc/passwd", "/etc/passwd", "a\0b", "\ud800", "", "{0}"])
def test_an_image_id_is_no_path(image_id, tmp_path):
    assert mc2.Mc2(mc2.Mc2Params(file="m.json", images=str(tmp_path))).find(image_id) is None


@fuzz
@given(data=documents([ROW, ROW]))
def test_llava_files(data, tmp_path):
    path = put(tmp_path / "d.json", data)
    judge(lambda: ConversationFile(path, tmp_path, tmp_path / "cache", max_skipped=1.0))


VECTOR = {"steering_vector": "@v", "steering_coefficient": 2.0, "action": "add", "bias": None, "head_index": None}
TENSORS = st.sampled_from([torch.ones(48), torch.ones(3, 48), torch.full((48,), torch.nan), torch.zeros(48).half()])
WIDE = st.sampled_from([torch.ones(1).expand(1 << 33), torch.ones(48, dtype=torch.complex64), torch.tensor(1.0)])


@fuzz
@given(data=st.data())
def test_vectors(tmp_path, data):
    tensors = TENSORS | WIDE | ODD
    content = data.draw(mutated({"language_model.layers.1": {**VECTOR, "steering_vector": torch.ones(48)}}, tensors))
    torch.save(content, path := tmp_path / "v.pt")
    if data.draw(st.booleans()):
        put(path, data.draw(damaged(path.read_bytes())))
    judge(lambda: read_as("lm_eval", path))


@fuzz
@given(data=st.data(), name=st.sampled_from(["gguf", "svec"]))
def test_other_tools_vectors(tmp_path, data, name):
    cls = lookup("format", name)
    static = lookup("steering", "static")
    vector = Steering(static(static.Params()), {"v": torch.ones(48)}, Where(layer=1), 1.0)
    cls(cls.Params()).write(path := tmp_path / "v", [vector], tiny_view())
    put(path, data.draw(damaged(path.read_bytes())))
    judge(lambda: read_as(name, path))


def read_as(name, path):
    cls = lookup("format", name)
    return cls(cls.Params()).read(path, tiny_view())


@settings(fuzz, max_examples=fuzz.max_examples // 5)
@given(name=st.sampled_from(["run.json", "s/inputs.json", "s/summary.json", "s/chunks/k.sha256", "s/chunks/k.json"]),
       data=documents({"digest": "x", "recipe": "r", "recipe_sha256": "s"}))  # fmt: skip
def test_run_folders(name, data, tmp_path):
    def work() -> dict:
        with RunDir.open(tmp_path, "run", tmp_path / "r.yaml", "name: run", {"name": "run"}) as run:
            stage = run.stage("s", {"a": 1})
            value = stage.chunk("k", lambda: {"v": 1})
            stage.finish({})
            return value

    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    work()
    put(tmp_path / "run" / name, data)
    judge(work)


@given(TEXTS | st.text(st.characters()))
def test_a_label_never_leads_out_of_a_folder(label):
    assert (Path("/run") / file_name(label)).resolve().parent == Path("/run")
