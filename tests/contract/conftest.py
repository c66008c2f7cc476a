"""Parametrises the contract tests over every plugin that is registered, out-of-tree ones included."""

from __future__ import annotations

import pytest

from tests.contract.cases import (
    Case,
    acting_cases,
    classes,
    diagnostics,
    logits_methods,
    prefix_diagnostics,
    prompt_methods,
    sites,
    steerer_cases,
)
from tests.tiny import tiny_view


def label(value: object) -> str:
    return f"{value[0]}-layer{value[1]}" if isinstance(value, tuple) and not isinstance(value, Case) else str(value)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    sources = {
        "case": lambda: steerer_cases(),
        "option_case": lambda: steerer_cases(with_options=True),
        "acting_case": acting_cases,
        "site": sites,
        "prompt_method": prompt_methods,
        "logits_method": logits_methods,
        "diagnostic_name": lambda: diagnostics(asks=False),
        "prefix_diagnostic": prefix_diagnostics,
        "asking_diagnostic": lambda: diagnostics(asks=True),
        "tuner_name": lambda: list(classes("tuner")),
    }
    for name, source in sources.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, source(), ids=label)


@pytest.fixture
def view():
    return tiny_view()
