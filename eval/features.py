"""Frozen open_clip encoder: pictures and captions -> unit vectors, whose dot product is the cosine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

_BATCH = 64


class FeatureError(ValueError):
    """An encoder folder that can't be used; the message names it and says what is wrong."""


class Embedder(Protocol):
    """Pictures and captions in one space."""

    size: int
    """Side in pixels of the square picture that ``images`` takes."""

    def images(self, pictures: Tensor) -> Tensor:
        """``n 3 size size`` in [-1, 1] -> unit vectors ``n d`` float32."""
        ...

    def texts(self, captions: Sequence[str]) -> Tensor:
        """``n`` captions -> unit vectors ``n d`` float32."""
        ...


class OpenClip:
    """An open_clip model from a folder with ``open_clip_config.json`` and ``open_clip_model.safetensors``, on the CPU.

    Raises:
        FeatureError: a file is missing, or open_clip can't build or load the model.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        for name in ("open_clip_config.json", "open_clip_model.safetensors"):
            if not (folder / name).is_file():
                raise FeatureError(f"{folder} has no {name}: give a folder that holds an open_clip model")
        import open_clip  # seconds, and only needed where there is something to embed

        try:
            model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True)
            self._tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        except (RuntimeError, ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FeatureError(f"{folder} isn't a model that open_clip can load: {reason}") from error
        self._model: Any = model.eval().requires_grad_(False)
        picture = open_clip.model.get_model_preprocess_cfg(model)
        size = picture["size"]
        self.size: int = size if isinstance(size, int) else size[0]
        self._mean = torch.tensor(picture["mean"])[:, None, None]
        self._std = torch.tensor(picture["std"])[:, None, None]

    @torch.inference_mode()
    def images(self, pictures: Tensor) -> Tensor:
        """See :class:`Embedder`."""
        normal = ((pictures + 1) / 2 - self._mean) / self._std
        found = [self._model.encode_image(part) for part in normal.split(_BATCH)]
        return functional.normalize(torch.cat(found).float(), dim=-1)

    @torch.inference_mode()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """See :class:`Embedder`."""
        tokens = self._tokenizer(list(captions))
        found = [self._model.encode_text(part) for part in tokens.split(_BATCH)]
        return functional.normalize(torch.cat(found).float(), dim=-1)
