"""Cutting out the target object with a segmentation network of the user's: ``reference.matte=segmented``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.modeling_auto import AutoModelForUniversalSegmentation

from tave.backbone.files import COPY, Files, find, read_model, read_part, verified, weight_files
from tave.backbone.parts import BackboneError
from tave.backbone.sizes import bounded_config, header_of
from tave.files import FileError, read_json
from tave.reference.cutout import LEAST, MOST, MatteError
from tave.video.frames import to_pixels

MODELS = {"mask2former": "Mask2Former", "maskformer": "MaskFormer", "eomt": "EoMT", "eomt_dinov3": "EoMT on DINOv3"}
PROCESSOR = "preprocessor_config.json"
LAYOUT = "the folder that save_pretrained of the network and of its image processor wrote"
CONFIDENT = 0.5  # least score of an instance
GRID = 384  # longest side in px at which instances are compared; the networks' own grids are not finer
_MIDDLE = 0.25  # standard deviation of the window that weighs positions, as a share of each side
# What follows the first of these in a prompt is where the object is, not what it is.
_PLACE = re.compile(
    r"\b(?:on|in|at|by|near|under|over|through|along|across|before|behind|beside|between|against|with)\b"
)


@dataclass(frozen=True)
class Cut:
    """A cut-out object: matte `1 H W` in [0, 1], name of its class, score in [0, 1]."""

    matte: Tensor
    name: str
    confidence: float


@dataclass(frozen=True, eq=False)
class Segmenter:
    """An instance segmentation network of transformers in eval mode, frozen, with its image processor.

    classes: their names by number. hashes: path within its folder -> SHA-256 of each weight file.
    """

    model: Any
    processor: Any
    classes: Mapping[int, str]
    name: str
    hashes: Mapping[str, str]

    @torch.no_grad()
    def cut(self, rgb: Tensor, prompt: str) -> Cut:
        """Cut the object that ``prompt`` describes out of ``rgb`` `3 H W` in [-1, 1], see :func:`choose`; on the CPU.

        Raises :class:`MatteError` if no instance could be the object.
        """
        size = tuple(rgb.shape[1:])
        shrink = min(1, GRID / max(size))
        grid = tuple(max(1, round(side * shrink)) for side in size)
        inputs = self.processor(images=Image.fromarray(to_pixels(rgb)), return_tensors="pt")
        outputs = self.model(pixel_values=inputs["pixel_values"].to(self.model.device))
        process = self.processor.post_process_instance_segmentation
        maps = {"return_binary_maps": True} if "return_binary_maps" in signature(process).parameters else {}
        found = process(outputs, target_sizes=[grid], threshold=CONFIDENT, **maps)[0]
        instances, segments = found["segmentation"].cpu(), found["segments_info"]
        names = [self.classes.get(segment["label_id"], str(segment["label_id"])) for segment in segments]
        masks = instances if maps else instances == torch.arange(len(segments))[:, None, None]
        scores = torch.tensor([segment["score"] for segment in segments])
        index = choose(masks, scores, names, prompt) if segments else None
        if index is None:
            raise MatteError(
                f"{self.name} finds nothing in the target image that could be the object: set reference.matte=auto, "
                "and give video.matte=FILE if you have one"
            )
        matte = interpolate(masks[index][None, None].float(), size, mode="bilinear")[0]
        return Cut(matte, names[index], float(scores[index]))


def load_segmenter(path: str | Path) -> Segmenter:
    """Load a network from a folder that `save_pretrained` wrote, or by the `owner/name` of a copy in the hub's cache.

    Weights are safetensors only, in float32 on the CPU; no code in the folder is run. Raises :class:`MatteError`, in
    one line, for files that are missing, unreadable or of another kind, and without scipy.
    """
    kinds = ", ".join(MODELS.values())

    def check(folder: Path) -> Files:
        config = folder / "config.json"
        if config.is_file() and (kind := read_json(config, COPY).get("model_type")) not in MODELS:
            raise BackboneError(f"{folder} is a {kind}, not a supported segmentation network: give one of {kinds}")
        files = {"segmenter": weight_files(folder, "model", LAYOUT)}
        bounded_config(config, header_of(files["segmenter"]))
        if not (folder / PROCESSOR).is_file():
            raise BackboneError(f"{folder} lacks {PROCESSOR}: copy its files there from {LAYOUT}")
        return files

    try:
        missing = "neither a folder nor in the hub's local cache: give a folder that has config.json, model.safetensors"
        folder, files = find(path, (), check, f"{missing} and {PROCESSOR} of a segmentation network ({kinds})")
        if find_spec("scipy") is None:  # needed by the losses, which the library builds as well
            raise BackboneError("the network needs scipy, which is not installed: pip install scipy")
        hashes, _ = verified(files, folder, {}, str(path))
        processor: Any = read_part(AutoImageProcessor, folder, trust_remote_code=False)
        if getattr(processor, "do_split_image", False):
            raise BackboneError(f"{folder} is for semantic segmentation, of no single objects: give an instance model")
        processor.pad_size = None  # pads a single picture, and post-processing would take the padding for picture
        model: Any = read_model(AutoModelForUniversalSegmentation, folder, files["segmenter"], trust_remote_code=False)
    except FileError as error:
        raise MatteError(f"reference.segmenter={path}: {error}") from error
    return Segmenter(model.eval().requires_grad_(False), processor, dict(model.config.id2label), str(path), hashes)


def choose(masks: Tensor, scores: Tensor, names: Sequence[str], prompt: str) -> int | None:
    """Index of the one of q instances that is the target object; None if none can be.

    ``masks`` `q h w` and ``scores`` `q` are in [0, 1]; ``names`` are the classes, synonyms separated by commas.

    An instance can be the object if its score is at least a half and it covers neither almost nothing nor almost all of
    the picture. Instances whose class is named in the prompt, before any preposition of place ("a red car on a road"
    is not a road), take precedence. Among these, else among all, the largest product wins of the score and the share
    that the mask covers of a Gaussian window on the picture's middle: certain, large and central.
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
    mentioned, *synonyms = (
        set(re.findall(r"[^\W_]+", part)) for part in (_PLACE.split(prompt.lower())[0], *name.lower().split(","))
    )
    return any(words and words <= mentioned for words in synonyms)
