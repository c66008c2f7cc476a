"""PgM (a reconstruction): each loss term against plain loops, its parts and rates, and a planted task whose parts are
known.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from factory.corpus.collate import Collator, Places
from factory.corpus.order import Order
from factory.corpus.source import ConversationFile
from factory.data.prompt import Role
from factory.errors import UserError
from factory.model.steps import Step
from factory.recipe.schema import LaunchSpec, TuneSpec
from factory.registry import lookup
from factory.run.tuners.tuning import show_trainable
from factory.train.loop import Answers, train
from plugins.tuners.pgm.partition import MODALITIES, Partition
from plugins.tuners.pgm.terms import PgmTerms
from tests.factory.train.case import Interrupted, tuned, write_data
from tests.tiny import conflict_prompts, fresh_view, no_image, tiny_view
from tests.tiny_families import BUILDERS, SEEING, family_view

PLAIN = {"rank": 3, "gate_rank": 2}
A = {"a1": 0.7, "a2": 0.4, "a3": 0.2, "a4": 0.3, "a5": 2.0, "shares": {"image": 0.8}}


def made(**options):
    cls = lookup("tuner", "pgm")
    return cls(cls.Params(**{**PLAIN, **options}))


def stirred(partition, seed=0):
    """The partition with no map left at its start."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in partition.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=rng))


def a_batch(view):
    """Rows of a picture, a context and both, with labels on the last three tokens of each."""
    a, b, c = conflict_prompts(3)
    batch = view.encode([a, no_image(b), c.without(Role.CONTEXT)], "right")
    labels = torch.full_like(batch.input_ids, -100)
    for row, length in enumerate(batch.attention_mask.sum(1).tolist()):
        labels[row, length - 3 : length] = batch.input_ids[row, length - 3 : length]
    return batch, labels


def embeddings(view, batch):
    """What the decoder is given, without a tuner."""
    seen = []
    keep = lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"])
    handle = view.decoder.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        view.core(**batch, use_cache=False)
    handle.remove()
    return seen[0]


def one_token(modality, h, w_u=1.0, w_p=1.0):
    """The parts of one token h [d] and what is read for it, formula by formula in float64."""
    values = lambda p: p.detach().double().numpy()
    learner = lambda E, x: x + values(E.W_up) @ np.maximum(values(E.W_down) @ x, 0)
    h, gate, D = values(h), modality.gate, modality.decoder
    g = 1 / (1 + np.exp(-(values(gate.B) @ (values(gate.A) @ h) + values(gate.b))))
    u, p = g * h, (1 - g) * h
    both = np.concatenate([w_u * learner(modality.uni, u), w_p * learner(modality.paired, p)])
    d = len(h)
    read = both[:d] + both[d:] + values(D.W_up) @ np.maximum(values(D.W_down) @ both, 0)
    return g, u, p, read


def reference(view, partition, batch, labels):
    """Every term of the loss, row by row and token by token; the weights of the partition's parts by modality."""
    h, roles = embeddings(view, batch), batch.roles
    lengths = batch.attention_mask.sum(1).tolist()
    has = {"image": (roles == Role.IMAGE).any(1), "text": (roles == Role.CONTEXT).any(1)}

    def task(weights, rows):
        total = 0.0
        for row in [i for i in range(len(h)) if rows[i]]:
            read = []
            for t in range(lengths[row]):
                m = "image" if roles[row, t] == Role.IMAGE else "text"
                whole = m == "text" and roles[row, t] != Role.CONTEXT
                read.append(one_token(getattr(partition, m), h[row, t], *((1, 1) if whole else weights[m]))[3])
            out = view.decoder(
                inputs_embeds=torch.tensor(np.stack(read)[None]).float(),
                position_ids=batch.position_ids[row : row + 1, : lengths[row]],
            ).last_hidden_state
            scores = view.logits(out)[0].log_softmax(-1)
            for t in range(1, lengths[row]):
                if labels[row, t] != -100:
                    total -= float(scores[t - 1, labels[row, t]])
        return total

    none, uni, paired = (0, 0), (1, 0), (0, 1)
    terms = {
        "loss_uni_image": task({"image": uni, "text": none}, has["image"]),
        "loss_uni_text": task({"image": none, "text": uni}, has["text"]),
        "loss_paired": task({"image": paired, "text": paired}, has["image"] & has["text"]),
    }
    for m in MODALITIES:
        sums = {"reconstruction": 0.0, "overlap": 0.0, "off_share": 0.0}
        for row, length in enumerate(lengths):
            at = [t for t in range(length) if (roles[row, t] == Role.IMAGE) == (m == "image")]
            errors, cosines, shares = [], [], []
            for t in at:
                g, u, p, read = one_token(getattr(partition, m), h[row, t])
                own = h[row, t].double().numpy()
                errors.append(((own - read) ** 2).sum() / (own**2).sum())
                cosines.append((u @ p) ** 2 / ((u @ u) * (p @ p)))
                shares.append(g.mean())
            mean = lambda xs: sum(xs) / len(xs) if xs else 0.0
            sums["reconstruction"] += 3 * mean(errors)  # three labels a row
            sums["overlap"] += 3 * mean(cosines)
            sums["off_share"] += 3 * (mean(shares) - 0.8) ** 2 if at else 0.0
        terms |= {f"{name}_{m}": value for name, value in sums.items()}
    return terms


def test_each_term_is_its_plain_loop():
    view = fresh_view()
    batch, labels = a_batch(view)
    tuner = made(**A)
    bare = tiny_view()
    tuner.apply(view)
    stirred(tuner.partition)
    terms = tuner.terms(view)
    objective = Answers(view, terms)
    objective.train()
    inputs = {**batch, "roles": batch.roles}
    with torch.no_grad():
        whole = float(objective(labels, **inputs))
        objective.eval()
        answers = float(objective(labels, **inputs))
        expected = reference(bare, tuner.partition, batch, labels)
    for name, value in terms.said.items():
        assert float(value) == pytest.approx(expected[name], rel=2e-4), name
    assert terms.said.keys() == expected.keys() - {"off_share_text"}, "a text of no target is pulled nowhere"
    added = 0.7 * (expected["loss_uni_image"] + expected["loss_uni_text"]) + 0.4 * expected["loss_paired"]
    for m in MODALITIES:
        added += 0.2 * expected[f"reconstruction_{m}"] + 0.3 * expected[f"overlap_{m}"]
    assert whole - answers == pytest.approx(added + 2.0 * expected["off_share_image"], rel=1e-3)


def test_terms_do_not_depend_on_how_rows_are_shared_out():
    view = fresh_view()
    batch, labels = a_batch(view)
    tuner = made(**A)
    tuner.apply(view)
    stirred(tuner.partition)
    objective = Answers(view, tuner.terms(view))
    objective.train()
    with torch.no_grad():
        whole = objective(labels, **batch, roles=batch.roles)
        a, b, c = conflict_prompts(3)
        alone = []
        for row, prompt in enumerate((a, no_image(b), c.without(Role.CONTEXT))):
            one = view.encode([prompt], "right")
            alone.append(objective(labels[row : row + 1, : one.input_ids.shape[1]], **one, roles=one.roles))
    assert float(sum(alone)) == pytest.approx(float(whole), rel=1e-4)


@pytest.mark.parametrize("kind", ["sigma", "cumax"])
def test_the_gate_is_its_formula(kind):
    torch.manual_seed(0)
    partition = Partition(6, 2, 3, kind, "context")
    stirred(partition)
    h = torch.randn(4, 6)
    for row, g in zip(h, partition.image.gate(h), strict=True):
        W, b = (partition.image.gate.B @ partition.image.gate.A).detach(), partition.image.gate.b.tolist()
        x = [float(w @ row) + at for w, at in zip(W, b, strict=True)]
        weights = [math.exp(v) / sum(math.exp(each) for each in x) for v in x]
        expected = [1 / (1 + math.exp(-v)) for v in x] if kind == "sigma" else [sum(weights[: i + 1]) for i in range(6)]
        assert g.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("family", list(SEEING))
def test_it_parts_image_and_text_of_every_family(family):
    view = family_view(family)
    batch = view.encode(conflict_prompts(2))
    before = embeddings(view, batch)
    tuner = made()
    tuner.apply(view)
    try:
        stirred(tuner.partition, 1)
        found = tuner.partings(view, batch)
        image = batch.mask(Role.IMAGE)
        assert torch.equal(found["image"].at, image)
        assert torch.equal(found["text"].at, batch.attention_mask.bool() & ~image)
        for m, parting in found.items():
            assert torch.allclose(parting.h, before.float(), atol=1e-6), m
            assert torch.allclose(parting.u + parting.p, parting.h, atol=1e-5)
            row, t = parting.at.nonzero()[-1].tolist()
            read = one_token(getattr(tuner.partition, m), before[row, t])[3]
            assert parting.read[row, t].tolist() == pytest.approx(read.tolist(), rel=1e-3, abs=1e-4)
        seen = embeddings(view, batch)
        assert torch.allclose(seen[image], found["image"].read[image], atol=1e-5), "the decoder reads D of the image"
    finally:
        tuner.remove(view)


def test_a_setting_takes_a_part_of_the_context_and_leaves_the_question():
    view = fresh_view()
    batch = view.encode(conflict_prompts(2))
    tuner = made()
    tuner.apply(view)
    stirred(tuner.partition)
    plain, context = embeddings(view, batch), batch.mask(Role.CONTEXT)
    assert len(set(tuner.settings())) == len(tuner.settings()) >= 4
    for setting in tuner.settings():
        with tuner.set_to(setting):
            other = embeddings(view, batch)
        changed = ~torch.isclose(plain, other, atol=1e-7).all(-1)
        assert torch.equal(changed, batch.mask(Role.IMAGE) if "image" in setting else context), setting
    with tuner.set_to("without-text-paired"):
        row, t = context.nonzero()[0].tolist()
        h = tuner.partings(view, batch)["text"].h[row, t]
        expected = one_token(tuner.partition.text, h, 1.0, 0.0)[3]
        assert embeddings(view, batch)[row, t].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
        copied = {name: t.clone() for name, t in batch.items()}
        copied["input_ids"] = copied["input_ids"] * 1
        del batch
        with pytest.raises(UserError, match="pgm without a part of the text needs to know the prompt's words"):
            view.model(**copied)
    assert tuner.partition.weights == {}


def test_a_text_model_is_refused_by_name():
    view = family_view(next(name for name in BUILDERS if name not in SEEING))
    with pytest.raises(UserError, match="reads text alone; use lora"):
        made().apply(view)


def test_it_cannot_be_merged_into_a_plain_model():
    view = fresh_view()
    tuner = made()
    tuner.apply(view)
    with pytest.raises(UserError, match="tuner 'pgm' adds layers that no plain model has, so that it cannot be merged"):
        tuner.merge(view)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


RATES = {"image": {"uni": 1e-2, "paired": 2e-2, "gate": 7e-2}, "text": {"uni": 3e-2, "paired": 4e-2}}


class Groups(TrainerCallback):
    """The optimiser's groups as the training begins, and their rates at its end."""

    def on_train_begin(self, args, state, control, optimizer=None, **_):
        self.optimizer = optimizer
        self.first = [(group["initial_lr"], list(group["params"])) for group in optimizer.param_groups]


def test_the_optimiser_has_the_rates_that_are_printed(data, tmp_path, capsys):
    view = fresh_view()
    spec = TuneSpec.model_validate(
        {
            "tuner": {"type": "pgm", **PLAIN, "lr": RATES, "words": "text"},
            "data": {"path": str(data), "group_by_length": False},
            "batch_size": 4,
            "learning_rate": 5e-3,
            "learning_rates": {"connector": 6e-3},
        }
    )
    tuner = spec.method.make()
    tuner.apply(view, spec.beside)
    show_trainable(view, tuner, spec)
    printed = capsys.readouterr().out
    for name, rate in (
        ("image.uni", "0.01"),
        ("image.paired", "0.02"),
        ("text.uni", "0.03"),
        ("text.paired", "0.04"),
        ("image.gate", "0.07"),
    ):
        line = next(line for line in printed.splitlines() if line.startswith(f"pgm.{name} "))
        assert line.split()[-1] == rate
    source, groups = ConversationFile(data, data.parent, tmp_path / "index"), Groups()
    collator = Collator(view, source, 200, None)
    places = Places(Order(24, 4, 0), 2)
    log = train(view, tuner, places, collator, spec, LaunchSpec(), 2, 0, tmp_path / "t", [groups])
    own = {id(p): rate for rate, params in groups.first for p in params}
    part = tuner.partition
    for m in MODALITIES:
        for name in ("uni", "paired"):
            assert {own[id(p)] for p in getattr(getattr(part, m), name).parameters()} == {RATES[m][name]}
        assert {own[id(p)] for p in getattr(part, m).gate.parameters()} == {RATES[m].get("gate", 5e-3)}
        assert {own[id(p)] for p in getattr(part, m).decoder.parameters()} == {5e-3}
    assert {own[id(p)] for p in view.connector.parameters()} == {6e-3}
    assert len(own) == len(tuner.trainable)
    assert {"loss_uni_image", "loss_paired", "reconstruction_text", "overlap_image"} <= log[0].keys()


def test_an_interrupted_training_goes_on_the_same(data, tmp_path):
    tuner, how = {"type": "pgm", **PLAIN, "words": "text"}, {"steps": 3, "save_every": 1, "micro_batch": 2}
    losses, whole = tuned(data, tmp_path / "whole", tuner, {}, **how)
    with pytest.raises(Interrupted):
        tuned(data, tmp_path / "cut", tuner, {}, stop=2, **how)
    again, resumed = tuned(data, tmp_path / "cut", tuner, {}, **how)
    assert again == losses and all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_the_dial_moves_the_share_and_the_plain_training_does_not(data, tmp_path):
    share = {}
    for name, options in {"free": {}, "dialled": {"shares": {"image": 0.8, "text": 0.3}, "a5": 20.0}}.items():
        tuner = {"type": "pgm", **PLAIN, "a1": 0.0, "a2": 0.0, "a4": 0.0, **options}
        _, values = tuned(data, tmp_path / name, tuner, {}, steps=30, learning_rate=8e-2, schedule="constant")
        view, method = fresh_view(), lookup("tuner", "pgm")
        again = method(method.Params.model_validate({k: v for k, v in tuner.items() if k != "type"}))
        again.apply(view, ("connector",))
        again.fill(values)
        found = again.partings(view, view.encode(conflict_prompts(4)))
        share[name] = {m: float(parting.gate[parting.at].mean()) for m, parting in found.items()}
    assert share["dialled"]["text"] == pytest.approx(0.3, abs=0.1)
    assert share["dialled"]["image"] == pytest.approx(0.8, abs=0.1)
    assert all(abs(value - 0.5) < 0.1 for value in share["free"].values())


# --- a planted task: y1 = f(image), y2 = f(image, text), y3 = f(text), each in dimensions of its own ---

D, OWN, JOINT = 12, slice(0, 4), slice(4, 8)  # dimensions of a modality's own cause, of the joint one, and of noise


def planted(n: int, seed: int):
    """Embeddings [n, 3, d] of an image token, a context token and a question token, roles [n, 3], labels [n, 3] of one
    label a row, and the right answers [n] in {-1, 1}. A third of the rows each asks for the image's own cause (no
    text), the text's own (no image), and the product of both joint causes.
    """
    rng = torch.Generator().manual_seed(seed)
    sign = lambda: torch.randint(0, 2, (n,), generator=rng) * 2.0 - 1
    own, joint = {m: sign() for m in MODALITIES}, {m: sign() for m in MODALITIES}
    h = torch.randn(n, 3, D, generator=rng) * 0.3
    for i, m in enumerate(MODALITIES):
        h[:, i, OWN] += own[m][:, None]
        h[:, i, JOINT] += joint[m][:, None]
    asked = torch.arange(n) % 3
    roles = torch.tensor([int(Role.IMAGE), int(Role.CONTEXT), int(Role.QUESTION)]).repeat(n, 1)
    roles[asked == 0, 1] = int(Role.PAD)
    roles[asked == 1, 0] = int(Role.PAD)
    right = torch.where(asked == 0, own["image"], torch.where(asked == 1, own["text"], joint["image"] * joint["text"]))
    labels = torch.full((n, 3), -100)
    labels[:, 2] = 1
    return h, roles, asked, labels, right


def fitted(options: dict, seed: int, gate_rank: int = 0) -> dict[str, dict[str, float]]:
    """The mean gate over the own and the joint dimensions of each modality, after training on the planted task with a
    reader that knows where each cause stands.
    """
    torch.manual_seed(seed)
    cls = lookup("tuner", "pgm")
    partition = Partition(D, 2, gate_rank, "sigma", "context", 0.0)
    terms = PgmTerms(partition, cls.Params(a3=0.0, **options))
    h, roles, asked, labels, right = planted(192, seed)
    step = SimpleNamespace(step=Step(roles), words_known=True)

    def answered(learnt):
        read = partition.read(h, step)
        own, joint = read[..., OWN].mean(-1), read[..., JOINT].mean(-1)
        score = torch.where(asked == 0, own[:, 0], torch.where(asked == 1, own[:, 1], joint[:, 0] * joint[:, 1]))
        return (F.softplus(-2 * right * score) * (learnt[:, 2] != -100)).sum()

    optimiser = torch.optim.Adam(partition.parameters(), lr=0.05)
    for _ in range(100):
        optimiser.zero_grad()
        loss = answered(labels)
        (loss + terms(labels, roles, answered)).div(len(h)).backward()
        optimiser.step()
    with torch.no_grad():
        gates = {m: getattr(partition, m).gate(h[roles[:, i] != 0, i]) for i, m in enumerate(MODALITIES)}
    return {m: {"own": float(g[:, OWN].mean()), "joint": float(g[:, JOINT].mean())} for m, g in gates.items()}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_gate_finds_the_planted_parts_and_without_the_partition_losses_it_does_not(seed):
    found = fitted({"a1": 0.5, "a2": 0.5, "a4": 1.0}, seed)
    without = fitted({"a1": 0.0, "a2": 0.0, "a4": 0.0}, seed)
    for m in MODALITIES:
        assert found[m]["own"] > 0.85 and found[m]["joint"] < 0.15, (m, found)
        apart = {name: each[m]["own"] - each[m]["joint"] for name, each in (("found", found), ("without", without))}
        assert apart["without"] < 0.5 * apart["found"], (m, without)
