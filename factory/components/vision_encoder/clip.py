"""CLIP (Radford et al., 2021)."""

from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from factory.components.vision import VisionEncoder
from factory.registry import register


@register("vision_encoder", "clip")
class Clip(VisionEncoder):
    """CLIP's patches, as LLaVA-1.5 has them."""

    config_class, model_class = "CLIPVisionConfig", "CLIPVisionModel"
    before_patches, crops = 1, True
    mean, std = tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)
