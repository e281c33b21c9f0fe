"""The prediction writer: every edit becomes files in the run folder, whole or not at all."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from tave.cache import write_json
from tave.correspondence import coarsen
from tave.editor import Edit
from tave.files import whole_file
from tave.sampling import resize_mask
from tave.stages import Stages
from tave.video import contact_sheet, side_by_side, write_image, write_mask_video, write_video

log = logging.getLogger(__name__)


class RunWriter(BasePredictionWriter):
    """Writes ``edits/NAME/``: edited.mp4, mask.mp4, placed.mp4, side_by_side.mp4 and .png, soft_mask.npz, field.npz,
    reference.png, edit.json.

    ``truths`` maps an edit's name to the folder of its known answer, copied beside it for the metrics; ``about`` to
    what ``edit.json`` keeps of how it was asked for.
    """

    def __init__(self, folder: Path, truths: dict[str, str], about: dict[str, dict[str, Any]], stages: Stages):
        super().__init__(write_interval="batch")
        self.folder, self.truths, self.about, self.stages = folder, truths, about, stages

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
        with self.stages.stage("writing", f"writing {prediction.name}"):
            name = prediction.name
            write_edit(self.folder / "edits" / name, prediction, self.about.get(name, {}), self.truths.get(name))


def write_edit(folder: Path, edit: Edit, about: dict[str, Any], truth: str | None = None) -> None:
    """Write one edit into ``folder`` under a temporary name, then move it there in one step."""
    waiting = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(waiting, ignore_errors=True)
    waiting.mkdir(parents=True)
    try:
        _write_files(waiting, edit, about, truth)
        if folder.exists():
            shutil.rmtree(folder)
        waiting.rename(folder)
    finally:
        shutil.rmtree(waiting, ignore_errors=True)


def _write_files(folder: Path, edit: Edit, about: dict[str, Any], truth: str | None) -> None:
    source, fps = edit.clip.frames.cpu(), edit.clip.fps
    edited, alpha = edit.frames.cpu(), edit.alpha.cpu()
    mask = resize_mask(edit.mask.mask, *source.shape[-2:]).cpu()
    write_video(folder / "edited.mp4", edited, fps)
    write_mask_video(folder / "mask.mp4", mask, fps)
    rows = [source, shaded(source, mask), edited]
    write_video(folder / "side_by_side.mp4", side_by_side(rows), fps)
    heat = resize_mask(edit.mask.soft, *source.shape[-2:]).cpu().expand(-1, 3, -1, -1) * 2 - 1
    write_image(folder / "side_by_side.png", contact_sheet([source, heat, shaded(source, mask), edited]))
    for number, reference in enumerate(edit.references, 1):
        if (shown := reference.target) is not None:
            name = "reference.png" if number == 1 else f"reference-{number}.png"
            write_image(folder / name, shown[len(shown) // 2].cpu())
    outline = edit.mask.outline
    found: dict[str, Any] = {} if outline is None else {"outline": outline[:, 0].cpu().numpy().astype(np.uint8)}
    with whole_file(folder / "soft_mask.npz") as waiting, waiting.open("wb") as sink:
        np.savez_compressed(
            sink,
            soft=edit.mask.soft[0, :, 0].cpu().numpy().astype(np.float32),
            binary=edit.mask.binary[0, :, 0].cpu().numpy().astype(np.uint8),
            mask=edit.mask.mask[0, :, 0].cpu().numpy().astype(np.uint8),
            per_step=edit.mask.per_step.cpu().numpy().astype(np.float16),
            alpha=opacity_bytes(alpha[:, 0]),
            **found,
        )
    if edit.placed is not None:
        write_video(folder / "placed.mp4", edit.placed, fps)
    if edit.field is not None:
        grid = edit.field.following.shape[1:]
        np.savez_compressed(
            folder / "field.npz",
            previous=edit.field.previous.cpu().numpy().astype(np.int32),
            following=edit.field.following.cpu().numpy().astype(np.int32),
            mask=coarsen(edit.mask.mask[0, :, 0].cpu(), *grid).numpy().astype(np.uint8),
        )
    notes = "; ".join(dict.fromkeys(reference.note for reference in edit.references if reference.note))
    told = {
        "name": edit.name,
        "target_prompt": edit.prompt,
        "reference": edit.references[0].mode,
        "note": notes,
        "pose": None if edit.pose is None else edit.pose._asdict(),
    }
    write_json(folder / "edit.json", told | about)
    if truth is not None and _fits(Path(truth), source):
        shutil.copytree(truth, folder / "truth")


def _fits(truth: Path, source: Tensor) -> bool:
    """Whether the known answer is of these frames: it was drawn for one choice of frames and size."""
    with np.load(truth / "truth.npz") as stored:
        known = stored["source_mask"].shape
    same = known == (len(source), *source.shape[-2:])
    if not same:
        log.warning("%s: drawn for frames %s, so there is nothing to measure this edit against", truth, known)
    return same


def opacity_bytes(alpha: Tensor) -> np.ndarray:
    """Opacity in [0, 1] -> uint8 with 0 and 255 for exactly 0 and exactly 1 alone."""
    inner = (alpha * 255).round().clamp(1, 254)
    return torch.where(alpha <= 0, 0, torch.where(alpha >= 1, 255, inner)).to(torch.uint8).numpy()


def shaded(frames: Tensor, mask: Tensor) -> Tensor:
    """Frames with what lies outside the mask dimmed: shows at a glance what will be edited."""
    return torch.where(mask > 0.5, frames, (frames - 1) * 0.75 / 2 - 0.25)
