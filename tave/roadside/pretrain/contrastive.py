"""The training of the conditioning CLIP and of the judge: pictures and captions, the nearer the more they agree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tave.roadside.pretrain.data import Picture, TrainingSet, square_crop, to_signed
from tave.roadside.pretrain.networks import PATCH, Embed, PatchEmbed
from tave.roadside.pretrain.training import Training
from tave.roadside.sample import patterns_of
from tave.roadside.scene import COLORS, HOURS, KINDS, PATTERNS, PLACES, SECTORS, Subject, caption, sector

SHORT = [caption(Subject(kind, color)) for kind in KINDS for color in COLORS]
LOOKED_AT, IN_PART = 48, 0.6  # patches per picture in CLIP's first steps, and the share of steps that use only these


def same(left: list[str], right: list[str]) -> Tensor:
    """Return the positives ``n m`` of a contrastive batch: 1 where two captions are equal."""
    number = {text: i for i, text in enumerate([*left, *right])}
    rows, columns = (torch.tensor([number[text] for text in texts]) for texts in (left, right))
    return (rows[:, None] == columns).float()


def contrastive(images: Tensor, texts: Tensor, positive: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric cross-entropy of ``n d`` and ``m d`` with several positives ``n m`` in a row."""
    with torch.autocast(images.device.type, enabled=False):  # a cosine in bf16, times up to 100, is noise
        logits = scale * F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
    rows = positive / positive.sum(1, keepdim=True).clamp(min=1)
    columns = positive.T / positive.T.sum(1, keepdim=True).clamp(min=1)
    seen = positive.T.sum(1) > 0  # captions without a picture in the batch have no target
    return F.cross_entropy(logits, rows) + F.cross_entropy(logits.T[seen], columns[seen])


class AttributeReadout(nn.Module):
    """Linear readout of what captions leave out: pattern, accent and, in whole frames, place, hour, yaw and box.

    It is used in training alone. A contrastive training on captions makes the image vector forget place and size of the
    object, in which an in-context reference differs from the source.
    """

    def __init__(self, width: int):
        super().__init__()
        kinds = {"pattern": PATTERNS, "accent": COLORS, "place": PLACES, "hour": HOURS, "sector": range(SECTORS)}
        self.names: dict[str, list[Any]] = {kind: list(names) for kind, names in kinds.items()}
        self.heads = nn.ModuleDict({kind: nn.Linear(width, len(names)) for kind, names in kinds.items()})
        self.box = nn.Linear(width, 4)

    def forward(self, vectors: Tensor, pictures: list[Picture], framed: list[bool], side: int) -> Tensor:
        """Return the loss of reading ``vectors`` ``n d``; ``framed``: whole frames, ``side`` pixels wide."""
        whole = torch.tensor(framed, device=vectors.device)
        patterned = torch.tensor([p.subject.pattern != "plain" for p in pictures], device=vectors.device)
        counted = {"pattern": torch.ones_like(whole), "accent": patterned}
        total = vectors.new_zeros(())
        for kind, head in self.heads.items():
            values = [_attribute(picture, kind) for picture in pictures]
            truth = torch.tensor([self.names[kind].index(value) for value in values], device=vectors.device)
            each = F.cross_entropy(head(vectors), truth, reduction="none")
            chosen = counted.get(kind, whole)
            total = total + (each * chosen).sum() / chosen.sum().clamp(min=1)
        x0, y0, x1, y1 = (torch.tensor([p.box for p in pictures], device=vectors.device) / side).unbind(1)
        truth = torch.stack([(x0 + x1) / 2, y1, x1 - x0, y1 - y0], 1)
        off = F.smooth_l1_loss(self.box(vectors), truth, beta=0.05, reduction="none").sum(1)
        return 0.5 * total + 10 * (off * whole).sum() / whole.sum().clamp(min=1)


def _attribute(picture: Picture, kind: str) -> Any:
    if kind == "sector":
        return sector(picture.yaw)
    return getattr(picture.subject if kind in ("pattern", "accent") else picture, kind)


def other_patterns(subject: Subject) -> list[str]:
    """Return the captions of the object in the patterns that it could have and doesn't."""
    others = [pattern for pattern in patterns_of(subject.kind) if pattern != subject.pattern]
    return [caption(replace(subject, pattern=pattern), pattern=True) for pattern in others]


def patches_near(boxes: np.ndarray, size: int, count: int, rng: np.random.Generator) -> Tensor:
    """Choose ``count`` patches, ``n count``, of each picture of ``size`` px: those in and near its box ``n 4`` (px).

    Distances to the box are jittered, so that of a larger object a random part is shown.
    """
    grid = size // PATCH
    at = (np.arange(grid) + 0.5) * PATCH
    x0, y0, x1, y1 = np.asarray(boxes, float).T[..., None]
    across, down = (np.maximum(np.maximum(low - at, at - high), 0) for low, high in ((x0, x1), (y0, y1)))
    distance = np.hypot(down[:, :, None], across[:, None, :]).reshape(len(across), -1)
    nearest = (distance + rng.uniform(0, 2 * PATCH, size=distance.shape)).argpartition(count, axis=1)[:, :count]
    return torch.from_numpy(nearest)


class ClipTraining(Training):
    """Contrastive training on frames and target images, against their captions and against all short captions.

    The first ``IN_PART`` of the steps look at a third of the patches, which costs 40 % (after FLIP, Li et al. 2023):
    sampled near the object in frames, uniformly in photographs.

    readout: the attributes that image vectors have to keep; None for the judge, which sees crops around the object, and
    is given each object's captions in other patterns as negatives: few captions of a batch differ in the pattern alone.
    """

    def __init__(
        self,
        network: nn.Module,
        data: TrainingSet,
        embed: Embed | PatchEmbed,
        size: int,
        readout: AttributeReadout | None,
        **settings: Any,
    ):
        super().__init__(network, **settings)
        self.data, self.embed, self.size, self.readout = data, embed, size, readout
        self.log_scale = nn.Parameter(torch.tensor(2.66))

    def _patches(self, described: list[Picture], framed: tuple[bool, ...], rng: np.random.Generator) -> Tensor | None:
        if self.readout is None or self.global_step >= IN_PART * self.steps:
            return None
        scale = self.size / self.data.frames.shape[2]
        boxes = [np.multiply(p.box, scale) if whole else (0, 0, self.size, self.size)
                 for p, whole in zip(described, framed, strict=True)]  # fmt: skip
        return patches_near(np.array(boxes), self.size, LOOKED_AT, rng).to(self.device)

    def _picture(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
        """Return a picture and whether it is a whole frame, in the place of its description."""
        frame, picture = self.data.frames[index], self.data.pictures[index]
        x0, y0, x1, y1 = picture.box
        if self.readout is None:  # boxes that are measured in an edit are a little off
            box = np.array(picture.box) + rng.uniform(-0.1, 0.1, size=4) * max(x1 - x0, y1 - y0)
            return square_crop(frame, tuple(box), self.size, float(rng.uniform(0.1, 0.7))), False
        if rng.random() < 0.4:
            return self.data.views[index], False
        if frame.shape[:2] == (self.size, self.size):
            return frame, True
        return square_crop(frame, (0, 0, frame.shape[1], frame.shape[0]), self.size, 0.0), True

    def loss(self) -> Tensor:
        rng = self.rng()
        indices = rng.integers(len(self.data), size=self.batch)
        shown, framed = zip(*(self._picture(int(i), rng) for i in indices), strict=True)
        described = [self.data.pictures[int(i)] for i in indices]
        turned = rng.random(self.batch) < 0.5
        side = self.data.frames.shape[2]
        described = [each.mirrored(side) if flip else each for each, flip in zip(described, turned, strict=True)]
        pictures = np.stack([each[:, ::-1] if flip else each for each, flip in zip(shown, turned, strict=True)])
        texts = []
        for picture, whole in zip(described, framed, strict=True):
            place, motion, hour, pattern = rng.random(4) < (0.5, 0.6, 0.5, 0.6)
            texts.append(picture.caption(place=whole and place, motion=motion, hour=hour, pattern=pattern))
        judged = described if self.readout is None else []
        long = texts + [text for picture in judged for text in other_patterns(picture.subject)]
        short = [caption(picture.subject) for picture in described]
        patches = self._patches(described, framed, rng)
        seen = to_signed(pictures, self.device)
        images, words = self.embed(seen, SHORT + long, *([] if patches is None else [patches]))
        scale = self.log_scale.exp().clamp(max=100)
        loss = contrastive(images, words[: len(SHORT)], same(short, SHORT).to(self.device), scale)
        loss = loss + contrastive(images, words[len(SHORT) :], same(texts, long).to(self.device), scale)
        if self.readout is None:
            return loss
        with torch.autocast(self.device.type, enabled=False):
            return loss + self.readout(images.float(), described, list(framed), side)

    def parameter_groups(self) -> list[dict[str, Any]]:
        beside = [self.log_scale, *(self.readout.parameters() if self.readout else ())]
        return [*super().parameter_groups(), {"params": beside, "weight_decay": 0.0}]
