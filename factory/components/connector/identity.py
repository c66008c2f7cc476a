"""No connector: features are image tokens as they are."""

from torch import nn

from factory.components.connect import Connector, Fused, Widths, fused_width
from factory.errors import UserError
from factory.registry import register


@register("connector", "identity")
class Identity(Connector):
    """Features of the language model's own width, unchanged."""

    def build(self, widths: Widths) -> nn.Module:
        if fused_width(widths) != widths.text:
            raise UserError(
                f"model.compose.connector: identity needs features of the language model's width {widths.text}, not"
                f" {fused_width(widths)}; use linear"
            )
        return Fused(nn.Identity())
