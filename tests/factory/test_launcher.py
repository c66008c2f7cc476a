"""What starts the ranks: the launcher's command, the hosts, and what it says when ranks end in silence."""

from __future__ import annotations

import base64
import json
import os
import socket
import sys

import pytest

from factory.errors import UserError
from factory.launch import launcher
from factory.launch.world import SAID
from factory.recipe.schema import LaunchSpec, ModelSpec

CPU = ModelSpec(zoo="tiny", device="cpu")


@pytest.fixture
def started(monkeypatch):
    """The commands and environments that were started, by a stand-in that ends at once."""
    seen, end = [], {"code": 0, "said": False}

    class Popen:
        def __init__(self, command, env, start_new_session):
            seen.append((command, env))
            if end["said"]:
                open(env[SAID], "w").close()

        def wait(self, timeout=None):
            return end["code"]

    monkeypatch.setattr(launcher.subprocess, "Popen", Popen)
    return seen, end


def world_of(command):
    return json.loads(
        base64.urlsafe_b64decode(next(word for word in command if word.startswith("--world_info=")).partition("=")[2])
    )


def test_a_rank_or_a_single_process_starts_nobody(monkeypatch):
    assert not launcher.wanted(LaunchSpec())
    assert launcher.wanted(LaunchSpec(processes=2)) and launcher.wanted(LaunchSpec(hostfile="hosts"))
    monkeypatch.setenv("RANK", "1")
    assert not launcher.wanted(LaunchSpec(processes=2))


def test_the_command_line_is_handed_on_unsplit_to_ranks_on_the_cpu(started, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert launcher.launch(LaunchSpec(processes=3), CPU, ["run", "a b.yaml", "x=[1, 2]"]) == 0
    ((command, env),) = started[0]
    assert command[:3] == [sys.executable, "-m", "deepspeed.launcher.launch"] and command[-4:] == [
        "factory.cli",
        "run",
        "a b.yaml",
        "x=[1, 2]",
    ]
    assert world_of(command) == {"localhost": [0, 1, 2]}
    assert env["DS_ACCELERATOR"] == "cpu" and int(env["OMP_NUM_THREADS"]) == max(1, os.cpu_count() // 3)


def test_ranks_take_the_gpus_that_are_visible(started, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)  # what DeepSpeed was told in this process before
    launcher.launch(LaunchSpec(processes=2), ModelSpec(zoo="tiny"), ["run"])
    assert world_of(started[0][0][0]) == {"localhost": [4, 6]} and "DS_ACCELERATOR" not in started[0][0][1]
    with pytest.raises(UserError, match=r"launch\.processes: 4 are asked for, and this machine has 3 GPU"):
        launcher.launch(LaunchSpec(processes=4), ModelSpec(zoo="tiny"), ["run"])


@pytest.mark.parametrize(
    ("code", "said", "returned", "told"),
    [
        (0, False, 0, ""),
        (2, False, 2, ""),
        (247, True, 1, ""),
        (247, False, 1, "error: the ranks ended without a word (exit code 247)"),
    ],
)
def test_the_exit_code_is_the_ranks_and_silence_is_told(started, capsys, code, said, returned, told):
    started[1].update(code=code, said=said)
    assert launcher.launch(LaunchSpec(processes=2), CPU, ["run"]) == returned
    assert capsys.readouterr().err.startswith(told) and (told or not capsys.readouterr().err)


def test_a_hostfile_is_read_and_its_mistakes_are_told(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# two hosts\n\none slots=2\ntwo  slots=8 # big\n")
    assert launcher.read_hostfile(path, 2) == ["one", "two"]
    with pytest.raises(UserError, match=r"hosts:3: one has 2 slots for launch\.processes=4"):
        launcher.read_hostfile(path, 4)
    path.write_text("one 2\n")
    with pytest.raises(UserError, match=r"hosts:1: should read HOST slots=N, not 'one 2'"):
        launcher.read_hostfile(path, 1)
    path.write_text("\n")
    with pytest.raises(UserError, match="names no host"):
        launcher.read_hostfile(path, 1)
    with pytest.raises(UserError, match="cannot be read"):
        launcher.read_hostfile(tmp_path / "none", 1)


def test_this_host_alone_needs_no_ssh_and_others_need_pdsh(started, tmp_path, monkeypatch):
    path = tmp_path / "hosts"
    path.write_text(f"{socket.gethostname()} slots=2\n")
    launcher.launch(LaunchSpec(processes=2, hostfile=str(path)), CPU, ["run"])
    assert "deepspeed.launcher.launch" in started[0][0][0]
    path.write_text("one slots=2\ntwo slots=2\n")
    monkeypatch.setattr(launcher.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="pdsh, and that is not installed"):
        launcher.launch(LaunchSpec(processes=2, hostfile=str(path)), CPU, ["run"])
    monkeypatch.setattr(launcher.shutil, "which", lambda name: name)
    launcher.launch(LaunchSpec(processes=2, hostfile=str(path)), CPU, ["run"])
    assert {"deepspeed.launcher.runner", f"--hostfile={path}", "--num_gpus=2"} <= set(started[0][-1][0])
