"""Instruction tuning and connector pretraining: the Hugging Face Trainer over a tuner's parameters, alone or under
DeepSpeed.

One trajectory whatever the number of ranks: the samples of an optimiser step depend on the step alone, and the loss is
the mean over all labelled tokens of the step, whichever rank and micro-batch they fall to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from factory import files
from factory.corpus.labels import IGNORE
from factory.errors import UserError
from factory.model.replay import Call, recorded
from factory.model.steps import Step, announced
from factory.model.view import ModelView
from factory.recipe.schema import LaunchSpec, TuneSpec
from factory.train import checkpoint, zero
from factory.train.held_out import LOSS, SCORE, HeldOut, Looking
from factory.train.resume import WEIGHTS, OneDevice, Resuming
from factory.train.sam import RandomState, ascended, drawing_again, random_state
from factory.train.watch import Learning
from factory.tune import Tuner
from factory.tune.terms import Terms

PASSING = "objective."  # in front of the names of parameters that are trained and thrown away


class Answers(nn.Module):
    """A model as the Trainer runs it: from a batch with ``labels`` [B, T] to the summed cross entropy of the labelled
    tokens, with ``terms`` that a tuner adds to it.
    """

    def __init__(self, view: ModelView, terms: Terms | None = None) -> None:
        super().__init__()
        self.model, self.view, self.terms = view.model, view, terms

    def get_input_embeddings(self) -> nn.Module:
        """Where the Trainer looks for the embeddings that NEFTune's noise is added to."""
        return self.model.get_input_embeddings()

    def forward(
        self, labels: Tensor, roles: Tensor | None = None, tasks: Tensor | None = None, **batch: Tensor
    ) -> Tensor:
        """With what a tuner's ``terms`` add in training, told the rows' ``tasks`` [B] where the batch has them; what
        they run again is the decoder alone.
        """
        calls: list[Call] = []
        told = nullcontext() if roles is None else announced(self.view, Step(roles))  # ranks get copies of the ids
        terms = self.terms if self.training else None
        with told, recorded(self.view, calls) if terms else nullcontext():
            loss = self._loss(labels, self.view.core(**batch, use_cache=False))
        if terms is None or roles is None:
            return loss
        told_apart = {} if tasks is None else {"tasks": tasks}
        again = lambda learnt: self._loss(learnt, self.view.decoder(**calls[0]))
        return loss + terms(labels, roles, again, **told_apart)

    def _loss(self, labels: Tensor, output: Any) -> Tensor:
        """Unembeds the positions that predict a label in some row; the others' logits, most of a long batch's memory,
        are never made.
        """
        targets = labels[:, 1:]
        kept = (targets != IGNORE).any(0).nonzero()[:, 0]
        kept = kept if len(kept) else kept.new_zeros(1)
        hidden = output.last_hidden_state.to(labels.device)
        return F.cross_entropy(
            self.view.logits(hidden[:, kept]).flatten(0, 1),
            targets[:, kept].flatten(),
            ignore_index=IGNORE,
            reduction="sum",
        )


@dataclass(frozen=True)
class Shape:
    """How an optimiser step is cut: ``micro`` samples at once on each of ``ranks``, ``accumulate`` times."""

    ranks: int
    micro: int
    accumulate: int

    @classmethod
    def of(cls, spec: TuneSpec, ranks: int) -> Shape:
        """Raises ``UserError`` where the batch cannot be shared out evenly: a sample more on one rank would change what
        is learnt.
        """
        share, odd = divmod(spec.batch_size, ranks)
        if odd:
            raise UserError(
                f"batch_size: {spec.batch_size} cannot be shared out to {ranks} ranks; choose a multiple of {ranks}"
            )
        micro = min(spec.micro_batch or share, share)
        if share % micro:
            raise UserError(
                f"micro_batch: {micro} does not divide the {share} samples that each of {ranks} ranks takes of"
                f" batch_size={spec.batch_size}"
            )
        return cls(ranks, micro, share // micro)


class TuneTrainer(Resuming):
    """Normalises by the labelled tokens of the whole step, and keeps checkpoints that hold the trained part alone.
    ``rates`` are the learning rates of parameters, by id, that have one of their own. With ``rho`` a step is
    sharpness-aware: its gradient is taken again, at w + eps(w), and its log has the sharpness. ``held`` is looked at.
    """

    def __init__(
        self,
        tuner: Tuner,
        about: dict[str, Any],
        rates: Mapping[int, float],
        rho: float | None = None,
        held: HeldOut | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tuner, self.about, self.rates, self.rho, self.held = tuner, about, rates, rho, held
        self._pieces: list[tuple[RandomState, dict[str, Tensor], Tensor]] = []  # the step's, up to its second pass
        self._sharpness: float | None = None
        self._said: dict[str, Tensor] = {}  # a tuner's terms in the step, on this rank
        ours = {id(p) for p in tuner.trainable.values()}
        self.passing = {name: p for name, p in self.model.named_parameters() if p.requires_grad and id(p) not in ours}
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = (
            True  # asks for the token count of the step, which compute_loss divides by
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        made.param_groups[:] = [part for group in made.param_groups for part in _by_rate(group, self.rates)]
        return made

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        assert num_items_in_batch is not None, "a trainer whose loss asks for the step's count is given it"
        loss = model(**inputs) * self.accelerator.num_processes / num_items_in_batch.clamp_min(1)
        for name, value in self._terms_said().items():
            self._said[name] = self._said.get(name, 0) + value / num_items_in_batch.clamp_min(1)
        return loss  # the ranks' gradients are averaged

    def _terms_said(self) -> dict[str, Tensor]:
        terms = getattr(self.model, "terms", None)
        return terms.said if isinstance(terms, Terms) else {}

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        if self.rho is None:
            return super().training_step(model, inputs, num_items_in_batch)
        state = random_state()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._pieces.append((state, inputs, loss))
        if self.accelerator.sync_gradients:
            self._step_again(model, num_items_in_batch)
        return loss

    def _step_again(self, model: nn.Module, num_items_in_batch: Tensor | int | None) -> None:
        """The gradient of the whole step at w + eps(w), in the place of that at w."""
        assert self.rho is not None, "a step is taken again where there is a rho"
        here, there, said = torch.zeros(()), torch.zeros(()), self._said
        with ascended([p for p in model.parameters() if p.requires_grad], self.rho):
            for state, inputs, loss in self._pieces:
                with drawing_again(state):
                    self._said = {}
                    there += super().training_step(model, inputs, num_items_in_batch).cpu()
                here += loss.cpu()
        self._pieces, self._sharpness, self._said = [], float(there - here), dict(said)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._sharpness is not None:
            logs |= {"sharpness": self._sharpness}
        if "loss" in logs and self._said:
            names, values = zip(*self._said.items(), strict=True)
            total = self.accelerator.reduce(torch.stack(values), "sum").tolist()
            logs |= dict(zip(names, total, strict=True))
            self._said = {}
        super().log(logs, *args, **kwargs)

    def over(self, state: TrainerState) -> bool:
        return self.held is not None and self.held.over(state.log_history)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        assert self.held is not None, "what is held out is looked at where there is any"
        found = self.held.look(self)
        self.log(found)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _load_best_model(self) -> None:
        """``train`` does, once it has seen that the checkpoint is whole."""

    def weights(self) -> dict[str, Tensor]:
        passing = zero.whole_values({PASSING + name: p for name, p in self.passing.items()})
        return zero.whole_values(self.tuner.trainable) | passing

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        self.tuner.fill(_lasting(tensors))
        with torch.no_grad():
            for name, p in self.passing.items():
                p.copy_(tensors[PASSING + name])

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        zero.save(self.model_wrapped, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        if not self.is_deepspeed_enabled or resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        with checkpoint.read_as_data(resume_from_checkpoint):
            zero.load(self.model_wrapped, resume_from_checkpoint)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared


def _by_rate(group: dict[str, Any], rates: Mapping[int, float]) -> list[dict[str, Any]]:
    """A group of an optimiser's parameters, apart by their learning rate."""
    found: dict[float, list[nn.Parameter]] = {}
    for p in group["params"]:
        found.setdefault(rates.get(id(p), group["lr"]), []).append(p)
    return [group | {"params": params, "lr": rate} for rate, params in found.items()] or [group]


def _whole_best(folder: Path, step: int) -> Path:
    """The checkpoint of the best look. Raises ``UserError`` where it is damaged or gone."""
    best = folder / checkpoint.folder_name(step)
    try:
        checkpoint.check(best)
    except checkpoint.Damaged as damage:
        raise UserError(
            f"{best}: {damage}; it held the best weights of this training. Remove {folder.parent} to train again, or"
            " start afresh with name=OTHER"
        ) from damage
    return best


def cut_by(launch: LaunchSpec) -> dict[str, Any]:
    """What optimiser states are cut by, JSON-able."""
    return {"ranks": zero.world_size(), "zero": launch.zero, "offload": list(launch.offload)}


def _lasting(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not name.startswith(PASSING)}


def trained_in(folder: Path) -> dict[str, Tensor]:
    """What a tuner has trained, by name, as a checkpoint holds it."""
    return _lasting(files.read_safetensors(folder / WEIGHTS))


def refuse_other_shape(folder: Path, about: Mapping[str, Any]) -> None:
    """Raises ``UserError`` where the checkpoints in ``folder`` were written by a training whose optimiser states were
    cut otherwise than ``about`` says (``cut_by``).
    """
    for each in checkpoint.present(folder):
        with suppress(checkpoint.Damaged):
            manifest = checkpoint.read_manifest(each)
            if different := [key for key in about if manifest.get(key) != about[key]]:
                saved, now = ({key: side.get(key) for key in different} for side in (manifest, about))
                raise UserError(
                    f"{each}: written by a training with {saved}; this one has {now}. Go on with the former, or start"
                    " afresh with name=OTHER"
                )


def train(
    view: ModelView,
    tuner: Tuner,
    data: Dataset,
    collator: Callable[[Sequence[int]], dict[str, Tensor]],
    spec: TuneSpec,
    launch: LaunchSpec,
    steps: int,
    seed: int,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    objective: nn.Module | None = None,
    held: HeldOut | None = None,
) -> list[dict[str, Any]]:
    """Train what ``tuner``, applied to ``view``, makes trainable, for ``steps`` optimiser steps; returns the log, a row
    a step and one a look at what is ``held`` out, whose ``best`` step is then known.

    ``objective`` takes a batch of ``collator`` to a summed loss over its labels; by default ``Answers``. Parameters of
    its own are trained with it, and kept in checkpoints alone.

    Goes on from the newest whole checkpoint in ``folder``, with the same result as an uninterrupted training. Under
    ZeRO-3 the weights stay cut over the ranks; ``zero.whole`` puts them together. Raises ``UserError`` for a model that
    lies in host memory in part.
    """
    if any(p.is_meta for p in view.model.parameters()):
        raise UserError(
            "model.device_map: the GPUs do not hold the whole model, and no gradient passes what lies in host memory;"
            " use model.quantize=4bit, launch.zero=3 or more GPUs"
        )
    shape, config = Shape.of(spec, zero.world_size()), zero.configuration(launch)
    cpu = view.device.type == "cpu"
    zero.ready_deepspeed(cpu, config is not None)
    about = cut_by(launch)
    refuse_other_shape(folder, about)
    _ready(view, tuner, spec)
    args = OneDevice(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=shape.micro,
        gradient_accumulation_steps=shape.accumulate,
        learning_rate=spec.learning_rate or tuner.learning_rate,
        lr_scheduler_type="constant_with_warmup" if spec.schedule == "constant" else spec.schedule,
        warmup_steps=round(spec.warmup * steps),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        optim="adamw_bnb_8bit" if spec.optimizer == "adamw_8bit" else "adamw_torch",
        bf16=spec.bf16,
        fp16=spec.fp16,
        neftune_noise_alpha=spec.neftune,
        **{"save_steps": spec.save_every, **(held.arguments() if held else {})},
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        seed=seed,
        remove_unused_columns=False,
        use_cpu=cpu,
        dataloader_num_workers=spec.data.workers,
        dataloader_pin_memory=not cpu,
        disable_tqdm=True,
        deepspeed=config,
        log_level="error",
    )
    parts = tuner.by_part(view)
    by_part = tuner.rates_by_part(spec.learning_rates or {}, args.learning_rate, view)
    rates = {id(p): by_part[part] for part, tensors in parts.items() for p in tensors.values()}
    trainer = TuneTrainer(
        tuner,
        about,
        rates,
        spec.rho if spec.optimizer == "sam" else None,
        held,
        model=objective or Answers(view, tuner.terms(view)),
        args=args,
        train_dataset=data,
        eval_dataset=data if held else None,
        data_collator=collator,
        callbacks=[
            *callbacks,
            *([Looking(held)] if held else []),
            Learning({name: list(part.values()) for name, part in parts.items()}),
        ],
    )
    trainer.keep = spec.keep_checkpoints
    trainer.remove_callback(PrinterCallback)
    trainer.go_on()
    unset_hf_deepspeed_config()  # under ZeRO-3 transformers would cut whatever model is loaded next
    view.model.eval()
    if held and held.keep == "best":
        held.best = trainer.state.best_global_step
        best = _whole_best(folder, held.best)
        if not trainer.is_deepspeed_enabled:  # a model that it has cut takes them from the checkpoint later
            with checkpoint.read_as_data(best):
                trainer.fill(files.read_safetensors(best / WEIGHTS))
    return [row for row in trainer.state.log_history if row.keys() & {"loss", LOSS, SCORE}]


def _ready(view: ModelView, tuner: Tuner, spec: TuneSpec) -> None:
    """What is trained in float32 (and contiguous, as DeepSpeed wants it), and the decoder's blocks recomputed where
    that is asked for.
    """
    for p in tuner.trainable.values():
        p.data = p.data.float().contiguous()
    if spec.gradient_checkpointing:
        model = view.model  # transformers up to 5.21 knows the older name alone, later ones warn of it
        recompute = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        recompute({"use_reentrant": False})
