"""The Hugging Face hub: files up to a repository and down from one, and its refusals in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from factory.errors import UserError

TRANSPORTS = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "hf_xet", "huggingface_hub")


def push_files(
    repo: str, contents: Mapping[str, bytes | Path], message: str, token: str | None = None, private: bool = False
) -> str:
    """Write files, given as bytes or by their path, to the model repository ``repo`` (OWNER/NAME), made where there is
    none; returns its address.

    ``token`` null takes the one of ``hf auth login`` or HF_TOKEN. Raises ``UserError`` in one line without a token,
    for a bad name, and where the hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    check_repo(repo, "push to")
    if (token := token or get_token()) is None:
        raise UserError(
            f"cannot push to {repo}: no token of the hub is here; log in with `hf auth login`, or set HF_TOKEN"
        )
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    with hub_faults(repo, "push to"):
        api.create_repo(repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, data) for name, data in contents.items()]
        api.create_commit(repo, operations, commit_message=message)
    return f"{api.endpoint}/{repo}"


def pull_files(
    repo: str, names: Sequence[str], folder: Path | None = None, revision: str | None = None, token: str | None = None
) -> Path:
    """The files of ``repo`` that have these names, in the hub's cache or in ``folder``; returns where they lie. Raises
    ``UserError`` as ``push_files`` does.
    """
    from huggingface_hub import snapshot_download

    check_repo(repo, "pull from")
    with hub_faults(repo, "pull from"):
        found = snapshot_download(
            repo,
            revision=revision,
            local_dir=folder,
            token=token,
            allow_patterns=list(names),
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    return Path(found)


def check_repo(repo: str, action: str) -> None:
    """Raises ``UserError`` for what is no repository's name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"cannot {action} '{repo}': a repo is named OWNER/NAME") from error
    if "/" not in repo:
        raise UserError(f"cannot {action} '{repo}': a repo is named OWNER/NAME")


@contextmanager
def hub_faults(repo: str, action: str, instead: str = "copy the folder") -> Iterator[None]:
    """Tell what the hub, or the way to it, refuses in one line; ``instead`` is what to do where there is no way."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"cannot {action} {repo}: its licence has to be accepted first, at {_endpoint()}/{repo}; then `hf auth"
            " login`, and once more"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"cannot {action} {repo}: it has no such revision") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"cannot {action} {repo}: there is no such repo, or it is private; check the name, or log in with `hf auth"
            " login`"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(f"cannot {action} {repo}: the hub refuses: {str(error).strip().splitlines()[0]}") from error
    except HFValidationError as error:
        raise UserError(f"cannot {action} '{repo}': a repo is named OWNER/NAME") from error
    except Exception as error:  # whatever the network stack raises: it differs between the hub's transports
        if not _is_transfer(error):
            raise
        raise UserError(
            f"cannot {action} {repo}: the hub cannot be reached ({_cause(error)}); check the connection, or {instead}"
        ) from error


def _endpoint() -> str:
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT)


def _is_transfer(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in TRANSPORTS


def _cause(error: BaseException) -> str:
    """The first line of what lies at the bottom of a fault."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
