"""Files -> one :class:`Case` for each edit of a run folder, or for bare files of any system.

A run folder has ``source.mp4``, the frames that were edited; ``edits/NAME/network.mp4``, the result at their size;
``soft_mask.npz``, the mask in numbers; ``edit.json``, the request; and for drawn clips ``truth/``, the known answer.
"""

from __future__ import annotations

import logging
import math
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from torch import Tensor

from tave.config import WHOLE, ReadOptions
from tave.files import file_digest, read_json
from tave.findings import is_input
from tave.record import check_record, network_clip, read_edit, read_run, recorded
from tave.scratch import Scratch
from tave.source import clip_of
from tave.video import Image4, MaskRequest, VideoError, View, read_clip, read_image, read_masks, read_matte
from tave.video.frames import from_pixels

from . import EvalError
from .ideal import IdealLayers
from .motion import Motion
from .records import mapping_in, text_in

log = logging.getLogger(__name__)

PACKED = 1100  # deflate makes nothing smaller than by this factor


@dataclass(frozen=True)
class Truth:
    """The known answer of a drawn clip. Frames are as drawn, before any video codec."""

    source: Tensor
    ideal: Tensor
    source_mask: Tensor  # f H W bool, the source object's visible pixels
    target_mask: Tensor  # f H W bool, the ideal target's visible pixels
    layers: IdealLayers
    target: dict[str, str]  # vehicle, color, pattern, accent, place
    inside: list[float]  # for each frame the share of the target's silhouette inside the picture
    source_motion: Motion  # of the source object's visible points
    target_motion: Motion  # of the ideal target's
    still_camera: bool  # whether the background stands still
    shadows: tuple[Tensor, Tensor]  # f H W bool, the source's and the ideal clip's visible shadow
    instances: Tensor  # k f H W bool, the visible pixels of each of the target's instances
    yaws: Tensor  # f n H W bool, the target were it turned by 0, 360 / n, ... degrees from its true yaw

    @property
    def union(self) -> Tensor:
        """``f H W`` bool, source-or-target pixels."""
        return self.source_mask | self.target_mask

    @property
    def changing(self) -> Tensor:
        """``f H W`` bool, what the right edit changes: both objects and their shadows."""
        return self.union | self.shadows[0] | self.shadows[1]


@dataclass(frozen=True)
class Masks:
    """The edit's mask; None where the system recorded none."""

    final: Tensor | None = None  # f h w bool on the latent grid, or f H W
    binary: Tensor | None = None  # f h w bool on the latent grid, before dilation
    alpha: Tensor | None = None  # f H W uint8, the composite's: 255 all edit, 0 all source


@dataclass(frozen=True)
class Request:
    """What the edit was asked for, as far as it is recorded."""

    source_prompt: str | None = None
    target_prompt: str | None = None
    image: Image4 | None = None  # the target image; alpha is its matte
    missing: str = ""  # why there is no image
    conditioner: Path | None = None  # folder of the image encoder that conditioned the edit
    windows: tuple[tuple[int, int], ...] = ()  # first frame, and the one after the last, where they are recorded


@dataclass(frozen=True)
class Case:
    """One edit, its frames decoded from the videos; ``scratch`` has room for what else grows with the clip."""

    name: str
    source: Tensor
    edited: Tensor
    masks: Masks = Masks()
    request: Request = Request()
    truth: Truth | None = None
    annotation: Tensor | None = None  # f H W bool, the source object as annotated by hand
    round_trip: Tensor | None = None  # the source after the backbone's autoencoder
    scratch: Scratch = Scratch()


def read_files(
    edited: Path,
    source: Path,
    mask: Callable[[Tensor], Tensor] | None,
    request: Request,
    annotations: Path | None = None,
) -> Case:
    """Bare files of any system (clips as videos or folders of numbered pictures) as a case named after the edit.

    ``mask`` reads the mask for given frames.
    """
    frames, before = read_clip(edited, WHOLE).frames, read_clip(source, WHOLE).frames
    if frames.shape != before.shape:
        sizes = f"{source} is {_size(before[:, 0].shape)}, but {edited} is {_size(frames[:, 0].shape)}"
        raise EvalError(f"{sizes}: give the frames that were edited, at the edit's size")
    masks = Masks(mask(frames) if mask else None)
    annotation = read_annotations(annotations, frames) if annotations else None
    return Case(edited.stem, before, frames, masks, request, annotation=annotation)


def read_cases(
    run: Path, names: Collection[str] | None = None, annotations: Path | None = None, scratch: Scratch = Scratch()
) -> Iterator[Case]:
    """The edits of a run folder, or those in ``names``, sorted by name; their frames lie in ``scratch``.

    ``annotations``: folder of the source object's masks in the clip as it was before the run cropped it.
    """
    if not run.is_dir():
        raise EvalError(f"there is no run folder {run}: give one that a run has written")
    # A leading dot marks an edit that is still being written.
    found = sorted(path.name for path in run.glob("edits/*") if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise EvalError(f"{run} has no edits/NAME folder: is it a run folder, and did its run reach an edit?")
    if unknown := sorted(set(names or ()) - set(found)):
        raise EvalError(f"{run} has no edit {', '.join(unknown)}: it has {', '.join(found)}")
    for name in found:
        if names is None or name in names:
            yield _read_case(run, run / "edits" / name, annotations, scratch)


def _read_case(run: Path, folder: Path, annotations: Path | None, scratch: Scratch) -> Case:
    check_record(run, ("source.mp4", "round_trip.mp4"))
    check_record(folder)
    record = read_run(run)
    path = folder / "soft_mask.npz"
    arrays = _masks(path, ("binary", "mask", "alpha"))
    result = network_clip(folder)
    clip, edited = clip_of(run, scratch), read_clip(result, WHOLE, scratch=scratch).frames
    source = clip.frames
    for other, shape in ((path, arrays["alpha"].shape), (run / "source.mp4", source[:, 0].shape)):
        if shape != edited[:, 0].shape:
            raise EvalError(f"{result} is {_size(edited[:, 0].shape)}, but {other} is {_size(shape)}")
    binary, final = (torch.from_numpy(arrays[key] > 0) for key in ("binary", "mask"))
    annotation = None
    if annotations:
        if not mapping_in(record.get("config", {}), "video", run / "run.json"):
            raise EvalError(f"{run}/run.json doesn't record how the clip was cropped, so annotations can't be fitted")
        cut, shown = ReadOptions.recorded(recorded(run)["video"]), clip.origin.size if clip.origin else None
        annotation = read_annotations(annotations, edited, cut, clip.view, shown)
    coded = run / "round_trip.mp4"
    return Case(
        name=folder.name,
        source=source,
        edited=edited,
        masks=Masks(final, binary, torch.from_numpy(arrays["alpha"])),
        request=replace(
            _read_request(folder, record, run / "run.json"), windows=_windows(record, len(edited), run / "run.json")
        ),
        truth=_read_truth(folder / "truth", edited) if (folder / "truth").is_dir() else None,
        annotation=annotation,
        round_trip=read_clip(coded, WHOLE, scratch=scratch).frames if coded.is_file() else None,
        scratch=scratch,
    )


def _read_request(folder: Path, run: Mapping[str, Any], beside: Path) -> Request:
    """What ``edit.json`` says; the target image and its matte count if they are still those that were used."""
    path, conditioner = folder / "edit.json", _conditioner(run)
    if not path.is_file():
        return Request(missing=f"{path} is missing", conditioner=conditioner)
    record = read_edit(folder)
    video = mapping_in(run.get("config", {}), "video", beside)
    source = text_in(record, "source_prompt", path) or text_in(video, "source_prompt", beside)
    at, matte = text_in(record, "target_image", path), text_in(record, "matte", path)
    missing = "" if at else "edit.json names no target image"
    for name, file, digest in (("target image", at, "sha256"), ("matte", matte, "matte_sha256")):
        if file and not missing and not (is_input(Path(file)) and Path(file).is_file()):
            missing = f"the {name} {file} is no longer there"
        elif file and not missing and file_digest(file) != record.get(digest):
            missing = f"the {name} {file} has changed since the edit"
    image = read_picture(Path(at), Path(matte) if matte else None) if at and not missing else None
    return Request(source, text_in(record, "target_prompt", path), image, missing, conditioner)


def _windows(run: Mapping[str, Any], frames: int, path: Path) -> tuple[tuple[int, int], ...]:
    """The windows that ``run.json`` records. Raises :class:`EvalError` for some that can't be the clip's."""
    given = run.get("windows")
    for span in given if isinstance(given, list) else [given] if given is not None else []:
        whole = isinstance(span, list) and len(span) == 2 and all(type(frame) is int for frame in span)
        if not whole or not 0 <= span[0] < span[1] <= frames:
            raise EvalError(f"{path}: windows are no ranges of the clip's {frames} frames: {str(span)[:40]!r}")
    return tuple((start, stop) for start, stop in given or [])


def _conditioner(run: Mapping[str, Any]) -> Path | None:
    """The folder of the image encoder that conditioned the edit, if its files are still the recorded ones."""
    folder, known = run.get("image_encoder"), {str(digest) for digest in run.get("weights", {}).values()}
    files = sorted(Path(folder).glob("*.safetensors")) if isinstance(folder, str) else []
    stamps = [(file, file.stat().st_mtime_ns) for file in files]
    return Path(str(folder)) if files and all(_digest(*stamp) in known for stamp in stamps) else None


@cache
def _digest(path: Path, changed: int) -> str:  # of gigabytes, for each edit of a run
    return file_digest(path)


def read_picture(path: Path, matte: Path | None = None) -> Image4:
    """A target image; a ``matte`` file of the same size replaces its alpha."""
    rgb, alpha = read_image(path)
    alpha = alpha if matte is None else read_matte(matte)
    if alpha is not None and alpha.shape[1:] != rgb.shape[1:]:
        raise EvalError(f"{matte} isn't as large as {path}: a matte belongs to its image pixel by pixel")
    return Image4(rgb, alpha)


def read_annotations(
    folder: Path, like: Tensor, options: ReadOptions = WHOLE, view: View | None = None, shown: Any = None
) -> Tensor:
    """The annotated objects, all of them -> ``f H W`` bool, with the frames and size of the clip ``like``.

    ``folder``: numbered pictures, palette or RGB, as in DAVIS; ``options``: those with which the clip was read;
    ``view``: the part of its frames, of the size ``shown``, that ``like`` shows.
    """
    if not folder.is_dir():
        raise EvalError(f"annotations={folder}: no such folder; give one with a numbered picture a frame, as in DAVIS")
    return _read(MaskRequest(folder, len(like), _size_of(like), options, "annotations", shown), view)


def read_mask(path: Path, like: Tensor, number: int | None = None, inverted: bool = False) -> Tensor:
    """A mask of the clip ``like`` in any form that ``video.mask`` takes -> ``f H W`` bool.

    ``number``: the only object that is inside; ``inverted``: black is inside.
    """
    return _read(MaskRequest(path, len(like), _size_of(like), WHOLE, "mask", None, number, inverted))


def _read(request: MaskRequest, view: View | None = None) -> Tensor:
    try:
        masks = read_masks(request, view)
    except VideoError as error:
        raise EvalError(str(error)) from error
    for note in masks.notes:
        log.warning("%s", note)
    return masks.inside[:, 0] > 0


def _size_of(frames: Tensor) -> tuple[int, int]:
    return frames.shape[-1], frames.shape[-2]


def _read_truth(folder: Path, edited: Tensor) -> Truth:
    path = folder / "truth.json"
    arrays, record = _truth_arrays(folder / "truth.npz", edited), read_json(path)
    try:
        target = {str(key): str(value) for key, value in record["target"].items()}
        inside = [float(share) for share in record["target_inside"]]
        if len(inside) != len(edited):
            raise ValueError("one entry a frame")
        still = bool(record["still_camera"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EvalError(f"{path} lacks target, target_inside or still_camera of this clip") from error
    layers = IdealLayers(*(from_pixels(arrays[name]) for name in ("background", "target_layer", "occluder")))
    for layer in (layers.target, layers.occluder):
        layer[:, 3] = (layer[:, 3] + 1) / 2  # alpha in [0, 1]

    def mask(name: str) -> Tensor:
        return torch.from_numpy(arrays[name] > 0)

    def motion(which: str) -> Motion:
        return Motion(torch.from_numpy(arrays[f"{which}_motion"].astype(np.float32)), mask(f"{which}_counted"))

    return Truth(
        source=from_pixels(arrays["source"]),
        ideal=from_pixels(arrays["ideal"]),
        source_mask=mask("source_mask"),
        target_mask=mask("target_mask"),
        layers=layers,
        target=target,
        inside=inside,
        source_motion=motion("source"),
        target_motion=motion("target"),
        still_camera=still,
        shadows=(mask("source_shadow"), mask("target_shadow")),
        instances=mask("target_instances"),
        yaws=mask("target_yaws"),
    )


def _truth_arrays(path: Path, edited: Tensor) -> dict[str, np.ndarray]:
    """The arrays of ``truth.npz``, of the edit's size."""
    frames, _, height, width = edited.shape
    picture, pairs = (frames, height, width), (frames - 1, height, width)
    wide = (frames, height + 2 * (height // 16), width + 2 * (width // 8), 4)
    shapes = dict.fromkeys(("source", "ideal", "background"), (*picture, 3))
    shapes |= {"occluder": (*picture, 4), "target_layer": wide}
    shapes |= {"target_instances": (-1, *picture), "target_yaws": (frames, -1, height, width)}  # -1: any number
    for which in ("source", "target"):
        shapes |= {f"{which}_mask": picture, f"{which}_shadow": picture, f"{which}_counted": pairs}
    flows = dict.fromkeys(("source_motion", "target_motion"), (frames - 1, 2, height, width))
    arrays = _masks(path, tuple(shapes)) | read_arrays(path, tuple(flows))
    for name, wanted in (shapes | flows).items():
        array = arrays[name]
        sides = zip(array.shape, wanted, strict=False)
        if len(wanted) != array.ndim or not all(side == want or want < 0 < side for side, want in sides):
            raise EvalError(f"{path}: {name} has shape {array.shape}, but the edited clip needs {wanted}")
        if name in flows and not (array.dtype.kind == "f" and np.isfinite(array).all()):
            raise EvalError(f"{path}: {name} is no motion, finite floats")
    return arrays


def _masks(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    found = read_arrays(path, names)
    if odd := [name for name, array in found.items() if array.dtype not in (np.uint8, np.bool_) or array.ndim < 3]:
        raise EvalError(f"{path}: {', '.join(odd)} is no stack of masks or pictures (uint8)")
    return found


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of an npz archive. Raises :class:`EvalError`, in one line, if it lacks one or can't be read."""
    try:
        # np.load leaves a damaged archive open when it opens the file itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            held = set(archive.zip.namelist())
            members = {name: f"{name}.npy" for name in names if f"{name}.npy" in held}
            for member in members.values():
                _check_size(archive.zip, member, PACKED * path.stat().st_size)
            found = {name: archive[member] for name, member in members.items()}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, MemoryError, zipfile.BadZipFile) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise EvalError(f"{path} can't be read as an npz archive: {why}; make the edit again") from error
    if missing := set(names) - set(found):
        raise EvalError(f"{path} lacks {', '.join(sorted(missing))}")
    return found


def _check_size(archive: zipfile.ZipFile, name: str, most: int) -> None:
    """Raise ValueError for an array that is larger, by its header, than what can be in the archive."""
    with archive.open(name) as member:
        read = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}.get(read_magic(member))
        if read is None:
            raise ValueError(f"{name} has an unknown version")
        shape, _, kind = read(member)
    if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize > min(most, archive.getinfo(name).file_size):
        raise ValueError(f"{name} is shorter than its shape {shape}")


def _size(shape: tuple[int, ...]) -> str:
    frames, height, width = shape
    return f"{frames} frames of {width}x{height}"
