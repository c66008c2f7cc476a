"""A model cut over the ranks with DeepSpeed's ZeRO-3, for one that no single GPU holds. Inference and inner gradients
only.

Each rank keeps its part of every matrix; a module's weights are put together just before it runs and let go after it,
so all ranks have to run the same forwards. Callers work on the engine's module, as on any model: a gradient taken
through the engine itself (``torch.autograd.grad``) is wrong.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from factory.model.family import frozen

VECTORS = 4  # times the model's width: what has fewer numbers (norms, biases) stays whole on every rank


def cut_over_ranks(model: nn.Module) -> bool:
    """Whether a model is cut so, of which every rank has to run the same forwards."""
    return any(hasattr(p, "ds_id") for p in model.parameters())


def load_cut(read: Callable[[], nn.Module], config: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The frozen model that ``read`` loads with ``from_pretrained``, cut over the ranks while its files are read."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = (
        False  # its compilation would take minutes, for the CPU alone
    )
    deepspeed.logger.setLevel("ERROR")
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    deepspeed.init_distributed()
    warnings.filterwarnings(
        "ignore", "`torch.distributed.all_gather_into_tensor` is deprecated", FutureWarning
    )  # DeepSpeed's own call
    whole_below = VECTORS * config.get_text_config().hidden_size
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": whole_below,
            "memory_efficient_linear": False,
        },  # that product rounds otherwise
    }
    cutting = HfDeepSpeedConfig(settings)  # from_pretrained cuts as long as this lives
    model = frozen(read())
    del cutting
    engine = deepspeed.initialize(model=model, config=settings)[0]
    # The hook records the order of modules from one forward to the next; here passes start anywhere.
    engine.optimizer.fwd_pre_hook.remove()
    return engine.module.eval()


@contextmanager
def whole(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor of a model's state, put together from all ranks where it is cut. All ranks enter together."""
    if not hasattr(tensor, "ds_id"):
        yield tensor
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(tensor):
        yield tensor
