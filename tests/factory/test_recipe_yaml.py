"""YAML itself: places, syntax errors, aliases, overrides, and text that reads back as what was written."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from factory.recipe import RecipeError, dump, loads, yaml_nodes
from factory.registry import load_plugins
from tests.counted import calls

GOOD = "name: good\nmodel: {zoo: tiny}\ndata: toy_bench\nsteering: [toy_push, {type: toy_push, as: two}]\n"


@pytest.fixture(scope="module", autouse=True)
def toys():
    load_plugins([str(Path(__file__).with_name("toys.py"))])


def read(text: str):
    return yaml_nodes.to_document(yaml_nodes.parse_nodes(text, "x.yaml")).data


def mistakes(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        loads(text, "x.yaml", overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-3", -3),
        ("+3", 3),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("1.", 1.0),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("12:30", "12:30"),
        ("1_0", "1_0"),
        ("e5", "e5"),
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("<<", "<<"),
    ],
)
def test_scalars(text, value):
    result = read(text)
    assert result == value
    assert type(result) is type(value)


def test_nan():
    assert math.isnan(read(".nan"))


def test_keys_are_the_words_they_look_like():
    assert read("{no: 1, 3: 2, on: 3}") == {"no": 1, "3": 2, "on": 3}


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("a: [1", "x.yaml:1:6 YAML syntax: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n\tb: 2", "x.yaml:2:1 YAML syntax: found character '\\t' that cannot start any token"),
        ("a: 'x", "x.yaml:1:6 YAML syntax: found unexpected end of stream"),
        ("a: b: c", "x.yaml:1:5 YAML syntax: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "x.yaml:2:1 YAML syntax: but found another document"),
        ("a: 1\nb: \x07", "x.yaml:2:4 YAML syntax: special characters are not allowed"),
    ],
)
def test_syntax_errors_have_a_place(text, mistake):
    (found,) = mistakes(text)
    assert found.startswith(mistake)


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n"])
def test_empty_recipe_names_what_it_needs(text):
    assert mistakes(text) == [f"x.yaml:1:1 the recipe: needs the key '{key}'" for key in ("name", "model")]


def test_recipe_that_is_no_mapping():
    assert mistakes("- a") == ["x.yaml:1:1 the recipe: should be a mapping, got ['a']"]


@pytest.mark.parametrize(
    ("lines", "mistake"),
    [
        ("seed: !!set {1}", "x.yaml:5:7 seed: the tag tag:yaml.org,2002:set is not for recipes"),
        ("seed: !!python/x 1", "x.yaml:5:7 seed: the tag tag:yaml.org,2002:python/x is not for recipes"),
        ("seed: !mine 1", "x.yaml:5:7 seed: the tag !mine is not for recipes"),
        ("seed: !!int x", "x.yaml:5:7 seed: 'x' is no int"),
        ("plugins: &a [*a]", "x.yaml:5:10 plugins.0: the alias holds itself"),
        ("? [a]\n: 1", "x.yaml:5:3 the recipe: a key must be a single word"),
    ],
)
def test_yaml_that_is_not_for_recipes(lines, mistake):
    assert mistake in mistakes(GOOD + lines)


def bomb(levels: int) -> str:
    """Each line doubles the one before ten times over."""
    lines = ["l0: &l0 [x]", *(f"l{i + 1}: &l{i + 1} [{', '.join([f'*l{i}'] * 10)}]" for i in range(levels))]
    return "\n".join(lines)


TOO_MUCH = "more than 64 levels or 20,000 values, which no recipe needs"


@pytest.mark.parametrize(
    ("lines", "mistake"),
    [
        (bomb(12), f"x.yaml:5:10 l4.8.3.5.7.0: {TOO_MUCH}"),
        ("x: " + "[" * 3000 + "]" * 3000, f"x.yaml:5:67 YAML syntax: {TOO_MUCH}"),
        ("x: " + "{a: " * 3000, f"x.yaml:5:253 YAML syntax: {TOO_MUCH}"),
        ("\n".join(" " * i + "a:" for i in range(200)), f"YAML syntax: {TOO_MUCH}"),
        ("x: [" + "a," * 50_000 + "]", f"YAML syntax: {TOO_MUCH}"),
        ("x: " + "a" * 2**18, "x.yaml is 262,241 characters long; a recipe has at most 262,144"),
        ("seed: 1" + "0" * 5000, "x.yaml:5:7 seed: '1" + "0" * 56 + "...' is too large a number"),
        ("seed: 9223372036854775808", "x.yaml:5:7 seed: '9223372036854775808' is too large a number"),
        ("seed: 1e400", "x.yaml:5:7 seed: '1e400' is too large a number"),
        ("seed: 0x" + "f" * 99, "x.yaml:5:7 seed: '0x" + "f" * 55 + "...' is too large a number"),
        ("plugins: ['\ud800']", "x.yaml:5:12 YAML syntax: special characters are not allowed"),
        ('plugins: ["\\uD800"]', "x.yaml:5:11 plugins.0: '\\ud800' is no str"),
        ('"\\uDFFF": 1', "x.yaml:5:1 the recipe: a key must be a single word"),
        ('"a\\nb\\e[31m": 1', "x.yaml:5:1 'a\\nb\\x1b[31m': unknown key."),
        ("k" * 1000 + ": 1", "x.yaml:5:1 '" + "k" * 57 + "...': unknown key."),
    ],
)
def test_what_no_recipe_needs_is_one_line_at_once(lines, mistake):
    found = []
    assert calls(lambda: found.extend(mistakes(GOOD + lines))) < 4_000_000
    assert any(mistake in line for line in found), found
    assert all(len(line) < 300 and line.isprintable() for line in found) and len(found) <= 14


def test_an_override_of_a_thousand_steps_is_refused():
    [told] = mistakes(GOOD, "a." * 1000 + "b=1")
    assert told.endswith(TOO_MUCH) and len(told) < 400


def test_a_thousand_unknown_plugins_are_told_at_once():
    """What there is is read once: each name of its own read every plugin's file again."""
    found: list[str] = []
    text = GOOD + f"benchmarks: [{', '.join(f'nope{i}' for i in range(1000))}]"
    mistakes(GOOD + "benchmarks: [nope]")
    assert calls(lambda: found.extend(mistakes(text))) < 9_000_000
    assert len(found) == 31 and "no benchmark plugin 'nope0'" in found[0]


@pytest.mark.parametrize("spec", ["", ".", "..x", "a b", "x.", "a/../b.", "3"])
def test_a_plugin_that_is_neither_a_file_nor_a_module_is_one_line(spec):
    told = mistakes(GOOD + f"plugins: ['{spec}']")
    assert any("neither a plugin file" in line or "not found" in line for line in told)


def test_a_name_longer_than_a_file_system_takes_is_told_at_its_place():
    [told] = mistakes(GOOD, f"name={'x' * 300}")
    assert "name: should have at most 150 characters" in told


def test_many_mistakes_are_told_in_part():
    found = mistakes(GOOD + "".join(f"sead{i}: 1\n" for i in range(5000)))
    assert len(found) == 31 and found[-1] == "x.yaml: and 4,970 more mistakes"


def test_alias_repeats_a_value_and_an_override_changes_one_place_only():
    text = """\
name: good
model: {zoo: tiny}
data: toy_bench
steering:
  - {type: toy_push, schedule: &shared {floor: 1}}
  - {type: toy_push, as: two, schedule: *shared}
"""
    for overrides, floors in (([], [1.0, 1.0]), (["steering.1.schedule.floor=2"], [1.0, 2.0])):
        assert [node.params.schedule.floor for node in loads(text, overrides=overrides).steering] == floors


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("seed=3", lambda r: r.seed, 3),
        ("name=other", lambda r: r.name, "other"),
        ("steering.1.beta=0.5", lambda r: r.steering[1].params.beta, 0.5),
        ("steering.0.beta=0.5", lambda r: r.steering[0].params.beta, 0.5),
        ("data.scoring=order1", lambda r: r.data.params.scoring, "order1"),
        ("diagnostic=toy_ratio", lambda r: r.diagnostic.type, "toy_ratio"),
        ("train.steps=5", lambda r: r.train.steps, 5),
        ("evaluate.strengths=[1, 1e1]", lambda r: r.evaluate.strengths, (1.0, 10.0)),
        ("run.root=/a b/c=d", lambda r: r.run.root, "/a b/c=d"),
        ("steering=[]", lambda r: r.steering, ()),
        ("collect.layer=", lambda r: r.collect.layer, None),
    ],
)
def test_override(override, get, value):
    assert get(loads(GOOD, overrides=[override])) == value


MIX = """
name: mix
plugins: [%s]
model: {zoo: tiny}
data: toy_bench
steering: [{type: toy_mix, of: toy_push, group: {members: [toy_needs, toy_push]}, by_name: {a: toy_mix}}, %s]
"""
MINE = """
from typing import Annotated

from factory.recipe.nodes import Node, plugin
from factory.registry import Params, register
from factory.steer import Steerer


class MineParams(Params):
    inside: Annotated[Node, plugin("steering")]


@register("steering", "toy_mine_of")
class Mine(Steerer):
    Params = MineParams
"""


def test_an_override_reaches_a_bare_word_wherever_a_plugins_parameters_hold_one(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    text = MIX % (tmp_path / "mine.py", "{type: toy_mine_of, inside: toy_push}")
    keys = "1.inside.beta", "0.of.beta", "0.group.members.1.beta", "0.by_name.a.of.beta", "0.group.members.0.rank"
    overrides = [f"steering.{key}={i}" for i, key in enumerate(keys, 2)]
    mix, mine = (
        node.params for node in loads(text, overrides=["steering.0.by_name.a.of=toy_push", *overrides]).steering
    )
    needs, push = mix.group.members
    inner = mine.inside, mix.of, push, mix.by_name["a"].params.of
    assert ([node.params.beta for node in inner], needs.params.rank) == ([2, 3, 4, 5], 6)


def test_what_an_override_cannot_reach_is_told_once():
    text = GOOD.replace("as: two", "as: two, note: word").replace("[toy_push,", "[{type: toy_mix, of: toy_pish},")
    wrong, first = "steering.1.note.beta=1", "steering.0.of.beta=1"
    line = f"override '{wrong}' steering.1.note: is the value 'word', which holds no keys"
    assert line in mistakes(text, wrong)
    assert all("no steering plugin 'toy_pish'" in line for line in mistakes(text, first))


def test_last_override_wins():
    assert loads(GOOD, overrides=["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "should read KEY=VALUE, as in steering.2.beta=0.5"),
        ("=3", "should read KEY=VALUE, as in steering.2.beta=0.5"),
        ("a..b=3", "should read KEY=VALUE, as in steering.2.beta=0.5"),
        ("sead=3", "sead: unknown key. Did you mean seed or seeds?"),
        ("seed=x", "seed: should be a valid integer, got the string 'x'"),
        ("steering.9.beta=1", "steering: is a list of 2, counted from 0, and has no item 9"),
        ("steering.two.beta=1", "steering: is a list of 2, counted from 0, and has no item two"),
        ("steering.0.bata=1", "steering.0.bata: unknown key. Did you mean beta?"),
        ("name.first=x", "name: is the value 'good', which holds no keys"),
        ("seed=[", "YAML syntax: expected the node content, but found '<stream end>', while parsing a flow node"),
    ],
)
def test_wrong_override_is_located_as_the_override(override, message):
    assert mistakes(GOOD, override) == [f"override '{override}' {message}"]


plain_text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12)
integers = st.integers(-(2**63), 2**63 - 1)
values = st.recursive(
    st.none() | st.booleans() | integers | st.floats(allow_nan=False) | plain_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain_text, inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_dumped_data_reads_back(value):
    assert read(yaml_nodes.dump(value)) == value


@given(plain_text)
def test_dumped_strings_are_strings_to_other_yaml_readers(text):
    assert yaml.safe_load(yaml_nodes.dump(text)) == text


@given(
    beta=st.floats(allow_nan=False, allow_infinity=False) | st.just("auto"),
    layers=st.lists(integers),
    note=plain_text,
    seed=st.integers(0, 2**32 - 1),
)
def test_overrides_survive_dump_and_load(beta, layers, note, seed):
    given_values = {"steering.1.beta": beta, "steering.0.layers": layers, "steering.0.note": note, "seed": seed}
    recipe = loads(GOOD, overrides=[f"{key}={yaml_nodes.dump(value)}" for key, value in given_values.items()])
    assert recipe.steering[1].params.beta == beta
    assert recipe.steering[0].params.layers == tuple(layers)
    assert recipe.steering[0].params.note == note
    assert recipe.seed == seed
    assert loads(dump(recipe)) == recipe
