"""The artefact: a folder with a manifest, safetensors and a card, that steers the base model it was made for and no
other.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import FiniteFloat

from factory import files
from factory.errors import UserError
from factory.hub import hub_faults
from factory.model import manifest as made_for
from factory.model.identity import identity_of
from factory.model.view import ModelView
from factory.steer.base import Context, Steerer
from factory.steer.runtime import Steering, check, check_steerer, check_strength
from factory.steer.where import Where

MANIFEST, TENSORS = "steering_config.json", "steering.safetensors"
FILES = (MANIFEST, TENSORS, "README.md")
LIBRARIES = ("torch", "transformers", "safetensors", "steering-factory")


class ArtefactManifest(made_for.Manifest):
    """What ``steering_config.json`` says: beside all that is common, where is steered, and how strongly."""

    where: Where
    strength: FiniteFloat


def save(folder: str | Path, steering: Steering, view: ModelView, about: dict[str, Any] | None = None) -> Path:
    """Write ``steering`` (its strength must be a number) as an artefact of ``view``'s model; ``about`` goes into the
    manifest.

    Raises ``UserError`` for a method that adds no vectors, another strength, and tensors with NaN or infinite values.
    """
    check_steerer(steering)
    if isinstance(steering.strength, bool) or not isinstance(steering.strength, int | float):
        raise UserError(
            "an artefact holds one number as its strength; give a strength per row or a controller when it is loaded"
        )
    check_strength(steering.strength)
    if odd := made_for.not_finite(steering.state):
        raise UserError(
            f"{folder}: steering '{steering.steerer.name}': its tensor '{odd}' holds NaN or infinite values"
        )
    folder, data = Path(folder), files.encode_safetensors(steering.state)
    manifest = {
        "schema": made_for.SCHEMA,
        "type": steering.steerer.name,
        "params": steering.steerer.params.model_dump(mode="json"),
        "where": steering.where.model_dump(),
        "strength": steering.strength,
        "sha256": files.digest_bytes(data),
        "base_model": identity_of(view).record(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "about": about or {},
    }
    files.write_bytes(folder / TENSORS, data)
    files.write_text(folder / "README.md", _card(manifest, view.origin))
    files.write_json(folder / MANIFEST, manifest)
    return folder


def check_folder(folder: str | Path) -> None:
    """Raises ``UserError`` where ``folder`` is no artefact."""
    if not (Path(folder) / MANIFEST).is_file():
        raise UserError(f"{folder}: not a steering artefact (it has no {MANIFEST})")


def noted(folder: str | Path) -> dict[str, Any]:
    """What was noted when the artefact was saved: a run's says ``direction``, ``variant`` and ``run``."""
    return artefact_manifest(Path(folder)).about


def load(folder: str | Path, view: ModelView, strict: bool = True) -> Steering:
    """The steering in ``folder``, ready for ``steer(view, ...)``.

    Raises ``UserError`` where the folder is no artefact, is damaged, or was made for another base model; the same model
    in another precision is no other. Without ``strict`` one that was made for a model of the same architecture and
    sizes, such as one that was tuned further, is loaded with a warning that says what differs.
    """
    folder = Path(folder)
    manifest = artefact_manifest(folder)
    made_for.check_base(folder, manifest.base_model, view, strict=strict)
    steerer = made_for.revive(folder / MANIFEST, "steering", manifest)
    if not isinstance(steerer, Steerer):
        raise UserError(f"{folder / MANIFEST}: '{manifest.type}' adds no vectors, so that it is no steering to load")
    steering = Steering(
        steerer, made_for.read_tensors(folder / TENSORS, manifest), manifest.where, float(manifest.strength)
    )
    check(steering, view)
    for part in steering.by_block():
        _check_tensors(folder / TENSORS, part, view)
    return steering


@torch.no_grad()
def _check_tensors(path: Path, steering: Steering, view: ModelView) -> None:
    """Refuse tensors from which the method makes no vectors of the width that it acts on."""
    layer = steering.layer
    width = view.width if steering.where.site == "block" else view.heads_of(layer) * view.head_dim
    make = steering.steerer.gain if steering.decides else steering.steerer.delta
    try:
        made = make(torch.zeros(2, width), steering.state, Context(layer))
    except KeyError as error:
        raise UserError(f"{path}: the tensor {error} of steering '{steering.steerer.name}' is missing") from error
    except (RuntimeError, IndexError, ValueError) as error:
        raise UserError(
            f"{path}: its tensors do not fit a model of width {width} ({str(error).splitlines()[0]})"
        ) from error
    if tuple(made.shape) != ((2,) if steering.decides else (2, width)):
        raise UserError(f"{path}: its tensors make vectors of width {made.shape[-1]}, and the model's width is {width}")
    if made.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise UserError(f"{path}: its tensors make vectors of {str(made.dtype)[6:]}, and need floating-point numbers")


def push(folder: str | Path, repo: str, token: str | None = None, private: bool = False) -> str:
    """Upload the artefact in ``folder`` to the model repo ``repo`` (OWNER/NAME) of the Hugging Face hub, made where
    there is none.

    ``token`` null takes the one of ``hf auth login``. Returns the address. Raises ``UserError`` where the folder is no
    artefact or the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    artefact_manifest(folder)
    with hub_faults(repo, "push to"):
        api = HfApi(token=token)
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=list(FILES), commit_message="Steering artefact"
        )
    return f"https://huggingface.co/{repo}"


def pull(repo: str, token: str | None = None, revision: str | None = None) -> Path:
    """Download the artefact in the hub's ``repo`` (its manifest, tensors and card alone) into the hub cache; returns
    its folder.

    What is in the cache already serves offline. Raises ``UserError`` as ``push`` does.
    """
    from huggingface_hub import snapshot_download

    with hub_faults(repo, "pull from"):
        folder = Path(snapshot_download(repo, revision=revision, token=token, allow_patterns=list(FILES)))
    artefact_manifest(folder)
    return folder


def artefact_manifest(folder: Path) -> ArtefactManifest:
    """What an artefact's folder says of itself. Raises ``UserError`` where it is none, or damaged."""
    check_folder(folder)
    return made_for.read_form(folder / MANIFEST, ArtefactManifest, "a steering artefact")


CARD = """\
---
library_name: steering-factory
tags: [activation-steering, multimodal]
---

# {type} steering for {model}

{facts}

From this folder (`artefact.pull("OWNER/NAME")` gives that of a repo on the hub):

```python
from PIL import Image

from factory.data.prompt import Prompt, Role, Segment
from factory.model.load import load
from factory.recipe.schema import ModelSpec
from factory.steer import artefact, steer

view = load(ModelSpec({origin}))
question = Segment(Role.QUESTION, "Text context: the square is blue.\\nWhich color is the square?")
prompts = [Prompt((Segment(Role.IMAGE, image=Image.new("RGB", (336, 336), "red")), question))]
batch = view.encode(prompts)
with steer(view, artefact.load(".", view)):
    tokens = view.model.generate(**batch, max_new_tokens=16)
print(view.tokenizer.decode(tokens[0, batch.input_ids.shape[1] :], skip_special_tokens=True))
```
"""


def _card(manifest: dict[str, Any], origin: str) -> str:
    facts = {**manifest["about"], **manifest["where"], "strength": manifest["strength"]}
    return CARD.format(
        type=manifest["type"],
        model=manifest["base_model"]["class"],
        facts="\n".join(f"- {key}: {value}" for key, value in facts.items()),
        origin=origin,
    )
