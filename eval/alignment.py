"""Does the edit show what was asked for? Cosines between its frames, the target prompt and the target image.

Everything here takes unit vectors, so that a clip is embedded once and any encoder serves. The whole frame asks about the
picture, the masked crop about the object alone. An encoder that conditions the model flatters it: measure with another one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .identity import object_crops
from .metric import ClipMetric


def text_alignment(pictures: Tensor, caption: Tensor) -> float | None:
    """Mean over frames of the cosine with the prompt, in [-1, 1], higher is better (not the cosine of the mean frame).

    Args:
        pictures: ``f d`` unit vectors.
        caption: ``d`` unit vector.

    Returns:
        None where no frame counts.
    """
    return float((pictures @ caption).mean()) if len(pictures) else None


def image_alignment(pictures: Tensor, references: Tensor) -> float | None:
    """Mean over frames and target images of their cosine, in [-1, 1], higher is better.

    Args:
        pictures: ``f d`` unit vectors of the edit.
        references: ``n d`` unit vectors of the target images.

    Returns:
        None where no frame counts.
    """
    return float((pictures @ references.T).mean()) if len(pictures) else None


def frame_accuracy(pictures: Tensor, target: Tensor, source: Tensor) -> float | None:
    """Share of frames nearer to the target prompt than to the source prompt, in [0, 1], higher is better; a tie is not nearer.

    Args:
        pictures: ``f d`` unit vectors.
        target: ``d`` unit vector of the target prompt.
        source: ``d`` unit vector of the source prompt.

    Returns:
        None where the prompts say the same, so that no frame can be nearer to either, or where no frame counts.
    """
    if torch.equal(target, source) or len(pictures) == 0:
        return None
    return float((pictures @ target > pictures @ source).float().mean())


def masked_crops(frames: Tensor, region: Tensor, size: int) -> Tensor:
    """The object alone: square around each frame's region, its longer side plus 25 %, grey (0) outside the region.

    Args:
        frames: ``f 3 H W`` in [-1, 1].
        region: ``f H W`` bool; frames in which it is empty are left out.
        size: side of the result.

    Returns:
        ``n 3 size size`` in [-1, 1].
    """
    counted = region.flatten(1).any(dim=1)
    frames, region = frames[counted], region[counted]
    return object_crops(frames * region[:, None], region, size)


def reference_pictures(rgb: Tensor, alpha: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """The target image for either comparison: whole, and cropped to its object.

    Args:
        rgb: ``3 h w`` in [-1, 1].
        alpha: ``1 h w`` in [0, 1]: the object is then set on grey and its crop is masked like the frames' crops. Without it
            the whole image stands for the object.
        size: side of the results.

    Returns:
        ``1 3 size size`` twice, in [-1, 1]. The whole image is squashed: nothing of the target is cut off.
    """
    cut = rgb[None] if alpha is None else (rgb * alpha)[None]
    whole = functional.interpolate(cut, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    if alpha is None or not (inside := alpha > 0.5).any():
        return whole, whole
    return whole, masked_crops(cut, inside, size)


class ClipText(ClipMetric):
    figure = staticmethod(text_alignment)
    name, unit, over, higher_is_better = "clip_text", "cosine", "mean over frames", True


class ClipTextCrop(ClipText):
    name, over = "clip_text_crop", "mean over frames, crop of source or ideal target"


class ClipTextInMask(ClipText):
    name, over = "clip_text_in_mask", "mean over frames, crop of the edit mask"


class ClipTextInAnnotation(ClipText):
    name, over = "clip_text_in_annotation", "mean over frames, crop of the annotated object"


class ClipImage(ClipMetric):
    figure = staticmethod(image_alignment)
    name, unit, over, higher_is_better = "clip_image", "cosine", "mean over frames", True


class ClipImageCrop(ClipImage):
    name, over = "clip_image_crop", "mean over frames, crop of source or ideal target"


class ClipImageInMask(ClipImage):
    name, over = "clip_image_in_mask", "mean over frames, crop of the edit mask"


class ClipImageInAnnotation(ClipImage):
    name, over = "clip_image_in_annotation", ClipTextInAnnotation.over


class DinoImage(ClipImage):
    name = "dino_image"


class DinoImageCrop(ClipImage):
    name, over = "dino_image_crop", ClipImageCrop.over


class DinoImageInMask(ClipImage):
    name, over = "dino_image_in_mask", ClipImageInMask.over


class DinoImageInAnnotation(ClipImage):
    name, over = "dino_image_in_annotation", ClipTextInAnnotation.over


CROPS = {
    "truth": (ClipTextCrop, ClipImageCrop, DinoImageCrop),
    "annotation": (ClipTextInAnnotation, ClipImageInAnnotation, DinoImageInAnnotation),
    "mask": (ClipTextInMask, ClipImageInMask, DinoImageInMask),
}
"""who says where the object is -> what is measured of its crop: words, picture, picture by DINO"""


class FrameAccuracy(ClipMetric):
    figure = staticmethod(frame_accuracy)
    name, unit, over, higher_is_better = "frame_accuracy", "share", "frames", True
