"""The command line as a person meets it: what it prints, and its exit codes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import types
from importlib.metadata import version
from pathlib import Path

import pytest

from factory import cli
from factory.recipe import loads
from factory.registry import available, load_plugins, lookup

ROOT = Path(__file__).parents[2]
RECIPE = "name: good\nmodel: {zoo: tiny}\ndata: toy_bench\nsteering: [toy_push]\n"


@pytest.fixture(scope="module", autouse=True)
def toys():
    load_plugins([str(Path(__file__).with_name("toys.py"))])


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "good.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def runs(monkeypatch) -> list:
    """Stand-ins for the modules that do the work; they note what they are asked for."""
    asked = []
    pipeline = types.SimpleNamespace(run=lambda recipe, limit, world: asked.append((recipe, limit)))
    plan = types.SimpleNamespace(plan=lambda recipe, limit, waited, device: asked.append((recipe, "plan")))
    monkeypatch.setitem(sys.modules, "factory.run.pipeline", pipeline)
    monkeypatch.setitem(sys.modules, "factory.run.plan.plan", plan)
    return asked


def program(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "factory.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def error_of(capsys, *arguments: str) -> str:
    """What a command that ends with exit code 2 says."""
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err.removesuffix("\n")


@pytest.mark.parametrize(
    ("arguments", "seed", "limit"),
    [
        (["good.yaml"], 0, None),
        (["run", "good.yaml"], 0, None),
        (["good.yaml", "seed=3", "--limit", "5"], 3, 5),
        (["--limit=5", "good.yaml", "seed=3"], 3, 5),
        (["run", "--limit", "5", "good.yaml", "seed=3"], 3, 5),
        (["good.yaml", "--limit", "5", "seed=3"], 3, 5),
    ],
)
def test_run(recipe, runs, arguments, seed, limit):
    assert cli.main(arguments) == 0
    ((asked, asked_limit),) = runs
    assert (asked.seed, asked_limit) == (seed, limit)


def test_plan(recipe, runs):
    assert cli.main(["plan", "good.yaml", "name=other"]) == 0
    assert [(asked.name, what) for asked, what in runs] == [("other", "plan")]


def test_recipe_is_found_in_the_project_from_any_folder(recipe, runs, tmp_path, monkeypatch):
    (tmp_path / "project" / "recipes").mkdir(parents=True)
    recipe.rename(tmp_path / "project" / "recipes" / "good.yaml")
    monkeypatch.setattr(cli, "PROJECT", tmp_path / "project")
    assert cli.main(["recipes/good.yaml"]) == 0
    assert len(runs) == 1


@pytest.mark.parametrize("words", [["good"], ["run", "good"]])
def test_a_bundled_recipe_goes_by_its_name_from_any_folder(words, recipe, runs, tmp_path, monkeypatch):
    (tmp_path / "project" / "recipes" / "paper").mkdir(parents=True)
    recipe.rename(tmp_path / "project" / "recipes" / "paper" / "good.yaml")
    monkeypatch.setattr(cli, "PROJECT", tmp_path / "project")
    assert cli.main(words) == 0
    assert len(runs) == 1


def test_overrides_are_passed_through_unsplit(recipe, runs):
    assert cli.main(["good.yaml", "model.path=/a b/c", "evaluate.strengths=[1, 2]"]) == 0
    assert (runs[0][0].model.path, runs[0][0].evaluate.strengths) == ("/a b/c", (1.0, 2.0))


def test_recipe_mistakes_are_one_line_each(recipe, capsys):
    recipe.write_text(RECIPE + "sead: 1\nreport: {plots: 3}\n")
    assert error_of(capsys, "good.yaml", "seed=x") == (
        "error: override 'seed=x' seed: should be a valid integer, got the string 'x'\n"
        "error: good.yaml:5:1 sead: unknown key. Did you mean seed or seeds?\n"
        "error: good.yaml:6:10 report.plots: should be a valid boolean, got 3"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["lst"],
            "error: 'lst' is neither a command nor a recipe. Did you mean list? Commands: run, plan, fetch, list",
        ),
        (["gone.yaml"], "error: recipe 'gone.yaml' not found, neither here nor in"),
        (["plan"], "error: the following arguments are required: RECIPE; see steering-factory plan --help"),
        (["good.yaml", "--limit", "0"], "error: argument --limit: '0' should be a whole number of 1 or more"),
        (["good.yaml", "--limit", "few"], "error: argument --limit: 'few' should be a whole number of 1 or more"),
        (["good.yaml", "--lmit", "1"], "see steering-factory run --help. Did you mean --limit?"),
        (["list", "steering", "toy_pusch"], "error: no steering plugin 'toy_pusch'. Did you mean toy_push?"),
        (["recipe", "amps_tinny"], "error: no bundled recipe 'amps_tinny'. Did you mean amps_tiny"),
        (["good.yaml", "seed"], "error: override 'seed' should read KEY=VALUE"),
        (["list", "steerin"], "error: unknown plugin kind 'steerin'. Did you mean steering?"),
        (["show", "toy_bensh"], "error: no benchmark plugin 'toy_bensh'. Did you mean toy_bench?"),
        (["new-plugin", "steering", "toy_push"], "error: the steering plugin 'toy_push' exists already"),
        (["new-plugin", "steering", "a-b"], "error: 'a-b' cannot name a plugin"),
        (["new-plugin", "steerin", "x"], "error: unknown plugin kind 'steerin'. Did you mean steering?"),
        (["new-plugin", "steering", "good"], "good.py exists already"),
    ],
)
def test_a_persons_mistake_is_one_line_and_exit_code_2(recipe, capsys, arguments, message):
    recipe.with_name("good.py").touch()
    said = error_of(capsys, *arguments)
    assert message in said
    assert "\n" not in said


def test_interruption_says_how_to_continue(recipe, runs, monkeypatch, capsys):
    def interrupted(recipe, limit, world):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["factory.run.pipeline"], "run", interrupted)
    assert cli.main(["good.yaml"]) == 130
    assert capsys.readouterr().err == "interrupted; start the same command again to continue\n"


def test_a_fault_keeps_its_traceback_and_says_the_run_can_be_resumed(recipe, runs, monkeypatch):
    monkeypatch.setattr(sys.modules["factory.run.pipeline"], "run", lambda recipe, limit, world: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        cli.main(["good.yaml"])
    assert caught.value.__notes__ == [
        "The run stopped here; once the fault is mended, start the same command again to continue."
    ]


def test_list(capsys):
    assert cli.main(["list", "diagnostic"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "diagnostic"
    assert f"toy_ratio A diagnostic. [{Path(__file__).with_name('toys.py')}]" in " ".join(" ".join(lines).split())


def test_list_tells_all_of_one_plugin(capsys):
    """Its parameters, those inside a mapping too, and a node that a recipe takes."""
    assert cli.main(["list", "steering", "amps"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("steering amps, in ") and "equation 10" in said
    assert "  beta           " in said and "default 0.5; number" in said and "  net.epochs" in said
    node = said.rpartition("In a recipe:\n")[2]
    text = f"name: told\nmodel: {{zoo: tiny}}\ndata: scenes\ndiagnostic: mcr\n{node.strip()}\n"
    assert [method.type for method in loads(text).steering] == ["none", "amps"]


def test_a_bundled_recipe_is_copied_and_the_version_told(capsys):
    assert cli.main(["recipe", "amps_tiny"]) == 0
    assert capsys.readouterr().out == (ROOT / "recipes" / "amps_tiny.yaml").read_text(encoding="utf-8")
    assert cli.main(["recipe"]) == 0
    assert "amps_tiny " in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"steering-factory {version('steering-factory')}\n"


@pytest.mark.parametrize("what", ["toy_bench", "good.yaml"])
def test_show_prints_the_pictures_path(recipe, capsys, what):
    assert cli.main(["show", what, "--out", "pictures"]) == 0
    assert capsys.readouterr().out == "pictures/toy_bench.png\n"


@pytest.mark.parametrize("kind", ["steering", "diagnostic", "benchmark"])
def test_new_plugin_works_as_it_is(recipe, capsys, kind):
    name = f"toy_new_{kind}"
    assert cli.main(["new-plugin", kind, name]) == 0
    assert f"plugins: [{Path.cwd() / name}.py]" in capsys.readouterr().out
    load_plugins([f"{name}.py"])
    plugin = lookup(kind, name)
    assert plugin(plugin.Params()).params == plugin.Params()


@pytest.mark.parametrize("command", [["--help"], ["list"]])
def test_help_and_list_answer_at_once_because_they_load_no_library_but_pydantic(command):
    code = "import sys; from factory.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, check=True, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()} - sys.stdlib_module_names
    of_pydantic = {"pydantic", "pydantic_core", "typing_extensions", "typing_inspection", "annotated_types"}
    of_python = {"sitecustomize", "usercustomize"}  # loaded with Python itself where a system has them
    assert done.stdout
    assert {name for name in loaded if not name.startswith("_")} <= {"factory", *of_pydantic, *of_python}


def test_help_names_every_command_and_nothing_else():
    said = program("--help").stdout
    commands = [*cli.COMMANDS, *(entry.name for entry in available("command"))]
    for name in commands:
        assert re.search(rf"(?m)^  (RECIPE, )?{name} ", said), name
    for name in set(cli.COMMANDS) - {"test"}:
        assert program(name, "--help").stdout.startswith(f"usage: steering-factory {name}")


def test_exit_codes_of_the_program(tmp_path):
    (tmp_path / "bad.yaml").write_text("name: [")
    assert program("list").returncode == 0
    wrong = program("bad.yaml", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: bad.yaml:1:8 YAML syntax: ")


def test_a_closed_reader_ends_the_program_quietly():
    command = f"{shlex.quote(sys.executable)} -P -m factory.cli list | true"
    done = subprocess.run(
        command, check=False, shell=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.stderr == b""


def test_folders_where_it_is_started_do_not_shadow_the_project(tmp_path):
    for name in ("factory", "plugins", "eval_suite"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('shadowed')")
    assert program("list", cwd=tmp_path).returncode == 0
