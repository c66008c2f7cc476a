"""The files of a stage's chunks: tensors, rows or a record, each sealed by a checksum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from factory import files

Value = TypeVar("Value", dict[str, Tensor], list[dict[str, Any]], dict[str, Any])

CODECS: dict[str, tuple[Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    ".safetensors": (files.encode_safetensors, files.decode_safetensors),
    ".jsonl": (files.encode_jsonl, files.decode_jsonl),
    ".json": (files.encode_json, files.decode_json),
}


def encoded(value: Any) -> tuple[str, bytes, Callable[[bytes], Any]]:
    """The suffix of a value's file, its bytes, and what reads them. Raises TypeError for what is no chunk."""
    suffix = _suffix(value)
    encode, decode = CODECS[suffix]
    return suffix, encode(value), decode


def unseal(seal: Path) -> Any:
    """The value of the file that `seal` names; ValueError or an OSError where it is not the one sealed."""
    with files.explained(seal, "read", but=(FileNotFoundError, IsADirectoryError)):
        expected, file_name = files.plain_bytes(seal).decode().removesuffix("\n").split("  ")
        path = seal.with_name(file_name)
        if path.suffix not in CODECS:
            raise ValueError(f"{file_name} is no chunk")
        data = files.plain_bytes(path)
    if files.digest_bytes(data) != expected:
        raise ValueError("checksum differs")
    return CODECS[path.suffix][1](data)


def _suffix(value: Any) -> str:
    if isinstance(value, list):
        return ".jsonl"
    if not isinstance(value, dict):
        raise TypeError(f"a chunk is a dict of tensors, a list of dicts or a dict, not {type(value).__name__}")
    tensors = [isinstance(item, Tensor) for item in value.values()]
    if any(tensors) and not all(tensors):
        raise TypeError("a chunk holds tensors only, or no tensor at the top level; this dict mixes them")
    return ".safetensors" if any(tensors) else ".json"
