"""The five claims of Instruction Anchor on rows made up so that each holds, and so that each falls short by one
thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from random import Random

import pytest

from factory.diagnose.claims import judged
from factory.diagnose.summary import Summary
from factory.registry import lookup
from plugins.diagnostics._anchor import CLAIMS

N, LAYERS, HEADS = 40, 6, 10
AS_THE_PAPER = {  # what a number is in shallow and in deep layers
    "strong": (-0.05, -0.9),
    "format": (-0.01, -0.02),
    "generated": (-0.02, -0.05),
    "context": (-0.02, -0.1),
    "ldar": (0.5, 0.98),
    "alike": (0.9, 0.95),
    "attention": (0.01, 0.5),
    "mlp": (-0.1, 0.05),
    "to_answer": 0.2,
    "cues_to_answer": 0.97,
    "blocked": 0.3,
    "blocked_random": 0.97,
    "alone": 0.99,
    "amplified": 0.7,
    "amplified_random": 0.05,
    "arbiter": (LAYERS - 1, 1.0),
    "others": 0.02,
}


def rows_of(diagnostic: str, **world) -> Iterator[dict]:
    w, rng = {**AS_THE_PAPER, **world}, Random(diagnostic)
    noisy = lambda value, spread=0.05: value + rng.gauss(0, spread)
    deep = lambda name, layer: w[name][layer >= LAYERS // 2]
    share = lambda i, p: float((i * 7 % N) < p * N)  # a share p of the samples, spread over them
    for direction in ("vision", "text"):
        for outcome in ("follow", "compete"):
            for i in range(N):
                about = {
                    "sample": f"{outcome}{i}",
                    "form": "open",
                    "direction": direction,
                    "outcome": outcome,
                    "split": "test",
                    "layer": None,
                    "head": None,
                }
                at = lambda metric, value, about=about, **more: {**about, "metric": metric, "value": value, **more}
                if diagnostic == "knockout":
                    paths = {
                        "compliant->instruction": "strong",
                        "compliant->format": "format",
                        "compliant->generated": "generated",
                        "image->context": "context",
                    }
                    yield from (
                        at(metric, noisy(deep(name, layer)), pathway=path, layer=layer)
                        for path, name in paths.items()
                        for layer in range(LAYERS)
                        for metric in ("nssd", "leads")
                    )
                if diagnostic == "logit_lens":
                    for layer in range(LAYERS):
                        right = share(i, deep("ldar", layer)) == (outcome == "follow")
                        yield from (
                            at("f_comply", float(right), layer=layer),
                            at("f_compete", 0.5, layer=layer),
                            at("synchronised", share(i, deep("alike", layer)), layer=layer),
                        )
                if diagnostic == "attribution":
                    yield from (
                        at(f"{part}_{what}", noisy(deep(part, layer)), layer=layer)
                        for part in ("attention", "mlp")
                        for what in ("comply", "compete", "margin")
                        for layer in range(LAYERS)
                    )
                if diagnostic == "heads":
                    layer_of, size = w["arbiter"]
                    for layer in range(LAYERS):
                        for head in range(HEADS):
                            value = (
                                size if (layer, head) in {(layer_of, 0), (layer_of, 1), (layer_of, 2)} else w["others"]
                            )
                            yield from (
                                at("head_margin", noisy(value), layer=layer, head=head, split=split)
                                for split in ("train", "test")
                            )
                if diagnostic == "answer_knockout" and outcome == "follow":
                    cut = {"instruction->generated": "to_answer", "cues->generated": "cues_to_answer"}
                    yield from (at("follows", share(i, w[name]), pathway=path) for path, name in cut.items())
                if diagnostic == "intervention":
                    cell = {"heads": 3, "coefficient": 0.0, "draw": 0, "of": LAYERS * HEADS}
                    if outcome == "follow":
                        yield from (
                            at("follows", share(i, w[name]), **cell, action="block", choice=choice)
                            for choice, name in (("top", "blocked"), ("random", "blocked_random"))
                        )
                        yield at("answers", 1.0, **{**cell, "heads": 0}, action="none", choice="top")
                        yield at("answers", share(i, w["alone"]), **cell, action="block", choice="top")
                    else:
                        cell["coefficient"] = 10.0
                        yield from (
                            at("follows", share(i, w[name]), **cell, action="amplify", choice=choice)
                            for choice, name in (("top", "amplified"), ("random", "amplified_random"))
                        )


NODES = {
    "knockout": {"pathways": ("compliant->instruction", "compliant->format", "compliant->generated", "image->context")},
    "logit_lens": {},
    "attribution": {},
    "heads": {},
    "answer_knockout": {"pathways": ("instruction->generated", "cues->generated")},
    "intervention": {"counts": (3,), "amplified": 3},
}


MADE_OF = {
    "knockout": ("strong", "format", "generated", "context"),
    "logit_lens": ("ldar", "alike"),
    "attribution": ("attention", "mlp"),
    "heads": ("arbiter", "others"),
    "answer_knockout": ("to_answer", "cues_to_answer"),
    "intervention": ("blocked", "blocked_random", "alone", "amplified", "amplified_random"),
}


@cache
def summary(name: str, world: tuple[tuple[str, object], ...]) -> Summary:
    cls = lookup("diagnostic", name)
    return cls(cls.Params(**NODES[name])).summary(list(rows_of(name, **dict(world))))


def verdicts(**world) -> dict[str, bool]:
    summaries = {name: summary(name, tuple((k, v) for k, v in world.items() if k in MADE_OF[name])) for name in NODES}
    return {f.text[: len("anchor 1")]: f.holds for f in judged(summaries)["claims"].findings}


def test_every_claim_holds_in_a_world_as_the_paper_has_it():
    assert verdicts() == dict.fromkeys(CLAIMS, True)


@pytest.mark.parametrize(
    ("broken", "claim"),
    [
        ({"strong": (-0.02, -0.08)}, 1),
        ({"generated": (-0.3, -0.6)}, 1),
        ({"generated": (0.7, 0.7)}, 1),
        ({"format": (-0.3, -0.6)}, 1),
        ({"context": (0.0, -0.7)}, 1),
        ({"ldar": (0.5, 0.9)}, 2),
        ({"ldar": (0.8, 0.98)}, 2),
        ({"alike": (0.8, 0.8)}, 2),
        ({"to_answer": 0.6}, 2),
        ({"cues_to_answer": 0.8}, 2),
        ({"mlp": (0.2, 0.6)}, 3),
        ({"attention": (0.3, 0.5), "mlp": (-0.1, -0.1)}, 4),
        ({"attention": (-0.3, 0.5)}, 4),
        ({"arbiter": (0, 1.0)}, 5),
        ({"others": 0.3}, 5),
        ({"blocked": 0.6}, 5),
        ({"blocked_random": 0.7}, 5),
        ({"alone": 0.8}, 5),
        ({"amplified": 0.3}, 5),
        ({"amplified_random": 0.7}, 5),
    ],
)
def test_each_claim_fails_where_one_thing_falls_short(broken, claim):
    assert not verdicts(**broken)[f"anchor {claim}"]
