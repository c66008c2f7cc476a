"""A model's fingerprint: a hash of its class and of some of its values, which tells any two apart."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence

import torch
from torch import Tensor, nn

from factory.model.view import ModelView
from factory.model.weights import at_hand

SAMPLED = 64  # values of each parameter that its fingerprint reads


def fingerprint(view: ModelView, without: Sequence[str] = ()) -> str:
    """Hash of a model's class and of values sampled from every parameter; reads a few kilobytes per tensor at most.

    ``without`` are parts of the view (``connector``) that do not count, as those that a trained part replaces.
    """
    if view.identity and not without:
        return view.identity
    return fingerprint_of(view.model, tensors_of(view, without))


def contents(view: ModelView) -> str:
    """Hash of a model's class and of a sum over all bits of each of its tensors, the same on every device: a change in
    any one value gives another. Of a model that is cut over ranks, its fingerprint.
    """
    if view.identity:
        return view.identity
    h = hashlib.sha256(type(view.model).__name__.encode())
    for name, tensor in sorted(view.model.state_dict(keep_vars=True).items()):
        with at_hand(view.model, name, tensor) as p:
            h.update(f"{name}{tuple(p.shape)}{p.dtype}{_total(p.detach())}".encode())
    return h.hexdigest()[:16]


def _total(values: Tensor) -> int:
    """Exact sum of a tensor's bits, taken as whole numbers of 64 bits, and of the bytes that are left over."""
    bits = values.contiguous().reshape(-1).view(torch.uint8)
    if bits.storage_offset() % 8:
        bits = bits.clone()
    even = len(bits) - len(bits) % 8
    return int(bits[:even].view(torch.int64).sum()) + int(bits[even:].sum(dtype=torch.int64))


def tensors_of(view: ModelView, without: Sequence[str]) -> set[int]:
    """The ``id`` of every tensor in the parts ``without``."""
    return {id(p) for part in without for p in getattr(view, part).state_dict(keep_vars=True).values()}


def fingerprint_of(module: nn.Module, leave: Container[int] = ()) -> str:
    """Hash of a module's class and of values sampled from every parameter and buffer but those whose ``id`` is in
    ``leave``.
    """
    h = hashlib.sha256(type(module).__name__.encode())
    for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
        if id(tensor) in leave:
            continue
        with at_hand(module, name, tensor) as p:
            flat = p.detach().flatten()
            h.update(f"{name}{tuple(p.shape)}".encode())
            h.update(flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED].float().cpu().numpy().tobytes())
    return h.hexdigest()[:16]
