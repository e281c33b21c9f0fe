"""Controls: trivial edits. A metric that ranks one of them first says little on its own.

A control shares the masks of the method ``tave``, so that metrics of a region measure the same pixels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tave.config import OURS, WHOLE, OptionError, ReadOptions
from tave.files import file_digest, read_json, whole_folder, write_json
from tave.listing import ListedCase
from tave.record import check_record, network_clip, read_edit, recorded, rewriting, write_record
from tave.reference.cutout import matte
from tave.reference.views import RIM, Place, find_place, put
from tave.regions import box_of, grown
from tave.video import (
    Clip,
    contact_sheet,
    read_clip,
    read_image,
    read_matte,
    write_image,
    write_mask_video,
    write_video,
)


def make(name: str, run: Path, case: ListedCase, edit_frame: Callable[[Clip], Tensor] | None = None) -> None:
    """Write the control ``name`` of ``case`` to ``run/edits/NAME/``, complete or not at all.

    source_unchanged: the source. frozen_first_frame: the first frame of the method's edit throughout.
    pasted: the photograph's object, cut out by colours, at the old object's height, centre and bottom line.
    pasted_true_pose: the same by its true silhouette, at the target's true place and height, mirrored if better so.
    per_frame: every frame edited alone by ``edit_frame``, from a clip of one frame to `1 3 H W`.

    Raises:
        OptionError: the case has no known answer, which the control needs.
    """
    if not possible(name, case):
        raise OptionError(f"case {case.name} lacks the known answer that the control {name} needs: leave it out")
    ours = run / "edits" / OURS
    check_record(run, ["source.mp4"])
    check_record(ours)
    source = read_clip(run / "source.mp4", WHOLE)
    if name == "source_unchanged":
        frames = source.frames
    elif name == "frozen_first_frame":
        frames = read_clip(network_clip(ours), WHOLE).frames[:1].expand_as(source.frames)
    elif name == "per_frame":
        assert edit_frame is not None
        frames = torch.cat([edit_frame(replace(source, frames=frame)).cpu() for frame in source.frames.split(1)])
    else:
        frames = (_pasted if name == "pasted" else _pasted_true_pose)(run, source, case)
    _write(run / "edits" / name, ours, source, frames)


def possible(name: str, case: ListedCase) -> bool:
    """Whether the case has the known answer that the control needs."""
    return {"pasted": bool(case.truth or case.annotations), "pasted_true_pose": bool(case.truth)}.get(name, True)


def _write(folder: Path, ours: Path, source: Clip, frames: Tensor) -> None:
    remade = shutil.ignore_patterns("network.mp4", "frames", "mattes", "side_by_side.*", "reference*.png", "field.npz")
    with whole_folder(folder, replace=True) as waiting:
        shutil.copytree(ours, waiting, ignore=remade, dirs_exist_ok=True)
        write_video(waiting / "edited.mp4", frames, source.fps)
        write_image(waiting / "side_by_side.png", contact_sheet([source.frames, frames]))
        record = {key: value for key, value in read_edit(ours).items() if key not in ("key", "benchmark")}
        record |= {"name": folder.name, "control": True, "notes": []}
        if folder.name == "frozen_first_frame":
            record["made_from"] = file_digest(network_clip(ours))
        write_json(waiting / "edit.json", record)
        write_record(waiting)


# ---- the known answer ------------------------------------------------------------------------------------------------


def true_region(run: Path, case: ListedCase, cut: ReadOptions) -> Path:
    """Write the region that an oracle method is given, a mask clip for ``video.mask``, into the run; returns its path.

    Source and target object by the truth, else the annotated source object. ``cut``: how the run read its clip.
    """
    source = read_clip(run / "source.mp4", WHOLE)
    region = _source_mask(source, case, cut)
    if case.truth:
        region |= _truth(case, "target_mask")
    path = run / "true_region.mp4"
    with rewriting(run, path.name):
        write_mask_video(path, region[:, None].float(), source.fps)
    return path


def _source_mask(source: Clip, case: ListedCase, cut: ReadOptions) -> Tensor:
    """The old object's pixels `f H W` bool, by the truth or by annotations."""
    if case.truth:
        return _truth(case, "source_mask")
    from tave.eval.cases import read_annotations  # pyright: ignore[reportMissingImports]

    return read_annotations(Path(case.annotations or ""), source.frames, cut)


def _truth(case: ListedCase, name: str) -> Tensor:
    with np.load(Path(case.truth or "") / "truth.npz") as arrays:
        return torch.from_numpy(arrays[name])


# ---- pasting ---------------------------------------------------------------------------------------------------------


def _pasted(run: Path, source: Clip, case: ListedCase) -> Tensor:
    cut = ReadOptions.recorded(recorded(run)["video"])
    return _paste(_emptied(source.frames, _source_mask(source, case, cut), _still(case)), *_photograph(case))


def _pasted_true_pose(run: Path, source: Clip, case: ListedCase) -> Tensor:
    empty = _emptied(source.frames, _truth(case, "source_mask"), _still(case)).frames
    target, layer, occluder = (_truth(case, name) for name in ("target_mask", "target_layer", "occluder"))
    down, right = ((outer - inner) // 2 for outer, inner in zip(layer.shape[1:3], target.shape[1:], strict=True))
    boxes = torch.tensor([box_of(plane > 127) for plane in layer[..., 3].numpy()]).double()
    place = Place(empty, boxes - torch.tensor([down, down, right, right]))
    rgb, alpha = read_image(case.target_image)[0], _truth(case, "photo_mask")[None].float() / 255
    black = replace(place, frames=torch.full_like(empty, -1.0))  # white pasted on black is the pasted silhouette
    shown = [_overlap(_paste(black, torch.ones_like(rgb), cut)[:, 0] > 0, target) for cut in (alpha, alpha.flip(-1))]
    if shown[1] > shown[0]:
        rgb, alpha = rgb.flip(-1), alpha.flip(-1)
    in_front = occluder[:, None, :, :, 3].float() / 255
    return torch.lerp(_paste(place, rgb, alpha), source.frames, in_front)


def _paste(place: Place, rgb: Tensor, alpha: Tensor) -> Tensor:
    return torch.stack([put(place, i, rgb, alpha, height_scale=1.0, feather=0.0) for i in range(len(place.frames))])


def _photograph(case: ListedCase) -> tuple[Tensor, Tensor]:
    """The target image `3 H W` and the matte of its object `1 H W`: the given one, its alpha, or by colours."""
    rgb, alpha = read_image(case.target_image)
    return rgb, matte(rgb, alpha, read_matte(case.matte) if case.matte else None)


def _overlap(first: Tensor, second: Tensor) -> float:
    return float((first & second).sum() / (first | second).sum())


def _still(case: ListedCase) -> bool:
    """Whether the camera is known to stand still."""
    return bool(case.truth) and bool(read_json(Path(case.truth or "") / "truth.json").get("still_camera"))


def _emptied(frames: Tensor, mask: Tensor, still: bool) -> Place:
    """The old object's boxes, and the frames without it: inpainted, or by the visible background if that is ``still``.

    What other frames show at a pixel is then their median. Under a moving camera it is another part of the background.
    """
    place = find_place(frames, mask[:, None].float())
    if place is None:
        raise OptionError("no frame shows the old object: leave out pasted and pasted_true_pose")
    if not still:
        return place
    hidden = torch.from_numpy(grown(mask.numpy(), max(1, round(RIM * mask.shape[1]))))[:, None]
    median = frames.masked_fill(hidden, torch.nan).nanmedian(0).values
    known = torch.where(median.isnan(), place.frames, median)  # inpainted where no frame shows the background
    return replace(place, frames=torch.where(hidden, known, frames))
