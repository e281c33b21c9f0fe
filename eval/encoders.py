"""Frozen networks that measure: open_clip models, DINO, PickScore and LPIPS. All run on the CPU.

Their weights are found on this disk and verified. Nothing is ever downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from tave.files import file_digest, read_json
from tave.video.frames import to_pixels

from . import EvalError, WeightsError
from .runs import flat

BATCH = 64
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
FITS = {"shortest": "crop", "squash": "stretch", "longest": "pad"}  # open_clip's resize_mode -> fit_frames' fit
ALEXNET = "alexnet-owt-7be5be79.pth"
LOADING_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, OSError, AttributeError, SafetensorError)


class Weights(NamedTuple):
    """A file and its SHA-256 in hexadecimal."""

    path: Path
    sha256: str


def verify(path: Path, expected: str | None = None) -> Weights:
    """Hash ``path`` and compare with ``expected`` (a hash or its beginning), else with a hash in the file's name.

    The hub's cache keeps a large file under its own SHA-256, to which the name in the snapshot links.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights; put the file there, nothing is downloaded")
    found, named = file_digest(path), path.resolve().name
    known = expected.lower() if expected else named if re.fullmatch(r"[0-9a-f]{64}", named) else None
    if known is not None and not found.startswith(known):
        raise WeightsError(f"{path}: its SHA-256 is {found}, not {known}: damaged or another file, fetch it again")
    return Weights(path, found)


def cached(repository: str, names: Sequence[str], cache: Path | None = None) -> Path | None:
    """The first of ``names`` that the hub's local cache holds of ``repository``."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in names:
        try:
            found = try_to_load_from_cache(repository, name, cache_dir=cache)
        except HFValidationError as error:
            raise WeightsError(f"{repository!r} is no name of the hub: give OWNER/NAME, or a folder") from error
        if isinstance(found, str):
            return Path(found)
    return None


@contextmanager
def offline() -> Iterator[None]:
    """Keep the hub's client offline inside the block: a missing tokenizer fails instead of being fetched.

    transformers shows no bars of its own from then on.
    """
    from huggingface_hub import constants
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


class Encoder(Protocol):
    """Pictures and captions in one space."""

    id: str  # name and hash of the weights
    size: int  # side in pixels of the square pictures
    fit: str  # how a whole frame becomes that square: crop | stretch | pad

    def images(self, pictures: Tensor) -> Tensor: ...  # n 3 size size in [-1, 1] -> unit vectors n d float32
    def texts(self, captions: Sequence[str]) -> Tensor: ...  # n captions -> unit vectors n d float32


class OpenClip:
    """An open_clip model from ``source``, ``local-dir:FOLDER`` or an architecture; see :func:`load_encoder`."""

    def __init__(self, source: str, weights: Weights, name: str, **options: Any) -> None:
        import open_clip  # takes seconds

        try:
            with offline():
                model = open_clip.create_model(source, require_pretrained=True, **options)
                self._tokenizer = open_clip.get_tokenizer(source)
        except LOADING_ERRORS as error:
            place = weights.path.parent if source.startswith("local-dir:") else weights.path
            raise EvalError(f"{place} isn't a model that open_clip can load: {_reason(error)}") from error
        self._model: Any = model.eval().requires_grad_(False)
        picture = open_clip.model.get_model_preprocess_cfg(model)
        size = picture["size"]
        self.id = f"{name}@{weights.sha256[:12]}"
        self.size: int = size if isinstance(size, int) else size[0]
        self.fit: str = FITS[picture.get("resize_mode") or "shortest"]
        self._mean, self._std = (torch.tensor(picture[key])[:, None, None] for key in ("mean", "std"))

    @torch.inference_mode()
    def images(self, pictures: Tensor) -> Tensor:
        """See :class:`Encoder`."""
        normal = ((pictures + 1) / 2 - self._mean) / self._std
        found = [self._model.encode_image(part) for part in normal.split(BATCH)]
        return functional.normalize(torch.cat(found).float(), dim=-1)

    @torch.inference_mode()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """See :class:`Encoder`."""
        found = [self._model.encode_text(part) for part in self._tokenizer(list(captions)).split(BATCH)]
        return functional.normalize(torch.cat(found).float(), dim=-1)

    def conditions(self, encoder: Path) -> bool:
        """Whether the folder ``encoder`` (transformers' layout) holds this encoder: equal patch embeddings."""
        ours = getattr(getattr(self._model.visual, "conv1", None), "weight", None)
        for file in sorted(encoder.glob("*.safetensors")):
            with safe_open(file, "pt") as stored:
                key = "vision_model.embeddings.patch_embedding.weight"
                if ours is None or key not in stored.keys():  # noqa: SIM118 - not a mapping
                    continue
                theirs = stored.get_tensor(key)
            # Either side may have been stored at half precision.
            return theirs.shape == ours.shape and torch.allclose(theirs.float(), ours.float(), rtol=1e-2, atol=1e-4)
        return False


def load_folder(folder: str | Path, name: str | None = None, sha256: str | None = None) -> OpenClip:
    """Load an encoder from a folder with ``open_clip_config.json`` and ``open_clip_model.safetensors``."""
    folder = Path(folder)
    files = [folder / file for file in CLIP_FILES if (folder / file).is_file()]
    if not files or not (folder / "open_clip_config.json").is_file():
        needed = f"open_clip_config.json and {CLIP_FILES[0]}"
        raise EvalError(f"{folder} doesn't hold {needed}: give the folder of an open_clip model")
    _check_config(folder / "open_clip_config.json")
    return OpenClip(f"local-dir:{folder}", verify(files[0], sha256), name or folder.name)


def _check_config(file: Path) -> None:
    """Raise :class:`EvalError` for what no such network has, of which libraries would build all, and for code."""
    for key, value in flat(read_json(file, "copy it again"), "config."):
        name = key.rpartition(".")[2]
        most = 256 if "layers" in name else {"vocab_size": 1_000_000}.get(name, 16_384)
        if (isinstance(value, int | float) and not abs(value) <= most) or (name == "trust_remote_code" and value):
            raise EvalError(f"{file}: {name}={str(value)[:20]} is nothing that is built: copy it again")


def load_encoder(name: str, sha256: str | None = None, cache: Path | None = None) -> OpenClip:
    """Load an encoder from this disk; its weights are verified by SHA-256.

    ``name`` is a folder with an open_clip model; ``hf-hub:OWNER/NAME``; ``ARCHITECTURE`` or ``ARCHITECTURE:TAG`` as
    open_clip lists them, in any case (``vit-l-14``), from the hub's local cache or open_clip's own;
    ``ARCHITECTURE:FILE``. ``sha256`` is the hash that the weights must have, or its beginning: by default the one that
    the cache or open_clip's list has. ``cache`` is the hub's cache.
    """
    if Path(name).is_dir():
        return load_folder(name, sha256=sha256)
    if name.startswith("hf-hub:"):
        repository = name.removeprefix("hf-hub:")
        found = cached(repository, CLIP_FILES, cache)
        if found is None:
            raise WeightsError(f"clip={name}: not in the hub's local cache; put it there, nothing is downloaded")
        return load_folder(found.parent, repository, sha256)
    return _built_in(name, sha256, cache)


def _built_in(name: str, sha256: str | None, cache: Path | None) -> OpenClip:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    architecture, _, wanted = name.partition(":")
    known = {listed.lower(): listed for listed in open_clip.list_models()}
    if architecture.lower() not in known:
        raise EvalError(f"clip={name}: no folder, hf-hub:OWNER/NAME or architecture of open_clip, such as vit-l-14")
    architecture = known[architecture.lower()]
    if wanted and Path(wanted).is_file():
        weights = verify(Path(wanted), sha256)
        name = f"{architecture}:{Path(wanted).stem}"
        return OpenClip(architecture, weights, name, pretrained=wanted, force_preprocess_cfg={}, force_quick_gelu=False)
    listed = open_clip.list_pretrained_tags_by_model(architecture)
    tags = [tag for tag in listed if wanted in ("", tag)]
    if not tags:
        raise EvalError(f"clip={name}: neither a file nor one of {', '.join(listed) or 'no tags'} of {architecture}")
    for tag in tags:
        config = get_pretrained_cfg(architecture, tag)
        if weights := _tagged(config, sha256, cache):
            picture = {key: config[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in config}
            options = {"pretrained": str(weights.path), "force_quick_gelu": bool(config.get("quick_gelu"))}
            return OpenClip(architecture, weights, f"{architecture}:{tag}", force_preprocess_cfg=picture, **options)
    missing = f"no weights of {architecture} ({', '.join(tags)}) in the local caches"
    raise WeightsError(f"clip={name}: {missing}; put them there or give {architecture}:FILE, nothing is downloaded")


def _tagged(config: dict[str, Any], sha256: str | None, cache: Path | None) -> Weights | None:
    """The weights of one of open_clip's tags, from the hub's local cache or open_clip's own."""
    repository, _, file = config.get("hf_hub", "").rpartition("/")
    if repository and (found := cached(repository, [file] if file else CLIP_FILES, cache)):
        return verify(found, sha256)
    url = config.get("url", "")
    path = Path("~/.cache/clip").expanduser() / url.rpartition("/")[2]
    if not url or not path.is_file():
        return None
    # Both hosts have the hash in the address.
    listed = path.stem.rpartition("-")[2] if "mlfoundations" in url else None
    return verify(path, sha256 or (url.split("/")[-2] if "openaipublic" in url else listed))


class Dino:
    """A DINO or DINOv2 vision transformer (folder or cached hub name); a picture's vector is its class token."""

    def __init__(self, name: str, cache: Path | None = None) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self._model, self._processor, self.id = _from_hub(name, "dino", cache, AutoModel, AutoImageProcessor)

    @torch.inference_mode()
    def images(self, pictures: Tensor) -> Tensor:
        """``n 3 H W`` in [-1, 1] -> unit vectors ``n d`` float32, through the model's own preprocessing."""
        pixels = self._processor(images=list(to_pixels(pictures)), return_tensors="pt")["pixel_values"]
        return functional.normalize(self._model(pixel_values=pixels).last_hidden_state[:, 0].float(), dim=-1)


class PickScore:
    """PickScore (Kirstain et al. 2023), a CLIP tuned on human preferences (folder or cached hub name)."""

    def __init__(self, name: str, cache: Path | None = None) -> None:
        from transformers import AutoProcessor, CLIPModel

        self._model, self._processor, self.id = _from_hub(name, "pickscore", cache, CLIPModel, AutoProcessor)
        self.scale = float(self._model.logit_scale.exp())

    @torch.inference_mode()
    def score(self, pictures: Tensor, prompt: str) -> float:
        """Mean of the model's logit (about 100 times the cosine) of ``n 3 H W`` in [-1, 1] and a prompt, truncated."""
        length = self._model.config.text_config.max_position_embeddings
        options = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
        cosines = []
        for part in pictures.split(BATCH):
            found = self._model(**self._processor(images=list(to_pixels(part)), text=[prompt], **options))
            cosines.append(found.image_embeds.float() @ found.text_embeds[0].float())
        return self.scale * float(torch.cat(cosines).mean())


def _from_hub(name: str, key: str, cache: Path | None, model: Any, processor: Any) -> tuple[Any, Any, str]:
    """Model, processor and id of ``name``, a folder or OWNER/NAME of which the hub's local cache holds a snapshot."""
    if (folder := Path(name)).is_dir():
        file = next((folder / file for file in HUB_FILES if (folder / file).is_file()), None)
        if not file:
            raise WeightsError(f"{key}={name}: the folder has none of {', '.join(HUB_FILES)}; give a model's folder")
        title = folder.name
    else:
        file, title = cached(name, HUB_FILES, cache) if name.count("/") == 1 else None, name
        if file is None:
            raise WeightsError(f"{key}={name}: neither a folder nor in the hub's local cache, nothing is downloaded")
        folder = file.parent
    made = f"{title}@{verify(file).sha256[:12]}"
    config = folder / "config.json"
    try:
        if config.is_file():
            _check_config(config)
    except ValueError as error:
        raise WeightsError(f"{key}={name}: {error}") from error
    try:
        with offline():
            settings = {"local_files_only": True, "trust_remote_code": False}
            loaded = model.from_pretrained(folder, **settings).eval().requires_grad_(False)
            return loaded, processor.from_pretrained(folder, **settings), made
    except LOADING_ERRORS as error:
        raise WeightsError(f"{key}={name}: transformers can't load it: {_reason(error)}") from error


class Lpips:
    """LPIPS 0.1 (Zhang et al. 2018) on AlexNet: torchmetrics' linear layers on torchvision's trunk.

    ``weights``: torchvision's AlexNet; by default in torch's own cache, verified by the hash in its name.
    """

    def __init__(self, weights: Weights | None = None) -> None:
        # The public function averages over the whole picture; the network itself gives the map.
        from torchmetrics.functional.image.lpips import _LPIPS

        at = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
        weights = weights or verify(at, at.stem.rpartition("-")[2])
        network = _LPIPS(net="alex", spatial=True, pnet_rand=True)
        stored = torch.load(weights.path, map_location="cpu", weights_only=True)
        layers = [pair for part in network.net.children() for pair in part.named_children()]
        try:
            for name, layer in layers:
                if isinstance(layer, nn.Conv2d):
                    layer.load_state_dict({key: stored[f"features.{name}.{key}"] for key in ("weight", "bias")})
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"{weights.path}: isn't torchvision's AlexNet; fetch {ALEXNET}") from error
        self._network = network.eval().requires_grad_(False)
        self.id = f"lpips-alex@{weights.sha256[:12]}"

    @torch.inference_mode()
    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Two clips -> ``f H W``, at least 0."""
        pairs = zip(one.split(1), other.split(1), strict=True)
        return torch.cat([self._network(a, b)[:, 0] for a, b in pairs])  # type: ignore[index]


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
