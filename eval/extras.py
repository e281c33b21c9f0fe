"""Encoders that open_clip doesn't hold: DINO for pictures, PickScore for how people like a picture under a prompt.

Both are options: they need weights on this disk, a folder in transformers' layout or a name in the hub's local cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from .alignment import text_alignment
from .metric import ClipMetric
from .weights import Weights, WeightsError, model_folder, offline
from tave.video.frames import to_pixels

_FILES = ("model.safetensors", "pytorch_model.bin")


class Dino:
    """A DINO or DINOv2 vision transformer; a picture's vector is its class token. ``name``: folder or OWNER/NAME.

    Raises:
        WeightsError: the weights aren't here, or transformers can't load them.
    """

    def __init__(self, name: str, cache: Path | None = None) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self._model, self._processor, self.id = _loaded(name, "dino", cache, AutoModel, AutoImageProcessor)

    @torch.inference_mode()
    def images(self, pictures: Tensor) -> Tensor:
        """``n 3 H W`` in [-1, 1] -> unit vectors ``n d`` float32, through the model's own preprocessing."""
        pixels = self._processor(images=list(to_pixels(pictures)), return_tensors="pt")["pixel_values"]
        return functional.normalize(self._model(pixel_values=pixels).last_hidden_state[:, 0].float(), dim=-1)


class PickScore:
    """PickScore (Kirstain et al. 2023), a CLIP tuned on people's choices. ``name``: folder or OWNER/NAME.

    Raises:
        WeightsError: the weights aren't here, or transformers can't load them.
    """

    def __init__(self, name: str, cache: Path | None = None) -> None:
        from transformers import AutoProcessor, CLIPModel

        self._model, self._processor, self.id = _loaded(name, "pickscore", cache, CLIPModel, AutoProcessor)
        self.scale = float(self._model.logit_scale.exp())

    @torch.inference_mode()
    def embed(self, pictures: Tensor, prompt: str) -> tuple[Tensor, Tensor]:
        """``n 3 H W`` in [-1, 1] and a prompt -> unit vectors ``n d`` and ``d``. Prompts are cut as the model was trained."""
        length = self._model.config.text_config.max_position_embeddings
        options = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
        found = self._model(**self._processor(images=list(to_pixels(pictures)), text=[prompt], **options))
        return found.image_embeds.float(), found.text_embeds[0].float()


def pickscore(pictures: Tensor, caption: Tensor, scale: float) -> float | None:
    """Mean over frames of ``scale`` times the cosine with the prompt, higher is better; it knows single pictures, not clips.

    Args:
        pictures: ``f d`` unit vectors.
        caption: ``d`` unit vector.
        scale: the model's own, about 100.
    """
    cosine = text_alignment(pictures, caption)
    return None if cosine is None else scale * cosine


class PickScoreMetric(ClipMetric):
    figure = staticmethod(pickscore)
    name, unit, over, higher_is_better = "pickscore", "logit", "mean over frames", True


def _loaded(name: str, key: str, cache: Path | None, model: Any, processor: Any) -> tuple[Any, Any, str]:
    folder, weights = model_folder(name, key, _FILES, cache)
    try:
        with offline():
            made = model.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)
            return made, processor.from_pretrained(folder, local_files_only=True), _id(name, weights)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{key}={name}: transformers can't load it: {reason}") from error


def _id(name: str, weights: Weights) -> str:
    return f"{Path(name).name if Path(name).is_dir() else name}@{weights.sha256[:12]}"
