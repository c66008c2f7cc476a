"""Three linear maps with GELU between them."""

from torch import nn

from factory.components.connect import Connector, Fused, Widths, fused_width, mlp
from factory.registry import register


@register("connector", "mlp3x_gelu")
class Mlp3xGelu(Connector):
    """An MLP of 3 linear maps."""

    def build(self, widths: Widths) -> nn.Module:
        return Fused(mlp(3, fused_width(widths), widths.text))
