"""The target object, found by a segmentation network of yours: ``reference.matte=segmented``. Nothing is downloaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.modeling_auto import AutoModelForUniversalSegmentation

from tave.backbone import BackboneError
from tave.backbone.files import find, read_json, read_model, read_part, verified, weight_files
from tave.reference.cutout import LEAST, MOST, MatteError
from tave.video.frames import to_pixels

MODELS = {"mask2former": "Mask2Former", "maskformer": "MaskFormer", "eomt": "EoMT", "eomt_dinov3": "EoMT on DINOv3"}
PROCESSOR = "preprocessor_config.json"
CONFIDENT = 0.5  # from which an instance counts as found
_MIDDLE = 0.25  # standard deviation of the window that weighs places, as a share of each side
# What follows the first of these in a prompt is where the object is, not what it is.
_PLACE = re.compile(r"\b(?:on|in|at|by|near|under|over|through|along|across|before|behind|beside|between|against|with)\b")
_INSTEAD = "set reference.matte=auto, and give video.matte=FILE if you have one"


@dataclass(frozen=True)
class Cut:
    """What was cut out: its matte `1 H W` in [0, 1], the class it was taken for, and how surely, in [0, 1]."""

    matte: Tensor
    name: str
    confidence: float


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A network that finds things in a picture, in eval mode and frozen, with its own preparation of pictures.

    classes: their names by number. hashes: path within its folder -> SHA-256 of each weight file.
    """

    model: Any
    processor: Any
    classes: Mapping[int, str]
    name: str
    hashes: Mapping[str, str]

    @torch.no_grad()
    def cut(self, rgb: Tensor, prompt: str) -> Cut:
        """Cut the object that ``prompt`` speaks of out of ``rgb`` `3 H W` in [-1, 1], see :func:`choose`.

        The matte is the sigmoid of the network's own logits, enlarged to the picture's size; on the CPU.

        Raises:
            MatteError: nothing that could be the object was found.
        """
        height, width = rgb.shape[1:]
        pixels = to_pixels(rgb)
        told = self.processor(images=Image.fromarray(pixels), return_tensors="pt")
        found = self.model(
            **{name: told[name].to(self.model.device) for name in ("pixel_values", "pixel_mask") if name in told}
        )
        logits, chances = found.masks_queries_logits[0].float(), found.class_queries_logits[0].float().softmax(-1)
        logits, seen = logits.cpu(), told["pixel_values"].shape[-2:]
        high, wide = self._filled(told, height, width)
        rows, columns = (
            max(1, round(side * part / whole)) for side, part, whole in zip(logits.shape[-2:], (high, wide), seen, strict=True)
        )
        chance, kinds = chances[:, :-1].max(-1)  # the last class is "nothing"
        masks = logits[:, :rows, :columns].sigmoid()
        names = [self.classes.get(int(kind), str(int(kind))) for kind in kinds]
        scores = chance.cpu() * _certainty(masks)
        index = choose(masks, scores, names, prompt)
        if index is None:
            raise MatteError(f"{self.name} finds nothing in the target image that could be the object: {_INSTEAD}")
        full = functional.interpolate(logits[index][None, None], tuple(seen), mode="bilinear")[..., :high, :wide]
        matte = functional.interpolate(full, (height, width), mode="bilinear").sigmoid()[0]
        return Cut(matte, names[index], float(scores[index]))

    def _filled(self, told: Mapping[str, Tensor], height: int, width: int) -> tuple[int, int]:
        """How much of what the network sees is picture, in its rows and columns from the top left; the rest is padding."""
        if "pixel_mask" in told:
            valid = told["pixel_mask"][0].bool()
            return int(valid.any(1).sum()), int(valid.any(0).sum())
        seen, size = told["pixel_values"].shape[-2:], self.processor.size
        if not getattr(self.processor, "do_pad", False):
            return int(seen[0]), int(seen[1])
        high, wide = get_size_with_aspect_ratio((height, width), size["shortest_edge"], size["longest_edge"])
        return int(high), int(wide)


def load_segmenter(path: str | Path) -> Segmenter:
    """Load a network from the folder that its ``save_pretrained`` wrote, or by the `owner/name` of a copy in the hub's cache.

    Weights are safetensors only, no code of the folder's is run, and the weights' values are held in float32 on the CPU.

    Raises:
        MatteError: in one line: not there, of another kind, lacking a file or pickled; or scipy is not installed.
    """
    kinds = ", ".join(MODELS.values())
    layout = "the folder that its save_pretrained, and its image processor's, wrote"

    def whole(folder: Path) -> dict[str, list[Path]]:
        config = folder / "config.json"
        if config.is_file() and (kind := read_json(config).get("model_type")) not in MODELS:
            raise BackboneError(f"{folder} holds {kind}, no segmentation network that is known: give one of {kinds}")
        files = {"segmenter": weight_files(folder, "model", layout)}
        if not (folder / PROCESSOR).is_file():
            raise BackboneError(f"{folder} lacks {PROCESSOR}: copy its files there from {layout}")
        return files

    try:
        files_of = f"config.json, model.safetensors and {PROCESSOR} of a segmentation network ({kinds})"
        absent = f"neither a folder nor in the hub's local cache: give a folder that holds {files_of}"
        folder = find(path, (), whole, absent)
        if find_spec("scipy") is None:  # which their losses want, and the library builds these as well
            raise BackboneError("such a network needs scipy, which is not installed: pip install 'tave[segmenter]'")
        files = whole(folder)
        hashes, _ = verified(files, folder, {}, str(path))
        processor: Any = read_part(AutoImageProcessor, folder, trust_remote_code=False)
        if getattr(processor, "do_split_image", False):
            raise BackboneError(f"{folder} looks at a picture in pieces and finds no single things: give an instance model")
        model: Any = read_model(
            AutoModelForUniversalSegmentation, folder, files["segmenter"], dtype=torch.float32, trust_remote_code=False
        )
    except BackboneError as error:
        raise MatteError(f"reference.segmenter={path}: {error}") from error
    return Segmenter(model.eval().requires_grad_(False), processor, dict(model.config.id2label), str(path), hashes)


def choose(masks: Tensor, scores: Tensor, names: Sequence[str], prompt: str) -> int | None:
    """Which of q instances is the target object; None if none can be.

    Args:
        masks: `q h w` in [0, 1].
        scores: `q` in [0, 1], how surely each is a thing of its class.
        names: the class of each; words of one meaning with commas between them.
        prompt: the target's.

    An instance can be the object if its score is at least a half and it covers neither next to nothing nor nearly all of
    the picture. Those go first whose class is a word of the prompt's before any word of place: in "a red car on a road"
    the road is not meant. Among these, or else among all, the largest product wins of the score and the share that the
    mask covers of a Gaussian window on the picture's middle: sure, large and central.
    """
    inside = (masks > 0.5).float()
    area = inside.mean((1, 2))
    fit = (scores >= CONFIDENT) & (area > LEAST) & (area < MOST)
    named = fit & torch.tensor([_named(name, prompt) for name in names], dtype=torch.bool)
    fit = named if named.any() else fit
    if not fit.any():
        return None
    rows, columns = (torch.exp(-torch.linspace(-0.5, 0.5, side).div(_MIDDLE).square() / 2) for side in masks.shape[1:])
    window = rows[:, None] * columns
    weight = scores * (inside * window).sum((1, 2)) / window.sum()
    return int(torch.where(fit, weight, -1).argmax())


def _named(name: str, prompt: str) -> bool:
    said = set(_words(_PLACE.split(prompt.lower())[0]))
    return any(words and words <= said for words in (set(_words(one)) for one in name.lower().split(",")))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def _certainty(masks: Tensor) -> Tensor:
    """`q h w` -> `q`: the mean of each mask where it is above one half, as the library's own scores have it."""
    inside = masks > 0.5
    return (masks * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
