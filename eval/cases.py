"""Files, read back: one :class:`Case` for each edit of a run folder, or for bare files of any system.

Everything is what the files hold. ``RUN/source.mp4`` holds the frames that were edited, ``RUN/edits/NAME/edited.mp4`` the
result as anybody would play it, ``soft_mask.npz`` the mask in numbers, ``edit.json`` what was asked for; on drawn clips
``truth/`` holds the known answer.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .annotations import WHOLE, read_annotations, read_mask
from .ideal import IdealLayers
from .records import RunError, read_record, read_record_if_any, require_file
from tave.config import ReadOptions
from tave.video import Image4, read_clip, read_image, read_matte
from tave.video.frames import from_pixels


@dataclass(frozen=True)
class Truth:
    """The known answer of a drawn clip. Frames are ``f 3 H W`` in [-1, 1] as drawn, before any video codec."""

    source: Tensor
    ideal: Tensor
    source_mask: Tensor  # f H W bool, the source object's visible pixels
    target_mask: Tensor  # f H W bool, the ideal target's visible pixels
    layers: IdealLayers
    target: dict[str, str]  # vehicle, color, pattern, accent, place
    inside: list[float]  # f, share of the target's silhouette inside the picture
    track: list[list[float]] | None  # f, x and y of the wheels' middle and the scale, in pixels; None in older truths
    still_camera: bool  # whether the background stands still


@dataclass(frozen=True)
class Asked:
    """What the edit was asked for, as far as the files say."""

    source_prompt: str | None = None
    target_prompt: str | None = None
    image: Image4 | None = None  # the target image; alpha is its matte
    missing: str = ""  # why there is no image


@dataclass(frozen=True)
class Case:
    """One edit. Frames are ``f 3 H W`` in [-1, 1], decoded from the videos."""

    name: str
    source: Tensor
    edited: Tensor
    alpha: Tensor | None  # f H W uint8, the composite's: 255 all edit, 0 all source; None where nobody has kept it
    binary: Tensor | None  # f h w bool at the latent grid, before dilation
    mask: Tensor | None  # f h w bool at the latent grid (or f H W), final
    truth: Truth | None = None
    asked: Asked = Asked()
    annotation: Tensor | None = None  # f H W bool, the source object as a person has drawn it
    round_trip: Tensor | None = None  # the source as the backbone's autoencoder returns it
    conditioner: Path | None = None  # the folder of the image encoder that steered the edit


def read_files(
    edited: Path,
    source: Path,
    mask: Path | None = None,
    target_image: Path | None = None,
    matte: Path | None = None,
    source_prompt: str | None = None,
    target_prompt: str | None = None,
    annotations: Path | None = None,
) -> Case:
    """Bare files of any system as a case, named after the edited clip.

    Args:
        edited: the edited clip: a video, or a folder of numbered pictures.
        source: the source clip, with the same frames at the same size.
        mask: where the edit is: a video or a folder of pictures, white inside.
        target_image: the image of the target object; its alpha is its matte.
        matte: the object's silhouette in the target image.
        source_prompt: what the source shows.
        target_prompt: what the edit should show.
        annotations: folder of the source object's masks, one a frame.

    Raises:
        ValueError: one line that names the file and what is wrong with it.
    """
    frames, before = read_clip(edited, WHOLE).frames, read_clip(source, WHOLE).frames
    if frames.shape != before.shape:
        raise RunError(
            f"{source} is {_size(before[:, 0].shape)}, but {edited} is {_size(frames[:, 0].shape)}:"
            " give the frames that were edited, at the edit's size"
        )
    return Case(
        name=edited.stem,
        source=before,
        edited=frames,
        alpha=None,
        binary=None,
        mask=read_mask(mask, frames) if mask else None,
        asked=Asked(
            source_prompt,
            target_prompt,
            _picture(target_image, matte) if target_image else None,
            "" if target_image else "give target_image=...",
        ),
        annotation=read_annotations(annotations, frames) if annotations else None,
    )


def read_cases(run: Path, names: Collection[str] | None = None, annotations: Path | None = None) -> Iterator[Case]:
    """The edits of a run folder in the order of their names, only those in ``names`` if it is given.

    ``annotations``: folder of the source object's masks in the clip as it was before the run has cut it to size.

    Raises:
        RunError: the folder, an edit, a file or an array is missing, unreadable or of another size than the clip.
    """
    if not run.is_dir():
        raise RunError(f"there is no run folder {run}: give one that a run has written")
    # A dot marks an edit that is still being written.
    found = sorted(path.name for path in run.glob("edits/*") if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise RunError(f"{run} holds no edits/NAME folder: is it a run folder, and did its run get as far as an edit?")
    if unknown := sorted(set(names or ()) - set(found)):
        raise RunError(f"{run} has no edit {', '.join(unknown)}: it has {', '.join(found)}")
    for name in found:
        if names is None or name in names:
            yield _read_case(run, run / "edits" / name, annotations)


def _read_case(run: Path, folder: Path, annotations: Path | None) -> Case:
    path = folder / "soft_mask.npz"
    record = read_record_if_any(run / "run.json")
    config = record.get("config", {})
    arrays = _arrays(path, ("binary", "mask", "alpha"))
    if any(array.ndim != 3 or len(array) != len(arrays["alpha"]) for array in arrays.values()):
        raise RunError(f"{path}: binary, mask and alpha must have three axes and as many frames each")
    edited = _video(folder / "edited.mp4")
    if edited[:, 0].shape != arrays["alpha"].shape:
        raise RunError(
            f"{folder / 'edited.mp4'} is {_size(edited[:, 0].shape)}, but alpha in {path.name} is"
            f" {_size(arrays['alpha'].shape)}: they must be of one edit"
        )
    source = _video(run / "source.mp4")
    if source.shape != edited.shape:
        raise RunError(
            f"{run / 'source.mp4'} is {_size(source[:, 0].shape)}, but {folder / 'edited.mp4'} is"
            f" {_size(edited[:, 0].shape)}: they must be of one run"
        )
    return Case(
        name=folder.name,
        source=source,
        edited=edited,
        alpha=torch.from_numpy(arrays["alpha"]),
        binary=torch.from_numpy(arrays["binary"] > 0),
        mask=torch.from_numpy(arrays["mask"] > 0),
        truth=_read_truth(folder / "truth", edited) if (folder / "truth").is_dir() else None,
        asked=_read_asked(folder, config),
        annotation=read_annotations(annotations, edited, _cut(run, config)) if annotations else None,
        round_trip=_video(run / "round_trip.mp4") if (run / "round_trip.mp4").is_file() else None,
        conditioner=_conditioner(record),
    )


def _read_asked(folder: Path, config: dict[str, Any]) -> Asked:
    """``edit.json``, where there is one; the target image counts if it is still the one that was used."""
    if not (folder / "edit.json").is_file():
        return Asked(missing=f"{folder / 'edit.json'} is missing")
    told = read_record(folder / "edit.json")
    source_prompt = told.get("source_prompt") or (config.get("video") or {}).get("source_prompt")
    path, image, missing = told.get("target_image"), None, "edit.json names no target image"
    if path and not Path(path).is_file():
        missing = f"the target image {path} is no longer there"
    elif path and hashlib.sha256(Path(path).read_bytes()).hexdigest() != told.get("sha256"):
        missing = f"the target image {path} is another one today"
    elif path:
        matte = told.get("matte")
        image, missing = _picture(Path(path), Path(matte) if matte and Path(matte).is_file() else None), ""
    return Asked(source_prompt, told.get("target_prompt"), image, missing)


def _picture(path: Path, matte: Path | None) -> Image4:
    rgb, alpha = read_image(path)
    if matte is None:
        return Image4(rgb, alpha)
    given = read_matte(matte)
    if given.shape[1:] != rgb.shape[1:]:
        raise RunError(f"{matte} isn't as large as {path}: a matte belongs to its image pixel by pixel")
    return Image4(rgb, given)


def _cut(run: Path, config: dict[str, Any]) -> ReadOptions:
    """How the run has cut its clip from the file, from ``run.json``."""
    video = config.get("video")
    if not isinstance(video, dict):
        raise RunError(f"{run / 'run.json'} doesn't say how the clip was cut, so annotations can't be fitted to it")
    names = {field.name for field in fields(ReadOptions)}
    return ReadOptions(**{name: value for name, value in video.items() if name in names})


def _conditioner(record: dict[str, Any]) -> Path | None:
    if told := record.get("image_encoder"):
        return Path(told)
    path = (record.get("config", {}).get("backbone") or {}).get("path")  # of runs that did not tell yet
    return Path(path, "image_encoder") if path else None


def _read_truth(folder: Path, edited: Tensor) -> Truth:
    frames, _, height, width = edited.shape
    wide = (frames, height + 2 * (height // 16), width + 2 * (width // 8), 4)
    picture = (frames, height, width)
    shapes = {
        **dict.fromkeys(("source", "ideal", "background"), (*picture, 3)),
        **dict.fromkeys(("source_mask", "target_mask"), picture),
        "target_layer": wide,
        "occluder": (*picture, 4),
    }
    path = folder / "truth.npz"
    arrays = _arrays(path, tuple(shapes))
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise RunError(f"{path}: {name} has shape {arrays[name].shape}, but the edited clip needs {shape}")
    told = read_record(folder / "truth.json")
    try:
        target = {str(key): str(value) for key, value in told["target"].items()}
        inside = [float(share) for share in told["target_inside"]]
        track = [[float(number) for number in place] for place in told["track"]] if "track" in told else None
        if track is not None and (len(track) != frames or any(len(place) != 3 for place in track)):
            raise ValueError("one place a frame")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"{folder / 'truth.json'} lacks a sound target, target_inside or track: write it again") from error
    return Truth(
        source=from_pixels(arrays["source"]),
        ideal=from_pixels(arrays["ideal"]),
        source_mask=torch.from_numpy(arrays["source_mask"] > 0),
        target_mask=torch.from_numpy(arrays["target_mask"] > 0),
        layers=IdealLayers(
            background=from_pixels(arrays["background"]),
            target=_layer(arrays["target_layer"]),
            occluder=_layer(arrays["occluder"]),
        ),
        target=target,
        inside=inside,
        track=track,
        still_camera=bool(told.get("still_camera", False)),
    )


def _layer(array: np.ndarray) -> Tensor:
    """``f H W 4`` uint8 -> ``f 4 H W`` float32: colours in [-1, 1], alpha in [0, 1]."""
    colours_and_alpha = from_pixels(array)
    colours_and_alpha[:, 3] = (colours_and_alpha[:, 3] + 1) / 2
    return colours_and_alpha


def _video(path: Path) -> Tensor:
    require_file(path)
    return read_clip(path, WHOLE).frames


def _arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    require_file(path)
    try:
        # np.load leaves a broken archive open when it opens the file itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in names if name in archive}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} can't be read as an npz archive: {error}") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise RunError(f"{path} lacks {', '.join(missing)}: it must hold {', '.join(names)}")
    return found


def _size(shape: tuple[int, ...]) -> str:
    frames, height, width = shape
    return f"{frames} frames of {width}x{height}"
