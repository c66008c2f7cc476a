"""Artefacts: what is written, what is refused, and how it is said."""

from __future__ import annotations

import hashlib
import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from factory.errors import UserError
from factory.model.load import load
from factory.recipe.schema import ModelSpec
from factory.registry import lookup
from factory.steer import Steering, artefact
from factory.steer.where import Where
from tests.contract.cases import Case, logits, steering
from tests.tiny import conflict_prompts, tiny_view

AMPS = Case("amps", (("apply_to", "from_index:5"),))


@pytest.fixture
def folder(tmp_path):
    return artefact.save(tmp_path / "new" / "amps-vision", steering(AMPS, 1, 1.5), tiny_view(), {"direction": "vision"})


def change(folder, **keys) -> None:
    path = folder / artefact.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def exchange(folder, tensors) -> None:
    """Other tensors, of which the manifest knows."""
    save_file(tensors, folder / artefact.TENSORS)
    change(folder, sha256=hashlib.sha256((folder / artefact.TENSORS).read_bytes()).hexdigest())


def test_the_folder_holds_a_manifest_tensors_and_a_card(folder):
    assert {p.name for p in folder.iterdir()} == {"steering_config.json", "steering.safetensors", "README.md"}
    manifest = json.loads((folder / artefact.MANIFEST).read_text())
    assert (manifest["type"], manifest["strength"], manifest["about"]) == ("amps", 1.5, {"direction": "vision"})
    assert (
        manifest["params"]["apply_to"] == "from_index:5"
        and manifest["where"] == Where(layer=1, take="from:5").model_dump()
    )
    assert manifest["base_model"]["class"] == "LlavaForConditionalGeneration" and set(manifest["libraries"]) >= {
        "torch",
        "transformers",
    }
    card = (folder / "README.md").read_text()
    assert (
        card.startswith("---\n")
        and "amps steering for LlavaForConditionalGeneration" in card
        and 'artefact.load(".", view)' in card
    )


def test_saving_twice_gives_the_same_bytes(folder, tmp_path):
    again = artefact.save(tmp_path / "again", steering(AMPS, 1, 1.5), tiny_view(), {"direction": "vision"})
    assert all((again / p.name).read_bytes() == p.read_bytes() for p in folder.iterdir())


def test_the_name_of_the_folder_decides_nothing(folder, tmp_path):
    other = folder.rename(tmp_path / "static-text.pkl")
    assert artefact.load(other, tiny_view()).steerer.name == "amps"


def test_a_strength_that_is_no_number_cannot_be_saved(tmp_path):
    for strength in (torch.tensor([1.0, 2.0]), lambda h, ctx: h[:, 0]):
        with pytest.raises(UserError, match="one number"):
            artefact.save(tmp_path / "x", steering(AMPS, 1, strength), tiny_view())
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("strength", [float("nan"), float("-inf"), 10**400])
def test_a_strength_that_is_not_finite_cannot_be_saved(strength, tmp_path):
    with pytest.raises(UserError, match="is not a finite number"):
        artefact.save(tmp_path / "odd", steering(Case("static"), 1, strength), tiny_view())
    assert not (tmp_path / "odd").exists()


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn])
def test_vectors_that_are_no_floating_point_numbers_are_refused(dtype, tmp_path):
    made = artefact.save(tmp_path / "static", steering(Case("static"), 1, 1.0), tiny_view())
    exchange(made, {"v": torch.ones(48).to(dtype)})
    with pytest.raises(UserError, match="its tensors make vectors of .*, and need floating-point numbers"):
        artefact.load(made, tiny_view())


def test_an_empty_folder_is_no_artefact(tmp_path):
    with pytest.raises(UserError, match=r"not a steering artefact.*steering_config\.json"):
        artefact.load(tmp_path, tiny_view())


def test_another_base_model_is_refused(folder):
    for other in (tiny_view(seed=1), tiny_view(layers=2)):
        with pytest.raises(UserError, match="made for another base model"):
            artefact.load(folder, other)


@pytest.mark.parametrize("cut", [0, 7, 40, -1])
def test_damaged_tensors_are_refused(folder, cut):
    path = folder / artefact.TENSORS
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"steering\.safetensors"):
        artefact.load(folder, tiny_view())


def test_other_tensors_than_those_that_were_written_are_refused(folder):
    path = folder / artefact.TENSORS
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"steering\.safetensors: damaged or exchanged: its checksum"):
        artefact.load(folder, tiny_view())


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_neither_saved_nor_loaded(odd, folder, tmp_path):
    tensors = load_file(folder / artefact.TENSORS)
    tensors["encoder.weight"][0, 0] = odd
    exchange(folder, tensors)
    with pytest.raises(UserError, match=r"the tensor 'encoder\.weight' holds NaN or infinite values"):
        artefact.load(folder, tiny_view())
    made = steering(Case("static"), 1, 1.0)
    made.state["v"] = torch.full((48,), odd)
    with pytest.raises(UserError, match=r"steering 'static': its tensor 'v' holds NaN or infinite values"):
        artefact.save(tmp_path / "odd", made, tiny_view())
    assert not (tmp_path / "odd").exists()


@pytest.mark.parametrize("dtype", [torch.int32, torch.float16, torch.float8_e4m3fn, torch.complex64])
def test_tensors_of_another_type_are_refused(dtype, folder):
    exchange(folder, {name: value.to(dtype) for name, value in load_file(folder / artefact.TENSORS).items()})
    with pytest.raises(UserError, match=r"steering\.safetensors: its tensors do not fit a model of width"):
        artefact.load(folder, tiny_view())


@pytest.mark.parametrize("name", [artefact.MANIFEST, artefact.TENSORS])
def test_what_stands_in_a_file_s_place_is_told_at_once(name, folder):
    path = folder / name
    for put in (
        lambda: os.mkfifo(path),
        path.mkdir,
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path),
    ):
        path.unlink() if path.is_file() or path.is_symlink() or path.is_fifo() else path.rmdir()
        put()
        with pytest.raises(UserError) as told:
            artefact.load(folder, tiny_view())
        assert "\n" not in str(told.value)


def test_a_file_too_large_to_be_one_is_not_read(folder):
    for name in (artefact.MANIFEST, artefact.TENSORS):
        os.truncate(folder / name, 1 << 40)
        with pytest.raises(UserError, match=r"has 1,099,511,627,776 bytes, and such a file at most"):
            artefact.load(folder, tiny_view())


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema": ' + "9" * 5000 + "}", "1e400", '"\\ud800"', "[]", "null", "\xff"]
)
def test_odd_json_is_one_line(text, folder):
    (folder / artefact.MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as told:
        artefact.load(folder, tiny_view())
    assert len(str(told.value)) < 400 and "\n" not in str(told.value)


LONG = {"text": "x" * 5000, "number": 10**4000, "shape": {"shape": "x" * 5000}, "sizes": {"shape": [10**4000]}}


@pytest.mark.parametrize("value", LONG.values(), ids=LONG)
@pytest.mark.parametrize("name", ["w", "w" * 5000], ids=len)
def test_a_long_value_or_name_in_a_manifest_is_cut_short(value, name, folder):
    manifest = json.loads((folder / artefact.MANIFEST).read_text())
    manifest["base_model"]["tensors"] = {name: value}
    (folder / artefact.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError) as told:
        artefact.load(folder, tiny_view())
    assert len(str(told.value)) < 600 and "\n" not in str(told.value)


def test_the_cards_example_runs_as_printed(tmp_path, monkeypatch, capsys):
    view = load(ModelSpec(zoo="tiny"))
    state = {"v": torch.randn(view.width, generator=torch.Generator().manual_seed(0))}
    static = lookup("steering", "static")
    folder = artefact.save(tmp_path / "vector", Steering(static(static.Params()), state, Where(layer=1), 2.0), view)
    monkeypatch.chdir(folder)
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    exec(compile(code, "example", "exec"), {})  # noqa: S102  the card's own
    assert capsys.readouterr().out.strip()


def test_missing_tensors_are_refused(folder):
    (folder / artefact.TENSORS).unlink()
    with pytest.raises(UserError, match=r"steering\.safetensors"):
        artefact.load(folder, tiny_view())


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"params": {"gamma": 1}}, "parameters do not fit steering 'amps'"),
        ({"params": {"beta": "much"}}, "parameters do not fit"),
        ({"type": "ampz"}, "Did you mean amps"),
        ({"where": {"layer": 7}}, "out of range"),
        ({"strength": "much"}, "strength should be a valid number, got the string 'much'"),
        ({"strength": [1.0, 2.0]}, "strength should be a valid number"),
        ({"strength": True}, "strength should be a valid number"),
        ({"strength": float("nan")}, "strength should be a finite number"),
        ({"strength": float("inf")}, "strength should be a finite number"),
        ({"schema": 2}, "of form 2, and this version reads form 1; update steering-factory"),
        ({"schema": None}, "schema should be a valid integer, got null"),
        ({"type": "instruction", "params": {}}, "'instruction' adds no vectors"),
        ({"base_model": {"class": "A", "fingerprint": "b", "tensors": {"x": {}}}}, "not a manifest"),
        ({"params": "x" * 10_000}, "params should be a mapping"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder, keys, message):
    change(folder, **keys)
    with pytest.raises(UserError, match=message):
        artefact.load(folder, tiny_view())


@pytest.mark.parametrize(
    "keys", [{"where": {"layer": 1, "take": "some"}}, {"where": {"layers": 1}}, {"base_model": {}}, {"where": None}]
)
def test_a_damaged_manifest_is_told_in_one_line(folder, keys):
    change(folder, **keys)
    with pytest.raises(UserError):
        artefact.load(folder, tiny_view())


def test_a_manifest_that_is_no_json_is_refused(folder):
    (folder / artefact.MANIFEST).write_text("{")
    with pytest.raises(UserError, match="steering_config"):
        artefact.load(folder, tiny_view())


def test_the_tensors_in_the_folder_are_those_that_steer(folder):
    expected = logits(tiny_view(), conflict_prompts(2), artefact.load(folder, tiny_view()))
    assert torch.equal(expected, logits(tiny_view(), conflict_prompts(2), steering(AMPS, 1, 1.5)))
    tensors = load_file(folder / artefact.TENSORS)
    exchange(folder, {**tensors, "sign": -tensors["sign"]})
    assert not torch.equal(logits(tiny_view(), conflict_prompts(2), artefact.load(folder, tiny_view())), expected)


def test_tensors_of_another_width_are_refused(folder):
    tensors = load_file(folder / artefact.TENSORS)
    exchange(folder, {**tensors, "encoder.weight": torch.zeros(100, 7)})
    with pytest.raises(UserError, match=r"steering\.safetensors: its tensors do not fit a model of width 48"):
        artefact.load(folder, tiny_view())
    exchange(folder, {**tensors, "decoder.weight": torch.zeros(7, 100)})
    with pytest.raises(UserError, match="vectors of width 7, and the model's width is 48"):
        artefact.load(folder, tiny_view())


def test_a_missing_tensor_is_named(folder):
    tensors = load_file(folder / artefact.TENSORS)
    exchange(folder, {k: t for k, t in tensors.items() if k != "encoder.bias"})
    with pytest.raises(UserError, match=r"the tensor 'encoder\.bias' of steering 'amps' is missing"):
        artefact.load(folder, tiny_view())


class Hub:
    """A hub in memory."""

    def __init__(self, monkeypatch, tmp_path):
        self.repos, self.cache = {}, tmp_path / "cache"
        hub = self

        class Api:
            def __init__(self, token=None):
                self.token = token

            def create_repo(self, repo, private, exist_ok):
                hub.repos.setdefault(repo, {"token": self.token, "private": private})

            def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
                hub.repos[repo_id]["files"] = {n: (folder_path / n).read_bytes() for n in allow_patterns}

        monkeypatch.setattr("huggingface_hub.HfApi", Api)
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.download)

    def download(self, repo, revision, token, allow_patterns):
        self.cache.mkdir()
        for name in allow_patterns:
            (self.cache / name).write_bytes(self.repos[repo]["files"][name])
        return str(self.cache)


def test_an_artefact_comes_back_from_the_hub_as_it_was(folder, tmp_path, monkeypatch):
    hub = Hub(monkeypatch, tmp_path)
    (folder / "notes.pkl").write_bytes(b"not part of it")
    assert artefact.push(folder, "me/amps", token="secret", private=True) == "https://huggingface.co/me/amps"
    assert set(hub.repos["me/amps"]["files"]) == {"steering_config.json", "steering.safetensors", "README.md"}
    assert (hub.repos["me/amps"]["token"], hub.repos["me/amps"]["private"]) == ("secret", True)
    pulled = artefact.load(artefact.pull("me/amps"), tiny_view())
    assert torch.equal(
        logits(tiny_view(), conflict_prompts(2), pulled),
        logits(tiny_view(), conflict_prompts(2), steering(AMPS, 1, 1.5)),
    )


def test_what_is_no_artefact_is_not_pushed(tmp_path):
    with pytest.raises(UserError, match="not a steering artefact"):
        artefact.push(tmp_path, "me/amps")


def test_the_hub_out_of_reach_is_told_in_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for call in (lambda: artefact.pull("someone/amps-vision"), lambda: artefact.push(folder, "someone/amps-vision")):
        with pytest.raises(
            UserError, match=r"cannot (pull from|push to) someone/amps-vision: the hub cannot be reached"
        ) as told:
            call()
        assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="a repo is named OWNER/NAME"):
        artefact.pull("not a name!!")
