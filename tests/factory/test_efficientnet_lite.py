"""EfficientNet-Lite: its shapes, its features, its released weights, and the package that they come from where that is
at hand.
"""

from __future__ import annotations

import pickle
import re

import pytest
import torch
from torch import nn

from factory.components.efficientnet_lite import (
    EfficientNetLite,
    EfficientNetLiteConfig,
    FrozenNorm,
    SameConv,
    our_names,
)
from factory.components.vision_encoder.efficientnet_lite0 import EfficientNetLite0, LiteParams
from factory.zoo.cards import read_part
from factory.zoo.packages import is_fetched, needed

PICTURE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def randomised(seed: int = 0, **sizes) -> EfficientNetLite:
    torch.manual_seed(seed)
    model = EfficientNetLite(EfficientNetLiteConfig(image_size=64, **sizes)).eval()
    for norm in (m for m in model.modules() if isinstance(m, FrozenNorm)):
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2), nn.init.normal_(norm.bias)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite:
    return randomised()


def as_released(model: EfficientNetLite) -> dict[str, torch.Tensor]:
    """The weights under the released names, with a classifier."""
    names = {
        name: re.sub(r"(^|\.)([a-z])", r"\1_\2", name.rpartition(".")[0]) + name[name.rindex(".") :]
        for name in model.state_dict()
    }
    return {names[name]: value for name, value in model.state_dict().items()} | {"_fc.weight": torch.ones(2, 2)}


def test_lite0_has_the_sizes_of_its_paper(lite0):
    states = lite0(PICTURE).hidden_states
    c = lite0.config
    assert sum(p.numel() for p in lite0.parameters()) == 3371008  # 4.65 M with the classifier's 1280 x 1000 + 1000
    assert [tuple(h.shape[1:]) for h in states] == [
        (c.width(i), 64 // c.stride(i), 64 // c.stride(i)) for i in range(18)
    ]
    assert (c.num_hidden_layers, c.patch_size, c.width(-1), c.stride(0), c.width(11), c.stride(11)) == (
        17,
        32,
        1280,
        2,
        112,
        16,
    )


@pytest.mark.parametrize("side, kernel, stride", [(8, 3, 2), (9, 3, 2), (8, 5, 2), (7, 5, 1), (6, 1, 1)])
def test_padding_is_tensorflows_same(side, kernel, stride):
    conv = SameConv(1, 1, kernel, stride).requires_grad_(False)
    x = torch.randn(1, 1, side, side)
    n = -(-side // stride)
    pad = max((n - 1) * stride + kernel - side, 0)
    wide = torch.zeros(1, 1, side + pad, side + pad)
    wide[..., pad // 2 : pad // 2 + side, pad // 2 : pad // 2 + side] = x
    slow = torch.tensor(
        [
            [
                (
                    wide[0, 0, i * stride : i * stride + kernel, j * stride : j * stride + kernel] * conv.weight[0, 0]
                ).sum()
                for j in range(n)
            ]
            for i in range(n)
        ]
    )
    torch.testing.assert_close(conv(x)[0, 0], slow)


def test_a_tower_in_training_mode_sees_the_same_and_learns_no_statistics(lite0):
    before = {name: value.clone() for name, value in lite0.state_dict().items()}
    seen = lite0(PICTURE).last_hidden_state
    trained = lite0.train()(PICTURE).last_hidden_state
    lite0.eval()
    assert torch.equal(seen, trained) and all(
        torch.equal(before[name], value) for name, value in lite0.state_dict().items()
    )


def test_features_of_two_layers_stand_place_by_place(lite0):
    encoder = EfficientNetLite0(LiteParams(config={"image_size": 64}, layers=(8, -1)))
    coarse, config = encoder.features(lite0, PICTURE), lite0.config
    assert coarse.shape == (2, encoder.tokens(config), encoder.width(config)) == (2, 4, 4 * 80 + 1280)
    states = lite0(PICTURE).hidden_states
    row, column = 1, 0
    cells = states[8][0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    assert torch.equal(coarse[0, 2 * row + column], torch.cat([cells.flatten(), states[-1][0, :, row, column]]))
    fine = EfficientNetLite0(LiteParams(config={"image_size": 64}, layers=(8,)))
    assert fine.features(lite0, PICTURE).shape == (2, 16, 80) and fine.tokens(config) == 16
    wide = EfficientNetLite0(LiteParams(config={"image_size": 64}, layers=(8,), stride=32))
    assert torch.equal(wide.features(lite0, PICTURE), coarse[..., : 4 * 80])


def test_released_weights_become_a_folder_that_loads(lite0, tmp_path):
    out = tmp_path / "out"
    torch.save(as_released(lite0), tmp_path / "released.pth")
    EfficientNetLite0.unpack(tmp_path / "released.pth", out)
    encoder = EfficientNetLite0(LiteParams(source=str(out)))
    again = encoder.load(encoder.config())
    assert torch.equal(again.eval()(PICTURE).last_hidden_state, lite0(PICTURE).last_hidden_state)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def test_a_pickle_is_never_run(tmp_path):
    torch.save({"_fc.weight": Bomb()}, tmp_path / "released.pth")
    with pytest.raises(pickle.UnpicklingError):
        EfficientNetLite0.unpack(tmp_path / "released.pth", tmp_path / "out")


def test_it_equals_the_package_bit_for_bit(lite0):
    theirs = (
        pytest.importorskip(
            "efficientnet_lite_pytorch", reason="package efficientnet_lite_pytorch 0.1.0 is not installed"
        )
        .EfficientNet.from_name("efficientnet-lite0")
        .eval()
    )
    ours = EfficientNetLite(EfficientNetLiteConfig()).eval()
    ours.load_state_dict(our_names(theirs.state_dict()))
    picture = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(theirs.extract_features(picture), ours(picture).last_hidden_state)


def test_the_fetched_weights_equal_the_package_bit_for_bit(users_cache):
    package = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="package efficientnet_lite_pytorch 0.1.0 is not installed"
    )
    if not is_fetched(read_part("efficientnet-lite0")):
        pytest.skip("part efficientnet-lite0 is not fetched")
    ours = EfficientNetLite.from_pretrained(needed("efficientnet-lite0")).eval()
    theirs = package.EfficientNet.from_name("efficientnet-lite0").eval()
    mine = ours.state_dict()
    theirs.load_state_dict(
        {name: mine.get(next(iter(our_names({name: value})), ""), value) for name, value in theirs.state_dict().items()}
    )
    picture = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(theirs.extract_features(picture), ours(picture).last_hidden_state)
