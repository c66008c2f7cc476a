"""A session for tests: the tiny model pushed by a fixed vector, an instruction and a decoding method."""

from __future__ import annotations

from dataclasses import replace

import torch

from eval_suite.play.methods import Methods, Offer, unfitted
from eval_suite.play.session import Answers, Asked, Session
from factory.model.view import ModelView
from factory.recipe.nodes import read_node
from factory.recipe.schema import ModelSpec
from factory.steer import Steering, Where

SPEC = ModelSpec(zoo="tiny")
SCENES = {"type": "scenes", "scoring": "open_ended", "per_task": {"test": 2}}
STRENGTHS = (0.0, 2.0, 8.0, 30.0)


def vector(view: ModelView, role: str = "all", sign: float = 1) -> Steering:
    """A steering of block 4 that turns answers when it is strong."""
    v = sign * torch.randn(view.width, generator=torch.Generator().manual_seed(3))
    return Steering(read_node("steering", "static").make(), {"v": v}, Where(layer=4, role=role))


def playing(view: ModelView) -> Session:
    """A session on two samples of each task."""
    nodes = [read_node("steering", name) for name in ("instruction", "vcd", "few_shot")]
    toward = {"vision": vector(view), "text": vector(view, sign=-1)}
    pushed = {side: (lambda made=made: made) for side, made in toward.items()}
    on_image = Offer("image", {"vision": lambda: vector(view, "image")}, {"vision": 1.0})
    offers = [Offer("push", pushed, {"vision": 1.0, "text": 1.0}), on_image, *unfitted(nodes)]
    benchmark, mcr = (read_node(*each).make() for each in (("benchmark", SCENES), ("diagnostic", "mcr")))
    return Session(view, benchmark, Methods(offers), mcr, model=SPEC, max_new_tokens=6, most=30.0)


def asked(session: Session, **more: object) -> Asked:
    """The first sample under the pushing vector."""
    return replace(session.asked(next(iter(session.samples)), "push"), **more)


def last(session: Session, question: Asked) -> Answers:
    """Both answers, whole."""
    return list(session.answers(question))[-1]
