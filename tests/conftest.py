"""What every test starts from: one thread, no trace of the launcher that started the tests, and no fetched part."""

import gc
import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from factory.zoo.packages import cache_folder

# Threads of several processes spin against each other on small machines: one for each, and for those that tests start.
# Torch reads it when it is first imported, which is not here: it takes seconds, and not all tests need it.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("STEERING_FACTORY_COMMAND", None)  # launch.sh's own name in messages; the tests expect the program's
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell starts jobs in the background deaf to it, and what they start too
settings.register_profile(
    "shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # seconds say nothing about a busy machine
settings.load_profile("shared machine")

USERS_CACHE = cache_folder()  # what was fetched on this machine; only tests that say so look there
os.environ["STEERING_FACTORY_CACHE"] = tempfile.mkdtemp(prefix="steering-factory-tests-")


def pytest_collection_finish(session):
    """Leave what the imports brought out of every later collection: a training asks for several whole ones, and each
    would go through all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def users_cache(monkeypatch) -> Path:
    """The parts that were fetched on this machine, if any."""
    monkeypatch.setenv("STEERING_FACTORY_CACHE", str(USERS_CACHE))
    return USERS_CACHE


@pytest.fixture(autouse=True)
def shared_models_are_left_as_found():
    """Which tests share a process changes from machine to machine; what one leaves on a shared model fails another."""
    yield
    if (shared := sys.modules.get("tests.tiny_families")) is None:
        return
    for i, (view, found) in enumerate(shared.KEPT):
        now = shared.outline(view)
        shared.KEPT[i] = (view, now)
        assert now == found, f"this test left a shared {type(view.model).__name__} changed"
