"""One linear map (LLaVA 1.0)."""

from torch import nn

from factory.components.connect import Connector, Fused, Widths, fused_width
from factory.registry import register


@register("connector", "linear")
class Linear(Connector):
    """One linear map."""

    def build(self, widths: Widths) -> nn.Module:
        return Fused(nn.Linear(fused_width(widths), widths.text))
