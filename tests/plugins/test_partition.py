"""The diagnostic of parted representations, against angles between subspaces written out, and what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from factory.model.load import load
from factory.recipe.schema import ModelSpec
from factory.registry import lookup
from factory.tune.parted import Parting
from tests.tiny import conflict_prompts, fresh_view, mixed_prompts


def diagnostic(**options):
    cls = lookup("diagnostic", "partition")
    return cls(cls.Params(**options))


def parted(seed=0):
    view, cls = fresh_view(), lookup("tuner", "pgm")
    tuner = cls(cls.Params(rank=3, gate_rank=2))
    tuner.apply(view)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in tuner.partition.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=rng))
    view.parts.append(tuner)
    return view, tuner


def angle(U, P, k):
    """Mean principal angle in degrees by the recursive definition: the closest pair of directions, then the next."""
    bases = []
    for part in (U, P):
        values, vectors = np.linalg.eigh(part.T @ part)
        bases.append(vectors[:, np.argsort(values)[::-1][:k]])
    A, B = bases
    found = []
    for _ in range(k):
        values, vectors = np.linalg.eigh(A.T @ B @ B.T @ A)
        y = B.T @ A @ vectors[:, -1]  # the nearest direction of the other, in its own basis
        found.append(math.degrees(math.acos(min(1.0, float(np.linalg.norm(y))))))
        A = A @ vectors[:, :-1]
        rest = np.linalg.qr(np.column_stack([y / np.linalg.norm(y), np.eye(len(y))]))[0]
        B = B @ rest[:, 1 : len(y)]
    return sum(found) / k


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0])
def test_planes_at_a_known_angle(degrees):
    turned = math.radians(degrees)
    U = torch.tensor([[2.0, 0, 0, 0], [0, 1.0, 0, 0]]).double()
    P = torch.tensor(
        [[3 * math.cos(turned), 0, 3 * math.sin(turned), 0], [0, math.cos(turned), 0, math.sin(turned)]]
    ).double()
    assert float(diagnostic(directions=2).angles(U, P)) == pytest.approx(degrees, abs=1e-5)


def test_every_number_is_its_formula():
    view, tuner = parted()
    prompts = mixed_prompts()
    keys = [f"p{i}" for i in range(len(prompts))]
    batch = view.encode(prompts)
    rows = diagnostic(directions=3).measure(view, batch, keys)
    found = {(r["sample"], r["metric"]): r["value"] for r in rows}
    image = batch.roles == 3
    assert {sample for sample, metric in found if metric == "share_image"} == {
        key for key, has in zip(keys, image.any(1).tolist(), strict=True) if has
    }, "a prompt without a picture has no number of it"
    for m, parting in tuner.partings(view, batch).items():
        for i, key in enumerate(keys):
            at = parting.at[i]
            if not at.any():
                continue
            pick = lambda t, i=i, at=at: t[i][at].double().numpy()
            h, g, u, p, read = map(pick, (parting.h, parting.gate, parting.u, parting.p, parting.read))
            n = len(h)
            expected = {
                "share": g.mean(),
                "energy": sum(a @ a / (a @ a + b @ b) for a, b in zip(u, p, strict=True)) / n,
                "error": sum(((a - b) ** 2).sum() / (a @ a) for a, b in zip(h, read, strict=True)) / n,
                "overlap": sum((a @ b) ** 2 / ((a @ a) * (b @ b)) for a, b in zip(u, p, strict=True)) / n,
            }
            for name, value in expected.items():
                assert found[key, f"{name}_{m}"] == pytest.approx(value, rel=1e-5), (key, name, m)
            assert found[key, f"angle_{m}"] == pytest.approx(angle(u, p, 3), abs=0.05)


def test_parts_that_share_no_dimension_stand_at_right_angles():
    h = torch.randn(1, 7, 8)
    gate = torch.tensor([1.0] * 4 + [0.0] * 4).expand_as(h)
    found = diagnostic(directions=3).numbers(
        Parting(h, gate, gate * h, (1 - gate) * h, h, torch.ones(1, 7, dtype=torch.bool))
    )
    assert float(found["angle"]) == pytest.approx(90.0) and float(found["overlap"]) == 0.0
    assert float(found["share"]) == 0.5 and float(found["error"]) == 0.0


def test_a_model_that_parts_nothing_says_nothing():
    view = fresh_view()
    assert diagnostic().measure(view, view.encode(conflict_prompts(2)), ["a", "b"]) == []
    assert diagnostic().beside({"none": []}, {}) is None


def test_it_says_each_modality_by_task():
    rows = [
        {"sample": f"{task}{i}", "task": task, "metric": f"{metric}_{m}", "layer": None, "head": None, "value": value}
        for task, level in {"color": 0.2, "shape": 0.6}.items()
        for i, value in enumerate((level - 0.1, level + 0.1))
        for m in ("image", "text")
        for metric in ("share", "energy", "error", "overlap", "angle")
    ]
    summary = diagnostic().beside({"none": [], "mine": rows}, {"mine": 10})
    [finding] = summary.findings
    assert finding.values["mine/share_image/all"] == pytest.approx(0.4)
    assert finding.values["mine/share_text/color"] == pytest.approx(0.2)
    assert "mine calls 40.0 % of the image (of its squared length 20.0 to 60.0 % by task)" in finding.text
    assert "4 prompts" in finding.text and summary.leads
    [table] = summary.tables
    assert table.columns == ("modality", "what", "all", "color", "shape") and len(table.rows) == 10


def test_a_saved_part_is_found_on_a_loaded_model(tmp_path):
    from factory import tune

    spec = ModelSpec(zoo="tiny")
    view, cls = load(spec), lookup("tuner", "pgm")
    tuner = cls(cls.Params(rank=2))
    tuner.apply(view)
    tune.save(tmp_path / "tuned", tuner, view)
    again = load(ModelSpec(zoo="tiny", tuned=(str(tmp_path / "tuned"),)))
    rows = diagnostic().measure(again, again.encode(conflict_prompts(1)), ["one"])
    assert {r["metric"]: r["value"] for r in rows}["share_image"] == pytest.approx(0.5, abs=0.1)
