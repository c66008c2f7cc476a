"""DeepSpeed by name: its configuration from a recipe's ``launch`` section, and its weights put together again."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from factory.launch.launcher import free_port
from factory.recipe.schema import LaunchSpec


def world_size() -> int:
    """Ranks that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the rank that writes."""
    return os.environ.get("RANK", "0") == "0"


def configuration(launch: LaunchSpec) -> dict[str, Any] | None:
    """DeepSpeed's configuration; None for one process without ZeRO, which needs no DeepSpeed.

    The optimiser is the Trainer's own in every stage, so that all stages follow one trajectory. Values "auto" are the
    Trainer's.
    """
    if world_size() == 1 and launch.zero == 0:
        return None
    zero: dict[str, Any] = {"stage": launch.zero}
    if launch.zero == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = False
    if "optimizer" in launch.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if "parameters" in launch.offload:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def ready_deepspeed(cpu: bool, used: bool) -> None:
    """Make DeepSpeed usable here: without a launcher it needs a world of one, and on the CPU its shared-memory
    operation would be compiled for minutes to no avail."""
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not used:
        return
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"torch\.distributed\."
    )  # names that DeepSpeed still uses
    logging.getLogger("accelerate.accelerator").setLevel(
        logging.ERROR
    )  # it warns that DeepSpeed counts the accumulation steps, as it is told to
    if "RANK" not in os.environ:
        alone = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
        }
        os.environ.update({k: v for k, v in alone.items() if k not in os.environ})
    if cpu:
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def whole_values(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The values of parameters on the CPU, put together where ZeRO-3 has cut them over the ranks; all ranks must call
    it.
    """
    if not any(hasattr(p, "ds_id") for p in parameters.values()):
        return {name: p.detach().cpu().clone() for name, p in parameters.items()}
    import deepspeed

    values = {}
    for name, p in parameters.items():
        with deepspeed.zero.GatheredParameters([p]), torch.no_grad():
            values[name] = p.detach().cpu().clone()
    return values


def save(engine: Any, folder: str) -> None:
    """Write an engine's state to ``folder``, without frozen weights; all ranks must call it."""
    engine.save_checkpoint(folder, exclude_frozen_parameters=True)
    for script in ("zero_to_fp32.py", "zero_to_torch.py") if is_first() else ():
        (Path(folder) / script).unlink(missing_ok=True)  # DeepSpeed's, and they would unpickle whatever they find


def load(engine: Any, folder: str) -> None:
    """Read what ``save`` wrote. Raises ``pickle.UnpicklingError`` for anything that is not data: DeepSpeed's own reader
    would run it.
    """
    engine.checkpoint_engine = data_only(engine.checkpoint_engine)
    deepspeed_load_checkpoint(engine, folder, load_module_strict=False)  # frozen weights are not in it


def data_only(usual: Any) -> Any:
    """A checkpoint engine of DeepSpeed that takes tensors, plain values and the records of its optimisers alone."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    def member(of: Any, name: str) -> ZeroStageEnum:
        if of is not ZeroStageEnum or name not in ZeroStageEnum.__members__:
            raise UnpicklingError(f"{name} of {of} is no stage of ZeRO")
        return ZeroStageEnum[name]

    # Python 3.11.0 to 3.11.3 write a member of an enumeration as getattr(its class, its name).
    data = [LossScaler, ZeroStageEnum, fragment_address, (member, "builtins.getattr")]

    class DataOnly(TorchCheckpointEngine):
        def load(self, path: str, map_location: Any = None) -> Any:
            with torch.serialization.safe_globals(data):
                return torch.load(path, map_location=map_location, weights_only=True)

    reader = DataOnly()
    reader.__dict__.update(vars(usual))
    return reader
