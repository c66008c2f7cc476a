"""Files that are whole or absent: atomic writes, tolerant logs, and disk errors told in one line.

Every write goes to a temporary file in the same folder, is flushed to the disk and renamed over the target: a process
killed at any moment leaves the old file or the new one, never a part. All that a kill can leave behind is the temporary
file (`.NAME.PID.partial`); `remove_temporary` removes those.
"""

import errno
import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PARTIAL = ".partial"
LARGEST = 1 << 30  # bytes of a file that is read whole
ENDLESS = "a pipe, socket or device, and no file"  # of which a read may never end

_ELSEWHERE = "choose another folder (for a run: run.root=FOLDER)"
MAKE_ROOM = "Free some space and start again (finished work is kept), or " + _ELSEWHERE
_EXPLANATIONS: dict[int | None, str] = {
    errno.ENOSPC: "the disk is full. " + MAKE_ROOM,
    errno.EDQUOT: "your disk quota is used up. " + MAKE_ROOM,
    errno.EROFS: "the file system is read-only. Mount it writable, or " + _ELSEWHERE,
    errno.EACCES: "permission denied. Change the rights, or " + _ELSEWHERE,
    errno.EPERM: "the operation is not permitted here. Change the rights, or " + _ELSEWHERE,
    errno.ENOTDIR: "a file stands where a folder is needed. Move it away, or " + _ELSEWHERE,
    errno.EEXIST: "a file stands where a folder is needed. Move it away, or " + _ELSEWHERE,
    errno.EISDIR: "a folder stands where a file is needed. Move it away, or " + _ELSEWHERE,
    errno.ENOENT: "no such file. Check the path",
}


_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
_DEVICES = re.compile(r"(?i:con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # no file of Windows and its shares can be called so


def file_name(*parts: str) -> str:
    """The name of the file or folder of whatever ``parts`` name: no two lists of as many parts share one, and none
    leads out of its folder.

    Plain names stay as they are, several are joined by ``-``. Others keep what can stand in a file's name and end in
    ``~`` and a hash, as no plain name does.
    """
    name = "-".join(parts)
    if _PLAIN.fullmatch(name) and not _DEVICES.fullmatch(name) and not any("-" in part for part in parts[:-1]):
        return name
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60] + "~" + digest(parts if len(parts) > 1 else name)[:16]


def full(error: BaseException) -> bool:
    """Whether an error says that there is no room left on a disk; some libraries say it in words alone."""
    room = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return room or any(f"os error {code}" in str(error) for code in (errno.ENOSPC, errno.EDQUOT))


@contextmanager
def explained(path: Path, action: str = "write", but: tuple[type[OSError], ...] = ()) -> Iterator[None]:
    """Turn an OSError inside the block, `but` those of some types, into a `UserError` that names `path` and says what
    to do.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, but):
            raise
        cause = _EXPLANATIONS.get(error.errno, f"{error.strerror or error}. Check the disk, or {_ELSEWHERE}")
        raise UserError(f"{path}: cannot {action}: {cause}.") from error


def make_folder(path: Path) -> Path:
    """Create `path` and its parents where missing, and return it."""
    with explained(path, "create the folder"):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` atomically; missing parent folders are made.

    Raises `UserError` when the disk refuses; the temporary file is gone then and the old file, if any, untouched.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    with explained(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, atomically; half a surrogate pair, which has no such form, as an escape."""
    write_bytes(path, _utf8(text))


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON, keys in the order given, atomically."""
    write_bytes(path, encode_json(value))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace `path` by one JSON object a line, atomically."""
    write_bytes(path, encode_jsonl(rows))


def write_safetensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str] | None = None) -> None:
    """Replace `path` by named tensors, atomically. Views, shared storage and accelerator tensors are fine."""
    write_bytes(path, encode_safetensors(tensors, metadata))


def write_npy(path: Path, array: "np.ndarray") -> None:
    """Replace `path` by an array in NumPy's format, atomically."""
    import numpy as np

    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    write_bytes(path, data.getvalue())


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON line. A line torn by an earlier kill is ended first, so that it spoils only itself."""
    with explained(path), open(path, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        torn = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * torn + encode_jsonl([row]))


def plain_bytes(path: Path) -> bytes:
    """The bytes of a plain file; `OSError` also for a pipe, socket or device, of which a read may never end."""
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        raise OSError(errno.EINVAL, ENDLESS, str(path))
    return path.read_bytes()


def read_bytes(path: Path, at_most: int = LARGEST) -> bytes:
    """The bytes of a plain file; `UserError` where it is missing, something that never ends, or of more bytes than
    `at_most`, before any is read.
    """
    with explained(path, "read"):
        about = path.stat()
        if stat.S_ISDIR(about.st_mode):
            raise IsADirectoryError(errno.EISDIR, "a folder")
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f"{path}: cannot read: it is {ENDLESS}. Give a file.")
        if about.st_size > at_most:
            raise UserError(
                f"{path}: cannot read: it has {about.st_size:,} bytes, and such a file at most {at_most:,}."
            )
        return path.read_bytes()


def read_text(path: Path, at_most: int = LARGEST) -> str:
    """The text of a file in UTF-8; `UserError` where it cannot be read or is none."""
    with _readable(path, "text"):
        return read_bytes(path, at_most).decode()


def read_json(path: Path, at_most: int = LARGEST) -> Any:
    """The value of a JSON file; `UserError` where it is missing or malformed."""
    with _readable(path, "JSON"):
        return decode_json(read_bytes(path, at_most))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; `UserError` where it is missing or malformed."""
    with _readable(path, "JSONL"):
        return decode_jsonl(read_bytes(path))


def read_safetensors(path: Path) -> dict[str, "Tensor"]:
    """The tensors of a safetensors file, on the CPU; `UserError` where it is missing or malformed."""
    with _readable(path, "safetensors"):
        return decode_safetensors(read_bytes(path))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log written by `append_jsonl`; lines torn by a kill are left out."""
    rows = []
    with explained(path, "read"):
        lines = path.read_bytes().split(b"\n")
    for line in filter(None, lines):
        with suppress(ValueError):
            rows += decode_jsonl(line)
    return rows


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files a killed process left anywhere under `folder`. Nobody may be writing there."""
    for leftover in folder.rglob(f".*{PARTIAL}"):
        with explained(leftover, "remove"):
            leftover.unlink()


def digest(value: Any) -> str:
    """sha256, as 64 hex digits, of a JSON-able value's canonical form (sorted keys, no spaces); TypeError otherwise."""
    return digest_bytes(_utf8(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)))


def digest_bytes(data: bytes) -> str:
    """sha256 of `data`, as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, as 64 hex digits, however large it is; `UserError` where it cannot be read."""
    with explained(path, "read"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk before anything that is written afterwards."""
    with explained(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def encode_json(value: Any) -> bytes:
    """Indented JSON in UTF-8 with a final newline."""
    return _utf8(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def encode_jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """One JSON object a line in UTF-8."""
    return _utf8("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def encode_safetensors(tensors: Mapping[str, "Tensor"], metadata: dict[str, str] | None = None) -> bytes:
    """The safetensors form of named tensors."""
    import torch
    from safetensors.torch import save

    # safetensors refuses views and shared storage; slices of one big tensor are the usual value here.
    owned = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    return save(owned, metadata)


def decode_json(data: bytes) -> Any:
    """Inverse of `encode_json`; ValueError where malformed."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("lists or objects nested too deeply") from None


def decode_jsonl(data: bytes) -> list[dict[str, Any]]:
    """Inverse of `encode_jsonl`; ValueError where malformed."""
    rows = [decode_json(line) for line in data.split(b"\n") if line]
    if odd := next((n for n, row in enumerate(rows, 1) if not isinstance(row, dict)), None):
        raise ValueError(f"row {odd} is no object")
    return rows


def decode_safetensors(data: bytes) -> dict[str, "Tensor"]:
    """Inverse of `encode_safetensors`: on the CPU, in the order of their names; ValueError where malformed."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(sorted(load(data).items()))
    except (SafetensorError, KeyError, RuntimeError) as error:  # the last two for types that PyTorch has not
        raise ValueError(" ".join(str(error).split())[:200]) from error


def _utf8(text: str) -> bytes:
    # A lone surrogate (half an emoji in a dataset) has no UTF-8 form; this writes it as the JSON escape \udXXX.
    return text.encode("utf-8", "backslashreplace")


@contextmanager
def _readable(path: Path, form: str) -> Iterator[None]:
    try:
        with explained(path, "read"):
            yield
    except ValueError as error:
        raise UserError(f"{path}: not a whole {form} file ({error}). Delete it and make it again.") from error
