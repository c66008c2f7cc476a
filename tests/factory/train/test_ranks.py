"""Two ranks under every ZeRO stage learn what one process learns, and go on from a kill as if nothing had been."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from factory import files
from factory.corpus.order import Order
from factory.corpus.source import ConversationFile
from tests.factory.ranks import Ended, as_ranks
from tests.factory.train.case import BATCH, STEPS, main, tuned, write_data

MORES = {"type": "mores", "rank": 2, "dropout": 0.0}


def in_ranks(cases: list[dict], folder: Path) -> Ended:
    """The cases, on two ranks."""
    folder.mkdir()
    return as_ranks(2, lambda world: main(cases), folder, join=False)


def outcome(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    return files.read_json(folder / "losses.json"), files.read_safetensors(folder / "values.safetensors")


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns_and_resume_bit_for_bit(tmp_path):
    data = write_data(tmp_path)
    common = {"data": str(data), "tuner": MORES, "micro_batch": 1, "save_every": 2}
    source = ConversationFile(data, tmp_path, tmp_path / "index")
    order = Order(len(source), BATCH, 0)
    pictured = [bool(source.conversation(order[place]).images) for place in range(STEPS * BATCH)]
    assert any(a != b for a, b in zip(pictured[::2], pictured[1::2], strict=True)), (
        "somewhere one rank has an image and the other none"
    )

    def case(name: str, zero: int, **more) -> dict:
        return {**common, "folder": str(tmp_path / name), "launch": {"processes": 2, "zero": zero}, **more}

    cases = [case("zero0", 0), case("zero2", 2), case("zero3", 3), case("again2", 2, stop=3), case("again2", 2)]
    cases += [case("broken2", 2, broken=(4, 1)), case("again3", 3, stop=3, kill=True)]
    done = in_ranks(cases, tmp_path / "first")
    assert done.codes == [-signal.SIGKILL, -signal.SIGKILL], done.err[-3000:]
    for rank in ("", 1):  # one rank's loss was no number, in its fourth batch, and no rank waits for another
        told = (tmp_path / "broken2" / f"told{rank}.txt").read_text()
        assert told.startswith("the loss is nan at step 2: stopped") and "\n" not in told, rank
    resumed = in_ranks([case("again3", 3)], tmp_path / "second")
    assert resumed.codes == [0, 0], resumed.err[-3000:]

    losses, values = tuned(data, tmp_path / "alone", MORES, {}, micro_batch=2)
    for name in ("zero0", "zero2", "zero3"):
        theirs, trained = outcome(tmp_path / name)
        assert theirs == pytest.approx(losses, rel=1e-5), name
        assert trained.keys() == values.keys()
        for key, value in values.items():
            assert torch.allclose(trained[key], value, atol=2e-5), (name, key)
    assert losses[-1] < losses[0]
    for stage in ("2", "3"):
        whole, again = outcome(tmp_path / f"zero{stage}"), outcome(tmp_path / f"again{stage}")
        assert whole[0] == again[0] and same_bits(whole[1], again[1]), stage
        checkpoint = tmp_path / f"zero{stage}" / f"checkpoint-{STEPS}"
        assert sum(f.stat().st_size for f in checkpoint.rglob("*_model_states.pt")) < 200_000, (
            "the frozen model is not in it"
        )


PGM = {"type": "pgm", "rank": 2, "gate_rank": 1, "words": "text"}


@pytest.mark.slow
def test_two_ranks_learn_a_tuners_own_terms_as_one_does(tmp_path):
    data = write_data(tmp_path)
    common = {"data": str(data), "tuner": PGM, "micro_batch": 1, "save_every": 2}
    stages = (0, 2, 3)
    cases = [
        {**common, "folder": str(tmp_path / f"zero{stage}"), "launch": {"processes": 2, "zero": stage}}
        for stage in stages
    ]
    done = in_ranks(cases, tmp_path / "ranks")
    assert done.codes == [0, 0], done.err[-3000:]
    losses, values = tuned(data, tmp_path / "alone", PGM, {}, micro_batch=2)
    for stage in stages:
        theirs, trained = outcome(tmp_path / f"zero{stage}")
        assert theirs == pytest.approx(losses, rel=1e-5), stage
        assert trained.keys() == values.keys()
        for key, value in values.items():
            assert torch.allclose(trained[key], value, atol=2e-4), (stage, key)
