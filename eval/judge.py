"""A judge independent of the model: does it recognise the target's vehicle, colour and pattern in the edit?

Each frame's crop around source-or-ideal-target gets the class of its nearest caption. The same crops of the ideal clip
give the ceiling, those of the source clip the floor: an edit stands between the two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from tave.files import read_json

from . import EvalError
from .alignment import object_crops
from .encoders import Encoder, load_folder

KINDS = ("vehicle", "color", "pattern")
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
    """Share of counted frames in which the judge recognises the target's class, in [0, 1].

    Args:
        judge: The judge.
        clips: By name: "" the edit, "ceiling" the ideal clip, "floor" the source.
        region: Source-or-ideal-target pixels; frames without any don't count.
        inside: For each frame the share of the target's silhouette inside the picture; see :data:`MIN_INSIDE`.
        target: The target's class for each of :data:`KINDS`.

    Returns:
        The number of frames that counted, and by kind and clip the accuracy.
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
