"""What every test starts from: one thread, and no trace of the launcher that started the tests."""

import os

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # threads of several processes spin against each other on small machines
os.environ.pop("STEERING_FACTORY_COMMAND", None)  # launch.sh's own name in messages; the tests expect the program's
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # seconds say nothing about a busy machine
settings.load_profile("shared machine")
