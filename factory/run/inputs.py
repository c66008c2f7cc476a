"""What numbers depend on, as the inputs of the stages say it: the code of plugins beside their nodes, the items that
are asked, and how the model reads and writes.

What is not said: library versions, and the engine's own code beyond the package's version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from factory import code, files
from factory.data.sample import ConflictSample
from factory.model.fingerprint import contents
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.schema import Node, TuneSpec

SCORING = ("judge", "outcome")
LESSONS = ("lesson", "text_lesson", "picture", "corpus", "examine")
QUESTIONS = ("as_questions", "alone")
"""Members of a conflict benchmark that make verdicts of answers, that teach, and that make questions of it; the others
ask."""
SHORT = 16  # digits of a digest
READERS = 8  # threads that read pictures


def with_code(node: Node, only: Collection[str] = (), leave: Collection[str] = ()) -> dict[str, Any]:
    """A plugin node as a stage's inputs hold it; ``only`` and ``leave`` as in ``factory.code.of``."""
    return {"node": node.model_dump(mode="json"), "code": code.of_node(node, only, leave)}


def asking(node: Node) -> dict[str, Any]:
    """A conflict benchmark as what reads its prompts alone depends on it."""
    return with_code(node, leave=(*SCORING, *LESSONS, *QUESTIONS))


def scoring(node: Node, scorer: str) -> dict[str, Any]:
    """A conflict benchmark as its verdicts depend on it; ``scorer`` is its rule and version."""
    return {"scorer": scorer, "code": code.of_node(node, only=SCORING)}


def running(view: ModelView) -> dict[str, Any]:
    """All of a model that decides its states: weights, configuration, the code of what it is made of, and how it reads
    prompts.
    """
    made_of = sorted(f"{type(part).__name__} {code.of_plugin(part)}" for part in (view.family, *view.parts))
    return {
        "model": contents(view),
        "config": _config(view),
        "parts": made_of,
        "processor": reads(view),
        "dtype": str(view.dtype).removeprefix("torch."),
    }


def _config(view: ModelView) -> str:
    """Digest of a model's configuration (the base of its rotary positions, which layer's features it takes): equal
    weights say other things under another one. Where it lies, and what is told elsewhere, are left out.
    """
    apart = ("transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")

    def kept(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): kept(v) for k, v in value.items() if not str(k).startswith("_") and k not in apart}
        return [kept(each) for each in value] if isinstance(value, list | tuple) else _plain(value)

    return files.digest(kept(view.model.config.to_dict()))[:SHORT]


def made_from(recipe: Recipe) -> str:
    """Digest of what the runs of all seeds of a recipe share: all that it says but seed and places, and the code of its
    plugins."""
    apart = ("name", "seed", "seeds", "run", "launch", "report")
    said = {key: value for key, value in recipe.resolved().items() if key not in apart}
    return files.digest([version("steering-factory"), said, [code.of_node(node) for node in code.nodes(recipe)]])[
        :SHORT
    ]


def answering(view: ModelView) -> dict[str, Any]:
    """As ``running``, for stages whose model answers: with the tokens that end an answer."""
    return {**running(view), "ends": view.end_ids}


def running_digest(view: ModelView) -> str:
    """Digest of ``running``."""
    return files.digest(running(view))[:SHORT]


def learning(spec: TuneSpec) -> dict[str, str]:
    """Code of what a tuning runs: the tuner, and the benchmark whose lessons it learns."""
    named = {"tuner": spec.method, "lessons": spec.data.lessons}
    return {what: code.of_node(node) for what, node in named.items() if node is not None}


def reads(view: ModelView) -> str:
    """Hash of how the model reads a prompt: chat template, tokenizer and image processor, which a prompt's own digest
    does not hold.
    """
    pictures = view.picture_settings
    return files.digest({"template": view.writing.template, "pictures": pictures, "words": _words(view.tokenizer)})[
        :SHORT
    ]


@lru_cache(maxsize=8)
def _words(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return files.digest(tokenizer.get_vocab())
    model = files.decode_json(backend.to_str().encode())
    return files.digest({key: value for key, value in model.items() if key not in ("truncation", "padding")})


def of_samples(samples: Iterable[ConflictSample]) -> str:
    """Digest of the samples of a conflict benchmark: texts, tags, and the pictures that lie in files."""
    return files.digest(list(each_sample(samples).items()))


def each_sample(samples: Iterable[ConflictSample]) -> dict[str, str]:
    """What tells the content of each sample, by id."""
    samples = list(samples)
    seen = pictures(path for s in samples for path in s.images)
    texts = ("id", "task", "question", "context", "answer_vision", "answer_text")
    own = lambda s: [] if s.sources.pictured else [s.context_a, s.sources.names]
    about = lambda s: [*(getattr(s, t) for t in texts), _plain(s.tags), [seen[path] for path in s.images], *own(s)]
    return {s.id: files.digest(about(s))[:SHORT] for s in samples}


def of_items(items: Iterable[Any]) -> str:
    """Digest of the questions of a benchmark: ids, what is asked, what is right, groups, and the pictures.

    A prompt that has its ``words`` is asked for those; another is made, and its pictures read.
    """
    return files.digest(list(each_item(items).items()))


def each_item(items: Iterable[Any]) -> dict[str, str]:
    """What tells the content of each question, by id."""
    items = list(items)
    seen = pictures(path for item in items for path in item.images)
    told = {}
    for item in items:
        about = _plain([item.id, item.gold, item.tasks, item.unit, item.facts])
        told[item.id] = files.digest([about, _asked(item.prompt), [seen[path] for path in item.images]])[:SHORT]
    return told


def _asked(prompt: Any) -> Any:
    if (words := getattr(prompt, "words", None)) is not None:
        return _plain(words)
    try:
        return prompt().digest
    except OSError as error:  # told, counted and left out where it is asked
        return type(error).__name__


def pictures(paths: Iterable[Path]) -> dict[Path, str]:
    """Hash of the content of each file, so that a copied folder is the same and a mended picture another."""
    unique = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(unique, pool.map(_content, unique), strict=True))


def _content(path: Path) -> str:
    try:
        stat = path.stat()
        return _hashed(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        return f"unread: {error.strerror}"


@lru_cache(maxsize=1 << 20)
def _hashed(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _plain(value: Any) -> Any:
    """JSON-able, in an order of its own where the value has none."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
