"""Token choice against a slow obvious reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from factory.data.prompt import Role
from factory.steer.where import ROLES, Where

takes = st.one_of(
    st.just("all"),
    st.builds("{}:{}".format, st.sampled_from(["first", "last", "uniform", "from"]), st.integers(0, 12)),
    st.builds("ratio:{}".format, st.sampled_from([".1", "0.25", "0.333", "0.5", "0.9", "1", "1.0"])),
)
rows_of_roles = st.integers(1, 14).flatmap(
    lambda n: st.lists(
        st.lists(st.sampled_from([0, 0, 1, 3, 3, 4, 4, 5, 6, 7, 8]), min_size=n, max_size=n), min_size=1, max_size=4
    )
)


def reference(roles: list[int], role: str, take: str) -> list[bool]:
    """One row at a time, by lists of positions."""
    at = [i for i, r in enumerate(roles) if r in [int(x) for x in ROLES[role]]]
    n = len(at)
    kind, _, value = take.partition(":")
    if kind == "first":
        at = at[: int(value)]
    elif kind == "from":
        at = at[int(value) :]
    elif kind == "last":
        at = at[max(0, n - int(value)) :]
    elif kind in ("uniform", "ratio") and n:
        k = int(value) if kind == "uniform" else math.ceil(float(torch.tensor(n) * float(value)))
        k = max(1, min(k, n))
        at = [at[i * n // k] for i in range(k)]
    return [i in at for i in range(len(roles))]


@given(rows_of_roles, st.sampled_from(list(ROLES)), takes)
def test_every_form_is_what_a_plain_loop_picks(rows, role, take):
    mask = Where(role=role, take=take).mask(torch.tensor(rows))
    assert mask.tolist() == [reference(row, role, take) for row in rows]


@given(rows_of_roles, st.sampled_from(list(ROLES)), takes, st.integers(1, 5))
def test_padding_on_either_side_changes_no_choice(rows, role, take, extra):
    where, roles = Where(role=role, take=take), torch.tensor(rows)
    chosen, padding = where.mask(roles), torch.zeros(len(rows), extra, dtype=torch.long)
    assert torch.equal(where.mask(torch.cat([padding, roles], 1))[:, extra:], chosen)
    assert torch.equal(where.mask(torch.cat([roles, padding], 1))[:, :-extra], chosen)
    assert not chosen[roles == Role.PAD].any(), "padding is never steered"


@pytest.mark.parametrize(
    "take, expected",
    [
        ("all", "01111110"),
        ("first:2", "01100000"),
        ("last:2", "00000110"),
        ("from:4", "00000110"),
        ("uniform:3", "01010100"),
        ("uniform:4", "01101100"),
        ("uniform:1", "01000000"),
        ("ratio:0.5", "01010100"),
        ("uniform:99", "01111110"),
        ("last:0", "00000000"),
        ("first:1+last:2", "01000110"),
        ("first:4+last:5", "01111110"),
        ("uniform:2+last:1", "01001010"),
    ],
)
def test_by_hand(take, expected):
    roles = torch.tensor([[1, 3, 3, 3, 3, 3, 3, 0]])
    assert "".join(str(int(x)) for x in Where(role="image", take=take).mask(roles)[0]) == expected


@pytest.mark.parametrize(
    "take",
    [
        "",
        "some",
        "first",
        "first:",
        "first:-1",
        "first:1.5",
        "ratio:0",
        "ratio:1.5",
        "ratio:2",
        "uniform:x",
        "all:3",
        "last:3 ",
        "first:1+",
        "first:1++last:1",
    ],
)
def test_unknown_forms_are_refused(take):
    with pytest.raises(ValidationError):
        Where(take=take)


def test_unknown_keys_roles_and_layers_are_refused():
    for wrong in ({"role": "picture"}, {"layer": -1}, {"layers": 3}, {"layers": ()}, {"layers": (1, 1)}):
        with pytest.raises(ValidationError):
            Where(**wrong)
