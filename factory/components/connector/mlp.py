"""Linear maps with GELU between them; the usual two (LLaVA-1.5) are also called mlp2x_gelu."""

from pydantic import PositiveInt
from torch import nn

from factory.components.connect import Connector, Fused, Widths, fused_width, mlp
from factory.registry import Params, register


class MlpParams(Params):
    """``depth`` linear maps."""

    depth: PositiveInt = 2


@register("connector", "mlp")
class Mlp(Connector):
    """An MLP of any depth."""

    Params = MlpParams

    def build(self, widths: Widths) -> nn.Module:
        return Fused(mlp(self.params.depth, fused_width(widths), widths.text))
