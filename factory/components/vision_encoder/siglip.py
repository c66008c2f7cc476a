"""SigLIP (Zhai et al., 2023), and SigLIP 2 at a fixed resolution, which has the same architecture."""

from factory.components.vision import VisionEncoder
from factory.registry import register


@register("vision_encoder", "siglip")
class Siglip(VisionEncoder):
    """SigLIP's patches; it has no class token."""

    config_class, model_class = "SiglipVisionConfig", "SiglipVisionModel"
