"""Starting the ranks of a recipe with the DeepSpeed launcher: on this machine, or on all hosts of a hostfile."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from factory.errors import UserError
from factory.launch.world import CONTINUE, LAUNCHER, SAID
from factory.recipe.schema import LaunchSpec, ModelSpec

KNOWN_CODES = (0, 1, 2, 130)
GRACE = 40.0  # the DeepSpeed launcher gives its processes 30 s to end
SLOTS = re.compile(r"(\S+)\s+slots=(\d+)\s*(#.*)?")


def wanted(spec: LaunchSpec) -> bool:
    """Whether this process has to start ranks, rather than being one or being enough."""
    return (spec.processes > 1 or spec.hostfile is not None) and "RANK" not in os.environ


def launch(spec: LaunchSpec, model: ModelSpec, argv: Sequence[str]) -> int:
    """Run the command line ``argv`` in ``spec.processes`` ranks on every host; returns the exit code of the run.

    An interruption (Ctrl-C) is passed on to all ranks and raised again. Raises ``UserError`` where a host has too few
    GPUs or slots, or where several hosts are named and pdsh is missing.
    """
    local, gpus = seats(spec, model)
    env = dict(os.environ)
    if local and not gpus:
        env["DS_ACCELERATOR"] = "cpu"
        env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // spec.processes)))
    if sys.flags.safe_path:
        env["PYTHONSAFEPATH"] = "1"
    env[LAUNCHER] = f"{os.getpid()}@{socket.gethostname()}"
    command = _on_this_machine(gpus or list(range(spec.processes))) if local else _on_hosts(spec)
    with tempfile.TemporaryDirectory() as folder:
        env[SAID] = str(Path(folder, "said"))
        code = _watched(subprocess.Popen([*command, "factory.cli", *argv], env=env, start_new_session=True))
        if code not in KNOWN_CODES and not Path(env[SAID]).exists():
            print(
                f"error: the ranks ended without a word (exit code {code}), as when all are killed or memory is short;"
                f" {CONTINUE}",
                file=sys.stderr,
            )
    return code if code in KNOWN_CODES else 1


def seats(spec: LaunchSpec, model: ModelSpec) -> tuple[bool, list[int]]:
    """Whether all ranks run on this machine, and then the GPUs that they take. Raises ``UserError`` where a host has
    too few GPUs or slots, or where several hosts are named and pdsh is missing.
    """
    hosts = read_hostfile(Path(spec.hostfile), spec.processes) if spec.hostfile else ["localhost"]
    here = {"localhost", "127.0.0.1", socket.gethostname(), socket.getfqdn()}
    local = len(hosts) == 1 and hosts[0] in here
    if not local and shutil.which("pdsh") is None:
        raise UserError(
            f"launch.hostfile: {spec.hostfile} names other hosts, which the DeepSpeed launcher reaches through pdsh,"
            " and that is not installed. Install it, or start torchrun on each host"
        )
    return local, _gpus(model, spec.processes) if local else []


def read_hostfile(path: Path, processes: int) -> list[str]:
    """The hosts of a hostfile (lines ``HOST slots=N``). Raises ``UserError`` for a missing file, a wrong line or too
    few slots.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"launch.hostfile: {path} cannot be read: {error.strerror}") from error
    hosts = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = SLOTS.fullmatch(line.strip())
        if not found:
            raise UserError(f"{path}:{number}: should read HOST slots=N, not '{line.strip()}'")
        if int(found[2]) < processes:
            raise UserError(
                f"{path}:{number}: {found[1]} has {found[2]} slots for launch.processes={processes} on each host"
            )
        hosts.append(found[1])
    if not hosts:
        raise UserError(f"launch.hostfile: {path} names no host; a line reads HOST slots=N")
    return hosts


def _gpus(model: ModelSpec, processes: int) -> list[int]:
    """The GPUs that the ranks take, one each; none where the run is on the CPU."""
    if model.device == "cpu":
        return []
    import torch

    there = torch.cuda.device_count()
    if 0 < there < processes:
        raise UserError(
            f"launch.processes: {processes} are asked for, and this machine has {there} GPU(s); lower it, or set"
            " model.device=cpu"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = [int(i) for i in visible.split(",")] if visible and re.fullmatch(r"\d+(,\d+)*", visible) else range(there)
    return list(ids)[:processes]


def _on_this_machine(slots: Sequence[int]) -> list[str]:
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(slots)}).encode()).decode()
    return [
        sys.executable,
        "-m",
        "deepspeed.launcher.launch",
        f"--world_info={world}",
        "--master_addr=127.0.0.1",
        f"--master_port={free_port()}",
        "--module",
        "--no_local_rank",
        "--log_level=critical",
    ]


def _on_hosts(spec: LaunchSpec) -> list[str]:
    return [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        f"--hostfile={spec.hostfile}",
        f"--num_gpus={spec.processes}",
        "--force_multi",
        "--module",
        "--no_local_rank",
        "--log_level=critical",
    ]


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _watched(process: subprocess.Popen) -> int:
    """The exit code of the launcher. It has a session of its own, so that Ctrl-C reaches it through here alone."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(GRACE)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(process.pid, signal.SIGKILL)
        raise
