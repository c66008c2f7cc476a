"""What every test starts from: one thread, no trace of the launcher that started the tests, and no fetched part."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

from factory.model.packages import cache_folder

torch.set_num_threads(1)  # threads of several processes spin against each other on small machines
os.environ.pop("STEERING_FACTORY_COMMAND", None)  # launch.sh's own name in messages; the tests expect the program's

USERS_CACHE = cache_folder()  # what was fetched on this machine; only tests that say so look there
os.environ["STEERING_FACTORY_CACHE"] = tempfile.mkdtemp(prefix="steering-factory-tests-")


@pytest.fixture
def users_cache(monkeypatch) -> Path:
    """The parts that were fetched on this machine, if any."""
    monkeypatch.setenv("STEERING_FACTORY_CACHE", str(USERS_CACHE))
    return USERS_CACHE
