"""What an encoder sees in an edit: cosines with prompts, target images and other frames, and a judge's classes.

The cosines take unit vectors, so that a clip is embedded once and any encoder serves. Whole frames measure the picture,
masked crops the object alone. The encoder that conditions the model favours its edits: use another one.

The judge is independent of the model: does it recognise the target's vehicle, colour and pattern in the edit?

Each frame's crop around source-or-ideal-target gets the class of its nearest caption. The same crops of the ideal clip
give the ceiling, those of the source clip the floor: an edit stands between the two.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from tave.files import read_json

from . import EvalError
from .encoders import Encoder, load_folder

KINDS = ("vehicle", "color", "pattern")
CROP_MARGIN = 0.25  # of the crop's side over the longer side of the region's box
MIN_INSIDE = 0.5  # least share of the target's silhouette inside the picture for a frame to count


@dataclass(frozen=True)
class Judge:
    """An encoder, and class -> captions for each of :data:`KINDS`."""

    encoder: Encoder
    classes: Mapping[str, Mapping[str, Sequence[str]]]

    def __post_init__(self) -> None:
        for kind in KINDS:
            named = self.classes.get(kind)
            if not isinstance(named, Mapping) or not named or not all(named.values()):
                raise EvalError(f"the judge's classes have no captions for every {kind}: complete classes.json")

    @property
    def id(self) -> str:
        """The encoder's id and a hash of the captions."""
        words = json.dumps({kind: dict(self.classes[kind]) for kind in KINDS}, sort_keys=True)
        return f"{self.encoder.id}+{hashlib.sha256(words.encode()).hexdigest()[:8]}"

    def classify(self, pictures: Tensor, kind: str) -> list[str]:
        """``n 3 size size`` in [-1, 1] -> for each picture the class of the caption with the highest cosine."""
        names, captions = self._captions[kind]
        return [names[best] for best in (self.encoder.images(pictures) @ captions.T).argmax(dim=1).tolist()]

    @cached_property
    def _captions(self) -> dict[str, tuple[list[str], Tensor]]:
        """For each of :data:`KINDS` every caption's class and the embeddings ``n d``, which take longer than frames."""
        found = {}
        for kind in KINDS:
            pairs = [(name, caption) for name, captions in self.classes[kind].items() for caption in captions]
            found[kind] = [name for name, _ in pairs], self.encoder.texts([caption for _, caption in pairs])
        return found


def load_judge(folder: str | Path) -> Judge:
    """Load a judge from a folder with an open_clip model and ``classes.json``."""
    path = Path(folder) / "classes.json"
    if not path.is_file():
        raise EvalError(f"{folder} has no classes.json: give the folder of a judge, or judge=null to go without")
    return Judge(load_folder(folder), read_json(path, "complete classes.json"))


def judge_accuracies(
    judge: Judge, clips: Mapping[str, Tensor], region: Tensor, inside: Sequence[float], target: Mapping[str, str]
) -> tuple[int, dict[tuple[str, str], float | None]]:
    """The number of frames that count, and by kind and clip the share of them in which the judge recognises the class.

    ``clips``: "" the edit, "ceiling" the ideal clip, "floor" the source; ``region``: source-or-ideal-target pixels, and
    frames without any don't count; ``inside``: for each frame the share of the target's silhouette in the picture, see
    :data:`MIN_INSIDE`; ``target``: the target's class for each of :data:`KINDS`.
    """
    for kind in KINDS:
        if target.get(kind) not in judge.classes[kind]:
            known = ", ".join(judge.classes[kind])
            raise EvalError(f"the judge doesn't know the target's {kind} {target.get(kind)!r}: it knows {known}")
    counted = (torch.tensor(list(inside)) >= MIN_INSIDE) & region.flatten(1).any(dim=1)
    pictures = {
        name: object_crops(frames[counted], region[counted], judge.encoder.size) for name, frames in clips.items()
    }
    return int(counted.sum()), {
        (kind, name): accuracy(judge.classify(crops, kind) if len(crops) else [], target[kind])
        for kind in KINDS
        for name, crops in pictures.items()
    }


def accuracy(seen: Sequence[str], wanted: str) -> float | None:
    """Share of the classes ``seen`` that are ``wanted``."""
    return sum(name == wanted for name in seen) / len(seen) if seen else None


def text_alignment(pictures: Tensor, caption: Tensor) -> float | None:
    """Mean over frames ``f d`` of the cosine with the prompt ``d``, in [-1, 1]."""
    return float((pictures @ caption).mean()) if len(pictures) else None


def image_alignment(pictures: Tensor, references: Tensor) -> float | None:
    """Mean over frames ``f d`` and target images ``n d`` of their cosine, in [-1, 1]."""
    return float((pictures @ references.T).mean()) if len(pictures) else None


def frame_accuracy(pictures: Tensor, target: Tensor, source: Tensor) -> float | None:
    """Share of frames nearer to the target prompt ``d`` than to the source prompt ``d``; None for equal prompts."""
    if torch.equal(target, source) or len(pictures) == 0:
        return None
    return float((pictures @ target > pictures @ source).float().mean())


def adjacent_consistency(pictures: Tensor) -> float | None:
    """Mean cosine of neighbouring frames, in [-1, 1]; None for a single frame. A frozen clip has 1."""
    return float((pictures[1:] * pictures[:-1]).sum(dim=1).mean()) if len(pictures) > 1 else None


def pairwise_consistency(pictures: Tensor) -> float | None:
    """Mean cosine of all pairs of different frames (as in TGVE), in [-1, 1]; None for a single frame."""
    count = len(pictures)
    if count < 2:
        return None
    cosines = pictures @ pictures.T
    return float((cosines.sum() - cosines.trace()) / (count * (count - 1)))


def object_crops(frames: Tensor, region: Tensor, size: int) -> Tensor:
    """Square crop of ``f 3 H W`` around each frame's region (none empty), resized to ``f 3 size size``.

    Its side is the longer one of the region's box plus 25 %; beyond the picture the edge is repeated.
    """
    crops = [_square(frame, inside) for frame, inside in zip(frames, region, strict=True)]
    return torch.cat([_resized(crop, size) for crop in crops]) if crops else frames.new_zeros(0, 3, size, size)


def masked_crops(frames: Tensor, region: Tensor, size: int) -> Tensor:
    """:func:`object_crops` that are grey (0) outside the region, of the frames where it isn't empty."""
    counted = region.flatten(1).any(dim=1)
    frames, region = frames[counted], region[counted]
    return object_crops(frames * region[:, None], region, size)


def reference_pictures(rgb: Tensor, alpha: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """The target image as a whole, stretched, and cropped to its object as :func:`masked_crops` crops frames.

    ``rgb`` is ``3 h w``; ``alpha``, ``1 h w`` in [0, 1], sets the object on grey. Without it the whole image stands for
    the object. Returns ``1 3 size size`` twice.
    """
    cut = rgb[None] if alpha is None else (rgb * alpha)[None]
    whole = _resized(cut, size)
    if alpha is None or not (inside := alpha > 0.5).any():
        return whole, whole
    return whole, masked_crops(cut, inside, size)


def _square(frame: Tensor, region: Tensor) -> Tensor:
    """``3 H W`` -> ``1 3 side side`` around the centre of the region's box."""
    rows, columns = (torch.nonzero(region.any(dim=dim)).flatten().tolist() for dim in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = math.ceil((1 + CROP_MARGIN) * max(bottom - top, right - left))
    # Clamped indices repeat the edge however far the square leaves the picture.
    rows = (torch.arange(side) + (top + bottom - side) // 2).clamp(0, frame.shape[1] - 1)
    columns = (torch.arange(side) + (left + right - side) // 2).clamp(0, frame.shape[2] - 1)
    return frame[:, rows][:, :, columns][None]


def _resized(pictures: Tensor, size: int) -> Tensor:
    resized = functional.interpolate(pictures, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(-1, 1)
