"""The pretrained parts, from local files (METHOD 1), family by family, and a tiny random one for tests."""

from tave.backbone.ip_adapter import load_ip_adapter
from tave.backbone.licence import licence_text
from tave.backbone.parts import Backbone, BackboneError, BackboneMissingError, ImageNoising
from tave.backbone.tiny import byte_tokenizer, tiny_backbone
from tave.backbone.unclip import load_backbone

__all__ = [
    "Backbone",
    "BackboneError",
    "BackboneMissingError",
    "ImageNoising",
    "byte_tokenizer",
    "licence_text",
    "load_backbone",
    "load_ip_adapter",
    "tiny_backbone",
]
