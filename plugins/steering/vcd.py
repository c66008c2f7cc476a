"""VCD: Visual Contrastive Decoding (Leng et al., CVPR 2024, arXiv 2311.16922). SPEC.md 8.

    logits = (1 + a) logit(y | v, x) - a logit(y | v', x)       among tokens with p(y | v, x) >= b max p(. | v, x)
    v' = sqrt(abar_t) v + sqrt(1 - abar_t) eps,   eps ~ N(0, I),   abar_t = prod_{i<=t} (1 - beta_i),
    beta_i = sigmoid(linspace(-6, 6, 1000))_i (0.005 - 0.00001) + 0.00001

From the paper and its code: all of this; b = 0.1 is the code's default (b = 0.2 and t = 500 its POPE script's). Here a
is the strength (0.5 in the code, 1 in its POPE script), answers are greedy (the authors sample), and every image gets
the same eps, so that an answer does not depend on what else is in the batch. Toward text (ours): the copy lacks the
text context, so that what the context adds is amplified by the same formula, as in context-aware decoding (arXiv
2305.14739).
"""

import torch
from pydantic import Field
from torch import Tensor

from factory.data.prompt import Prompt, Role
from factory.registry import Params, register
from factory.steer import LogitsMethod
from factory.steer.logits import contrastive

STEPS = 1000


class VcdParams(Params):
    """``noise_step`` t of the diffusion; ``plausible`` b, the least likelihood beside the likeliest token's; ``seed``
    of eps.
    """

    noise_step: int = Field(500, ge=0, lt=STEPS)
    plausible: float = Field(0.1, gt=0, le=1)
    seed: int = 0


@register("steering", "vcd")
class Vcd(LogitsMethod):
    """The answer's logits, contrasted with those of a prompt whose image is noise (toward text: whose context is
    gone).
    """

    pictured = True

    Params = VcdParams

    def copies(self, prompt: Prompt, direction: str) -> tuple[Prompt, ...]:
        return (prompt if direction == "vision" else prompt.without(Role.CONTEXT),)

    def images(self, inputs: dict[str, Tensor], direction: str, blocks: int) -> dict[str, Tensor]:
        if direction != "vision" or not inputs:
            return inputs
        pixels, slices = inputs["pixel_values"], inputs.get("target_sizes")
        grids = inputs.get("image_grid_thw", slices)  # families that cut images into patches say how many each has
        axis = 0 if slices is None else -1  # whose patches stand behind each other in one row
        v, v_noised = pixels.chunk(blocks, axis)
        wide = 1 if slices is None else pixels.shape[-2]
        sizes = [1] * len(v) if grids is None else (grids[: len(grids) // blocks].prod(-1) * wide).tolist()
        parts = [noised(image, self.params.noise_step, self.params.seed) for image in v_noised.split(sizes, axis)]
        return {**inputs, "pixel_values": torch.cat([v, *parts], axis)}

    def combine(self, own: Tensor, others: Tensor, direction: str, strength: float) -> Tensor:
        return contrastive(own, others, strength, self.params.plausible)


def noised(v: Tensor, t: int, seed: int) -> Tensor:
    """v' at diffusion step ``t`` of one image's pixel values, of any shape."""
    beta = torch.sigmoid(torch.linspace(-6, 6, STEPS, dtype=torch.float64)) * (0.5e-2 - 1e-5) + 1e-5
    abar = float((1 - beta).cumprod(0)[t])
    eps = torch.randn(v.shape, generator=torch.Generator().manual_seed(seed)).to(v.device)
    return (abar**0.5 * v.float() + (1 - abar) ** 0.5 * eps).to(v.dtype)
