"""The contract of a tuner: it puts trainable parameters into a frozen model, and can take them out again.

    tuner = lookup("tuner", "mores")(MoReSParams(rank=1))
    parameters = tuner.apply(view, beside=("connector",))   # {name in view.model: Parameter}; all others are frozen
    ...                                                     # train view.model with any loop; a batch may carry `roles`
    tune.save(folder, tuner, view)                          # the trained part alone
    tune.load(folder, another_view)                         # the tuner that the manifest names, applied and filled

A tuner works through hooks and submodules of ``view.model``, so whoever runs that model (a trainer, DeepSpeed,
``generate``) runs the tuned model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from factory.errors import UserError
from factory.model.identity import ModelIdentity, identity_of
from factory.model.view import ModelView
from factory.registry import Plugin
from factory.tune.roles import Roles
from factory.tune.terms import Terms
from factory.tune.tokens import NewTokens

Part = Literal["connector", "vision_tower"]


Child = TypeVar("Child", bound=nn.Module)


class Tuner(Plugin):
    """Base of the tuners. A subclass defines ``insert``, and ``withdraw`` where hooks and submodules are not all it
    adds.

    ``learning_rate`` is the method's own default and ``sweep`` the values to choose among on dev data: one rate for all
    methods is no fair comparison. ``inside_blocks`` says whether its parameters are used inside the decoder blocks, and
    ``in_place`` whether it trains weights of the model itself, and ``packable`` whether it treats each token by itself,
    so that several rows may lie in one. Where it has ``groups`` of parameters, ``rates`` may
    give each a learning rate of its own; ``terms`` are what it adds to the loss, in which some ``tasks`` may be told
    apart; ``settings`` are those in which what was trained is looked at too, as with a part of it taken away.
    """

    learning_rate: ClassVar[float]
    sweep: ClassVar[tuple[float, ...]]
    inside_blocks: ClassVar[bool] = True
    in_place: ClassVar[bool] = False
    packable: ClassVar[bool] = False

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.base: ModelIdentity | None = None
        self.beside: tuple[Part, ...] = ()
        self.own: dict[str, nn.Parameter] = {}
        self.parts: dict[str, nn.Parameter] = {}
        self.rows: dict[str, nn.Parameter] = {}  # of new tokens
        self.tokens: NewTokens | None = None
        self._handles: list[Any] = []  # what `remove()` undoes
        self._modules: list[tuple[nn.Module, str]] = []
        self._before: dict[str, Tensor] | None = None

    def insert(self, view: ModelView, roles: Roles) -> Iterable[nn.Parameter]:
        """Add what is trained, through ``attach`` and ``keep``, and return its parameters. ``roles.step`` is what a
        forward processes.
        """
        raise TypeError(f"{type(self).__name__} must define insert(view, roles)")

    def withdraw(self, view: ModelView) -> None:
        """Undo what ``insert`` did beside ``attach`` and ``keep``."""

    def groups(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """Groups of its own parameters, by name; those in none are the group of the tuner's own name."""
        return {}

    @property
    def rates(self) -> Mapping[str, float]:
        """Learning rates by the names of ``groups``; a group without one learns at the training's."""
        return {}

    def terms(self, view: ModelView) -> Terms | None:
        """What it adds to the loss while it is trained, once it is applied to ``view``; None where that is nothing."""
        return None

    @property
    def tasks(self) -> Sequence[str]:
        """Tasks of training samples by whose names its ``terms`` tell rows apart; each must be there to be learnt."""
        return ()

    def settings(self) -> Sequence[str]:
        """Names of the settings, beside the plain one, in which a comparison scores what was trained."""
        return ()

    def set_to(self, setting: str) -> AbstractContextManager[None]:
        """The block in which the applied tuner stands in one of its ``settings``."""
        raise TypeError(f"{type(self).__name__} must define set_to(setting)")

    def apply(
        self,
        view: ModelView,
        beside: Sequence[Part] = (),
        restorable: bool = False,
        words: Mapping[str, int | None] | None = None,
    ) -> dict[str, nn.Parameter]:
        """Freeze ``view.model``, add this method, and return the trainable parameters by their name in the model.

        ``beside`` are whole parts trained with it (every method of the paper trains the connector). ``restorable``
        keeps a copy of the weights that are trained in place, so that ``remove`` can restore them. ``words`` become
        tokens of the model, with their ids where these are known; their embeddings are trained too.
        Raises ``UserError`` where the method does not fit the model, and RuntimeError when applied twice.
        """
        if self._handles:
            raise RuntimeError(f"tuner '{self.name}' is applied already; remove it first")
        self.base, self.beside = identity_of(view, beside) if view.device.type != "meta" else None, tuple(beside)
        view.model.requires_grad_(False)
        known = {id(module) for module in view.model.modules()}
        roles = Roles(view)
        self._handles += roles.handles()
        try:
            self.tokens = NewTokens(view, words) if words else None
            added = {id(p) for p in self.insert(view, roles)}
            whole = {id(p) for part in beside for p in getattr(view, part).parameters()} - added
            trained = [p for p in view.model.parameters() if id(p) in added | whole]
            rows = {id(p) for p in self.tokens.wrap(view, trained)} if self.tokens else set()
            view.model.requires_grad_(False)
            names = dict(view.model.named_parameters())
            self.own = {name: p for name, p in names.items() if id(p) in added}
            self.rows = {name: p for name, p in names.items() if id(p) in rows}
            self.parts = {name: p for name, p in names.items() if id(p) in whole}
        except BaseException:
            self.remove(view)
            raise
        inside = self.parts | (self.own if self.in_place else {})
        self._before = (
            {name: p.detach().cpu().clone() for name, p in inside.items()} if restorable or not inside else None
        )
        for module in view.model.modules():
            if id(module) not in known:
                module.training = view.model.training  # a new module is born in training mode, its dropout on
        if self.inside_blocks:
            self._wake_lowest_block(view)
        for p in self.trainable.values():
            p.requires_grad_(True)
        return self.trainable

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The method's own parameters, those of the parts beside it, and the rows of new tokens."""
        return self.own | self.parts | self.rows

    def by_part(self, view: ModelView) -> dict[str, dict[str, nn.Parameter]]:
        """``trainable``, apart: the method's own under its name, each of its ``groups`` under METHOD.GROUP, and each
        part beside it that has any.
        """
        apart: dict[str, dict[str, nn.Parameter]] = {
            part: {n: p for n, p in self.parts.items() if any(p is q for q in getattr(view, part).parameters())}
            for part in self.beside
        }
        grouped = {
            f"{self.name}.{group}": {n: p for n, p in self.own.items() if any(p is q for q in tensors)}
            for group, tensors in ((name, list(members)) for name, members in self.groups().items())
        }
        loose = {n: p for n, p in self.own.items() if not any(n in group for group in grouped.values())}
        every = {self.name: loose, **grouped, **apart, "new tokens": self.rows}
        return {name: tensors for name, tensors in every.items() if tensors}

    def rates_by_part(self, rates: Mapping[Part, float], otherwise: float, view: ModelView) -> dict[str, float]:
        """The learning rate of each of ``by_part``: those that the training gives to parts beside it, the method's own
        ``rates``, and ``otherwise`` for all else.
        """
        known: dict[str, float] = {part: rate for part, rate in rates.items()}
        known |= {f"{self.name}.{group}": rate for group, rate in self.rates.items()}
        return {name: known.get(name, otherwise) for name in self.by_part(view)}

    def counts(self) -> dict[str, int]:
        """Trainable numbers: ``tuner`` the method's own, ``beside`` those of whole parts and of new tokens."""
        return {
            "tuner": sum(p.numel() for p in self.own.values()),
            "beside": sum(p.numel() for p in (self.parts | self.rows).values()),
        }

    def remove(self, view: ModelView) -> None:
        """Take the method out: the model is what it was, bit for bit, and frozen.

        Raises RuntimeError where weights were trained in place and ``apply`` was not told to keep a copy.
        """
        if self._before is None and self.trainable:
            raise RuntimeError(
                f"tuner '{self.name}' trained weights in place; apply it with restorable=True, or load the model again"
            )
        with torch.no_grad():
            for name, tensor in (self._before or {}).items():
                self.trainable[name].copy_(tensor)
        for handle in self._handles:
            handle.remove()
        self.withdraw(view)
        for module, name in self._modules:
            delattr(module, name)
        if self.tokens:
            self.tokens.undo(view)
        view.model.requires_grad_(False)
        self._handles, self._modules, self.own, self.parts, self._before = [], [], {}, {}, None
        self.rows, self.tokens = {}, None

    @property
    def in_model(self) -> bool:
        """Whether all that it trains are weights that the model has without it."""
        return self.in_place or not self.own

    def settle(self, view: ModelView) -> None:
        """Leave what was trained in the model for good, and nothing else of the method; for one that is
        ``in_model``.
        """
        if not self.in_model:
            raise RuntimeError(f"tuner '{self.name}' adds to the model; it cannot be settled in it")
        self._keep_words()
        self._before = {}
        self.remove(view)

    def merge(self, view: ModelView) -> None:
        """Fold what was trained into the model's weights for good, so that nothing of the method is left beside them.

        Raises ``UserError`` for a method whose part no plain model has.
        """
        if not self.in_model:
            raise UserError(
                f"tuner '{self.name}' adds layers that no plain model has, so that it cannot be merged; keep the"
                " trained part, and load it with model.tuned"
            )
        if self._handles:
            self.settle(view)

    def _keep_words(self) -> None:
        """Leave new tokens and their rows in the model for good."""
        if self.tokens:
            self.tokens.rest()
            self.tokens.unwrap()
        self.rows, self.tokens = {}, None

    def attach(self, module: nn.Module, name: str, child: Child) -> Child:
        """Make ``child`` a submodule of ``module``, on its device, until the tuner is removed."""
        module.add_module(name, child.to(next(module.parameters()).device))
        self._modules.append((module, name))
        return child

    def keep(self, *handles: RemovableHandle) -> None:
        """Hooks that live until the tuner is removed."""
        self._handles += handles

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the trainable parameters these values. Raises ``UserError`` where names or shapes differ."""
        self.account({name: tuple(t.shape) for name, t in tensors.items()})
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.trainable[name].copy_(tensor)

    def account(self, theirs: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse saved tensors, by their shapes, that are not those that this applied method trains."""
        ours = {name: tuple(p.shape) for name, p in self.trainable.items()}
        said = [
            (f"{name} is {theirs[name]}, not {ours[name]}" if name in ours else f"{name} is unknown")
            if name in theirs
            else f"{name} is missing"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name)
        ]
        if said:
            more = f", and {len(said) - 3} more" if len(said) > 3 else ""
            raise UserError(f"tuner '{self.name}': the saved tensors do not fit: {'; '.join(said[:3])}{more}")

    def _wake_lowest_block(self, view: ModelView) -> None:
        """Reentrant checkpointing passes no gradient into a block whose input needs none: make the lowest tuned block's
        need one.

        Blocks below it stay out of the backward pass.
        """
        own = {id(p) for p in self.own.values()}
        lowest = next((block for block in view.layers if any(id(p) in own for p in block.parameters())), None)

        def wake(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...] | None:
            if (
                not (torch.is_grad_enabled() and module.training and getattr(module, "gradient_checkpointing", False))
                or args[0].requires_grad
            ):
                return None
            return (args[0].detach().requires_grad_(), *args[1:])

        if lowest is not None:
            self.keep(lowest.register_forward_pre_hook(wake))
