"""A run folder's files, read back: one :class:`Case` for each edit.

Everything is what the files hold. ``RUN/source.mp4`` holds the frames that were edited, ``RUN/edits/NAME/edited.mp4`` the
result as anybody would play it, ``soft_mask.npz`` the mask in numbers; on drawn clips ``truth/`` holds the known answer.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eval.ideal import IdealLayers
from tave.video import ReadOptions, read_clip


class RunError(ValueError):
    """A run folder that can't be scored; the message names the file and what is wrong with it."""


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


@dataclass(frozen=True)
class Case:
    """One edit. Frames are ``f 3 H W`` in [-1, 1], decoded from the run's videos."""

    name: str
    source: Tensor
    edited: Tensor
    alpha: Tensor  # f H W uint8, the composite's: 255 all edit, 0 all source
    binary: Tensor  # f h w bool at the latent grid, before dilation
    mask: Tensor  # f h w bool at the latent grid, final
    truth: Truth | None


def read_cases(run: Path, names: Collection[str] | None = None) -> Iterator[Case]:
    """The edits of a run folder in the order of their names, only those in ``names`` if it is given.

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
            yield _read_case(run, run / "edits" / name)


def _read_case(run: Path, folder: Path) -> Case:
    path = folder / "soft_mask.npz"
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
    )


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
    told = _json(folder / "truth.json")
    try:
        target = {str(key): str(value) for key, value in told["target"].items()}
        inside = [float(share) for share in told["target_inside"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"{folder / 'truth.json'} lacks a sound target or target_inside: write it again") from error
    return Truth(
        source=_frames(arrays["source"]),
        ideal=_frames(arrays["ideal"]),
        source_mask=torch.from_numpy(arrays["source_mask"] > 0),
        target_mask=torch.from_numpy(arrays["target_mask"] > 0),
        layers=IdealLayers(
            background=_frames(arrays["background"]),
            target=_layer(arrays["target_layer"]),
            occluder=_layer(arrays["occluder"]),
        ),
        target=target,
        inside=inside,
    )


def _frames(array: np.ndarray) -> Tensor:
    """``f H W c`` uint8 -> ``f c H W`` float32 in [-1, 1]."""
    return torch.from_numpy(array).movedim(-1, 1).float() / 127.5 - 1


def _layer(array: np.ndarray) -> Tensor:
    """``f H W 4`` uint8 -> ``f 4 H W`` float32: colours in [-1, 1], alpha in [0, 1]."""
    colours_and_alpha = _frames(array)
    colours_and_alpha[:, 3] = (colours_and_alpha[:, 3] + 1) / 2
    return colours_and_alpha


def _video(path: Path) -> Tensor:
    _require_file(path)
    return read_clip(path, ReadOptions(frames=None, multiple=1)).frames


def _arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    _require_file(path)
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


def _json(path: Path) -> dict:
    _require_file(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} isn't JSON: {error}") from error
    if not isinstance(found, dict):
        raise RunError(f"{path} must hold a JSON object")
    return found


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise RunError(f"{path} is missing: the run folder isn't complete")


def _size(shape: tuple[int, ...]) -> str:
    frames, height, width = shape
    return f"{frames} frames of {width}x{height}"
