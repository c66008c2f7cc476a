"""Which tokens each forward of a model processes: their roles come with the batch, or are announced by who runs it."""

from __future__ import annotations

import hashlib
import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factory.data.prompt import Role
from factory.errors import UserError

if TYPE_CHECKING:
    from factory.model.view import ModelView

NO_IDS = "steering needs input_ids (inputs_embeds alone do not say which tokens are image or text)"
UNKNOWN = "steering does not know these tokens' roles: run the very tensors of a batch of view.encode(prompts)"
FOLLOWING = (
    "steering does not know whether these tokens, which follow a kept cache, are a prompt or an answer: encode the"
    " whole chat with view.encode(prompts) and run the batch's own input_ids on that cache"
)
EARLIER = (
    "these tokens follow the cache of an earlier prompt, and steering knows that of the prompt which was run last: run"
    " a prompt's answer before the next prompt"
)
PARTED = (
    "of the rows that follow this kept cache some go on with their prompt and others with their answer: cut the batch"
    " where every row's prompt has ended, or run it whole"
)
ASIDE = (
    "a forward inside of generate runs other tokens than its prompt and answer, of which steering is not told what they"
    " are (as classifier-free guidance does with a second prompt): leave out what runs the model there"
)
_prompts = itertools.count(1)
_named: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()
_had: OrderedDict[bytes, set[bytes]] = (
    OrderedDict()
)  # the roles that the latest ids had, batches that are gone included
HAD, _lock = 4096, threading.Lock()


@dataclass(frozen=True)
class Step:
    """What one forward processes: roles [R, t] (0 = padding) of its tokens, whether they are the model's own answer
    alone, and how many rows (beams) stand side by side for each prompt."""

    roles: Tensor
    generated: bool = False
    beams: int = 1

    def on(self, device: torch.device) -> Step:
        """The step beside tensors of ``device``."""
        if self.roles.device == device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = replace(self, roles=self.roles.to(device))
        return self._elsewhere[device]

    @cached_property
    def _elsewhere(self) -> dict[torch.device, Step]:
        return {}

    @cached_property
    def answer(self) -> Tensor:
        """[R, t] booleans: tokens of an answer that ends its row, given or generated; all others are the prompt."""
        if self.generated:
            return self.roles != Role.PAD
        said = self.roles == Role.ANSWER
        return said & (said | (self.roles == Role.PAD)).flip(-1).long().cumprod(-1).flip(-1).bool()

    @cached_property
    def prompt(self) -> Tensor:
        """[R, t]: the roles of the prompt's tokens, 0 on an answer that ends its row."""
        return self.roles.masked_fill(self.answer, int(Role.PAD))


def named(ids: Tensor, roles: Tensor) -> Tensor:
    """Token ids [B, T] that know their ``roles`` [B, T]; a tensor of its own that shares their memory."""
    ids = ids.view_as(ids)
    ids.token_roles = roles  # type: ignore[attr-defined]  # a tensor takes further attributes
    _named[id(ids)] = ids
    if ids.device.type == "cpu":  # as every batch is encoded: what is moved then is known already
        with _lock:
            _had.setdefault(key := _digest(ids), set()).add(_digest(roles))
            _had.move_to_end(key)
            if len(_had) > HAD:
                _had.popitem(last=False)
    return ids


def _digest(tensor: Tensor) -> bytes:
    told = f"{tuple(tensor.shape)}".encode() + tensor.cpu().contiguous().numpy().tobytes()
    return hashlib.blake2b(told, digest_size=16).digest()


def roles_of(ids: Tensor) -> Tensor | None:
    """The roles of ids made by ``named``; of a copy, those of the only ids that it can be a copy of, which must live.

    Raises ``UserError`` where that could be several with other roles. Looking for a copy waits for the device.
    """
    if (roles := getattr(ids, "token_roles", None)) is not None:
        return roles
    found = [each for each in list(_named.values()) if _copied(ids, each)]
    had: set[bytes] = set().union(*(_had.get(_digest(each), ()) for each in found))
    if len(had) > 1:
        raise UserError(
            f"these input_ids are a copy, and {len(had)} batches with other roles have the same ids: run the batch's"
            " own tensors"
        )
    return found[0].token_roles if found else None  # type: ignore[attr-defined]  # as above


def _copied(ids: Tensor, of: Tensor) -> bool:
    """Whether ``ids`` are those of a batch, each row once or side by side as often as there are beams."""
    if ids.ndim != 2 or ids.shape[1] != of.shape[1] or ids.shape[0] % of.shape[0]:
        return False
    return torch.equal(ids, of.to(ids.device).repeat_interleave(ids.shape[0] // of.shape[0], 0))


@dataclass
class _Generation:
    """A running ``generate``: the ids and roles [B, T] of what it was given, and the column of its first token in the
    cache."""

    ids: Tensor
    roles: Tensor
    base: int | None = None

    def begins(self, ids: Tensor) -> bool:
        """Whether ``ids`` go on from what was given, as an assistant's guesses do."""
        rows, given = self.ids.shape
        return ids.ndim == 2 and len(ids) == rows and torch.equal(ids[:, :given], self.ids.to(ids.device))


def _begun(ids: Tensor, within: _Generation | None) -> _Generation | None:
    """A generation from ``ids`` (None where their roles are not known), perhaps within another of the same model."""
    if within is not None and within.begins(ids):  # the model is its own assistant
        return _Generation(ids, within.roles, 0)
    roles = roles_of(ids)
    return None if roles is None else _Generation(ids, roles)


@dataclass
class Here:
    """What one thread runs: the ``step`` of its forward, or ``why`` that is not known, with its ``ids``, its ``mask``,
    whether a cache came before (``follows``) and the ``fallback`` that those alone tell; how the decoder is called.

    ``said`` is the latest step of an answer's tokens alone, for as long as the next ones are like it.
    ``late`` takes a block's output where its steering waits until the prompt has been run (None where it does not).
    ``prompt`` numbers the prompt that was run last, ``cached`` is the number of the one whose cache a loop of one's own
    goes on with (None where that is not known). ``owners`` are the blocks of steering that its generation belongs to.
    """

    announced: Step | None = None
    resting: bool = False
    generations: list[_Generation | None] = field(default_factory=list)
    given: Tensor | None = None
    step: Step | None = None
    fallback: Step | None = None
    said: Step | None = None
    why: str = NO_IDS
    ids: Tensor | None = None
    mask: Tensor | None = None
    follows: bool = False
    prompt: int = 0
    cached: int | None = None
    call: dict[str, Any] | None = None
    late: list[Tensor] | None = None
    owners: list[object] = field(default_factory=list)

    def saying(self, ids: Tensor, beams: int) -> Step:
        """The step of ``ids`` [R, t] that the model says itself: one for all of a generation that are alike."""
        known, fits = self.said, (beams, ids.shape, ids.device, torch.is_inference_mode_enabled())
        if known is None or (known.beams, (at := known.roles).shape, at.device, at.is_inference()) != fits:
            self.said = known = Step(torch.full_like(ids, int(Role.ANSWER)), True, beams)
        return known


class Steps:
    """Finds the step of every forward of a view's model, thread by thread, while somebody ``watches``."""

    def __init__(self, view: ModelView) -> None:
        self.view, self.users, self._local, self._latest = view, 0, threading.local(), Here()
        self._lock, self._remove = threading.RLock(), list[Callable[[], Any]]()
        self.blocks: list[Any] = []
        self._running: set[int] = set()

    @property
    def here(self) -> Here:
        """This thread's; for a thread that runs no forward of its own, as autograd's, that of the latest forward."""
        return getattr(self._local, "here", self._latest)

    def mine(self) -> Here:
        """This thread's own."""
        if not hasattr(self._local, "here"):
            self._local.here = Here()
        return self._local.here

    def watch(self) -> Callable[[], None]:
        """Begin to watch; what is returned ends it, once."""
        with self._lock:
            if self.users == 0:
                self._install()
            self.users += 1
        left = [True]

        def end() -> None:
            with self._lock:
                if left:
                    left.clear()
                    self.users -= 1
                    if self.users == 0:
                        for remove in self._remove:
                            remove()

        return end

    def _install(self) -> None:
        model, core = self.view.model, self.view.core
        self._remove = [
            instead(model, "generate", self._generating),
            model.register_forward_pre_hook(self._take, with_kwargs=True).remove,
            core.register_forward_pre_hook(self._see, with_kwargs=True).remove,
            core.register_forward_hook(self._mark).remove,
        ]

    def _generating(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
        generations = self.mine().generations
        generations.append(_begun(ids, generations[-1] if generations else None) if isinstance(ids, Tensor) else None)
        self._running.add(threading.get_ident())
        try:
            return generate(*args, **kwargs)
        finally:
            generations.pop()
            if not generations:
                self._running.discard(threading.get_ident())

    def alone(self) -> bool:
        """Whether no other thread generates."""
        return not self._running - {threading.get_ident()}

    def _take(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        ids, given = kwargs.get("input_ids", args[0] if args else None), kwargs.get("roles")
        self.mine().given = given if given is not None else getattr(ids, "token_roles", None)
        return (args, {k: v for k, v in kwargs.items() if k != "roles"}) if "roles" in kwargs else None

    def _see(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        here = self._latest = self.mine()
        here.call, given, here.given = None, here.given, None
        ids, cache = kwargs.get("input_ids", args[0] if args else None), kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        here.step, here.fallback, here.ids, here.mask, here.cached = here.announced, None, None, None, None
        if here.step is None:
            here.step, here.why = self._found(ids, given, cache, past, here)
        if here.step is None:
            here.ids, here.mask, here.follows = ids, kwargs.get("attention_mask"), past > 0

    def _mark(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Number the prompt that was run and the cache that it leaves, which only its own answer follows."""
        here, cache = self.mine(), getattr(output, "past_key_values", None)
        if here.step is not None and here.step.generated:
            return
        here.prompt = next(_prompts)
        if cache is not None:
            cache.of_prompt = here.prompt

    def _found(
        self, ids: Tensor | None, given: Tensor | None, cache: Any, past: int, here: Here
    ) -> tuple[Step | None, str]:
        running = here.generations[-1] if here.generations else None
        if ids is None:
            return None, NO_IDS
        if running is not None and given is None:
            if begins := running.base is None:
                running.base = past if past and ids.shape[1] == running.roles.shape[1] else 0
            first, width = past - running.base, running.roles.shape[1]
            if first + ids.shape[1] < width:
                return None, ASIDE
            step, why = _columns(running.roles, first, ids, past > 0, here)
            if begins and step is not None and step.generated:
                here.cached = getattr(cache, "of_prompt", 0)
            return step, why
        if past and given is None and ids.shape[1] == 1:
            here.cached = getattr(cache, "of_prompt", 0)
            return here.saying(ids, 1), ""
        roles = roles_of(ids) if given is None else given
        if roles is None:
            return None, FOLLOWING if past else UNKNOWN
        step, why = _columns(roles, 0, ids, past > 0, here)
        if step is not None and step.generated:
            here.cached = getattr(cache, "of_prompt", 0)
        return step, why


def _columns(roles: Tensor, first: int, ids: Tensor, follows: bool, here: Here) -> tuple[Step | None, str]:
    """The step of ``ids`` [R, t], column ``first`` and on of a sequence that begins with tokens of ``roles`` [B, T] and
    that the model's own answer follows; or why there is none. Where they follow a cache, it waits for the device."""
    rows, t = ids.shape
    if rows % roles.shape[0]:
        return None, UNKNOWN
    beams = rows // roles.shape[0]
    if first >= roles.shape[1]:
        return here.saying(ids, beams), ""
    roles = roles.to(ids.device)
    rest = roles[:, first : first + t]
    whole = F.pad(rest, (0, t - rest.shape[1]), value=int(Role.ANSWER)).repeat_interleave(beams, 0)
    asked = Step(whole).prompt.any(-1).tolist() if follows else [True]
    if any(asked) and not all(asked):
        return None, PARTED
    return Step(whole, not any(asked), beams), ""


def instead(module: nn.Module, name: str, run: Callable[..., Any]) -> Callable[[], None]:
    """Put ``run(method, *args, **kwargs)`` in the place of a module's method; what is returned takes it away."""
    own, method = vars(module).get(name), getattr(module, name)

    def called(*args: Any, **kwargs: Any) -> Any:
        return run(method, *args, **kwargs)

    def remove() -> None:
        if own is None:
            vars(module).pop(name, None)
        else:
            vars(module)[name] = own

    vars(module)[name] = called
    return remove


@contextmanager
def announced(view: ModelView, step: Step) -> Iterator[None]:
    """Tell who watches what the forward inside processes, also one of the decoder alone, which passes the model by."""
    here = view.steps.mine()
    before, here.announced, here.step = here.announced, step, step
    try:
        yield
    finally:
        here.announced = before


@contextmanager
def aside(view: ModelView, step: Step) -> Iterator[None]:
    """As ``announced``, perhaps in the middle of another forward, which then goes on as what it was."""
    here = view.steps.mine()
    before = here.step
    try:
        with announced(view, step):
            yield
    finally:
        here.step = before
