"""Work that is compared within one process: a plain loop over transformers, PEFT or a paper's procedure, and ours.

Each contest first checks that both ways give the same numbers, and raises RuntimeError where they do not.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from eval_suite.speed import timing
from eval_suite.speed.generation import endless
from eval_suite.speed.mcr import sequential
from eval_suite.speed.peers.pairs import Pair, in_turn, paired
from eval_suite.speed.tuning import lesson
from factory.data.prompt import Prompt, Role
from factory.model.encode import Batch
from factory.model.prefix import last_index
from factory.model.view import ModelView
from factory.recipe.schema import LaunchSpec, TuneSpec
from factory.registry import lookup
from factory.run.questions.arms import Arm
from factory.steer.collect import ASKS, Plan, asked, collect, states_toward
from factory.steer.regressor import RegressorParams
from factory.train.loop import train

TOLERANCE = 1e-4
LORA = {"rank": 8, "alpha": 16}
RATE = 1e-3


@dataclass(frozen=True)
class Contest:
    """Two ways to do one ``work``; ``libraries`` are those that the peer stands on."""

    work: str
    peer: str
    libraries: tuple[str, ...]
    setting: dict[str, Any]
    ours: timing.Job
    theirs: timing.Job


def same(what: str, one: Tensor, other: Tensor) -> None:
    if not torch.allclose(one.float(), other.float(), atol=TOLERANCE, rtol=TOLERANCE):
        apart = float((one.float() - other.float()).abs().max())
        raise RuntimeError(f"{what}: the two ways differ by {apart:.1e}")


# LoRA steps


class _Numbers(Dataset):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, place: int) -> int:
        return place


def lora_steps(view: ModelView, batch: int, steps: int = 3) -> Contest:
    """Some optimiser steps on the same ready batch, from the making of the adapter to the checkpoint at the end, which
    both write.
    """
    inputs = lesson(view, batch)
    data = _Numbers(batch * steps)
    collate: Callable[[Sequence[int]], dict[str, Tensor]] = lambda _: dict(inputs)
    losses = {name: torch.tensor(way(view, data, collate, batch, steps)) for name, way in LORA_WAYS.items()}
    same("LoRA's losses", losses["ours"][:1], losses["plain"][:1])  # later ones differ by A's random start
    setting = {"batch": batch, "tokens": inputs["input_ids"].shape[1], "steps": steps, **LORA}
    jobs = [lambda way=way: way(view, data, collate, batch, steps) for way in LORA_WAYS.values()]
    return Contest("LoRA steps", "PEFT and Trainer", ("peft", "transformers", "accelerate"), setting, *jobs)


def _lora_of_ours(view: ModelView, data: Dataset, collate: Callable, batch: int, steps: int) -> list[float]:
    mine = ModelView(copy.deepcopy(view.model), view.processor, view.family)
    tuner = {"type": "lora", "dropout": 0.0, **LORA}
    spec = TuneSpec.model_validate(
        {"tuner": tuner, "data": {"path": "in-memory"}, "batch_size": batch, "learning_rate": RATE}
    )
    method = spec.method.make()
    method.apply(mine, ())
    with tempfile.TemporaryDirectory() as folder:
        log = train(mine, method, data, collate, spec, LaunchSpec(), steps, 0, Path(folder))
    return [row["loss"] for row in log]


def _lora_of_peft(view: ModelView, data: Dataset, collate: Callable, batch: int, steps: int) -> list[float]:
    model = copy.deepcopy(view.model)
    blocks = next(name for name, module in model.named_modules() if module is model.get_decoder().layers)
    targets = rf"{blocks}\.\d+\.(self_attn|mlp)\.\w+_proj"
    config = LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], lora_dropout=0.0, target_modules=targets)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to="none",
            use_cpu=view.device.type == "cpu",
            remove_unused_columns=False,
            disable_tqdm=True,
            log_level="error",
            dataloader_pin_memory=False,
        )
        trainer = Trainer(get_peft_model(model, config), args, data_collator=collate, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


LORA_WAYS = {"ours": _lora_of_ours, "plain": _lora_of_peft}


# Collection and fit


def collect_and_fit(view: ModelView, samples: int) -> Contest:
    """The states of [I,T], [I,T,P+] and [I,T,P-], and the network that predicts their difference. Learn-to-steer's
    procedure, restated: a whole prompt at a time with all hidden states, then a plain training loop.
    """
    prompts, plan, net = (
        timing.conflicts(samples),
        Plan(view.depth // 2 - 1),
        RegressorParams(keep="last", validation=0),
    )
    l2s, keys = lookup("steering", "l2s"), [str(i) for i in range(samples)]
    method = l2s(l2s.Params(net=net))

    def ours() -> dict[str, Tensor]:
        found, _ = collect(view, prompts, plan, None, keys)
        method.fit(states_toward("vision", found, ["task"] * samples, 0))
        return found

    def theirs() -> dict[str, Tensor]:
        found = {
            ask: torch.stack([_state(view, asked(p, ask, plan.style), plan.layer) for p in prompts]) for ask in ASKS
        }
        plain_fit(found["base"], found["vision"] - found["text"], net)
        return found

    one, other = ours(), theirs()
    for ask in ASKS:
        same(f"states of {ask}", one[ask], other[ask])
    setting = {"samples": samples, "prompts": len(ASKS) * samples, "epochs": net.epochs, "hidden": net.hidden}
    return Contest("collection and fit", "learn-to-steer's procedure", ("transformers", "torch"), setting, ours, theirs)


@torch.no_grad()
def _state(view: ModelView, prompt: Prompt, block: int) -> Tensor:
    """[d]: the state of the last token after a block that is not the last one, whose states are handed out normed."""
    return view.model(**view.encode([prompt]), output_hidden_states=True).hidden_states[block + 1][0, -1]


def plain_fit(h: Tensor, v: Tensor, net: RegressorParams) -> nn.Module:
    """Adam on the squared error, epoch after epoch of shuffled batches."""
    width = h.shape[1]
    g = nn.Sequential(nn.Linear(width, net.hidden), nn.Tanh(), nn.Linear(net.hidden, width, bias=False))
    optimizer = torch.optim.Adam(g.parameters(), lr=net.learning_rate)
    for _ in range(net.epochs):
        for batch in torch.randperm(len(h)).split(net.batch_size):
            optimizer.zero_grad()
            nn.functional.mse_loss(g(h[batch]), v[batch]).backward()
            optimizer.step()
    return g


# Diagnostics


def mcr_as_printed(view: ModelView, batch: int, draws: int = 3) -> Contest:
    """Both draw their own noise, so that their numbers agree in expectation alone; MCR's tests hold the formula."""
    encoded, keys = view.encode(timing.conflicts(batch)), [str(i) for i in range(batch)]
    mcr = lookup("diagnostic", "mcr")
    diagnostic = mcr(mcr.Params(draws=draws))
    return Contest(
        "MCR",
        "Algorithm 1 as printed",
        ("torch",),
        {"batch": batch, "tokens": encoded.input_ids.shape[1], "draws": draws},
        lambda: diagnostic.measure(view, encoded, keys),
        lambda: sequential(view, diagnostic, encoded, keys, draws),
    )


def attention_statistics(view: ModelView, batch: int) -> Contest:
    """The last token's mean attention to image and text, by layer: ours beside the model's own kernel, and from the
    maps that a model with eager attention hands out.
    """
    encoded, keys = view.encode(timing.conflicts(batch)), [str(i) for i in range(batch)]
    lmar = lookup("diagnostic", "lmar")
    diagnostic = lmar(lmar.Params(bins=1))
    eager = copy.deepcopy(view.model)
    eager.set_attn_implementation("eager")
    theirs = lambda: attention_from_maps(eager, encoded)
    rows, table = diagnostic.measure(view, encoded, keys), theirs()
    for modality in ("image", "text"):
        same(f"attention to the {modality}", _of(rows, f"attention_{modality}"), _of(table, f"attention_{modality}"))
    setting = {"batch": batch, "tokens": encoded.input_ids.shape[1], "blocks": view.depth}
    return Contest(
        "attention statistics",
        "output_attentions",
        ("transformers",),
        setting,
        lambda: diagnostic.measure(view, encoded, keys),
        theirs,
    )


@torch.no_grad()
def attention_from_maps(model: Any, batch: Batch) -> list[dict[str, Any]]:
    """Attention of each prompt's last token to its image and its text, the mean over heads, from T x T maps; a row for
    each layer, prompt and modality, as the sum and as the mean over tokens.
    """
    maps = model(**batch, output_attentions=True).attentions
    at, last = torch.arange(batch.size), last_index(batch.attention_mask)
    image = (batch.roles == Role.IMAGE).float()
    groups = {"image": image, "text": (batch.roles != Role.PAD).float() - image}
    looks = torch.stack([a[at, :, last].mean(1) for a in maps])
    values = {name: (looks * group).sum(-1) for name, group in groups.items()}
    tables = {f"attention_{name}": sums for name, sums in values.items()}
    tables |= {f"alpha_{name}": sums / groups[name].sum(-1) for name, sums in values.items()}
    tables["lmar"] = tables["alpha_image"] / tables["alpha_text"]
    return [
        {"sample": i, "metric": metric, "layer": layer, "value": value}
        for metric, table in tables.items()
        for layer, line in enumerate(table.tolist())
        for i, value in enumerate(line)
    ]


def _of(rows: Sequence[Mapping[str, Any]], metric: str) -> Tensor:
    return torch.tensor([row["value"] for row in rows if row["metric"] == metric])


# Answering


def answering(view: ModelView, samples: int, new_tokens: int = 6) -> Contest:
    """Questions with pictures, answered in batches, and one by one with the model's own ``generate``."""
    prompts, arm = timing.conflicts(samples), Arm()

    def ours() -> list[str]:
        with endless(view):
            return arm.answer(view, prompts, new_tokens)

    @torch.no_grad()
    def theirs() -> list[str]:
        texts = []
        with endless(view):
            for prompt in prompts:
                batch = view.encode([prompt])
                tokens = view.model.generate(**batch, max_new_tokens=new_tokens, do_sample=False)
                texts.append(view.tokenizer.decode(tokens[0, batch.input_ids.shape[1] :], skip_special_tokens=True))
        return [text.strip() for text in texts]

    if ours() != theirs():
        raise RuntimeError("answers: the two ways say different things")
    setting = {"questions": samples, "new": new_tokens}
    return Contest("answering a benchmark", "generate, one by one", ("transformers",), setting, ours, theirs)


CONTESTS: dict[str, Callable[[ModelView, int], Contest]] = {
    "lora": lora_steps,
    "collection": collect_and_fit,
    "mcr": mcr_as_printed,
    "attention": attention_statistics,
    "questions": answering,
}


def compare(view: ModelView, names: Sequence[str], batch: int, rounds: int) -> Iterator[Pair]:
    """Each contest of ``names`` in ``rounds`` rounds."""
    for name in names:
        contest = CONTESTS[name](view, batch)
        jobs = {"ours": contest.ours, "theirs": contest.theirs}
        seconds = in_turn({each: timing.timed(job, view.device) for each, job in jobs.items()}, rounds)
        versions = {library: version(library) for library in contest.libraries}
        setting = {"width": view.width, "blocks": view.depth, **contest.setting}
        yield paired(contest.work, contest.peer, versions, setting, [seconds["ours"]], [seconds["theirs"]])
