"""Pretrained models from local files, and a tiny random one for tests (docs/method.md, section 1)."""

from collections.abc import Mapping

from tave.backbone.ip_adapter import load_ip_adapter
from tave.backbone.licence import licence_text
from tave.backbone.parts import Backbone, BackboneError, BackboneMissingError, ImageNoising
from tave.backbone.tiny import byte_tokenizer, tiny_backbone
from tave.backbone.unclip import load_unclip
from tave.config import BackboneOptions

__all__ = [
    "Backbone",
    "BackboneError",
    "BackboneMissingError",
    "ImageNoising",
    "byte_tokenizer",
    "licence_text",
    "load_backbone",
    "tiny_backbone",
]


def load_backbone(options: BackboneOptions, tuned_from: Mapping[str, str] | None = None) -> Backbone:
    """Load the backbone of ``options.family``, all weights in float32 on the CPU.

    Weights are safetensors only. They are searched at ``path``, a folder or an `owner/name` of the hub, else under the
    first of ``mirrors`` with a complete copy in the hub's local cache; nothing is downloaded. ``tuned_from``: the
    hashes that they must have, path within their folder -> SHA-256.

    Raises:
        FileError: in one line, for files that are unreadable; :class:`BackboneError`, its subclass, for files that are
            incomplete, altered or of another family; :class:`BackboneMissingError` if there are none.
    """
    if options.family == "tiny":
        return tiny_backbone(options.seed, options.prediction_type or "v_prediction")
    return (load_ip_adapter if options.family == "ip_adapter" else load_unclip)(options, tuned_from)
