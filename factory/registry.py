"""One registry for every kind of plugin: exact names, loud duplicates, and no import before it is needed.

A plugin is a class under ``@register(kind, name)``, constructed as ``cls(cls.Params(...))``. It is found in-tree (the
module ``KINDS[kind].name``), through an installed package's entry point in the group ``steering_factory.plugins``,
whose value is the module to import, or through a recipe's ``plugins:`` list of files and modules.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, PrivateAttr

from factory.blame import NOWHERE, Written
from factory.docstrings import first_paragraph, read_summary
from factory.errors import UserError, did_you_mean

KINDS = {
    "steering": "plugins.steering",
    "diagnostic": "plugins.diagnostics",
    "tuner": "plugins.tuners",
    "benchmark": "eval_suite.benchmarks",
    "scorer": "eval_suite.scorers",
    "report": "eval_suite.report",
    "command": "eval_suite.commands",
    "format": "plugins.formats",
    "family": "factory.model.families",
    "vision_encoder": "factory.components.vision_encoder",
    "connector": "factory.components.connector",
    "llm": "factory.components.llm",
    "converter": "factory.corpus.converters",
}
BASES: dict[str, tuple[str, ...]] = {
    "steering": ("factory.steer.Steerer", "factory.steer.PromptMethod", "factory.steer.LogitsMethod"),
    "diagnostic": ("factory.diagnose.Diagnostic",),
    "tuner": ("factory.tune.Tuner",),
    "benchmark": (
        "eval_suite.conflict.ConflictBenchmark",
        "eval_suite.benchmark.AnswerBenchmark",
        "factory.benchmark.Benchmark",
    ),
    "scorer": ("eval_suite.scorers.Scorer",),
    "report": ("factory.report.Report",),
    "command": ("eval_suite.commands.Command",),
    "format": ("factory.formats.Format", "factory.formats.ModelFormat"),
    "family": ("factory.model.family.Family",),
    "vision_encoder": ("factory.components.vision.VisionEncoder",),
    "connector": ("factory.components.connect.Connector",),
    "llm": ("factory.components.language.Llm",),
    "converter": ("factory.corpus.convert.Converter",),
}
"""What a plugin of each kind inherits, one of these, as it is imported (it may be defined deeper in that package)."""
ENTRY_POINT_GROUP = "steering_factory.plugins"


class Params(BaseModel):
    """Base of every plugin's parameter model: unknown keys and non-finite numbers are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    _written: Written = PrivateAttr(default_factory=lambda: NOWHERE)


class Plugin:
    """What every plugin has, of any kind: ``Params``, the model of its parameters, and ``params``, an instance."""

    kind: ClassVar[str]
    name: ClassVar[str]
    Params: ClassVar[type[BaseModel]]
    params: Any
    pictured: ClassVar[bool] = False
    sided: ClassVar[bool] = False
    columned: ClassVar[bool] = False

    def __init__(self, params: Any) -> None:
        self.params = params

    @classmethod
    def needs_pictures(cls, params: Any) -> bool:
        """Whether it is of no use without pictures; ``pictured``, unless its parameters decide."""
        return cls.pictured

    @classmethod
    def needs_sources(cls, params: Any) -> bool:
        """Whether it shows or hides the sources of a conflict one by one, and so is of no use where one of them is a
        picture that the model cannot see; ``sided``, unless its parameters decide."""
        return cls.sided

    @classmethod
    def needs_columns(cls, params: Any) -> bool:
        """Whether it cuts or reads attention, or holds part of a prompt back, and so needs keys and values of every
        token in every block; ``columned``, unless its parameters decide."""
        return cls.columned


Plugin.Params = Params


@dataclass(frozen=True)
class Entry:
    """One plugin as a listing shows it. ``origin`` is "in-tree", an installed package's name, or a file."""

    kind: str
    name: str
    origin: str
    summary: str


@dataclass(frozen=True)
class _Registered:
    cls: type
    file: str
    line: int
    origin: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


_registered: dict[tuple[str, str], _Registered] = {}
_distribution: ContextVar[str | None] = ContextVar("distribution", default=None)


Registrable = TypeVar("Registrable", bound=type)


def register(kind: str, name: str) -> Callable[[Registrable], Registrable]:
    """Class decorator that makes a class the plugin ``name`` of ``kind``; sets its ``kind``, ``name`` and ``Params``.

    Raises UserError for an unknown kind, for a name that is taken, with both places, and for a class that does not
    inherit what its kind is made of.
    """
    _check_kind(kind)
    caller: FrameType = sys._getframe(1)
    file, line = caller.f_code.co_filename, caller.f_lineno

    def decorate(cls: Registrable) -> Registrable:
        _refuse_duplicate(kind, name, file, line)
        _refuse_stranger(cls, kind, file, line)
        given: Any = cls
        given.kind, given.name = kind, name
        if not hasattr(cls, "Params"):
            given.Params = Params
        _registered[kind, name] = _Registered(cls, file, line, _distribution.get() or _origin(kind, file))
        return cls

    return decorate


def lookup(kind: str, name: str) -> Any:
    """The plugin class, importing only the module that holds it.

    Raises UserError with near matches where there is none.
    """
    _check_kind(kind)
    if (kind, name) not in _registered:
        if name in _in_tree(kind):
            _import(f"{KINDS[kind]}.{name}")
        else:
            _load_entry_points()
    if (kind, name) not in _registered:
        raise UserError(_why_unknown(kind, name))
    return _registered[kind, name].cls


def plugin_named(kind: str, word: str) -> Any:
    """The plugin class that a word names: a plugin, or a plugin file, which registers one under the file's own name.

    Raises UserError as ``lookup`` and ``load_plugins`` do.
    """
    if Path(word).suffix == ".py":
        load_plugins([word])
        word = Path(word).stem
    return lookup(kind, word)


def available(kind: str | None = None) -> list[Entry]:
    """Every plugin there is, or every one of ``kind``, sorted; in-tree modules are read, never imported."""
    if kind is not None:
        _check_kind(kind)
    _load_entry_points()
    found = {}
    for each in [kind] if kind else KINDS:
        for name, path in _in_tree(each).items():
            if (summary := read_summary(path, each, name, _changed(path))) is not None:
                found[each, name] = Entry(each, name, "in-tree", summary)
    for (each, name), item in _registered.items():
        if kind in (None, each) and (each, name) not in found:
            found[each, name] = Entry(each, name, item.origin, first_paragraph(item.cls.__doc__))
    return [found[key] for key in sorted(found, key=lambda key: (list(KINDS).index(key[0]), key[1]))]


def load_plugins(specs: Sequence[str], base: Path | None = None) -> None:
    """Import plugin files (``path/to/file.py``, looked for in ``base``, then in the current folder) and modules.

    Raises UserError where a file or module is missing or does not parse.
    """
    for spec in specs:
        if spec.endswith(".py") or "/" in spec:
            _load_file(_find_file(spec, base))
        else:
            _load_module(spec)


def forget(kind: str, name: str) -> None:
    """Forget a plugin that was registered from outside the tree, so that its name is free: a cell is run again."""
    _registered.pop((kind, name), None)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UserError(f"unknown plugin kind '{kind}'.{did_you_mean(kind, KINDS)} Kinds: {', '.join(KINDS)}")


def _in_tree(kind: str) -> dict[str, Path]:
    """Module names of the kind's package and their files, found without importing the package."""
    top, *rest = KINDS[kind].split(".")
    spec = importlib.util.find_spec(top)
    folders = [Path(root, *rest) for root in (spec.submodule_search_locations or ())] if spec else []
    return _modules(tuple((folder, _changed(folder)) for folder in folders))


@lru_cache(maxsize=64)
def _modules(folders: tuple[tuple[Path, int], ...]) -> dict[str, Path]:
    """Names and files of the modules in ``folders``, each with the time of its last change."""
    modules = {}
    for module in pkgutil.iter_modules([str(folder) for folder, _ in folders]):
        if not module.name.startswith("_"):
            file = f"{module.name}/__init__.py" if module.ispkg else f"{module.name}.py"
            found = module.module_finder.path  # type: ignore[union-attr]  # a finder of files has a path
            modules[module.name] = Path(found, file)
    return modules


def _origin(kind: str, file: str) -> str:
    return "in-tree" if Path(file) in _in_tree(kind).values() else file


def _refuse_duplicate(kind: str, name: str, file: str, line: int) -> None:
    in_tree = _in_tree(kind).get(name)
    if taken := _registered.get((kind, name)):
        place = taken.place
    elif in_tree and in_tree.resolve() != Path(file).resolve():
        place = str(in_tree)
    else:
        return
    raise UserError(f"{file}:{line}: the {kind} plugin '{name[:60]}' exists already, in {place}; rename one of them")


def _refuse_stranger(cls: type, kind: str, file: str, line: int) -> None:
    """Refuse a class without its kind's base, which is known by its name: nothing is imported to look at it."""
    bases = [base.rpartition(".") for base in BASES.get(kind, ())]
    inherited = [
        f"{package}.{name}"
        for package, _, name in bases
        for each in cls.__mro__
        if each.__qualname__ == name and f"{each.__module__}.".startswith(f"{package}.")
    ]
    if bases and not inherited:
        raise UserError(
            f"{file}:{line}: the class {cls.__name__} is no {kind} plugin: let it inherit {' or '.join(BASES[kind])}"
        )


def _why_unknown(kind: str, name: str) -> str:
    if module := _in_tree(kind).get(name):
        return f"{module} does not register the {kind} plugin '{name[:60]}': a module is named after what it registers"
    entries = available()
    names = [entry.name for entry in entries if entry.kind == kind]
    elsewhere = next((f" It is a {entry.kind} plugin." for entry in entries if entry.name == name), "")
    there = f"{did_you_mean(name, names)} There are: {', '.join(names) or 'none'}"
    own = "one of your own needs its file, under 'plugins:' in a recipe, imported in Python"
    return f"no {kind} plugin '{name[:60]}'.{elsewhere}{there}; {own}"


@contextmanager
def _all_or_nothing() -> Iterator[None]:
    """Forget what a module registered if its import fails, so that a second try reports the true fault again."""
    before = dict(_registered)
    try:
        yield
    except BaseException:
        _registered.clear()
        _registered.update(before)
        raise


def _import(name: str) -> ModuleType:
    with _all_or_nothing():
        return importlib.import_module(name)


def _load_entry_points() -> None:
    for point in _entry_points(tuple((folder, _changed(Path(folder))) for folder in sys.path)):
        _load_entry_point(point)


@lru_cache(maxsize=2)
def _entry_points(folders: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """Those of all that is installed in ``folders``, each with the time of its last change."""
    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _load_entry_point(point: EntryPoint) -> None:
    distribution = point.dist.name if point.dist else point.value
    token = _distribution.set(distribution)
    try:
        _import(point.module)
    except UserError:
        raise
    except Exception as fault:  # noqa: BLE001  one broken package must not take every other plugin with it
        warnings.warn(f"plugins of '{distribution}' are left out: {point.module} fails with {fault!r}", stacklevel=2)
    finally:
        _distribution.reset(token)


def _find_file(spec: str, base: Path | None) -> Path:
    tried = [folder / Path(spec).expanduser() for folder in dict.fromkeys([base or Path(), Path()])]
    for path in tried:
        if path.is_file():
            return path.resolve()
    raise UserError(f"plugin file '{spec}' not found; looked for {' and '.join(map(str, tried))}")


def _load_file(path: Path) -> None:
    name = f"{path.stem}_{hashlib.sha1(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path, loader=SourceFileLoader(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look their module up while it is being executed
    try:
        with _all_or_nothing():
            spec.loader.exec_module(module)
    except BaseException as fault:
        del sys.modules[name]
        _explain(str(path), fault)
        raise


def _load_module(name: str) -> None:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"'{name[:60]}' is neither a plugin file, NAME.py, nor a module, PACKAGE.NAME")
    try:
        _import(name)
    except ImportError as fault:
        if fault.name and (name == fault.name or name.startswith(f"{fault.name}.")):
            raise UserError(
                f"plugin module '{name}' not found; is its package installed, or is it a .py file?"
            ) from fault
        _explain(name, fault)
        raise
    except SyntaxError as fault:
        _explain(name, fault)


def _explain(plugin: str, fault: BaseException) -> None:
    """Turn the two mistakes a person can mend at a glance into one line; leave every other fault its traceback."""
    if isinstance(fault, SyntaxError):
        raise UserError(f"{fault.filename}:{fault.lineno}: the plugin does not parse: {fault.msg}") from fault
    if isinstance(fault, ModuleNotFoundError):
        raise UserError(f"the plugin {plugin} needs '{fault.name}', which is not installed") from fault
