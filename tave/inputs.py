"""What the user gives for an edit, read and checked before any long work: target images, mattes, masks, prompts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tave.config import BackboneOptions, EditEntry, OptionError, ReadOptions, ReferenceOptions, TrainOptions
from tave.crop import overview
from tave.files import content_digest, file_digest
from tave.memory import at_work
from tave.pipeline import Target
from tave.progress import Progress
from tave.reference import MatteError, TargetImage, matte
from tave.reference.segmenter import load_segmenter
from tave.scratch import Scratch
from tave.video import (
    Clip,
    MaskRequest,
    Masks,
    View,
    find_cuts,
    read_clip,
    read_image,
    read_masks,
    read_matte,
    shown_size,
)
from tave.video.view import SMALLEST


def read_targets(
    entries: Mapping[str, EditEntry],
    clip: Clip,
    cut: ReadOptions,
    reference: ReferenceOptions,
    say: Callable[[str], None],
    scratch: Scratch = Scratch(),
) -> list[Target]:
    """The requested edits. Raises ValueError, in one line, for what sampling or measuring would fail at.

    ``cut``: how the clip was read, so that a mask of the whole file gets the same frames and size. ``say`` gets what
    the user should know of the masks, line by line. Masks lie in ``scratch``.
    """
    targets, notes = [], list[str]()
    for name, entry in entries.items():
        if entry.truth and not Path(entry.truth, "truth.npz").is_file():
            raise OptionError(f"video.edits.{name}.truth={entry.truth} has no truth.npz: give a drawn clip's, or null")
        if entry.truth:
            truth_shape(Path(entry.truth))
        images = [TargetImage(*read_image(path), None if m is None else read_matte(m)) for path, m in entry.images]
        masks = None if entry.mask is None else _masks(entry, clip, cut, scratch)
        notes += masks.notes if masks else []
        for image, (path, _) in zip(images, entry.images, strict=True):
            if reference.mode not in ("as_is", "none") and reference.matte != "segmented":
                try:
                    matte(image.rgb, image.alpha, image.matte, reference.matte)
                except MatteError as error:
                    raise MatteError(f"{path}: {error}") from None
        region, box = (masks.inside, masks.box) if masks else (None, None)
        targets.append(Target(name, entry.target_prompt, images, region, box))
    for note in dict.fromkeys(notes):  # edits may have one mask
        say(note)
    return targets


def truth_shape(truth: Path) -> tuple[int, ...]:
    """Frames, height and width of the known answer of a drawn clip. Raises :class:`OptionError` for a damaged file."""
    from tave.eval.cases import read_arrays  # pyright: ignore[reportMissingImports]

    try:
        return read_arrays(truth / "truth.npz", ("source_mask",))["source_mask"].shape
    except ValueError as error:
        raise OptionError(f"{str(error).partition('; make')[0]}: delete its folder, and it is drawn again") from error


def first_view(options: TrainOptions) -> View | None:
    """The view of whole frames in which the object is to be found before anything else; None where that is not due."""
    return overview(shown_size(options.video.path), options.video) if options.mask.region == "found" else None


def first_clip(options: TrainOptions, scratch: Scratch = Scratch()) -> tuple[View | None, Clip]:
    """:func:`first_view`, and the clip as it is read first."""
    view = first_view(options)
    return view, read_clip(options.video.path, options.video, view, scratch)


def clip_notes(clip: Clip) -> list[str]:
    """What the user should know of the clip before it is tuned on: what was left out of the file, and cuts.

    Raises :class:`OptionError` for a clip that shows too little to edit, at whatever size it was read.
    """
    if clip.origin and min(clip.origin.size) < SMALLEST:
        width, height = clip.origin.size
        raise OptionError(
            f"{clip.origin.path}: is {width}x{height}, too small to edit: give a clip of {SMALLEST} px a side or more"
        )
    summary = clip.origin.summary if clip.origin else None
    notes = [summary] if summary else []
    if cuts := find_cuts(clip.frames):
        where = " and ".join(f"{at - 1} and {at}" for at in cuts)
        notes.append(
            f"the clip seems to be cut between frames {where}: an edit takes it for one shot; "
            "choose one with video.start and video.frames"
        )
    return notes


def segment_targets(
    targets: Sequence[Target], segmenter: str, device: torch.device, progress: Progress
) -> tuple[list[Target], dict[str, str]]:
    """``targets`` with the segmenter's matte of each image, and the SHA-256 of its weights; it is freed afterwards."""
    with progress.stage("segmenting", "cutting out the target", steps=False):
        network = load_segmenter(segmenter)
        with at_work(network.model, device):
            cuts = [[network.cut(image.rgb, target.prompt) for image in target.images] for target in targets]
    found = ", ".join(f"{cut.name} ({cut.confidence:.2f})" for each in cuts for cut in each)
    progress.note(f"{network.name} cut out: {found}; edit.json records the SHA-256 of its (unverified) weights")
    mattes = [
        replace(target, images=[replace(i, matte=cut.matte) for i, cut in zip(target.images, each, strict=True)])
        for target, each in zip(targets, cuts, strict=True)
    ]
    return mattes, dict(network.hashes)


def _masks(entry: EditEntry, clip: Clip, cut: ReadOptions, scratch: Scratch) -> Masks:
    """The masks of ``entry`` for ``clip``. Raises like :func:`read_masks`."""
    height, width = clip.frames.shape[-2:]
    shown = clip.origin.size if clip.origin else None
    request = MaskRequest(
        Path(entry.mask or ""),
        len(clip.frames),
        (width, height),
        cut,
        "video.mask",
        shown,
        entry.object,
        entry.mask_inverted,
    )
    return read_masks(request, clip.view, scratch)


def knowledge_notes(backbone: BackboneOptions, source_prompt: str, entries: Mapping[str, EditEntry]) -> list[str]:
    """Warnings of a backbone that ``knows`` few nouns: for a clip that is not drawn, and prompts without them."""
    if not backbone.knows:
        return []
    nouns = ", ".join(backbone.knows)
    notes = []
    if entries and not any(entry.truth for entry in entries.values()):
        notes.append(
            f"this backbone only knows drawings of {nouns}; footage needs real weights: "
            "backbone=sd21_unclip_small backbone.path=FOLDER (docs/real_weights.md)"
        )
    prompts = dict.fromkeys([source_prompt, *(entry.target_prompt for entry in entries.values())])
    unknown = [p for p in prompts if not {*re.findall(r"\w+", p.lower())} & {*backbone.knows}]
    return notes + [f"{prompt!r} names nothing that this backbone knows ({nouns})" for prompt in unknown]


def request_record(entry: EditEntry) -> dict[str, Any]:
    """What ``edit.json`` records of the files of a request."""
    images = [
        {"target_image": _whole(path), "sha256": file_digest(path)}
        | {"matte": m and _whole(m), "matte_sha256": m and file_digest(m)}
        for path, m in entry.images
    ]
    mask = {"mask": entry.mask and _whole(entry.mask), "mask_sha256": entry.mask and content_digest(entry.mask)}
    how = {"object": entry.object, "mask_inverted": entry.mask_inverted}
    return {**images[0], "more_images": images[1:], **mask, **how}  # the metrics compare with the first


def input_digests(options: TrainOptions) -> dict[str, str]:
    """SHA-256 of the input files by absolute path: the clip first, target images, mattes and masks that exist."""
    entries = options.video.requests().values()
    pictures = [path for entry in entries for pair in entry.images for path in pair]
    paths = [options.video.path, *pictures, *(entry.mask for entry in entries)]
    here = [path for path in dict.fromkeys(paths) if path and Path(path).expanduser().exists()]
    return {_whole(path): content_digest(path) for path in here}


def _whole(path: str) -> str:
    """The path as a record keeps it, so that it is found from any folder."""
    return os.path.abspath(Path(path).expanduser())  # noqa: PTH100 - Path.absolute keeps ".."
