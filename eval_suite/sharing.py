"""What goes to the hub: an artefact, a trained part, or a tuned model as other tools read it, with a card that says of
what, how well, and how to load it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_suite.travel import Origin, origin_of
from factory import files, tune
from factory.errors import UserError
from factory.recipe import dump
from factory.recipe.schema import ModelSpec
from factory.run.labels import CURVE
from factory.steer import artefact
from factory.tune import checkpoint
from factory.zoo.cards import cards, read_card

CARD = "README.md"
EXPORTED = {"config.json": "transformers", "adapter_config.json": "peft"}
"""What `export RUN model` and `export RUN adapter` write: the file that tells them, and the library that loads it."""
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", CARD)
"""What of such a folder goes up and comes down: never a file that would have to be unpickled."""


@dataclass(frozen=True)
class Shared:
    """A folder that can be shared: its ``kind``, its manifest, and the run that it came out of, if it is there."""

    folder: Path
    kind: str
    manifest: Mapping[str, Any]
    origin: Origin | None

    @classmethod
    def of(cls, folder: Path) -> Shared:
        """Raises ``UserError`` for a folder that holds neither an artefact nor a trained part, or a damaged one."""
        for inside in (folder, folder / "tuned"):
            if tune.is_saved(inside):
                manifest = files.read_json(inside / checkpoint.MANIFEST)
                return cls(inside, "tuner", manifest, origin_of(inside, "tuned"))
        if not (folder / artefact.MANIFEST).is_file():
            raise UserError(
                f"{folder}: neither a steering artefact (RUN/artefacts/NAME) nor a trained part (RUN/tuned) nor what"
                " `export RUN model` or `export RUN adapter` has written; runs are shared by these"
            )
        artefact.artefact_manifest(folder)
        return cls(folder, "steering", files.read_json(folder / artefact.MANIFEST), origin_of(folder))

    def contents(self) -> dict[str, bytes | Path]:
        """What is uploaded: manifest, tensors and the card. Raises ``UserError`` where a file is missing."""
        names = checkpoint.FILES if self.kind == "tuner" else artefact.FILES
        found: dict[str, bytes | Path] = {n: files.read_bytes(self.folder / n) for n in names if n != CARD}
        return {**found, CARD: self.card().encode()}

    def card(self) -> str:
        """The page that the hub shows."""
        return "\n".join([*self._head(), *self._model(), *self._results(), *self._loading(), *self._recipe()])

    def _head(self) -> Iterator[str]:
        tag = "activation-steering" if self.kind == "steering" else "parameter-efficient-fine-tuning"
        yield from ("---", "library_name: steering-factory", f"tags: [{tag}, multimodal]")
        if base := self._hub_id()[0]:
            yield f"base_model: {base}"
        yield from ("---", "", f"# {self.manifest['type']} for {self.manifest['base_model']['class']}", "")

    def _spec(self) -> ModelSpec | None:
        return self.origin.recipe.model if self.origin else None

    def _hub_id(self) -> tuple[str | None, str | None]:
        spec = self._spec()
        card = read_card(spec.zoo) if spec and spec.zoo in cards() else None
        if spec and spec.hub:
            return spec.hub, spec.revision
        return (card.hub, (spec and spec.revision) or card.revision) if card else (None, None)

    def _model(self) -> Iterator[str]:
        base, spec = self.manifest["base_model"], self._spec()
        hub, revision = self._hub_id()
        named = f"`{hub}`" if hub else f"`{spec.zoo or spec.path}`" if spec else "see the manifest"
        yield f"- model: {named}, {base['class']}, fingerprint `{base.get('fingerprint', 'see the manifest')}`"
        yield f"- revision: {revision or 'none named; the fingerprint tells the weights'}"
        facts = {**self.manifest.get("about", {}), **self.manifest.get("where", {})}
        facts |= {key: self.manifest[key] for key in ("strength", "parameters") if key in self.manifest}
        yield from (f"- {key}: {value}" for key, value in facts.items() if value not in ("", None))

    def _results(self) -> Iterator[str]:
        path = self.origin.folder / "results.json" if self.origin else None
        results = files.read_json(path) if path and path.is_file() else {"rows": []}
        rows = [row for row in results["rows"] if self._is_mine(row)]
        yield from ("", "## Results", "")
        if not rows:
            yield "Nothing was measured in the run, or the run is not beside this folder."
            return
        yield from ("| benchmark | split | n | metric | value | 95 % interval |", "|---|---|--:|---|--:|---|")
        for row in rows:
            for metric, value in row["metrics"].items():
                low, high = row.get("ci", {}).get(metric, (None, None))
                interval = f"{low:.3f} to {high:.3f}" if low is not None else ""
                asked = f"{row.get('label') or row['benchmark']} ({row['protocol']}) | {row['split']} | {row['n']}"
                yield f"| {asked} | {metric} | {value:.3f} | {interval} |"

    def _is_mine(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is of this arm as it was chosen, over all tasks, on all of test."""
        about = self.manifest.get("about", {})
        mine = [row.get("method"), row.get("direction")] == [about.get("method"), about.get("direction")]
        arm = f"{row.get('method')}-{row.get('direction')}" == self.folder.name
        return row["split"] not in ("dev", CURVE) and row["task"] == "all" and bool(row.get("chosen")) and (mine or arm)

    def _loading(self) -> Iterator[str]:
        spec = self._spec()
        model = (spec.zoo or spec.path or spec.hub) if spec else "MODEL"
        yield from ("", "## How to load it", "", "```python", "import factory", f'view = factory.load("{model}")')
        if self.kind == "tuner":
            yield from ("from factory import tune", "tune.load(FOLDER, view)  # of `steering-factory pull OWNER/NAME`")
        else:
            yield "with factory.steered(view, FOLDER):  # of `steering-factory pull OWNER/NAME`"
            yield "    view.model.generate(**view.encode(prompts), max_new_tokens=16)"
        yield "```"

    def _recipe(self) -> Iterator[str]:
        if self.origin:
            yield from ("", "## Recipe", "", "```yaml", dump(self.origin.recipe).rstrip(), "```")
        yield ""


@dataclass(frozen=True)
class Tuned(Shared):
    """A trained part as ``export`` writes it for a ``library`` that does not know this project: ``line`` loads it."""

    library: str
    line: str

    def _head(self) -> Iterator[str]:
        yield from ("---", f"library_name: {self.library}", "tags: [multimodal, parameter-efficient-fine-tuning]")
        if base := self._hub_id()[0]:
            relation = "adapter" if self.library == "peft" else "finetune"
            yield from (f"base_model: {base}", f"base_model_relation: {relation}")
        yield from ("---", "", f"# {self.manifest['base_model']['class']} tuned by {self.manifest['type']}", "")

    def _loading(self) -> Iterator[str]:
        yield from ("", "## How to load it", "", "```python", self.line, "```")


def write_card(to: Path, part: Path, line: str) -> None:
    """Put the card of the trained part in folder ``part`` into ``to``, where ``export`` has written it for a library of
    the hub's; ``line`` loads it from there.
    """
    for library in (library for name, library in EXPORTED.items() if (to / name).is_file()):
        shared = Shared.of(part)
        loading = line.replace(str(to), "OWNER/NAME")
        tuned = Tuned(shared.folder, shared.kind, shared.manifest, shared.origin, library, loading)
        files.write_text(to / CARD, tuned.card())


def is_exported(folder: Path) -> bool:
    """Whether a folder holds a model or an adapter as other tools read it."""
    return any((folder / name).is_file() for name in EXPORTED) and any(folder.glob("*.safetensors"))


def contents_of(folder: Path) -> dict[str, bytes | Path]:
    """What ``push`` uploads of a folder, its card among it. Raises ``UserError`` for one that cannot be shared."""
    if not is_exported(folder):
        return Shared.of(folder).contents()
    if not (folder / CARD).is_file():
        raise UserError(f"{folder}: has no {CARD}, the card of a shared model; export the run again, or write one")
    return {path.name: path for pattern in PATTERNS for path in sorted(folder.glob(pattern))}


def card_of(contents: Mapping[str, bytes | Path]) -> str:
    """The card among what is uploaded, as text."""
    card = contents[CARD]
    return card.decode() if isinstance(card, bytes) else card.read_text(encoding="utf-8")


def is_shared(folder: Path) -> bool:
    """Whether a folder holds what ``push`` uploads."""
    return tune.is_saved(folder) or (folder / artefact.MANIFEST).is_file() or is_exported(folder)
