"""What any table must hold beside the methods: edits that take no skill, made from a finished run's files (ROADSIDE).

A metric that one of them wins is a metric to distrust. They reuse the masks of the run's own edit, so that every figure
that asks for a region looks at the same place.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tave.cache import read_json, write_json
from tave.config import EditEntry, TrainOptions, typed
from tave.files import file_digest
from tave.listing import ListedCase
from tave.options import OptionError, choice
from tave.stages import Stages
from tave.video import (
    Clip,
    ReadOptions,
    contact_sheet,
    read_clip,
    write_image,
    write_mask_video,
    write_video,
)

WHOLE = ReadOptions(frames=None, multiple=1)
OURS = "tave"


def make(name: str, home: Path, case: ListedCase) -> None:
    """Make the control ``name`` of ``case`` as ``home/edits/NAME``, beside the edit of the row ``tave``.

    source_unchanged: the source; frozen_first_frame: the first edited frame throughout; target_pasted: the target
    image's object put in the place and pose that the row's own edit found, and no more (the source where that found none);
    per_frame: every frame edited alone, by the image model.
    """
    choice("controls", name, tuple(CONTROLS))
    ours = home / "edits" / OURS
    if not (ours / "edit.json").is_file():
        raise OptionError(f"{home}: the control {name} is made from the row {OURS}, which is not there: ask for both")
    source = read_clip(home / "source.mp4", WHOLE)
    frames = CONTROLS[name](home, source, case)
    waiting = ours.with_name(f".{name}.part")
    shutil.rmtree(waiting, ignore_errors=True)
    shutil.copytree(ours, waiting)
    for stale in ("side_by_side.mp4", "reference.png", "placed.mp4"):
        (waiting / stale).unlink(missing_ok=True)
    write_video(waiting / "edited.mp4", frames, source.fps)
    write_image(waiting / "side_by_side.png", contact_sheet([source.frames, frames]))
    told = _asked_of(ours) | {"name": name, "control": True, "made_from": file_digest(ours / "edited.mp4")}
    write_json(waiting / "edit.json", told)
    shutil.rmtree(home / "edits" / name, ignore_errors=True)
    waiting.rename(home / "edits" / name)


def outdated(name: str, home: Path) -> bool:
    """Whether the control that stands was made from another edit than the row ``tave`` is now; False if that isn't there."""
    ours, control = home / "edits" / OURS, home / "edits" / name
    if not (ours / "edit.json").is_file():
        return False
    made_from = read_json(control / "edit.json").get("made_from")  # older controls don't tell
    masks = [(edit / "soft_mask.npz").read_bytes() for edit in (ours, control)]
    same = _asked_of(ours) == _asked_of(control) and masks[0] == masks[1]
    return not same or made_from not in (None, file_digest(ours / "edited.mp4"))


def _asked_of(edit: Path) -> dict[str, Any]:
    """What ``edit.json`` tells of how it was asked for: the same of a control and of the edit it was made from."""
    told = read_json(edit / "edit.json")
    return {key: value for key, value in told.items() if key not in ("name", "control", "made_from", "benchmark")}


def region_told(home: Path, case: ListedCase, cut: ReadOptions) -> Path:
    """What an oracle's row is told, as a mask clip for ``video.mask`` in the run ``home``.

    The truth's own region, source or target object; where nobody has drawn the answer, the annotated source object.

    Raises:
        OptionError: another region was told to the rows that stand there.
    """
    source = read_clip(home / "source.mp4", WHOLE)
    if case.truth:
        with np.load(Path(case.truth) / "truth.npz") as truth:
            region = torch.from_numpy(truth["source_mask"] | truth["target_mask"])
    else:
        from eval.annotations import read_annotations

        region = read_annotations(Path(case.annotations or ""), source.frames, cut)
    path = home / "region_told.mp4"
    if path.is_file():
        before = read_clip(path, WHOLE).frames.mean(1) > 0
        if before.shape != region.shape or not torch.equal(before, region):
            raise OptionError(f"{path} isn't what truth or annotations tell today: give another folder=..., or delete {home}")
        return path
    write_mask_video(path, region[:, None].float(), source.fps)
    return path


def _unchanged(home: Path, source: Clip, case: ListedCase) -> Tensor:
    return source.frames


def _frozen(home: Path, source: Clip, case: ListedCase) -> Tensor:
    return read_clip(home / "edits" / OURS / "edited.mp4", WHOLE).frames[:1].expand_as(source.frames).contiguous()


def _pasted(home: Path, source: Clip, case: ListedCase) -> Tensor:
    placed = home / "edits" / OURS / "placed.mp4"
    return read_clip(placed, WHOLE).frames if placed.is_file() else source.frames


def _alone(home: Path, source: Clip, case: ListedCase) -> Tensor:
    from tave.edit import recorded
    from tave.run import Run

    options: TrainOptions = typed(recorded(home))
    entry = EditEntry(case.target_image, case.target_prompt, case.matte)
    # no loggers: theirs would be runs of single frames, in a folder that goes
    options = replace(options, tuning=replace(options.tuning, trainables="none"), logger={})
    frames = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(len(source.frames)):
            place = Path(scratch) / str(number)
            place.mkdir()
            clip = replace(source, frames=source.frames[number : number + 1])
            with closing(Run(replace(options, cache=str(place / "cache")), place, clip, Stages(show=False), None)) as run:
                run.predict({"alone": entry})
            frames.append(read_clip(place / "edits" / "alone" / "edited.mp4", WHOLE).frames)
    return torch.cat(frames)


CONTROLS: dict[str, Callable[[Path, Clip, ListedCase], Tensor]] = {
    "source_unchanged": _unchanged,
    "frozen_first_frame": _frozen,
    "target_pasted": _pasted,
    "per_frame": _alone,
}
