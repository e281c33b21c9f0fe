"""Where a checkpoint's files are, whether they are the published ones, and how each is read. Nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from tave.backbone.parts import BackboneError, BackboneMissingError
from tave.files import file_digest

Part = TypeVar("Part")
Known = Mapping[str, Mapping[str, str]]
"""Part -> precision (fp32, fp16) -> the published SHA-256 of its weights, in hexadecimal."""

PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
PICKLES = (b"PK", b"\x80")  # how torch.save begins a file: a zip archive, or a bare pickle
WEIGHTS = {  # part -> stem of its weights' name
    "text_encoder": "model",
    "image_encoder": "model",
    "image_normalizer": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
# The width of the image vector that an SD-unCLIP UNet takes, twice the image encoder's -> the option for it.
UNCLIP_VARIANTS = {2048: "sd21_unclip", 1536: "sd21_unclip_small"}
PLAIN = {  # part without weights -> sets of files, any one of which makes it whole
    "tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "feature_extractor": (("preprocessor_config.json",),),
    "scheduler": (("scheduler_config.json",),),
    "image_noising_scheduler": (("scheduler_config.json",),),
}


def find(path: str | Path | None, mirrors: Sequence[str], whole: Callable[[Path], Any], absent: str, key: str = "path") -> Path:
    """The folder of a checkpoint: ``path``, or the first of ``mirrors`` (`owner/name`) that is whole in the hub's local cache.

    path: a folder, or an `owner/name` itself. whole: raises :class:`BackboneError` for a folder that lacks something.
    absent: what :class:`BackboneMissingError` says if there is none at all, and ``key`` the option that it is about; a mirror
        that lacks something is told of instead.
    """
    lacking: BackboneError | None = None
    for place in mirrors if path is None else [path]:
        folder = _local(place)
        if folder is None:
            continue
        try:
            whole(folder)
            return folder
        except BackboneError as error:
            lacking = lacking or error
    raise lacking or BackboneMissingError(absent, key)


def _local(place: str | Path) -> Path | None:
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder
    owner, _, name = str(place).partition("/")
    if not owner.strip("./~") or not name or "/" in name:
        return None
    try:
        return Path(snapshot_download(str(place), local_files_only=True))
    except (OSError, ValueError):  # no local copy, or no such name: the answer is the same
        return None


def listing(parts: Sequence[str]) -> str:
    """The files that make ``parts`` whole, for a message: `unet/config.json + ...`."""
    told = [
        f"{part}/" + " or ".join(" + ".join(names) for names in PLAIN[part])
        if part in PLAIN
        else f"{part}/config.json + {WEIGHTS[part]}.safetensors"
        for part in parts
    ]
    return ", ".join(told)


def check_plain(folder: Path, part: str, layout: str) -> None:
    """Raise :class:`BackboneError` unless the files of a part without weights are in ``folder``."""
    if not any(all((folder / part / name).is_file() for name in names) for names in PLAIN[part]):
        wanted = " or ".join(" + ".join(names) for names in PLAIN[part])
        raise BackboneError(f"{folder / part} lacks {wanted}: copy the subfolder {part} there from {layout}")


def weight_files(inside: Path, stem: str, layout: str) -> list[Path]:
    """The safetensors files of the model in ``inside``: a single one or shards, full precision before fp16.

    Raises :class:`BackboneError` for what is missing, and for a pickle: reading one runs whatever code is in it.
    """

    def lacks(file: str) -> BackboneError:
        return BackboneError(f"{inside} lacks {file}: copy its files there from {layout}")

    if not (inside / "config.json").is_file():
        raise lacks("config.json")
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (inside / name).is_file():
            return [inside / name]
    for name in (f"{stem}.safetensors.index.json", f"{stem}.safetensors.index.fp16.json"):
        if (inside / name).is_file():
            shards = sorted(set(read_json(inside / name).get("weight_map", {}).values()))
            for shard in shards:
                if not (inside / shard).is_file():
                    raise lacks(shard)
            return [inside / shard for shard in shards]
    pickles = sorted(file.name for file in inside.glob("*.bin")) + sorted(file.name for file in inside.glob("*.ckpt"))
    if pickles:
        raise BackboneError(
            f"{inside} holds {pickles[0]}, a pickle, which could run code and is not read: put {stem}.safetensors there"
        )
    raise lacks(f"{stem}.safetensors")


def pipeline_files(folder: Path, plain: Sequence[str], models: Sequence[str], layout: str) -> dict[str, list[Path]]:
    """The weight files of each of ``models`` in a pipeline's folder, all parts of which must be there.

    Raises :class:`BackboneError` for the first of ``plain`` (parts without weights) or ``models`` that lacks something.
    """
    for part in plain:
        check_plain(folder, part, layout)
    return {part: weight_files(folder / part, WEIGHTS[part], layout) for part in models}


def unet_config(folder: Path) -> dict[str, Any] | None:
    """A UNet's own ``config.json``, None if there is none yet: it tells the family before anybody asks for what that needs."""
    file = folder / "unet" / "config.json"
    return read_json(file) if file.is_file() else None


def check_channels(folder: Path) -> None:
    """Raise :class:`BackboneError` unless the UNet takes the autoencoder's latents and nothing beside them."""
    takes = read_json(folder / "unet" / "config.json").get("in_channels", 4)
    makes = read_json(folder / "vae" / "config.json").get("latent_channels", 4)
    if takes != makes:
        raise BackboneError(
            f"{folder / 'unet'} takes {takes} channels, but its autoencoder makes {makes}: an inpainting checkpoint and its "
            "like don't do, use the plain one"
        )


def verified(files: Mapping[str, list[Path]], root: Path, known: Known | None, name: str) -> tuple[dict[str, str], list[str]]:
    """Hash all ``files`` (part -> its weights) -> (path within ``root`` -> SHA-256, those of which no value is known).

    known: what the hashes must be; None: the weights need no vouching, as those that come with this package.
    Raises :class:`BackboneError` that names both values where one differs, and for a file that is no safetensors file.
    """
    hashes: dict[str, str] = {}
    unverified: list[str] = []
    for part, found in files.items():
        for file in found:
            precision = _precision(file)
            inside = str(file.relative_to(root))
            hashes[inside] = file_digest(file)
            published = (known or {}).get(part, {}).get(precision) if len(found) == 1 else None
            if published is None:
                unverified += [] if known is None else [inside]
            elif hashes[inside] != published:
                raise BackboneError(
                    f"{file} has SHA-256 {hashes[inside]}, but {name}'s {part} in {precision} has {published}: copy it again"
                )
    return hashes, unverified


def _precision(file: Path) -> str:
    """fp32, fp16, bf16, or mixed; of the header alone."""
    try:
        with safe_open(file, "pt") as stored:
            kinds = {stored.get_slice(key).get_dtype() for key in stored.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        with file.open("rb") as source:
            pickled = source.read(2).startswith(PICKLES)
        told = "a pickle by another name, which is not read" if pickled else f"no readable safetensors file ({line(error)})"
        raise BackboneError(f"{file} is {told}: copy it again as safetensors") from error
    floating = kinds & set(PRECISIONS)
    return PRECISIONS[floating.pop()] if len(floating) == 1 else "mixed"


def option_for(unet: Mapping[str, Any]) -> str:
    """The option that a UNet's own ``config.json`` calls for, as the end of a message."""
    if unet.get("class_embed_type") == "projection":
        told = UNCLIP_VARIANTS.get(unet.get("projection_class_embeddings_input_dim", 0), "folder")
        return f"it is an SD-unCLIP checkpoint: use backbone={told}"
    if unet.get("addition_embed_type") is not None:
        return "SDXL and its like have no family here: use backbone=sd21_unclip or sd15_ip_adapter with their own weights"
    if unet.get("cross_attention_dim") == 1024:
        return "plain Stable Diffusion 2 takes no image: use an SD-unCLIP checkpoint with backbone=sd21_unclip"
    return "for Stable Diffusion 1.5 use backbone=sd15_ip_adapter, else an SD-unCLIP checkpoint"


def read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise BackboneError(f"{file} is not readable as JSON ({line(error)}): copy it again") from error
    if not isinstance(found, dict):
        raise BackboneError(f"{file} holds no JSON object: copy it again")
    return found


def read_part(kind: type[Part], folder: Path, **settings: Any) -> Part:
    """``kind.from_pretrained``, its errors as one line."""
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, **settings)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise BackboneError(f"{folder} can't be read as {kind.__name__} ({line(error)}): copy it again") from error


def read_model(kind: type[Part], folder: Path, weights: list[Path], **settings: Any) -> Part:
    """A model whose every parameter came from its file: the libraries would fill gaps with random numbers."""
    variant = "fp16" if ".fp16" in weights[0].name else None
    found: Any = read_part(kind, folder, use_safetensors=True, variant=variant, output_loading_info=True, **settings)
    model, info = found
    if lacking := sorted(info["missing_keys"]):
        raise BackboneError(f"{folder}: weights lack {lacking[0]} ({len(lacking)} in all): copy the whole file again")
    return model


def scheduler_config(file: Path) -> dict[str, Any]:
    """A scheduler's ``scheduler_config.json``, which must say what decides the noise levels: the library would guess.

    Raises :class:`BackboneError` that names what is left unsaid.
    """
    config = read_json(file)
    if config.get("trained_betas"):
        return config
    ends = () if config.get("beta_schedule") == "squaredcos_cap_v2" else ("beta_start", "beta_end")
    for key in ("beta_schedule", *ends):
        if config.get(key) is None:
            raise BackboneError(f"{file} lacks {key}, which decides the noise levels: copy it again from the checkpoint")
    return config


def read_scheduler(file: Path, prediction_type: str | None) -> DDIMScheduler:
    """DDIM over the same noise levels, whatever class wrote them.

    What other classes leave unsaid they mean otherwise than DDIM's defaults. ``prediction_type``: what these weights are
    known to predict; a file that says another one would turn every stage's arithmetic wrong, so it is refused.
    """
    config = scheduler_config(file)
    unsaid: dict[str, Any] = {}
    if config.get("_class_name") != "DDIMScheduler":
        unsaid = {"clip_sample": False, "set_alpha_to_one": False}
    if prediction_type is not None:
        unsaid["prediction_type"] = prediction_type
        if (said := config.get("prediction_type", prediction_type)) != prediction_type:
            raise BackboneError(f"{file} says {said}, but these weights predict {prediction_type}: copy it again from them")
    return cast(DDIMScheduler, DDIMScheduler.from_config(unsaid | config))


def line(error: Exception) -> str:
    """An error's message, short and in one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__
