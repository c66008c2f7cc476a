"""The zoo's cards, weights in the hub's cache, fetching, and models placed by accelerate."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from pydantic import ValidationError

from factory.cli import main
from factory.errors import UserError
from factory.model import fetch as fetching
from factory.model.checks import self_check
from factory.model.facts import find_facts
from factory.model.fetch import fetch
from factory.model.load import fingerprint, load, placement
from factory.model.source import card_for, find, known
from factory.recipe.nodes import read_node
from factory.recipe.schema import ModelSpec
from factory.registry import available, lookup
from factory.zoo.cards import Card, cards, read_card
from tests.contract.cases import fresh_view, logits
from tests.tiny import conflict_prompts, saved_tiny, tiny_view

HUB = [name for name in cards() if read_card(name).hub]
REPO = "llava-hf/llava-1.5-13b-hf"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return saved_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_in_cache(hub: Path, folder: Path, repo: str = REPO) -> Path:
    """``folder`` as a snapshot of ``repo``, as the hub's library lays it out."""
    home = hub / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("c0ffee")
    return Path(shutil.copytree(folder, home / "snapshots" / "c0ffee"))


@pytest.mark.parametrize("name", HUB)
def test_a_card_is_whole_and_counts_its_own_parameters(name, hub):
    card = read_card(name)
    assert card.name == name and card.licence and card.prompt and (card.verified or card.unverified)
    assert bool(card.image_tokens) == lookup("family", card.family).sees
    assert card.family in {entry.name for entry in available("family")}
    config = card.hf_config()
    assert 0 <= card.layer < config.get_text_config().num_hidden_layers and card.describes(config)
    model, own, lacking = find_facts(ModelSpec(zoo=name, dtype="bfloat16"))
    assert (model.parameters, model.family, own) == (card.parameters, card.family, card)
    assert len(lacking) == 1 and card.hub in lacking[0] and f"fetch {name}" in lacking[0] and "\n" not in lacking[0]


def test_quantised_weights_take_a_half_and_a_quarter(hub):
    full, eight, four = (
        find_facts(ModelSpec(zoo="llava-1.5-7b", dtype="float16", quantize=q))[0].bytes for q in (None, "8bit", "4bit")
    )
    assert full == 2 * 7063427072
    assert 0.5 < eight / full < 0.55 and 0.26 < four / full < 0.32


def test_missing_weights_are_told_with_id_files_size_and_command(hub):
    with pytest.raises(UserError) as error:
        find(ModelSpec(zoo="llava-1.5-13b"))
    for said in (
        REPO,
        "6 safetensors files",
        "26.7 GB",
        "steering-factory fetch llava-1.5-13b",
        str(hub),
        "model.path=FOLDER",
    ):
        assert said in str(error.value)
    with pytest.raises(UserError, match=r"some/model: its weights are not on this machine.*fetch some/model"):
        find(ModelSpec(hub="some/model"))


def test_weights_in_the_hubs_cache_are_found_offline(hub, saved):
    snapshot = put_in_cache(hub, saved)
    assert find(ModelSpec(hub=REPO)).folder == snapshot
    assert find(ModelSpec(zoo="llava-1.5-13b")).folder == snapshot
    with pytest.raises(UserError, match="not on this machine"):
        find(ModelSpec(hub=REPO, revision="another"))


def test_an_unfinished_download_is_told_from_a_broken_folder(hub, saved):
    snapshot = put_in_cache(hub, saved)
    (snapshot / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'
    )
    with pytest.raises(
        UserError,
        match=(
            r"download is not finished \(1 of 2 weight files are there; next: model-2\.safetensors\).*fetch"
            r" llava-1\.5-13b"
        ),
    ):
        find(ModelSpec(zoo="llava-1.5-13b"))
    with pytest.raises(UserError, match=r"model-2\.safetensors is missing; copy it there"):
        find(ModelSpec(path=str(snapshot)))


def test_a_card_speaks_for_its_own_model_alone(saved):
    own = find(ModelSpec(zoo="tiny"))
    assert own.card.name == "tiny" and own.notes == ()
    other = find(ModelSpec(zoo="llava-1.5-13b", path=str(saved)))
    assert other.card is None and "decoder of 3 blocks, not llava-1.5-13b" in other.notes[0]
    config, card = known(ModelSpec(zoo="llava-1.5-13b", path=str(saved)))
    assert config.get_text_config().num_hidden_layers == 3 and card is None
    assert card_for(ModelSpec(zoo="qwen2.5-vl-3b"), read_card("qwen2.5-vl-7b").hf_config()) is None


def test_the_cards_defaults_reach_the_view(saved):
    assert load(ModelSpec(zoo="tiny", device="cpu")).defaults == {"mcr": {"k_sigma": 1.0}}
    assert load(ModelSpec(path=str(saved), device="cpu")).defaults == {}


@pytest.mark.parametrize("name", cards())
def test_a_cards_defaults_are_parameters_of_diagnostics(name):
    for diagnostic, values in read_card(name).defaults.items():
        read_node("diagnostic", {"type": diagnostic, **values})


def test_a_card_with_a_key_that_is_none_is_refused_by_name():
    with pytest.raises(ValidationError, match=r"k_sigma\n.*not permitted"):
        Card(name="a", family="llava", licence="MIT", about="", k_sigma=1.0)


class Response:
    headers: dict = {}  # noqa: RUF012
    request = None
    status_code = 404


@pytest.mark.parametrize(
    "fault, message",
    [
        (OSError("Name or service not known"), r"cannot be reached .*Name or service not known.*model\.path=FOLDER"),
        (RepositoryNotFoundError("404", response=Response()), "there is no such repo, or it is private"),
        (GatedRepoError("403", response=Response()), "licence has to be accepted first"),
        (RevisionNotFoundError("404", response=Response()), "it has no such revision"),
    ],
)
def test_a_fetch_that_fails_is_one_line(hub, monkeypatch, capsys, fault, message):
    def broken(*args, **kwargs):
        raise fault

    monkeypatch.setattr(fetching, "snapshot_download", broken)
    assert main(["fetch", "smolvlm", "--revision", "v9"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: cannot fetch HuggingFaceTB/SmolVLM-Instruct: ") and "\n" not in said
    with pytest.raises(UserError, match=message):
        fetch("smolvlm", revision="v9")


def test_a_fetched_model_is_checked_and_its_folder_printed(hub, saved, monkeypatch, capsys, tmp_path):
    asked = []

    def download(repo, **options):
        asked.append((repo, options["local_dir"]))
        return shutil.copytree(saved, options["local_dir"])

    monkeypatch.setattr(fetching, "snapshot_download", download)
    assert main(["fetch", "smolvlm", "--to", str(tmp_path / "there")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "there")
    assert asked == [("HuggingFaceTB/SmolVLM-Instruct", tmp_path / "there")]


@pytest.mark.parametrize(
    "name, message",
    [
        ("tiny", "ships with the project"),
        ("llava-1.5-7", "Did you mean llava-1.5-7b"),
        ("nothing", "or a hub id, OWNER/NAME"),
    ],
)
def test_what_cannot_be_fetched_is_said(hub, name, message):
    with pytest.raises(UserError, match=message):
        fetch(name)


def test_a_full_disk_is_told_before_the_download(hub, monkeypatch):
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**9})())
    with pytest.raises(UserError, match=r"llava-1\.5-13b needs about 26\.7 GB; .* has 1\.0 GB free"):
        fetch("llava-1.5-13b")


def test_fetch_alone_lists_the_zoo(hub, capsys):
    assert main(["fetch"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in cards()) and "26.7" in said and REPO in said


@pytest.mark.parametrize(
    "spec, message",
    [
        (ModelSpec(zoo="tiny", device="cpu", quantize="4bit"), "needs bitsandbytes.*pip install"),
        (ModelSpec(zoo="tiny", device_map="auto", quantize="8bit"), "needs bitsandbytes.*pip install"),
        (ModelSpec(zoo="smol", quantize="4bit"), r"model\.quantize: parts are put together whole"),
        (ModelSpec(zoo="smol", device_map="auto"), r"model\.device_map: parts are put together whole"),
    ],
)
def test_placement_that_cannot_be_done_is_one_line(spec, message, monkeypatch):
    monkeypatch.setattr("factory.model.load.find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        placement(spec)


def test_a_device_map_loads_the_same_model(saved):
    view = load(ModelSpec(path=str(saved), device_map="auto"))
    assert fingerprint(view) == fingerprint(tiny_view())
    assert torch.allclose(
        logits(view, conflict_prompts(2)).to("cpu"), logits(tiny_view(), conflict_prompts(2)), atol=1e-4
    )


def test_offloaded_blocks_steer_measure_and_hash_alike(tmp_path):
    """Blocks whose weights lie on disk, and are brought in when they run: the only map over several devices that a CPU
    can try.
    """
    from accelerate import dispatch_model

    from factory.registry import lookup
    from factory.steer import Steering, steer
    from factory.steer.where import Where

    view, plain = fresh_view(), tiny_view()
    prompts = conflict_prompts(2)

    def measured(v):
        method = lookup("steering", "static")
        steering = Steering(method(method.Params()), {"v": torch.ones(v.width)}, Where(layer=1), 2.0)
        with steer(v, steering):
            steered = logits(v, prompts)
        mcr = lookup("diagnostic", "mcr")
        return steered, [row["value"] for row in mcr(mcr.Params(draws=1)).measure(v, v.encode(prompts), ["a", "b"])]

    expected = measured(plain)
    places = {
        "model.vision_tower": "cpu",
        "model.multi_modal_projector": "cpu",
        "model.language_model": "disk",
        "lm_head": "cpu",
    }
    view.model.tie_weights()
    dispatch_model(view.model, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert any(p.device.type == "meta" for p in view.layers.parameters())
    assert view.device.type == "cpu" and view.dtype == torch.float32
    self_check(view)
    steered, values = measured(view)
    assert torch.equal(steered, expected[0]) and values == expected[1]
    assert fingerprint(view) == fingerprint(plain)
