"""The registry on toy kinds of its own: exact names, loud duplicates, nothing imported before it is needed."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from factory import registry
from factory.errors import UserError
from factory.registry import Params, available, forget, load_plugins, lookup, plugin_named, register

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
    """A kind ``toy`` with the in-tree plugins apple and pear, and a helper module; forgotten after each test."""
    package = tmp_path / "toy_tree" / "toys"
    package.mkdir(parents=True)
    for name in ("apple", "pear"):
        write_plugin(package / f"{name}.py", name, doc=f"A ripe {name}.\n\n    It has more to say.")
    (package / "_helper.py").write_text("raise RuntimeError('a helper is no plugin')")
    monkeypatch.setitem(registry.KINDS, "toy", "toy_tree.toys")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        yield package
    for entry in available("toy"):
        forget("toy", entry.name)
    for name in [name for name in sys.modules if name.startswith(("toy_tree", "third_party"))]:
        del sys.modules[name]


def write_plugin(path: Path, name: str, kind: str = "toy", doc: str = "A toy.") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        textwrap.dedent("""\
            from factory.registry import Params, register

            @register({kind!r}, {name!r})
            class Plugin:
                \"\"\"{doc}\"\"\"
                class Params(Params):
                    size: int = 1
                def __init__(self, params):
                    self.params = params
            """).format(kind=kind, name=name, doc=doc)
    )
    return path


def install(site: Path, distribution: str, value: str) -> None:
    """What pip leaves behind for a package with one entry point."""
    info = site / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[steering_factory.plugins]\nanything = {value}\n")


def test_lookup_imports_only_what_it_names():
    plugin = lookup("toy", "apple")
    assert (plugin.kind, plugin.name) == ("toy", "apple")
    assert plugin(plugin.Params(size=3)).params.size == 3
    assert "toy_tree.toys.apple" in sys.modules
    assert "toy_tree.toys.pear" not in sys.modules


def test_listing_shows_summaries_and_imports_nothing():
    assert [(entry.name, entry.origin, entry.summary) for entry in available("toy")] == [
        ("apple", "in-tree", "A ripe apple."),
        ("pear", "in-tree", "A ripe pear."),
    ]
    assert not any(name.startswith("toy_tree") for name in sys.modules)


def test_listing_the_real_plugins_imports_none_of_them_and_no_torch():
    code = """
        import sys
        from factory.registry import KINDS, available
        available()
        loaded = [name for name in sys.modules if name.startswith(tuple(f"{package}." for package in KINDS.values()))]
        assert not loaded, loaded
        assert "torch" not in sys.modules
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=True)


def test_unknown_name_lists_near_matches():
    with pytest.raises(UserError, match=r"no toy plugin 'aple'\. Did you mean apple\? There are: apple, pear"):
        lookup("toy", "aple")


def test_unknown_name_of_another_kind_says_so():
    with pytest.raises(UserError, match="no tuner plugin 'apple'. It is a toy plugin"):
        lookup("tuner", "apple")


@pytest.mark.parametrize(
    "use", [lambda: lookup("steerin", "x"), lambda: available("steerin"), lambda: register("steerin", "x")]
)
def test_unknown_kind_lists_near_matches(use):
    with pytest.raises(UserError, match="unknown plugin kind 'steerin'. Did you mean steering?"):
        use()


def test_duplicate_names_both_places(tmp_path):
    first = write_plugin(tmp_path / "first.py", "fig")
    second = write_plugin(tmp_path / "second.py", "fig")
    load_plugins([str(first)])
    with pytest.raises(UserError) as caught:
        load_plugins([str(second)])
    assert f"{second}:3" in str(caught.value)
    assert f"{first}:3" in str(caught.value)


def test_out_of_tree_plugin_cannot_take_an_in_tree_name_that_is_not_loaded_yet(tmp_path, toy):
    with pytest.raises(UserError, match="the toy plugin 'apple' exists already") as caught:
        load_plugins([str(write_plugin(tmp_path / "mine.py", "apple"))])
    assert str(toy / "apple.py") in str(caught.value)
    assert lookup("toy", "apple").__module__ == "toy_tree.toys.apple"


def test_in_tree_module_that_registers_another_name_is_named(toy):
    write_plugin(toy / "plum.py", "prune")
    with pytest.raises(UserError, match="plum.py does not register the toy plugin 'plum'"):
        lookup("toy", "plum")


def test_import_fault_is_told_again_on_a_second_try(toy):
    path = write_plugin(toy / "plum.py", "plum")
    path.write_text(path.read_text() + "\nraise ZeroDivisionError('late fault')\n")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="late fault"):
            lookup("toy", "plum")


def test_path_plugin_is_found_from_the_recipe_folder_and_loaded_once(tmp_path):
    write_plugin(tmp_path / "mine" / "fig.py", "fig")
    load_plugins(["fig.py"], base=tmp_path / "mine")
    load_plugins(["mine/fig.py"], base=tmp_path)
    assert lookup("toy", "fig").Params().size == 1
    assert [entry.origin for entry in available("toy") if entry.name == "fig"] == [str(tmp_path / "mine" / "fig.py")]


def test_a_word_names_a_plugin_or_the_file_that_holds_one_under_its_own_name(tmp_path, monkeypatch):
    write_plugin(tmp_path / "fig.py", "fig")
    monkeypatch.chdir(tmp_path)
    assert plugin_named("toy", "fig.py") is plugin_named("toy", str(tmp_path / "fig.py")) is lookup("toy", "fig")
    assert plugin_named("toy", "pear") is lookup("toy", "pear")
    for word, message in {"gone.py": "plugin file 'gone.py' not found", "gone": "no toy plugin 'gone'"}.items():
        with pytest.raises(UserError, match=message):
            plugin_named("toy", word)
    write_plugin(tmp_path / "other.py", "plum")
    with pytest.raises(UserError, match="no toy plugin 'other'.*There are: .*plum"):
        plugin_named("toy", "other.py")


def test_a_plugin_that_is_forgotten_leaves_its_name_to_another(tmp_path):
    for _ in range(2):
        register("toy", "cell")(type("Cell", (), {}))
        assert lookup("toy", "cell").name == "cell"
        forget("toy", "cell")
    forget("toy", "never there")
    with pytest.raises(UserError, match="no toy plugin 'cell'"):
        lookup("toy", "cell")


def test_module_plugin(tmp_path):
    write_plugin(tmp_path / "third_party_module.py", "fig")
    load_plugins(["third_party_module"])
    assert lookup("toy", "fig")


@pytest.mark.parametrize(
    ("spec", "text", "message"),
    [
        ("gone.py", None, "plugin file 'gone.py' not found"),
        ("gone_package.module", None, "plugin module 'gone_package.module' not found"),
        ("broken.py", "def f(:\n", r"broken.py:1: the plugin does not parse"),
        ("needs.py", "import surely_missing\n", "needs 'surely_missing', which is not installed"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_one_clear_line(tmp_path, spec, text, message):
    if text is not None:
        (tmp_path / spec).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_plugins([spec], base=tmp_path)
    assert "\n" not in str(caught.value)


def test_third_party_package_is_listed_and_usable_with_no_edit(tmp_path):
    write_plugin(tmp_path / "third_party" / "__init__.py", "fig", doc="A foreign fig.")
    install(tmp_path, "toy-figs", "third_party")
    entry = next(entry for entry in available("toy") if entry.name == "fig")
    assert (entry.origin, entry.summary) == ("toy-figs", "A foreign fig.")
    assert lookup("toy", "fig").Params(size=2).size == 2


def test_third_party_package_is_found_by_name_alone(tmp_path):
    write_plugin(tmp_path / "third_party.py", "fig")
    install(tmp_path, "toy-figs", "third_party")
    assert lookup("toy", "fig").name == "fig"


def test_broken_third_party_package_is_named_and_leaves_the_others_usable(tmp_path):
    (tmp_path / "third_party.py").write_text("1 / 0\n")
    install(tmp_path, "toy-broken", "third_party")
    with pytest.warns(UserWarning, match="'toy-broken' are left out: third_party fails with ZeroDivisionError"):
        assert [entry.name for entry in available("toy")] == ["apple", "pear"]


def test_params_are_frozen_and_refuse_unknown_keys_and_non_finite_numbers():
    class Mine(Params):
        gain: float = 1.0

    with pytest.raises(ValueError, match="frozen"):
        Mine().gain = 2.0
    for wrong in ({"gian": 1.0}, {"gain": float("nan")}, {"gain": float("inf")}):
        with pytest.raises(ValueError, match="gain|gian"):
            Mine(**wrong)


def test_plugin_without_parameters_gets_empty_ones():
    @register("toy", "bare")
    class Bare:
        pass

    assert Bare.Params is Params


def imported(path: str):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("kind", [kind for kind in registry.KINDS if kind != "toy"])
def test_a_class_without_its_kinds_base_is_refused_with_its_place(tmp_path, kind):
    file = write_plugin(tmp_path / "stranger.py", "stranger", kind)
    with pytest.raises(UserError) as caught:
        load_plugins([str(file)])
    bases = " or ".join(registry.BASES[kind])
    assert str(caught.value) == f"{file}:3: the class Plugin is no {kind} plugin: let it inherit {bases}"
    for base in map(imported, registry.BASES[kind]):
        register(kind, name := f"heir_of_{base.__name__}")(type("Heir", (type("Parent", (base,), {}),), {}))
        forget(kind, name)


def test_a_class_of_the_same_name_as_the_base_is_a_stranger():
    with pytest.raises(UserError, match="no tuner plugin"):
        register("tuner", "stranger")(type("Mine", (type("Tuner", (), {}),), {}))


def test_a_base_is_known_without_being_imported():
    code = """
        import sys
        from factory.errors import UserError
        from factory.registry import BASES, register
        for kind in BASES:
            try:
                register(kind, "stranger")(type("Stranger", (), {}))
            except UserError:
                continue
            raise AssertionError(kind)
        assert "torch" not in sys.modules and "eval_suite.scorers" not in sys.modules
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=True)
