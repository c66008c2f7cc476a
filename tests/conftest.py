"""One thread per test process: torch's threads spin against each other on small machines."""

import torch

torch.set_num_threads(1)
