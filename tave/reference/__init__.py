"""Target image -> the pictures that the image encoder sees (docs/method.md, section 1)."""

from tave.reference.cutout import MatteError, cut_out, matte
from tave.reference.views import (
    Place,
    Reference,
    TargetImage,
    find_place,
    first_pass,
    frame_indices,
    neutral,
    put,
    second_pass,
    source_frames,
)

__all__ = [
    "MatteError",
    "Place",
    "Reference",
    "TargetImage",
    "cut_out",
    "find_place",
    "first_pass",
    "frame_indices",
    "matte",
    "neutral",
    "put",
    "second_pass",
    "source_frames",
]
