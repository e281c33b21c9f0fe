"""Masks that people drew: a folder with one picture a frame, as DAVIS keeps them, or a clip that is white inside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .metric import MetricError
from tave.config import ReadOptions
from tave.video import centre, fit_frames, read_clip

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
        MetricError: not as many masks as frames, or no object in any of them.
        VideoError: the folder can't be read.
    """
    if not folder.is_dir():
        raise MetricError(f"annotations={folder}: no such folder; give one with a numbered picture a frame, as DAVIS has them")
    pictures = read_clip(folder, replace(options, width=None, height=None, multiple=1)).frames
    # An object's number is a colour of the palette: told apart before resampling mixes it with black.
    inside = _not_black(pictures)
    height, width = like.shape[2:]
    if not (options.width or options.height):
        block = options.multiple
        if [side // block * block for side in inside.shape[1:]] == [height, width]:
            return _checked(folder, centre(inside, width, height), like)  # trimmed, as the clip was, not resampled
    fit = options.fit if options.width or options.height else "crop"
    return _checked(folder, fit_frames(inside[:, None] * 2.0 - 1, width, height, fit)[:, 0] > 0, like)


def read_mask(path: Path, like: Tensor) -> Tensor:
    """A mask clip of the clip's size -> ``f H W`` bool.

    Args:
        path: an mp4, or a folder of pictures, white inside. In pictures of objects' numbers (coloured, as DAVIS has them, or
            all of them dark) what isn't black is inside.
        like: the clip ``f 3 H W`` that the masks must fit.

    Raises:
        MetricError: other size or number of frames than the clip's, or nothing inside in any frame.
        VideoError: it can't be read.
    """
    pictures = read_clip(path, WHOLE).frames
    white = pictures.mean(dim=1) > 0
    # A codec leaves no black exact: a video's dark levels are no numbers.
    numbers = path.is_dir() and (bool((pictures.amax(dim=1) - pictures.amin(dim=1) > 0.5).any()) or not white.any())
    return _checked(path, _not_black(pictures) if numbers else white, like)


def _not_black(pictures: Tensor) -> Tensor:
    return (pictures > -1).any(dim=1)


def _checked(path: Path, masks: Tensor, like: Tensor) -> Tensor:
    if masks.shape != like[:, 0].shape:
        found, wanted = ("x".join(map(str, reversed(shape))) for shape in (masks.shape[1:], like.shape[2:]))
        raise MetricError(
            f"{path}: {len(masks)} masks of {found} for a clip of {len(like)} frames of {wanted}; give one a frame, as large"
        )
    if not masks.any():
        raise MetricError(
            f"{path}: all {len(masks)} masks are empty; give masks that are white, not black, where the object is"
        )
    return torch.as_tensor(masks)
