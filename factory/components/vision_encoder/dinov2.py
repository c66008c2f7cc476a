"""DINOv2 (Oquab et al., 2023), a self-supervised encoder."""

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from factory.components.vision import VisionEncoder
from factory.registry import register


@register("vision_encoder", "dinov2")
class Dinov2(VisionEncoder):
    """DINOv2's patches."""

    config_class, model_class = "Dinov2Config", "Dinov2Model"
    before_patches = 1
    mean, std = tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)
