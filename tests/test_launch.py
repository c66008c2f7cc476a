"""The one door: what launch.sh sets up, when it leaves everything alone, and what it hands on.

Set-ups run against a stand-in interpreter, so that no test installs anything; an active environment is the real one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = (
    "bash",
    "cat",
    "cksum",
    "dirname",
    "env",
    "flock",
    "mkdir",
    "rm",
    "sleep",
    "tail",
    "touch",
    "cp",
    "printf",
    "nproc",
)
STAND_IN = """\
#!/usr/bin/env bash
# An interpreter that makes environments of itself, notes its pip installs, and shows what the program would be given.
case "$*" in
    -c*) exit 0 ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo "version = 3.11" >"$3/pyvenv.cfg" ;;
    "-m pip --version") exit 0 ;;
    "-I -"*) grep -qF "[$4]" "$NOTES" || echo "${LACKS:-}" ;;
    "-m pip install"*) echo "$*" >>"$NOTES"; eval "${PIP_DOES:-true}" ;;
    "-P -m factory.cli"*)
        echo "threads ${OMP_NUM_THREADS:-unset}"; shift 3; printf '<%s>' "$@"; echo; exit "${PROGRAM_EXITS:-0}" ;;
esac
"""


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of what launch.sh reads, in a folder whose name has spaces."""
    folder = tmp_path / "a project"
    folder.mkdir()
    for name in ("launch.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for room in ("factory", "plugins", "eval_suite", "model_zoo"):
        (folder / room).symlink_to(ROOT / room)
    stand_in = tmp_path / "stand-in python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    return folder


def environment(project: Path, **settings: str) -> dict[str, str]:
    bare = {
        key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "CONDA_PREFIX", "OMP_NUM_THREADS")
    }
    return (
        bare
        | {"PYTHON": str(project.parent / "stand-in python"), "NOTES": str(project.parent / "pip calls")}
        | settings
    )


def launch(project: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess:
    command = ["bash", str(project / "launch.sh"), *arguments]
    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    return subprocess.run(
        command,
        cwd=elsewhere,
        env=environment(project, **settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def pip_calls(project: Path) -> list[str]:
    notes = project.parent / "pip calls"
    return notes.read_text().splitlines() if notes.exists() else []


def test_first_start_sets_up_with_the_pins_and_later_starts_do_not(project):
    first = launch(project, "list")
    assert first.returncode == 0
    assert "setting up .venv" in first.stderr
    (call,) = pip_calls(project)
    assert f"-c {project}/constraints.txt -e {project}[test]" in call
    second = launch(project, "list")
    assert (second.returncode, second.stderr) == (0, "")
    assert len(pip_calls(project)) == 1


def test_arguments_and_exit_code_are_passed_on_unsplit(project):
    done = launch(
        project, "recipes/a b.yaml", "model.path=/x  y", "evaluate.strengths=[1, 2]", "", "*", PROGRAM_EXITS="2"
    )
    assert done.stdout.splitlines()[1] == "<recipes/a b.yaml><model.path=/x  y><evaluate.strengths=[1, 2]><><*>"
    assert done.returncode == 2


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml"])
def test_changed_requirements_are_installed_into_the_same_environment(project, name):
    launch(project)
    (project / ".venv" / "kept").touch()
    (project / name).write_text((project / name).read_text() + "# changed\n")
    launch(project)
    assert len(pip_calls(project)) == 2
    assert (project / ".venv" / "kept").exists()


@pytest.mark.parametrize("command", ["play", "serve", "docs"])
def test_a_command_brings_what_it_needs_at_its_first_use_and_once(project, command):
    launch(project)
    first = launch(project, command, "an argument", LACKS="it lacks something")
    assert first.returncode == 0 and first.stdout.splitlines()[1] == f"<{command}><an argument>"
    assert f"installing what {command} needs" in first.stderr
    _, call = pip_calls(project)
    assert f"-c {project}/constraints.txt -e {project}[{command}]" in call
    second = launch(project, command, LACKS="it lacks something")
    assert (second.returncode, second.stderr) == (0, "") and len(pip_calls(project)) == 2


@pytest.mark.parametrize("arguments", [["play", "--help"], ["list", "play"], ["play"]])
def test_nothing_is_brought_for_help_for_other_commands_or_where_all_is_there(project, arguments):
    launch(project)
    lacks = {} if arguments == ["play"] else {"LACKS": "it lacks something"}
    done = launch(project, *arguments, **lacks)
    assert (done.returncode, done.stderr) == (0, "") and len(pip_calls(project)) == 1


def test_what_could_not_be_brought_is_told_with_the_end_of_the_log_and_tried_again(project):
    launch(project)
    failed = launch(project, "play", LACKS="it lacks gradio", PIP_DOES="echo 'no route to host'; false")
    assert failed.returncode == 1 and failed.stdout == ""
    assert "installing what play needs failed" in failed.stderr and "no route to host" in failed.stderr
    assert launch(project, "list").returncode == 0, "nothing else is lost"
    assert launch(project, "play", LACKS="it lacks gradio").returncode == 0


def test_moved_project_is_set_up_again(project):
    launch(project)
    moved = project.rename(project.with_name("moved"))
    launch(moved)
    assert len(pip_calls(project)) == 2


def test_failed_set_up_shows_the_end_of_the_log_and_is_redone(project):
    failed = launch(project, PIP_DOES="echo 'No space left on device'; false")
    assert failed.returncode == 1
    assert "the set-up failed" in failed.stderr
    assert "No space left on device" in failed.stderr
    assert failed.stdout == ""
    (project / ".venv" / "left over").touch()
    assert launch(project).returncode == 0
    assert not (project / ".venv" / "left over").exists()
    assert len(pip_calls(project)) == 2


def test_set_up_killed_half_way_is_redone(project):
    command = ["bash", str(project / "launch.sh")]
    started = subprocess.Popen(command, env=environment(project, PIP_DOES="sleep 60"), start_new_session=True)
    deadline = time.monotonic() + 30
    while not pip_calls(project) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    (project / ".venv" / "left over").touch()
    assert launch(project).returncode == 0
    assert not (project / ".venv" / "left over").exists()
    assert launch(project).stderr == ""


@pytest.mark.skipif(shutil.which("flock") is None, reason="one set-up at a time needs flock")
def test_two_first_starts_at_once_set_up_once(project):
    command = ["bash", str(project / "launch.sh")]
    settings = environment(project, PIP_DOES="sleep 1")
    both = [subprocess.Popen(command, env=settings, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [each.wait(timeout=60) for each in both] == [0, 0]
    assert len(pip_calls(project)) == 1


def test_without_python_one_line_says_what_to_do(project, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in TOOLS:
        if path := shutil.which(name):
            (tools / name).symlink_to(path)
    done = launch(project, PATH=str(tools), PYTHON="")
    assert done.returncode == 1
    assert "no Python 3.11 or newer with venv was found. Install one" in done.stderr
    assert not (project / ".venv").exists()


@pytest.mark.parametrize(("cores", "given", "threads"), [("2", None, "1"), ("2", "3", "3"), ("64", None, "unset")])
def test_small_machines_get_one_thread_unless_told_otherwise(project, tmp_path, cores, given, threads):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nproc").write_text(f"#!/bin/sh\necho {cores}\n")
    (tools / "nproc").chmod(0o755)
    settings = {"OMP_NUM_THREADS": given} if given else {}
    done = launch(project, PATH=f"{tools}:{os.environ['PATH']}", **settings)
    assert done.stdout.splitlines()[0] == f"threads {threads}"


def test_active_environment_that_fits_is_used_as_it_is(project):
    if not (Path(sys.prefix) / "bin" / "python").exists():
        pytest.skip("the tests do not run in an environment that could be active")
    done = launch(project, "list", "steering", VIRTUAL_ENV=sys.prefix)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("steering\n")
    assert not (project / ".venv").exists()
    assert pip_calls(project) == []
    shown = launch(project, "play", "--help", VIRTUAL_ENV=sys.prefix)
    assert shown.returncode == 0 and pip_calls(project) == []


def test_active_environment_that_does_not_fit_is_named_with_the_reason(project):
    needs = (project / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(re.sub('"pydantic>=[^"]*"', '"pydantic<2"', needs))
    done = launch(project, "list", VIRTUAL_ENV=sys.prefix)
    assert f"the active environment {sys.prefix} does not fit (it has pydantic 2." in done.stderr
    assert len(pip_calls(project)) == 1


def test_an_active_environment_need_not_have_the_pinned_versions(project):
    (project / "constraints.txt").write_text("torch==0.1\npydantic==0.1\n")
    done = launch(project, "list", "steering", VIRTUAL_ENV=sys.prefix)
    assert (done.returncode, done.stderr) == (0, "")


def test_active_environment_that_lacks_a_library_is_named_with_the_reason(project, tmp_path):
    empty = tmp_path / "empty environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(empty)], check=True)
    done = launch(project, "list", VIRTUAL_ENV=str(empty))
    assert "does not fit (it lacks " in done.stderr
    assert done.returncode == 0


def test_help_of_the_real_program_names_the_door(project):
    done = launch(project, "--help", VIRTUAL_ENV=sys.prefix)
    assert done.stdout.startswith("usage: bash launch.sh RECIPE")


def test_every_pin_is_exact_and_every_dependency_is_pinned():
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}
    assert len(pins) == len(lines)
    assert all([each.operator for each in pin.specifier] == ["=="] and "+" not in str(pin) for pin in pins.values())
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for need in map(
        Requirement,
        metadata["dependencies"]
        + [
            need
            for extra in ("test", "docs", "play", "tensorboard", "wandb")
            for need in metadata["optional-dependencies"][extra]
        ],
    ):
        [pin] = pins[canonicalize_name(need.name)].specifier
        assert need.specifier.contains(pin.version), f"{need} does not hold the version that was tested, {pin.version}"


@pytest.mark.parametrize(("name", "seen"), [("torch", "2.11.0+cu128"), ("torch", "2.14.1"), ("transformers", "5.17.0")])
def test_the_ranges_hold_what_gpu_images_come_with(name, seen):
    import tomllib

    from packaging.requirements import Requirement

    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [need] = [need for need in map(Requirement, needs) if need.name == name]
    assert need.specifier.contains(seen)
