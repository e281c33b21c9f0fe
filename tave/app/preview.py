"""Clips of a job for browsers: the source, the edit, the mask over the clip, the soft map as soon as it exists."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tave.config import WHOLE
from tave.record import network_clip
from tave.video import read_clip, write_video

CRF = 12
OUTSIDE = (-0.5, -0.7, 0.1)  # dark blue
INSIDE = (1.0, 0.55, -0.8)  # amber


def write_previews(run: Path, edit: str, folder: Path) -> None:
    """``source.mp4``, ``edited.mp4`` and ``mask.mp4`` of an edit, at the network's size."""
    source = read_clip(run / "source.mp4", WHOLE)
    home = run / "edits" / edit
    edited, mask = (read_clip(path, WHOLE).frames for path in (network_clip(home), home / "mask.mp4"))
    shown = {"source": source.frames, "edited": edited, "mask": heated(source.frames, (mask[:, :1] > 0).float())}
    for name, frames in shown.items():
        write_video(folder / f"{name}.mp4", frames, source.fps, crf=CRF, chroma="420")


def write_soft(source: Path, soft: Tensor, folder: Path) -> None:
    """``soft.mp4``: a soft map `1 f 1 h w` in [0, 1] over the clip."""
    clip = read_clip(source, WHOLE)
    planes = interpolate(soft[0].float().cpu(), clip.frames.shape[-2:], mode="nearest")
    write_video(folder / "soft.mp4", heated(clip.frames, planes), clip.fps, crf=CRF, chroma="420")


def heated(frames: Tensor, planes: Tensor) -> Tensor:
    """``frames`` `f 3 H W` tinted by ``planes`` `f 1 H W` in [0, 1]: dark blue at 0, amber at 1."""
    low, high = (torch.tensor(colour).view(3, 1, 1) for colour in (OUTSIDE, INSIDE))
    share = planes.clamp(0, 1).to(frames)
    return frames * 0.5 + (low + (high - low) * share) * 0.5
