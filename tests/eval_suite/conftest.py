"""What the playground's tests share: a session on the tiny model, one for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from eval_suite.play.session import Session
    from factory.model.view import ModelView


@pytest.fixture(scope="module")
def view() -> ModelView:
    from factory.model.load import load
    from tests.eval_suite.play_session import SPEC

    return load(SPEC)


@pytest.fixture(scope="module")
def session(view: ModelView) -> Iterator[Session]:
    from tests.eval_suite.play_session import playing

    made = playing(view)
    yield made
    made.close()
