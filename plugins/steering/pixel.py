"""PIXEL: Position-wise Injection with eXact Estimated Levels (arXiv 2510.10205, WWW 2026). SPEC.md 7.2.

    D   = rows h_P+ - h at the prompt's end, and the same averaged over its tail      two views, equal weights
    v_i = the r leading right singular vectors of (D - mean D) / std D, unit length;   v = v_1 + ... + v_r
    alpha(h) = least alpha >= 0 with cos(h + alpha v, v) >= s, clipped;                h_t <- h_t + alpha(h_t) v

From the authors' code: both views, centring and scaling, r = 2, the sum, the closed form, s, the clips and the position
presets. Ours: the sign of each v_i, which an SVD leaves open, follows the mean difference. The code's property prompts
ask for truthful answers, so P+ here is the recipe's instruction. The code steers many layers; a run of this project
steers one (the code's own BBQ preset does too), and every generated token rather than the first two. The sample
residual needs the prompted test sample in the code; here its difference is predicted from the token's own state by
learn-to-steer's regressor, and it is off by default (in the authors' logs it gained nothing). Their "position scanning"
is in no public source: ``preset: scan`` (ours) tries tails of the prompt, with and without the answer, and dev decides.
"""

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from factory.errors import UserError
from factory.registry import Params, register
from factory.steer import Context, States, Steerer
from factory.steer.regressor import RegressorParams, fit_g, g
from factory.steer.where import Where


class Preset(NamedTuple):
    """How many of the prompt's last tokens are steered, whether the answer is, and the clip of alpha."""

    tail: int
    answer: bool
    clip: tuple[float, float]


PRESETS = {
    "llama": Preset(3, True, (0.0, 200.0)),
    "mistral": Preset(1, True, (2.0, 2.0)),
    "qwen": Preset(1, True, (0.0, 200.0)),
    "bbq": Preset(1, False, (0.0, 200.0)),
}
CLIP = (0.0, 200.0)  # of a scan, that of all presets but one


class PixelParams(Params):
    """``s`` the cosine to reach (z_target); ``rank`` r; ``preset`` positions and clip; ``clip`` null takes the
    preset's. ``preset: scan`` lets dev decide among the ``tails`` of the prompt and whether the ``answers`` are
    steered.

    ``contrast``: differences to the plain prompt (the authors') or to the opposite instruction (ours).
    ``rho`` weighs the sample residual (authors: llama -1, mistral 1, qwen 0.5, BBQ -0.5); ``net`` predicts it.
    """

    s: float = Field(0.85, gt=0, lt=1)
    rank: PositiveInt = 2
    preset: Literal["llama", "mistral", "qwen", "bbq", "scan"] = "llama"
    tails: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 3, 5, 8)
    answers: Annotated[tuple[bool, ...], Field(min_length=1)] = (False, True)
    contrast: Literal["plain", "opposite"] = "plain"
    clip: tuple[float, float] | None = None
    rho: float = 0.0
    net: RegressorParams = RegressorParams()


@register("steering", "pixel")
class Pixel(Steerer):
    """Each token is moved along one direction just far enough to have cosine s with it; strength 1 is the paper's."""

    Params = PixelParams
    reads = "per_token"
    reads_tails = True

    @property
    def preset(self) -> Preset:
        """The preset that is followed; of a scan its first positions, or those that it was narrowed to."""
        p = self.params
        return PRESETS.get(p.preset) or Preset(p.tails[0], p.answers[0], CLIP)

    def variants(self) -> dict[str, Steerer]:
        """The position scan: every tail, with and without the answer."""
        p = self.params
        if p.preset != "scan" or len(p.tails) * len(p.answers) == 1:
            return {}
        return {
            f"last {tail}{' and the answer' * answer}": Pixel(
                p.model_copy(update={"tails": (tail,), "answers": (answer,)})
            )
            for tail in p.tails
            for answer in p.answers
        }

    def where(self) -> Where:
        return Where(take=f"last:{self.preset.tail}", generated=self.preset.answer)

    def fit(self, states: States) -> dict[str, Tensor]:
        if states.tails is None:
            raise UserError("pixel needs the states averaged over each prompt's tail beside those of its last token")
        end, tail = (self._difference(*view) for view in ((states.base, states.toward, states.away), states.tails))
        state = {"v": directions(torch.cat([tail, end]), self.params.rank).sum(0)}
        if self.params.rho:
            state |= {
                f"residual.{k}": t
                for k, t in fit_g(states.base, end, self.params.net, states.seed, states.tasks).items()
            }
        return state

    def _difference(self, base: Tensor, toward: Tensor, away: Tensor) -> Tensor:
        return toward - (base if self.params.contrast == "plain" else away)

    def delta(self, h: Tensor, state: dict[str, Tensor], ctx: Context) -> Tensor:
        v = self._direction(h, state)
        low, high = self.params.clip or self.preset.clip
        return least_strength(h, v, self.params.s).clamp(low, high)[:, None] * v

    def _direction(self, h: Tensor, state: dict[str, Tensor]) -> Tensor:
        """v [rows, d], with rho times the part of the sample's own difference that is orthogonal to v."""
        v = state["v"].expand_as(h)
        if not self.params.rho:
            return v
        u_g = F.normalize(v, dim=-1)
        u_s = F.normalize(
            g(
                {k: state[f"residual.{k}"] for k in ("encoder.weight", "encoder.bias", "decoder.weight")},
                h,
                self.params.net.activation,
            ),
            dim=-1,
        )
        return v + self.params.rho * F.normalize(u_s - (u_s * u_g).sum(-1, keepdim=True) * u_g, dim=-1)


def directions(D: Tensor, rank: int) -> Tensor:
    """Unit vectors v_1..v_r [r, d] of differences D [n, d], each turned to the side of the mean difference."""
    mean = D.mean(0)
    v = torch.linalg.svd((D - mean) / D.std(0).clamp_min(1e-8), full_matrices=False).Vh[:rank]
    return v * torch.where(v @ mean < 0, -1.0, 1.0)[:, None]


def least_strength(h: Tensor, v: Tensor, s: float) -> Tensor:
    """Least alpha >= 0 [rows] with cos(h + alpha v, v) >= s, for states and directions [rows, d]."""
    c = v.norm(dim=-1).clamp_min(1e-12)
    u = v / c[:, None]
    a = (h * u).sum(-1)
    B = (h - a[:, None] * u).norm(dim=-1)
    T = B * s / (1 - s**2) ** 0.5
    return torch.maximum((-a / c).clamp_min(0), (T - a) / c)
