"""Masks that people drew: a folder with one picture a frame, as DAVIS keeps them, or a clip that is white inside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from eval.metric import MetricError
from tave.video import ReadOptions, fit_frames, read_clip

WHOLE = ReadOptions(frames=None, multiple=1)


def read_annotations(folder: Path, like: Tensor, options: ReadOptions = WHOLE) -> Tensor:
    """The annotated object(s), brought to the clip's frames and size.

    Args:
        folder: numbered pictures (palette or RGB); what isn't black is object, whichever its number.
        like: the clip ``f 3 H W`` that the masks must fit.
        options: which frames and which cut the clip was read with, so that the masks get the same.

    Returns:
        ``f H W`` bool.

    Raises:
        MetricError: not as many masks as frames.
        VideoError: the folder can't be read.
    """
    if not folder.is_dir():
        raise MetricError(f"annotations={folder}: no such folder; give one with a numbered picture a frame, as DAVIS has them")
    pictures = read_clip(folder, replace(options, width=None, height=None, multiple=1)).frames
    # An object's number is a colour of the palette: told apart before resampling mixes it with black.
    inside = (pictures > -1).any(dim=1, keepdim=True)
    fit = options.fit if options.width or options.height else "crop"
    return _checked(folder, fit_frames(inside * 2.0 - 1, like.shape[3], like.shape[2], fit)[:, 0] > 0, like)


def read_mask(path: Path, like: Tensor) -> Tensor:
    """A mask clip (mp4 or a folder of pictures, white inside, of the clip's size) -> ``f H W`` bool.

    Raises:
        MetricError: other size or number of frames than the clip's.
        VideoError: it can't be read.
    """
    return _checked(path, read_clip(path, WHOLE).frames.mean(dim=1) > 0, like)


def _checked(path: Path, masks: Tensor, like: Tensor) -> Tensor:
    if masks.shape != like[:, 0].shape:
        found, wanted = ("x".join(map(str, reversed(shape))) for shape in (masks.shape[1:], like.shape[2:]))
        raise MetricError(
            f"{path}: {len(masks)} masks of {found} for a clip of {len(like)} frames of {wanted}; give one a frame, as large"
        )
    return torch.as_tensor(masks)
