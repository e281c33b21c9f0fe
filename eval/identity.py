"""Does an independent judge see the target's vehicle, colour and pattern?

Each frame is cropped to a square around the source-or-ideal-target box plus 25 % and gets the class of the nearest caption.
Frames with less than half of the target inside the picture don't count. The same crops of the ideal clip give the ceiling,
those of the source clip the floor: an edit is read between the two.
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

from .features import Encoder, OpenClip
from .metric import ClipMetric
from .preservation import require_region

KINDS = ("vehicle", "color", "pattern")
MIN_INSIDE = 0.5
"""Least share of the target's silhouette inside the picture for a frame to count."""
MARGIN = 0.25
"""How much longer the crop's side is than the box's longer side."""


class JudgeError(ValueError):
    """A judge that can't answer the question; the message names what it lacks."""


@dataclass(frozen=True)
class Judge:
    """An encoder and, for each of :data:`KINDS`, class -> captions."""

    encoder: Encoder
    classes: Mapping[str, Mapping[str, Sequence[str]]]

    def __post_init__(self) -> None:
        for kind in KINDS:
            named = self.classes.get(kind)
            if not named or not all(named.values()):
                raise JudgeError(f"the judge's classes have no captions for every {kind}: complete classes.json")

    @property
    def id(self) -> str:
        """The encoder's id and a hash of the captions: both decide what is seen."""
        words = json.dumps({kind: dict(self.classes[kind]) for kind in KINDS}, sort_keys=True)
        return f"{self.encoder.id}+{hashlib.sha256(words.encode()).hexdigest()[:8]}"

    def see(self, pictures: Tensor, kind: str) -> list[str]:
        """``n 3 size size`` in [-1, 1] -> for each picture the class whose best caption has the highest cosine."""
        names, captions = self._captions[kind]
        return [names[best] for best in (self.encoder.images(pictures) @ captions.T).argmax(dim=1).tolist()]

    @cached_property
    def _captions(self) -> dict[str, tuple[list[str], Tensor]]:
        """For each of :data:`KINDS`, the class and the vector of every caption, `n d`: they cost more than the frames do."""
        found = {}
        for kind in KINDS:
            told = [(name, wording) for name, wordings in self.classes[kind].items() for wording in wordings]
            names, wordings = map(list, zip(*told, strict=True))
            found[kind] = names, self.encoder.texts(wordings)
        return found


def load_judge(folder: str | Path) -> Judge:
    """Judge from a folder: an open_clip model and ``classes.json``.

    Raises:
        FeatureError: the model's files are missing or can't be loaded.
        JudgeError: ``classes.json`` is missing or doesn't hold captions for vehicle, color and pattern.
    """
    path = Path(folder) / "classes.json"
    if not path.is_file():
        raise JudgeError(f"{folder} has no classes.json: give the folder of a judge, or judge=null to go without")
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise JudgeError(f"{path} isn't JSON: {error}") from error
    if not isinstance(classes, dict) or not all(isinstance(named, dict) for named in classes.values()):
        raise JudgeError(f"{path} must map vehicle, color and pattern each to class -> captions")
    return Judge(OpenClip(folder), classes)


def judge_accuracies(
    judge: Judge,
    clips: Mapping[str, Tensor],
    region: Tensor,
    inside: Sequence[float],
    target: Mapping[str, str],
) -> dict[str, float | int | None]:
    """Share of counted frames in which the judge sees the target's class, in [0, 1], higher is better.

    Args:
        judge: the judge.
        clips: suffix -> ``f 3 H W`` in [-1, 1]: "" for the edit, "_ceiling" for the ideal, "_floor" for the source clip.
        region: ``f H W`` bool, source-or-ideal-target pixels; frames without any don't count.
        inside: share of the target's silhouette inside the picture, one per frame.
        target: the target's class for each of :data:`KINDS`.

    Returns:
        ``judge_{kind}_accuracy{suffix}`` (None where no frame counts) and ``judge_frames``, the number that counted.

    Raises:
        JudgeError: the judge doesn't know a target class, or ``inside`` isn't one number a frame.
    """
    if len(inside) != len(region):
        raise JudgeError(f"target_inside has {len(inside)} numbers for {len(region)} frames: it needs one a frame")
    for kind in KINDS:
        if target.get(kind) not in judge.classes[kind]:
            known = ", ".join(judge.classes[kind])
            raise JudgeError(f"the judge doesn't know the target's {kind} {target.get(kind)!r}: it knows {known}")
    counted = (torch.tensor(list(inside)) >= MIN_INSIDE) & region.flatten(1).any(dim=1)
    scores: dict[str, float | int | None] = {"judge_frames": int(counted.sum())}
    for suffix, frames in clips.items():
        require_region(region, frames)
        pictures = object_crops(frames[counted], region[counted], judge.encoder.size)
        for kind in KINDS:
            seen = judge.see(pictures, kind) if len(pictures) else []
            scores[f"judge_{kind}_accuracy{suffix}"] = accuracy(seen, target[kind])
    return scores


def accuracy(seen: Sequence[str], wanted: str) -> float | None:
    """Share of ``seen`` that is ``wanted``; None where nothing was seen."""
    return sum(name == wanted for name in seen) / len(seen) if seen else None


class JudgeVehicleAccuracy(ClipMetric):
    figure = staticmethod(accuracy)
    name, unit, over, higher_is_better = "judge_vehicle_accuracy", "share", "frames", True


class JudgeColorAccuracy(JudgeVehicleAccuracy):
    name = "judge_color_accuracy"


class JudgePatternAccuracy(JudgeVehicleAccuracy):
    name = "judge_pattern_accuracy"


def object_crops(frames: Tensor, region: Tensor, size: int) -> Tensor:
    """Square crop around each frame's region, its box's longer side plus 25 %, resized.

    Args:
        frames: ``f 3 H W`` in [-1, 1].
        region: ``f H W`` bool, not empty in any frame.
        size: side of the result.

    Returns:
        ``f 3 size size`` in [-1, 1]; where a crop leaves the picture, the picture's edge is repeated.
    """
    crops = [_resize(_square(frame, *_box(inside)), size) for frame, inside in zip(frames, region, strict=True)]
    return torch.cat(crops) if crops else frames.new_zeros(0, 3, size, size)


def _box(region: Tensor) -> tuple[int, int, int, int]:
    """``H W`` bool -> top, bottom, left, right; bottom and right are one past the last pixel."""
    rows, columns = (torch.nonzero(region.any(dim=dim)).flatten().tolist() for dim in (1, 0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def _square(frame: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """``3 H W`` -> ``1 3 side side`` around the box's centre."""
    side = math.ceil((1 + MARGIN) * max(bottom - top, right - left))
    rows = torch.arange(side) + (top + bottom - side) // 2
    columns = torch.arange(side) + (left + right - side) // 2
    # Clamped indices repeat the edge however far the square leaves the picture; a padded copy would need a limit.
    return frame[:, rows.clamp(0, frame.shape[1] - 1)][:, :, columns.clamp(0, frame.shape[2] - 1)][None]


def _resize(picture: Tensor, size: int) -> Tensor:
    resized = functional.interpolate(picture, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(-1, 1)
