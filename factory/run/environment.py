"""What a run ran on: library versions, machine and the project's commit, as a plain dict for environment.json; and what
a run was.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from factory.data.pictures import PROTOCOL
from factory.model.load import fingerprint
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.run.inputs import made_from
from factory.run.labels import labels

PROJECT = Path(__file__).resolve().parents[2]
LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pillow",
    "pydantic",
)


def about_run(recipe: Recipe, view: ModelView, notes: Sequence[str]) -> dict[str, Any]:
    """Which recipe, model and libraries a run had, and what has to be known beside its numbers."""
    source = recipe.source_path.name if recipe.source_path else recipe.name
    model = {"class": type(view.model).__name__, "fingerprint": fingerprint(view)}
    return {
        "name": recipe.name,
        "recipe": source,
        "seed": recipe.seed,
        "model": model,
        "pictures": PROTOCOL,
        "libraries": environment()["libraries"],
        "notes": list(notes),
        **asdict(labels(recipe)),
        "made_from": made_from(recipe),
    }


def environment() -> dict[str, Any]:
    """JSON-able: python, platform, libraries (None where not installed), cpu, gpus, cuda, git (None outside git)."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count(), "memory_gib": _memory_gib()},
        "torch_threads": torch.get_num_threads(),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "git": _git(),
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}


def _git() -> dict[str, Any] | None:
    # Without its own .git the project may lie inside someone else's repository, whose commit says nothing about it.
    if not (PROJECT / ".git").exists():
        return None
    commit = _git_output("rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(_git_output("status", "--porcelain"))} if commit else None


def _git_output(*arguments: str) -> str | None:
    try:
        command = ["git", "--no-optional-locks", "-C", str(PROJECT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
