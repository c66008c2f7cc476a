"""The artefact: a folder with a manifest, safetensors and a card, that steers the base model it was made for and no
other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from factory import files
from factory.errors import UserError
from factory.model.load import fingerprint
from factory.model.made_for import revive
from factory.model.view import ModelView
from factory.steer.base import Context
from factory.steer.runtime import Steering, check
from factory.steer.where import Where

MANIFEST, TENSORS = "steering_config.json", "steering.safetensors"
FILES = (MANIFEST, TENSORS, "README.md")
LIBRARIES = ("torch", "transformers", "safetensors", "steering-factory")


def save(folder: Path, steering: Steering, view: ModelView, about: dict[str, Any] | None = None) -> Path:
    """Write ``steering`` (its strength must be a number) as an artefact of ``view``'s model; ``about`` goes into the
    manifest.
    """
    if not isinstance(steering.strength, int | float):
        raise UserError(
            "an artefact holds one number as its strength; give a strength per row or a controller when it is loaded"
        )
    manifest = {
        "schema": 1,
        "type": steering.steerer.name,
        "params": steering.steerer.params.model_dump(mode="json"),
        "where": steering.where.model_dump(),
        "strength": steering.strength,
        "base_model": {"class": type(view.model).__name__, "fingerprint": fingerprint(view)},
        "libraries": {name: version(name) for name in LIBRARIES},
        "about": about or {},
    }
    files.write_safetensors(folder / TENSORS, {k: v.contiguous() for k, v in steering.state.items()})
    files.write_text(folder / "README.md", _card(manifest))
    files.write_json(folder / MANIFEST, manifest)
    return folder


def check_folder(folder: Path) -> None:
    """Raises ``UserError`` where ``folder`` is no artefact."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder}: not a steering artefact (it has no {MANIFEST})")


def load(folder: Path, view: ModelView) -> Steering:
    """The steering in ``folder``, ready for ``steer(view, ...)``.

    Raises ``UserError`` where the folder is no artefact, is damaged, or was made for another base model.
    """
    manifest = _manifest(folder)
    try:
        theirs, kind, strength = manifest["base_model"], manifest["type"], manifest["strength"]
        where, params, made_for = (
            Where.model_validate(manifest["where"]),
            manifest["params"],
            (theirs["fingerprint"], theirs.get("class")),
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise UserError(
            f"{folder / MANIFEST}: not a manifest of a steering artefact ({type(error).__name__})"
        ) from error
    steerer = revive(folder / MANIFEST, "steering", kind, params, made_for, view)
    steering = Steering(steerer, files.read_safetensors(folder / TENSORS), where, strength)
    check(steering, view)
    _check_tensors(folder / TENSORS, steering, view.width)
    return steering


@torch.no_grad()
def _check_tensors(path: Path, steering: Steering, width: int) -> None:
    """Refuse tensors from which the method makes no vectors of the model's width."""
    try:
        made = tuple(steering.steerer.delta(torch.zeros(2, width), steering.state, Context(steering.where.layer)).shape)
    except KeyError as error:
        raise UserError(f"{path}: the tensor {error} of steering '{steering.steerer.name}' is missing") from error
    except (RuntimeError, IndexError, ValueError) as error:
        raise UserError(
            f"{path}: its tensors do not fit a model of width {width} ({str(error).splitlines()[0]})"
        ) from error
    if made != (2, width):
        raise UserError(f"{path}: its tensors make vectors of width {made[-1]}, and the model's width is {width}")


def push(folder: Path, repo: str, token: str | None = None, private: bool = False) -> str:
    """Upload the artefact in ``folder`` to the model repo ``repo`` (OWNER/NAME) of the Hugging Face hub, made where
    there is none.

    ``token`` null takes the one of ``hf auth login``. Returns the address. Raises ``UserError`` where the folder is no
    artefact or the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    _manifest(folder)
    with _hub(repo, "push to"):
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

    with _hub(repo, "pull from"):
        folder = Path(snapshot_download(repo, revision=revision, token=token, allow_patterns=list(FILES)))
    _manifest(folder)
    return folder


@contextmanager
def _hub(repo: str, action: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RepositoryNotFoundError

    try:
        yield
    except RepositoryNotFoundError as error:
        raise UserError(
            f"cannot {action} {repo}: there is no such repo, or it is private; check the name, or log in with `hf auth"
            " login`"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(f"cannot {action} {repo}: the hub refuses: {str(error).strip().splitlines()[0]}") from error
    except HFValidationError as error:
        raise UserError(f"cannot {action} '{repo}': a repo is named OWNER/NAME") from error
    except (OSError, HTTPError) as error:
        raise UserError(
            f"cannot {action} {repo}: the hub cannot be reached ({type(error).__name__}); check the connection, or copy"
            " the folder"
        ) from error


def _manifest(folder: Path) -> dict[str, Any]:
    check_folder(folder)
    return files.read_json(folder / MANIFEST)


def _card(manifest: dict[str, Any]) -> str:
    lines = [
        f"- {key}: {value}"
        for key, value in {**manifest["about"], **manifest["where"], "strength": manifest["strength"]}.items()
    ]
    return "\n".join(
        [
            "---",
            "library_name: steering-factory",
            "tags: [activation-steering, multimodal]",
            "---",
            "",
            f"# {manifest['type']} steering for {manifest['base_model']['class']}",
            "",
            *lines,
            "",
            "```python",
            "from factory.steer import artefact, steer",
            "",
            "with steer(view, artefact.load(folder, view)):",
            "    view.model.generate(**view.encode(prompts))",
            "```",
            "",
        ]
    )
