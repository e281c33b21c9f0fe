"""The prediction writer: every edit becomes files in the run folder, complete or not at all."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from tave.correspondence import coarsen
from tave.files import whole_folder, write_json
from tave.inputs import truth_shape
from tave.pipeline import Edit, Target
from tave.progress import Progress
from tave.record import write_record
from tave.sampling import resize_mask
from tave.scratch import spans
from tave.video import (
    Clip,
    Footage,
    Overlay,
    contact_sheet,
    kept_as_pictures,
    mask_frames,
    open_footage,
    pasted,
    shaded,
    side_by_side,
    spread,
    write_image,
    write_like,
    write_mask_video,
    write_still,
    write_video,
)
from tave.video.frames import to_pixels

log = logging.getLogger(__name__)

SHOWN = 8  # frames in side_by_side.png


class RunWriter(BasePredictionWriter):
    """Writes ``edits/NAME/``: edited.mp4, network.mp4, mask.mp4, side_by_side.mp4 and .png, soft_mask.npz, field.npz,
    reference.png, edit.json.

    ``truths`` maps an edit's name to the folder of its known answer, copied beside it for the metrics; ``about`` to the
    content of ``edit.json``: how it was requested. ``footage``: the file that the edit is laid over; None: edited.mp4
    has the network's size, and there is no network.mp4. ``stills``: also write the frames and mattes as pictures.
    """

    def __init__(
        self,
        folder: Path,
        truths: Mapping[str, str],
        about: Mapping[str, Mapping[str, Any]],
        progress: Progress,
        footage: Footage | None = None,
        stills: bool = False,
    ) -> None:
        super().__init__(write_interval="batch")
        self.folder, self.truths, self.about, self.progress = folder, truths, about, progress
        self.footage, self.stills = footage, stills

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Edit,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        name = prediction.target.name
        with self.progress.stage("writing", f"writing {name}"):
            about, truth = self.about.get(name, {}), self.truths.get(name)
            write_edit(self.folder / "edits" / name, prediction, about, truth, self.footage, self.stills)


def write_edit(
    folder: Path,
    edit: Edit,
    about: Mapping[str, Any],
    truth: str | None = None,
    footage: Footage | None = None,
    stills: bool = False,
) -> None:
    """Write one edit into ``folder``, whole or not at all; an older one there goes when this one stands."""
    with whole_folder(folder, replace=True) as waiting:
        said = [] if footage is None else _lay_over(waiting, edit, footage, stills)
        if footage is None and stills:
            for number, (frame, alpha) in enumerate(zip(to_pixels(edit.frames), edit.alpha.cpu().numpy(), strict=True)):
                write_still(waiting, number, frame, alpha[0])
        write_video(waiting / ("network.mp4" if footage else "edited.mp4"), edit.frames, edit.clip.fps)
        _write_clips(waiting, edit)
        _write_arrays(waiting, edit)
        if truth is not None and _fits(Path(truth), edit.clip.frames):
            shutil.copytree(truth, waiting / "truth")
        notes = [*(reference.note for reference in edit.references), *edit.mask.notes, *said]
        recorded = {"name": edit.target.name, "target_prompt": edit.target.prompt, "notes": [n for n in notes if n]}
        write_json(waiting / "edit.json", recorded | _mapping(edit.clip) | dict(about))
        write_record(waiting)


def _lay_over(folder: Path, edit: Edit, footage: Footage, stills: bool) -> list[str]:
    """Write the clip as its file has it, with the edit in it. Returns what the user should know, which is logged."""
    pixels, alpha = edit.layer.pixels.cpu(), edit.alpha.cpu()
    overlay = Overlay(pixels, torch.ones_like(alpha) if edit.layer.whole else alpha)
    with open_footage(footage) as opened:
        frames = pasted(opened, overlay, footage.view)
        if stills:
            frames = kept_as_pictures(folder, frames, opened, footage.cut)
        notes = write_like(folder / "edited.mp4", opened, (base for base, _ in frames), footage)
    for note in notes:
        log.warning("edit %s: %s", edit.target.name, note)
    return notes


def _mapping(clip: Clip) -> dict[str, Any]:
    """Where the network's frames lie in the file, and when (docs/clips.md)."""
    size = {"network_size": [clip.frames.shape[-1], clip.frames.shape[-2]]}
    if clip.origin is None or clip.view is None:
        return size
    times = [round(float(time), 6) for time in clip.origin.times]
    return size | {"source_size": list(clip.origin.size), "crop": list(clip.view), "times": times}


def write_mask_preview(path: Path, clip: Clip, targets: Sequence[Target]) -> bool:
    """Show the first, middle and last frame under each mask that was given, a row each; whether there was one."""
    some = spread(len(clip.frames), 3)
    rows = [shaded(clip.frames[some], each.region[some]) for each in targets if each.region is not None]
    if rows:
        write_image(path, contact_sheet(rows, columns=3))
    return bool(rows)


def _write_clips(folder: Path, edit: Edit) -> None:
    source, edited, fps = edit.clip.frames, edit.frames, edit.clip.fps

    def resized(plane: Tensor, frames: slice | Sequence[int]) -> Tensor:
        return resize_mask(plane[:, frames], *source.shape[-2:]).cpu()

    masks = (mask for span in spans(len(source)) for mask in resized(edit.mask.mask, span))
    write_mask_video(folder / "mask.mp4", masks, fps)
    write_video(
        folder / "side_by_side.mp4",
        (
            side_by_side([here[None], shaded(here[None], resized(edit.mask.mask, [i])), there[None]])[0]
            for i, (here, there) in enumerate(zip(source, edited, strict=True))
        ),
        fps,
    )
    shown = spread(len(source), SHOWN)
    soft, mask = resized(edit.mask.soft, shown), resized(edit.mask.mask, shown)
    rows = [source[shown], mask_frames(soft), shaded(source[shown], mask), edited[shown]]
    write_image(folder / "side_by_side.png", contact_sheet(rows, SHOWN))
    for number, reference in enumerate(edit.references, 1):
        if reference.pictures:
            shown = reference.pictures[0]
            name = "reference.png" if number == 1 else f"reference-{number}.png"
            write_image(folder / name, shown[len(shown) // 2].cpu())


def _write_arrays(folder: Path, edit: Edit) -> None:
    mask = edit.mask
    np.savez_compressed(
        folder / "soft_mask.npz",
        soft=mask.soft[0, :, 0].cpu().numpy().astype(np.float32),
        binary=mask.binary[0, :, 0].cpu().numpy().astype(np.uint8),
        mask=mask.mask[0, :, 0].cpu().numpy().astype(np.uint8),
        per_step=mask.per_step.cpu().numpy().astype(np.float16),
        alpha=np.concatenate([opacity_bytes(edit.alpha[span, 0]) for span in spans(len(edit.alpha))]),
    )
    if edit.field is not None:
        grid = edit.field.following.shape[1:]
        np.savez_compressed(
            folder / "field.npz",
            previous=edit.field.previous.cpu().numpy().astype(np.int32),
            following=edit.field.following.cpu().numpy().astype(np.int32),
            mask=coarsen(mask.mask[0, :, 0].cpu(), *grid).numpy().astype(np.uint8),
        )


def _fits(truth: Path, source: Tensor) -> bool:
    """Whether the known answer is of these frames: it was drawn for one choice of frames and size."""
    known = truth_shape(truth)
    same = known == (len(source), *source.shape[-2:])
    if not same:
        log.warning("%s: drawn for a clip of shape %s, so this edit is not measured against it", truth, known)
    return same


def opacity_bytes(alpha: Tensor) -> np.ndarray:
    """Opacity in [0, 1] -> uint8; 0 and 255 stand for exactly 0 and exactly 1 alone."""
    inner = (alpha * 255).round().clamp(1, 254)
    return torch.where(alpha <= 0, 0, torch.where(alpha >= 1, 255, inner)).to(torch.uint8).numpy()
