"""What every test starts from: one thread, and no trace of the launcher that started the tests."""

import os

import torch

torch.set_num_threads(1)  # threads of several processes spin against each other on small machines
os.environ.pop("STEERING_FACTORY_COMMAND", None)  # launch.sh's own name in messages; the tests expect the program's
