"""Recipes: what loads, what is filled in, and that every mistake is told at once where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from factory.errors import UserError
from factory.recipe import Recipe, RecipeError, dump, load, loads
from factory.registry import load_plugins

GOOD = """\
name: good
model: {zoo: tiny}
data: toy_bench
steering:
  - toy_push
  - {type: toy_push, as: strong, beta: 3}
"""


@pytest.fixture(scope="module", autouse=True)
def toys():
    load_plugins([str(Path(__file__).with_name("toys.py"))])


def mistakes(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        loads(text, "x.yaml", overrides)
    return str(caught.value).splitlines()


def test_a_method_around_another_says_which_key_names_that():
    start = GOOD.replace("{type: toy_push, as: strong, beta: 3}", "{}")
    with pytest.raises(RecipeError, match=r"^x.yaml:6:5 steering.1: needs the key 'of'$"):
        loads(start.replace("{}", "toy_around"), "x.yaml")
    with pytest.raises(RecipeError, match="steering.1.of: needs a method that adds vectors to states; 'none' does not"):
        loads(start.replace("{}", "{type: toy_around, of: none}"), "x.yaml")


def only_mistake(lines: str, *overrides: str) -> str:
    """The single mistake in a good recipe followed by ``lines``."""
    found = mistakes(GOOD + lines, *overrides)
    assert len(found) == 1, found
    return found[0]


def test_defaults_are_filled_in():
    recipe = loads(GOOD)
    assert recipe.seed == 0
    assert recipe.diagnostic is None
    assert recipe.train is None
    assert recipe.run.root == "runs"
    assert recipe.launch.processes == 1
    assert recipe.collect.position == "last"
    assert recipe.evaluate.strengths == (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    assert (recipe.data.kind, recipe.data.type, recipe.data.params.scoring) == ("benchmark", "toy_bench", "both_orders")
    assert [node.label for node in recipe.steering] == ["toy_push", "strong"]
    assert [node.params.beta for node in recipe.steering] == [1.0, 3.0]


def test_recipe_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        loads(GOOD).seed = 3


def test_recipe_knows_where_it_came_from(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    recipe = load(path, ["seed=4"])
    assert (recipe.source_path, recipe.text, recipe.overrides, recipe.seed) == (path, GOOD, ("seed=4",), 4)


def test_resolved_names_every_key_and_loads_back():
    recipe = loads(GOOD)
    resolved = recipe.resolved()
    assert set(resolved) == set(Recipe.model_fields)
    assert resolved["steering"][1] == {
        "type": "toy_push",
        "as": "strong",
        "beta": 3.0,
        "layers": [1],
        "note": "",
        "schedule": {"warm_up": 0, "floor": 0.0},
    }
    assert loads(dump(recipe)) == recipe
    assert loads(dump(recipe)).resolved() == resolved


def test_scalars_are_what_they_look_like():
    recipe = loads(GOOD + "train: {steps: 10, learning_rate: 1e-5}\nrun: {root: no}\nreport: {plots: false}\n")
    assert recipe.train.learning_rate == 1e-5
    assert recipe.run.root == "no"
    assert recipe.report.plots is False
    for word in ("on", "yes", "off", "1:30", "2024-01-01", "0x", "1_000", "nan", "inf"):
        assert loads(GOOD, overrides=[f"run.root={word}"]).run.root == word


def test_every_mistake_is_shown_at_once_in_order():
    text = """\
name: bad name
model: {zoo: tiny, dtyp: float32}
data: {type: toy_bench, scoring: order2}
steering:
  - toy_needs
  - {type: toy_pusj}
  - type: toy_push
    beta: true
    schedule: {warmup: 1, floor: "0"}
evaluate: {error_budget: 2, strengths: []}
train:
  learning_rat: 1
seed: 1
seed: 2
"""
    assert mistakes(text) == [
        "x.yaml:1:1 name: should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', got the string 'bad name'",
        "x.yaml:2:20 model.dtyp: unknown key. Did you mean dtype?",
        "x.yaml:3:25 data.scoring: should be 'both_orders' or 'order1', got the string 'order2'. Did you mean order1?",
        "x.yaml:5:5 steering.0: needs the key 'rank'",
        "x.yaml:6:6 steering.1.type: no steering plugin 'toy_pusj'. Did you mean toy_push?" + there_are("steering"),
        "x.yaml:8:5 steering.2.beta: should be a valid number, got true, or should be 'auto', got true",
        "x.yaml:9:16 steering.2.schedule.warmup: unknown key. Did you mean warm_up?",
        "x.yaml:9:27 steering.2.schedule.floor: should be a valid number, got the string '0'." + WITHOUT_QUOTES + "0",
        "x.yaml:10:12 evaluate.error_budget: should be less than or equal to 1, got 2",
        "x.yaml:10:29 evaluate.strengths: should have at least 1 item, not 0, got []",
        "x.yaml:11:1 train: needs the key 'steps'",
        "x.yaml:12:3 train.learning_rat: unknown key. Did you mean learning_rate?",
        "x.yaml:14:1 seed: duplicate key, set already at x.yaml:13:1",
    ]


def there_are(kind: str) -> str:
    from factory.registry import available

    names = ", ".join(entry.name for entry in available(kind))
    return f" There are: {names}; one of your own needs its file, under 'plugins:' in a recipe, imported in Python"


WITHOUT_QUOTES = " Write it without quotes: "


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("seed: '1'", "seed: should be a valid integer, got the string '1'. Write it without quotes: 1"),
        ("seed: true", "seed: should be a valid integer, got true"),
        ("seed: 1.0", "seed: should be a valid integer, got 1.0. Write 1"),
        ("seed: -1", "seed: should be greater than or equal to 0, got -1"),
        ("run: {root: 3}", "run.root: should be a valid string, got 3. Write it in quotes: '3'"),
        ("run: {root: true}", "run.root: should be a valid string, got true. Write it in quotes: 'true'"),
        ("report: {plots: yes}", "report.plots: should be a valid boolean, got the string 'yes'. Write true or false"),
        ("report: {plots: 1}", "report.plots: should be a valid boolean, got 1"),
        ("report: 3", "report: should be a mapping, got 3"),
        ("report:", "report: should be a mapping, got null. What belongs under a key stands below it, indented"),
        ("plugins: mine.py", "plugins: should be a list, got the string 'mine.py'. Put it in a list: [mine.py]"),
        ("plugins: [gone.py]", "plugins.0: plugin file 'gone.py' not found; looked for gone.py"),
        ("diagnostic: [a]", "diagnostic: should name a diagnostic plugin, as in 'type: NAME' or the bare NAME"),
        (
            "diagnostic: {type: relative_uncertainty, bins: 4}",
            (
                "diagnostic: relative_uncertainty asks prompts of its own and measures no other: list it under"
                " `diagnostics:`"
            ),
        ),
        ("diagnostic: {type: toy_ratio, as: 3}", "diagnostic.as: should be a name"),
        ("diagnostic: {type: toy_ratio, draws: 3}", "diagnostic.draws: unknown key. There are none"),
        ("model: {zoo: t, dtype: float23}", "model: duplicate key, set already at x.yaml:2:1"),
        ("evaluate: {directions: [vision, vision]}", "evaluate.directions: should name each value once"),
    ],
)
def test_strict_types_and_bounds(lines, message):
    place, _, text = only_mistake(lines).partition(" ")
    assert text == message
    assert place.startswith("x.yaml:7:")


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", ".NaN"])
def test_non_finite_numbers_are_refused(number):
    assert "evaluate.strengths.1: should be a finite number" in only_mistake(f"evaluate: {{strengths: [1, {number}]}}")
    assert "steering.0.schedule.floor: should be a finite number" in only_mistake(
        "", f"steering.0.schedule.floor={number}"
    )


def test_choices_are_named_with_the_nearest():
    assert only_mistake("collect: {position: lats}") == (
        "x.yaml:7:11 collect.position: should be 'last', 'second_last', 'last_user_token', 'mean_prompt' or "
        "'mean_completion', got the string 'lats'. Did you mean last?"
    )


def test_names_with_braces_are_shown_as_written():
    assert "diagnostic.type: no diagnostic plugin '{x}'." in only_mistake("diagnostic: {type: '{x}'}")


def test_model_needs_a_source():
    assert mistakes(GOOD.replace("zoo: tiny", "device: cpu")) == [
        "x.yaml:2:1 model: needs at least one of zoo, path, hub, compose, build"
    ]


def test_two_methods_need_two_labels():
    assert mistakes(GOOD.replace("as: strong, ", "")) == [
        "x.yaml:6:5 steering.1: another one is called 'toy_push' too; name one with 'as:'"
    ]


@pytest.mark.parametrize("label", ["toy_bench", "Toy_Bench"])
def test_a_benchmark_is_not_called_as_the_data_are(label):
    assert only_mistake(f"benchmarks: [{{type: pope, root: x}}, {{type: pope, as: {label}, root: x}}]") == (
        "x.yaml:7:37 benchmarks.1: the answers to 'data' are kept under this name; name the benchmark with 'as:'"
    )


def test_plugin_file_named_by_the_recipe_is_found_beside_it(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from factory.registry import register\nfrom factory.steer import Steerer\n\n\n"
        "@register('steering', 'toy_mine')\nclass Mine(Steerer):\n    '''Mine.'''\n"
    )
    path = tmp_path / "good.yaml"
    path.write_text("name: x\nplugins: [mine.py]\nmodel: {zoo: t}\ndata: toy_bench\nsteering: [toy_mine]\n")
    assert load(path).steering[0].type == "toy_mine"


@pytest.mark.parametrize("content", [None, b"name: \xff\xfe", "folder"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"recipe '{path}' (not found|cannot be read)") as caught:
        load(path)
    assert "\n" not in str(caught.value)
