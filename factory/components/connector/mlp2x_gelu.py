"""Two linear maps with GELU between them (LLaVA-1.5)."""

from torch import nn

from factory.components.connect import Connector, Fused, Widths, fused_width, mlp
from factory.registry import register


@register("connector", "mlp2x_gelu")
class Mlp2xGelu(Connector):
    """An MLP of 2 linear maps."""

    def build(self, widths: Widths) -> nn.Module:
        return Fused(mlp(2, fused_width(widths), widths.text))
