"""Frozen open_clip encoders: pictures and captions -> unit vectors, whose dot product is the cosine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from .weights import Weights, WeightsError, cached, offline, verify
from tave.video import fit_frames

_BATCH = 64
_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_FITS = {"shortest": "crop", "squash": "stretch", "longest": "pad"}
_HUB = "hf-hub:"


class FeatureError(ValueError):
    """An encoder that can't be used; the message names it and says what is wrong."""


class Encoder(Protocol):
    """Pictures and captions in one space."""

    id: str
    """Name and hash of the weights, for the metric's id."""
    size: int
    """Side in pixels of the square picture that ``images`` takes."""
    fit: str
    """How a whole frame becomes that square: crop | stretch | pad."""

    def images(self, pictures: Tensor) -> Tensor:
        """``n 3 size size`` in [-1, 1] -> unit vectors ``n d`` float32."""
        ...

    def texts(self, captions: Sequence[str]) -> Tensor:
        """``n`` captions -> unit vectors ``n d`` float32."""
        ...


def see_whole(encoder: Encoder, frames: Tensor) -> Tensor:
    """Whole frames ``f 3 H W`` in [-1, 1] as the encoder's own preprocessing shows them -> unit vectors ``f d``."""
    return encoder.images(fit_frames(frames, encoder.size, encoder.size, encoder.fit))


class OpenClip:
    """An open_clip model on the CPU, from a folder with ``open_clip_config.json`` and ``open_clip_model.safetensors``.

    Raises:
        FeatureError: a file is missing, or open_clip can't build or load the model.
        WeightsError: the file isn't the one that its name in the hub's cache promises.
    """

    def __init__(self, folder: str | Path, name: str | None = None, sha256: str | None = None) -> None:
        folder = Path(folder)
        if not (folder / "open_clip_config.json").is_file():
            raise FeatureError(f"{folder} has no open_clip_config.json: give a folder that holds an open_clip model")
        files = [folder / file for file in _FILES if (folder / file).is_file()]
        if not files:
            raise FeatureError(f"{folder} has no {_FILES[0]}: give a folder that holds an open_clip model")
        self._load(f"local-dir:{folder}", name or folder.name, verify(files[0], sha256))

    @classmethod
    def built_in(cls, architecture: str, weights: Weights, name: str, told: dict[str, Any] | None = None) -> OpenClip:
        """One of open_clip's own architectures with weights from a file.

        Args:
            architecture: as open_clip lists it.
            weights: the file.
            name: what the id calls it.
            told: what open_clip knows of these weights: mean, std, interpolation, resize_mode, quick_gelu.
        """
        told = told or {}
        picture = {key: told[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in told}
        made = cls.__new__(cls)
        options = {"pretrained": str(weights.path), "force_preprocess_cfg": picture}
        made._load(architecture, name, weights, force_quick_gelu=bool(told.get("quick_gelu")), **options)
        return made

    def _load(self, source: str, name: str, weights: Weights, **options: Any) -> None:
        import open_clip  # seconds, and only needed where there is something to embed

        try:
            with offline():
                model = open_clip.create_model(source, require_pretrained=True, **options)
                self._tokenizer = open_clip.get_tokenizer(source)
        except (RuntimeError, ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            place = weights.path.parent if source.startswith("local-dir:") else weights.path
            raise FeatureError(f"{place} isn't a model that open_clip can load: {reason}") from error
        self._model: Any = model.eval().requires_grad_(False)
        picture = open_clip.model.get_model_preprocess_cfg(model)
        size = picture["size"]
        self.id = f"{name}@{weights.sha256[:12]}"
        self.size: int = size if isinstance(size, int) else size[0]
        self.fit: str = _FITS[picture.get("resize_mode") or "shortest"]
        self._mean = torch.tensor(picture["mean"])[:, None, None]
        self._std = torch.tensor(picture["std"])[:, None, None]

    @torch.inference_mode()
    def images(self, pictures: Tensor) -> Tensor:
        """See :class:`Encoder`."""
        normal = ((pictures + 1) / 2 - self._mean) / self._std
        found = [self._model.encode_image(part) for part in normal.split(_BATCH)]
        return functional.normalize(torch.cat(found).float(), dim=-1)

    @torch.inference_mode()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """See :class:`Encoder`."""
        tokens = self._tokenizer(list(captions))
        found = [self._model.encode_text(part) for part in tokens.split(_BATCH)]
        return functional.normalize(torch.cat(found).float(), dim=-1)

    def conditions(self, encoder: Path) -> bool:
        """Whether this is the image encoder in the folder ``encoder``, in transformers' layout: the same patch embedding.

        An edit is then steered by the very encoder that measures it. False where the folder can't say.
        """
        ours = getattr(getattr(self._model.visual, "conv1", None), "weight", None)
        for file in sorted(encoder.glob("*.safetensors")):
            with safe_open(file, "pt") as stored:
                key = "vision_model.embeddings.patch_embedding.weight"
                if ours is None or key not in stored.keys():  # noqa: SIM118 - not a mapping
                    continue
                theirs = stored.get_tensor(key)
            # Either side may have been stored at half precision.
            return theirs.shape == ours.shape and bool(torch.allclose(theirs.float(), ours.float(), rtol=1e-2, atol=1e-4))
        return False


def load_encoder(name: str, sha256: str | None = None, cache: Path | None = None) -> OpenClip:
    """An encoder that is on this disk, its weights verified by SHA-256.

    Args:
        name: a folder that holds an open_clip model; ``hf-hub:OWNER/NAME``; ``ARCHITECTURE`` or ``ARCHITECTURE:TAG`` as
            open_clip lists them, in any case (``vit-l-14``, ``ViT-B-32:laion2b_s34b_b79k``), from the hub's local cache or
            open_clip's own; ``ARCHITECTURE:FILE``.
        sha256: the hash that the weights must have, or its beginning. Without it files in a cache are still checked against
            the hash that the cache or open_clip's list knows; of any other file the id tells the hash.
        cache: the hub's cache; its usual place by default.

    Raises:
        FeatureError: no such architecture or tag, or open_clip can't load it.
        WeightsError: the weights aren't here, or aren't the ones that are asked for.
    """
    if Path(name).is_dir():
        return OpenClip(name, sha256=sha256)
    if name.startswith(_HUB):
        found = cached(name.removeprefix(_HUB), _FILES, cache)
        if found is None:
            raise WeightsError(f"clip={name}: not in the hub's local cache; put the weights there, nothing is downloaded")
        return OpenClip(found.parent, name.removeprefix(_HUB), sha256)
    return _built_in(name, sha256, cache)


def _built_in(name: str, sha256: str | None, cache: Path | None) -> OpenClip:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    architecture, _, wanted = name.partition(":")
    known = {listed.lower(): listed for listed in open_clip.list_models()}
    if architecture.lower() not in known:
        raise FeatureError(
            f"clip={name}: no folder, no hf-hub:OWNER/NAME and no architecture of open_clip; give one, as in clip=vit-l-14"
        )
    architecture = known[architecture.lower()]
    if wanted and Path(wanted).is_file():
        return OpenClip.built_in(architecture, verify(Path(wanted), sha256), f"{architecture}:{Path(wanted).stem}")
    listed = open_clip.list_pretrained_tags_by_model(architecture)
    tags = [tag for tag in listed if wanted in ("", tag)]
    if not tags:
        raise FeatureError(f"clip={name}: neither a file nor one of {', '.join(listed) or 'no tags'} of {architecture}")
    for tag in tags:
        told = get_pretrained_cfg(architecture, tag)
        if weights := _tagged(told, sha256, cache):
            return OpenClip.built_in(architecture, weights, f"{architecture}:{tag}", told)
    raise WeightsError(
        f"clip={name}: no weights of {architecture} ({', '.join(tags)}) in the local caches;"
        f" put them there or give {architecture}:FILE, nothing is downloaded"
    )


def _tagged(told: dict[str, Any], sha256: str | None, cache: Path | None) -> Weights | None:
    """The weights of one of open_clip's tags, if a cache has them."""
    repository, _, file = told.get("hf_hub", "").rpartition("/")
    if repository and (found := cached(repository, [file] if file else _FILES, cache)):
        return verify(found, sha256)
    url = told.get("url", "")
    path = Path("~/.cache/clip").expanduser() / url.rpartition("/")[2]
    if not url or not path.is_file():
        return None
    # Both hosts write the hash into the address.
    promised = url.split("/")[-2] if "openaipublic" in url else path.stem.rpartition("-")[2] if "mlfoundations" in url else None
    return verify(path, sha256 or promised)
