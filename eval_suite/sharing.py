"""What goes to the hub: an artefact or a trained part, with a card that says of what, how well, and how to load it."""

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
from factory.steer import artefact
from factory.tune import checkpoint
from factory.zoo.cards import cards, read_card

CARD = "README.md"


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
                f"{folder}: neither a steering artefact (RUN/artefacts/NAME) nor a trained part (RUN/tuned); runs are"
                " shared by these"
            )
        artefact.artefact_manifest(folder)
        return cls(folder, "steering", files.read_json(folder / artefact.MANIFEST), origin_of(folder))

    def contents(self) -> dict[str, bytes]:
        """What is uploaded: manifest, tensors and the card. Raises ``UserError`` where a file is missing."""
        names = checkpoint.FILES if self.kind == "tuner" else artefact.FILES
        found = {name: files.read_bytes(self.folder / name) for name in names if name != CARD}
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
        yield f"- revision: {revision or 'of the weights that the fingerprint tells'}"
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
                asked = f"{row['benchmark']} ({row['protocol']}) | {row['split']} | {row['n']}"
                yield f"| {asked} | {metric} | {value:.3f} | {interval} |"

    def _is_mine(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is of this arm as it was chosen, over all tasks, on test."""
        about = self.manifest.get("about", {})
        mine = [row.get("method"), row.get("direction")] == [about.get("method"), about.get("direction")]
        arm = f"{row.get('method')}-{row.get('direction')}" == self.folder.name
        return row["split"] != "dev" and row["task"] == "all" and bool(row.get("chosen")) and (mine or arm)

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


def is_shared(folder: Path) -> bool:
    """Whether a folder holds what ``push`` uploads."""
    return tune.is_saved(folder) or (folder / artefact.MANIFEST).is_file()
