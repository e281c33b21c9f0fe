"""A run made again in a temporary folder, from what its folder records, and compared bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import torch

from tave.cache import read_about, read_tensors
from tave.cli import typed
from tave.config import EditEntry, EditingOptions, TrainOptions, VerifyOptions
from tave.edit import edit, options_of
from tave.files import FileError
from tave.findings import Finding, find_input
from tave.origin import origin
from tave.pipeline import RECONSTRUCTION
from tave.progress import Progress
from tave.record import keep_places, read_edit, read_metrics, read_run, taken
from tave.run import Run
from tave.source import clip_of, footage_of
from tave.video import Footage, read_clip, write_video

COMPARED = (".mp4", ".png", ".npz")
THREADS = 256  # more than that no run has
PLATFORM = {"versions": ("torch", "diffusers", "transformers"), "hardware": ("machine", "gpu")}


def remade(run: Path, options: VerifyOptions) -> Iterator[Finding]:
    """Tune and edit again, and say what differs. What can't be made again is a finding too."""
    yield from _platform(read_run(run))
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="tave-verify-") as place:
        again = Path(place) / "run"
        try:
            base = _options(run, options, Path(place))
            footage = footage_of(run, base.video, options.inputs)
            yield from _tuning(run, again, base, footage)
            for folder in sorted(path for path in run.glob("edits/[!.]*") if path.is_dir()):
                yield from _edit(folder, again, base, options, footage)
            yield from _figures(run, again)
            if (run / "trajectory.safetensors").is_file() and (again / "trajectory.safetensors").is_file():
                yield _same_tensors(run, again, "trajectory.safetensors")
        except ValueError as error:
            yield Finding(False, f"{run} can't be made again: {error}")
        finally:
            torch.set_num_threads(threads)


def _platform(record: Mapping[str, Any]) -> Iterator[Finding]:
    """What of this machine differs from the run's, so that bits may; the number of threads is made the same."""
    here, was = origin(), {key: value if isinstance(value := record.get(key), dict) else {} for key in PLATFORM}
    other = [
        f"{name} {was[part].get(name)}, here {here[part][name]}"
        for part, names in PLATFORM.items()
        for name in names
        if was[part].get(name) != here[part][name]
    ]
    if other:
        yield Finding(None, f"made on another platform ({'; '.join(other)}): bits may differ without any change")
    threads = was["hardware"].get("threads")
    if isinstance(threads, int) and 0 < threads <= THREADS:
        torch.set_num_threads(threads)


def _options(run: Path, options: VerifyOptions, place: Path) -> TrainOptions:
    base = typed(options_of(run))
    given = {key: value for key in ("path", "adapter") if (value := getattr(options.backbone, key)) is not None}
    return replace(base, cache=str(place / "cache"), logger={}, report=False, backbone=replace(base.backbone, **given))


def _tuning(run: Path, again: Path, base: TrainOptions, footage: Footage | None) -> Iterator[Finding]:
    """Tune again on the original clip if it is here, else on ``source.mp4``."""
    shown = clip_of(run)
    if footage is None:
        yield Finding(None, f"{run / 'source.mp4'}: the original clip isn't recorded or not here: made again from this")
    clip = shown if footage is None else read_clip(footage.path, footage.cut, footage.view)
    if not torch.equal(clip.frames, shown.frames):
        yield Finding(False, f"{run / 'source.mp4'} doesn't show the frames that are read from the original clip")
    again.mkdir(parents=True)
    write_video(again / "source.mp4", clip.frames, clip.fps, lossless=True)
    with closing(Run(base, again, clip, Progress(show=False))) as made:
        made.tune()
        made.record()
    yield _same_tensors(run, again, "tuned.safetensors")


def _edit(
    folder: Path, again: Path, base: TrainOptions, options: VerifyOptions, footage: Footage | None
) -> Iterator[Finding]:
    """Make one edit again, and compare its files and figures."""
    record, name = read_edit(folder), folder.name
    if record.get("control") and isinstance(record.get("benchmark"), dict):
        yield Finding(None, f"{folder}: labelled as a control, which tave.benchmark makes: not made again")
        return
    try:
        entry = _entry(folder, record, options)
        chosen = replace(base, video=replace(base.video, edits={name: entry}), **_editing(folder, record))
        laid_over = (folder / "network.mp4").is_file()
        edit(again, chosen, overwrite=True, footage=footage if laid_over else None, show=False)
    except ValueError as error:
        yield Finding(False, f"{folder} can't be made again: {error}")
        return
    made = again / "edits" / name
    files = {path.name for each in (folder, made) for path in each.iterdir() if path.suffix in COMPARED}
    if laid_over and footage is None:
        files.remove("edited.mp4")
        yield Finding(None, f"{folder / 'edited.mp4'}: the clip is not here: give inputs=FOLDER, which holds it")
        (made / "edited.mp4").rename(made / "network.mp4")
    other = [file for file in sorted(files) if _bytes(folder / file) != _bytes(made / file)]
    yield Finding(
        not other,
        f"{folder}: made again, {', '.join(other)} differ" if other else f"{len(files)} files of {folder}, made again",
    )


def _figures(run: Path, again: Path) -> Iterator[Finding]:
    """The figures in ``metrics.json``, of each edit and of the inversion, against those made again."""
    path = run / "metrics.json"
    was, made = (read_metrics(folder) for folder in (run, again))
    trajectory = again / "trajectory.safetensors"
    about = read_about(trajectory) if trajectory.is_file() else {}
    pairs = {"the inversion": ({key: was[key] for key in RECONSTRUCTION if key in was}, about)}
    pairs |= {name: (each, made.get("edits", {}).get(name, {})) for name, each in was.get("edits", {}).items()}
    for name, (before, now) in pairs.items():
        wrong = sorted(key for key in before.keys() & now.keys() if before[key] != now[key])
        if wrong:
            yield Finding(False, f"{path}: {', '.join(wrong)} of {name} differ, made again")
        elif same := before.keys() & now.keys():
            yield Finding(True, f"{path}: {len(same)} figures of {name}, made again")
        if left := sorted(before.keys() - now.keys()):
            yield Finding(None, f"{path}: {', '.join(left)} of {name} are not measured here: not checked")


def _entry(folder: Path, record: Mapping[str, Any], options: VerifyOptions) -> EditEntry:
    """The request of an edit, with its inputs where they are now. Raises :class:`FileError` for one that isn't here."""

    def found(each: Any, key: str, digest: str) -> str | None:
        path = each.get(key) if isinstance(each, dict) else None
        if path is None:
            return None
        here = find_input(str(path), each.get(digest), options.inputs)
        if here is None:
            raise FileError(f"{path} is not here as it was: give inputs=FOLDER, which holds it")
        return str(here)

    more = record.get("more_images")
    images = [record, *(more if isinstance(more, list) else ())]
    mattes = [found(each, "matte", "matte_sha256") for each in images]
    return EditEntry(
        target_image=[found(each, "target_image", "sha256") for each in images],
        target_prompt=str(record.get("target_prompt")),
        matte=mattes if all(mattes) else None,
        mask=found(record, "mask", "mask_sha256"),
        object=number if isinstance(number := record.get("object"), int) else None,
        mask_inverted=record.get("mask_inverted") is True,
        truth=str(folder / "truth") if (folder / "truth").is_dir() else None,
    )


def _editing(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the stages after tuning that ``edit.json`` records."""
    stored, hints = record.get("options"), get_type_hints(EditingOptions)
    if not isinstance(stored, dict):
        raise FileError(f"{folder / 'edit.json'} records no options: make the edit again")
    groups = {key: taken(folder / "edit.json", key, stored[key], kind) for key, kind in hints.items() if key in stored}
    keep_places(groups, record)
    return {key: hints[key](**group) for key, group in groups.items()}


def _same_tensors(run: Path, again: Path, name: str) -> Finding:
    one, other = (read_tensors(folder / name)[0] for folder in (run, again))
    same = one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    return Finding(same, f"{run / name}: made again, {'the same bits' if same else 'it differs'}")


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
