"""Four linear maps with GELU between them."""

from torch import nn

from factory.components.connect import Connector, Fused, Widths, fused_width, mlp
from factory.registry import register


@register("connector", "mlp4x_gelu")
class Mlp4xGelu(Connector):
    """An MLP of 4 linear maps."""

    def build(self, widths: Widths) -> nn.Module:
        return Fused(mlp(4, fused_width(widths), widths.text))
