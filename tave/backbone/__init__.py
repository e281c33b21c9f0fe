"""The pretrained parts of SD-unCLIP, from local files (METHOD 1), and a tiny random one for tests."""

from tave.backbone.loading import load_backbone
from tave.backbone.parts import Backbone, BackboneError
from tave.backbone.tiny import byte_tokenizer, tiny_backbone

__all__ = ["Backbone", "BackboneError", "byte_tokenizer", "load_backbone", "tiny_backbone"]
