"""What is installed and what is missing: packages, device, weights, video, logging; and what to do next.

python -m tave.doctor
python -m tave.doctor backbone=sd21_unclip backbone.path=FOLDER
python -m tave.doctor segmenter=FOLDER

The exit code is 0 if the default run works here, whatever the larger models' weights and devices.
"""

from __future__ import annotations

import netrc
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import chain
from pathlib import Path

from tave.cli import Context, compose_options, entry_point
from tave.config import (
    PACKAGE,
    PRESETS,
    BackboneOptions,
    DoctorOptions,
    FootprintOptions,
    MemoryOptions,
    ReadOptions,
    WindowOptions,
)
from tave.fitting import LIBRARIES, counted, fitted, words
from tave.footprint import preset
from tave.keys import choices_of

EXAMPLE = "bus_to_suv"
DEFAULT_RUN = f"python -m tave.train video={EXAMPLE}"


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``good``: None for information; a bad one that is ``needed`` stops the default run."""

    area: str
    name: str
    text: str
    good: bool | None = None
    needed: bool = False
    remedy: str = ""


def works(findings: list[Finding]) -> bool:
    """Whether the default run works."""
    return not any(finding.needed and finding.good is False for finding in findings)


def packages(wanted: list[str] | None = None) -> Iterator[Finding]:
    """Each package that tave requires, against its lower bound."""
    from packaging.requirements import Requirement

    yield Finding("package", "python", platform.python_version(), True)
    try:
        wanted = (requires("tave") or []) if wanted is None else wanted
    except PackageNotFoundError:
        yield Finding("package", "tave", "not installed", False, True, "install it: make setup, or pip install -e .")
    for requirement in map(Requirement, wanted or []):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, bound = requirement.name, requirement.specifier
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "missing"
        if found != "missing" and bound.contains(found, prereleases=True):
            yield Finding("package", name, found, True, True)
        else:
            yield Finding("package", name, f"{found}, needed {bound}", False, True, f"pip install '{name}{bound}'")


def device() -> Iterator[Finding]:
    """The device that the Trainer would take, its memory, the preset that suits it, and the frames that then fit."""
    import torch

    if torch.cuda.is_available():
        size, name = torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
        yield Finding("device", "GPU", f"{name}, {size / 1e9:.0f} GB, CUDA {torch.version.cuda}", True)
        yield _preset(size)
        yield _automatic(size)
    elif torch.backends.mps.is_available():
        yield Finding("device", "GPU", "Apple's", True)
    else:
        threads = f"{torch.get_num_threads()} thread(s)"
        yield Finding("device", "GPU", f"none; CPU, {threads}: enough for the drawn world")


def _preset(size: int) -> Finding:
    from tave.counting import SHAPES, footprint

    name = fitting(size)
    if name is None:
        remedy = "real weights need a card of 8 GB or more"
        return Finding("device", "preset", "none: the smallest is for 8 GB", False, remedy=remedy)
    settings = (SHAPES["sd21_unclip"], *preset(name))
    most = room(size, lambda frames, side: footprint(*settings, frames, side).peak, native_sides())
    good, bad = ([side for side, count in most.items() if bool(count) == fits] for fits in (True, False))
    text = f"memory={name}, room for {' or '.join(f'{most[side]} frames of {side} px' for side in good) or 'nothing'}"
    text += f", not for {' or '.join(f'{side} px' for side in bad)}" if bad else ""
    remedy = ""
    if good and bad:
        remedy = f"frames of {bad[0]} px do not fit here: add video.width={good[-1]} video.height={good[-1]}"
    return Finding("device", "preset", f"{text}; counted for SD 2.1 unCLIP", bool(good), remedy=remedy)


def _automatic(size: int) -> Finding:
    """What ``memory=auto`` does for windows of the default length."""
    from tave.counting import SHAPES

    memory, frames = MemoryOptions(auto=True), WindowOptions().frames
    texts = []
    for side in native_sides():
        count = partial(counted, SHAPES["sd21_unclip"], precision="32-true", frames=frames, side=side)
        found = fitted(memory, lambda way, count=count: count(memory=way), size)
        what = "doesn't fit" if found is None else words(found, memory) or "saves nothing"
        texts.append(f"{frames} frames of {side} px: {what}")
    return Finding("device", "memory=auto", f"{'; '.join(texts)}; counted for SD 2.1 unCLIP in float32")


def room(size: int, peak: Callable[[int, int], int], sides: list[int]) -> dict[int, int]:
    """Side of square frames in pixels -> the largest number of frames that fits a device of ``size`` bytes; 0: none.

    peak: (frames, side) -> bytes, for the numbers of frames of ``python -m tave.footprint``.
    """
    counts = sorted(FootprintOptions().frames, reverse=True)
    return {side: next((n for n in counts if peak(n, side) + LIBRARIES <= size), 0) for side in sides}


def native_sides() -> list[int]:
    """Sides in pixels of the frames of the real checkpoints."""
    chosen = [compose_options("doctor", [f"backbone={name}"]) for name in _backbones()]
    return sorted({int(options.video.width or 0) for options in chosen if not _is_shipped(options.backbone)})


def fitting(size: int) -> str | None:
    """The largest memory preset for a device of ``size`` bytes; cards hold a little less than their nominal size."""
    sizes = {int(name.removesuffix("gb")): name for name in PRESETS if name.endswith("gb")}
    fits = [gigabytes for gigabytes in sizes if gigabytes <= size / 1e9 * 1.02]
    return sizes[max(fits)] if fits else None


def weights(asked: BackboneOptions = BackboneOptions()) -> Iterator[Finding]:
    """Each backbone of ``conf/backbone``, loaded if its files are found; ``asked`` replaces the one by its name."""
    from tave.backbone import BackboneMissingError, load_backbone
    from tave.files import FileError

    candidates = {f"backbone={name}": compose_options("doctor", [f"backbone={name}"]).backbone for name in _backbones()}
    wanted = None
    if asked.chosen:
        same = (key for key, o in candidates.items() if o == asked or (asked.name is not None and o.name == asked.name))
        wanted = next(same, "your backbone")
        candidates[wanted] = asked
    for shown, options in candidates.items():
        shipped = _is_shipped(options)
        try:
            found = load_backbone(options)
        except FileError as error:
            if isinstance(error, BackboneMissingError) and not shipped and shown != wanted:
                lacking = f"found without backbone.{error.key}: see docs/real_weights.md"
                yield Finding("weights", shown, "not found" if error.key == "path" else lacking)
            else:
                remedy = f"{shown}: see what is wrong with its files"
                yield Finding("weights", shown, str(error), False, shipped, remedy)
            continue
        weights = [file for file in found.hashes if file.endswith(".safetensors")]
        verified = [] if shipped else [file for file in weights if file not in found.unverified]
        text = [f"{'shipped' if shipped else 'found'}; loads"]
        text += [f"verified: {', '.join(verified)}"] if verified else []
        text += [f"no published SHA-256: {', '.join(found.unverified)}"] if found.unverified else []
        yield Finding("weights", shown, "; ".join(text), True, shipped)


def _is_shipped(options: BackboneOptions) -> bool:
    return options.path is not None and Path(options.path).is_relative_to(PACKAGE)


def _backbones() -> list[str]:
    """The files of ``conf/backbone`` that name weights."""
    return [name for name in choices_of("backbone") if name not in ("tiny", "folder")]


def segmenter(path: str) -> Iterator[Finding]:
    """The network of ``reference.segmenter``, loaded."""
    from tave.reference.cutout import MatteError
    from tave.reference.segmenter import load_segmenter

    try:
        found = load_segmenter(path)
        weights = sum(file.endswith(".safetensors") for file in found.hashes)
        text = f"found, {len(found.classes)} classes, {weights} file(s) without a published SHA-256; loads"
        yield Finding("matte", path, text, True)
    except MatteError as error:
        yield Finding("matte", path, str(error), False, remedy=f"segmenter={path}: see what is wrong with its files")


def video(clip: Path | None = None) -> Iterator[Finding]:
    """Whether each reader decodes ``clip``, by default the example's, which is drawn at the first use."""
    import av

    from tave.roadside.resolver import VARIABLE, drawn
    from tave.video import read_clip

    try:
        clip = clip or Path(drawn(EXAMPLE)) / "source.mp4"
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        remedy = f"{VARIABLE}=FOLDER chooses where clips are drawn; else pip install --force-reinstall av"
        yield Finding("video", "the example clip", f"can't be drawn: {_line(error)}", False, True, remedy)
        return
    try:
        with av.open(str(clip)) as container:
            count = sum(1 for _ in container.decode(video=0))
        yield Finding("video", f"PyAV {av.__version__}", f"decodes {count} frames", True, True)
    except (OSError, ValueError) as error:  # FFmpegError is one or the other
        yield Finding("video", "PyAV", _line(error), False, True, "pip install --force-reinstall av")
    try:
        import decord

        count = len(decord.VideoReader(str(clip), num_threads=1))
        yield Finding("video", f"decord {decord.__version__}", f"decodes {count} frames", True)
    except (ImportError, OSError, RuntimeError) as error:
        yield Finding("video", "decord", f"{_line(error)}; PyAV is used instead")
    try:
        shape = tuple(read_clip(clip, ReadOptions(multiple=1)).frames.shape)
        yield Finding("video", "the example clip", f"read as {shape}", True, True)
    except ValueError as error:
        yield Finding("video", "the example clip", _line(error), False, True, "pip install --force-reinstall av")


def logging_() -> Iterator[Finding]:
    """Whether W&B has a key; the key is neither shown nor tried."""
    try:
        known = any("wandb" in host for host in netrc.netrc(os.environ.get("NETRC")).hosts)
    except (OSError, netrc.NetrcParseError):
        known = False
    place = "WANDB_API_KEY" if os.environ.get("WANDB_API_KEY") else "netrc" if known else None
    text = f"a key in {place}" if place else "no key: runs are logged offline; `wandb login` adds one"
    yield Finding("logging", "W&B", text, True if place else None)


def small_edit() -> Iterator[Finding]:
    """The default run with one tuning step and few frames, into a temporary folder."""
    from tave.train import train

    words = [f"video={EXAMPLE}", "video.frames=2", "video.edits.suv.truth=null", "tuning.steps=1", "inversion.steps=2"]
    words += ["inversion.gate=off", "metrics.enabled=false", "logger=none", "report=false"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            options = compose_options("train", [*words, f"cache={folder}/cache"])
            train(options, Path(folder) / "run", show=False)
            good = (Path(folder) / "run/edits/suv/edited.mp4").is_file()
            yield Finding("run", "a small edit", "from clip to mp4" if good else "wrote no clip", good, True)
        except (OSError, ValueError, RuntimeError) as error:
            yield Finding("run", "a small edit", _line(error), False, True, f"{DEFAULT_RUN} shows more")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def examine(options: DoctorOptions) -> Iterator[Finding]:
    """All checks, one after another."""
    parts = [packages(), device(), weights(options.backbone), video(), logging_()]
    parts += [segmenter(options.segmenter)] if options.segmenter else []
    return chain(*parts, small_edit() if options.edit else ())


def report(findings: list[Finding]) -> Iterator[str]:
    """The lines of the report: a table of the findings, then what to do next."""
    width, area = max(len(finding.name) for finding in findings), ""
    for finding in findings:
        mark = {True: "ok", False: "no", None: "-"}[finding.good]
        yield f"{finding.area if finding.area != area else '':<8} {mark:<2} {finding.name:<{width}} {finding.text}"
        area = finding.area
    yield f"\nThe default run {'works' if works(findings) else 'does not work'} here. Next:"
    following = [finding.remedy for finding in findings if finding.remedy] + [DEFAULT_RUN] * works(findings)
    if works(findings) and not any(f.area == "weights" and f.good and not f.needed for f in findings):
        following.append("for real footage: weights, see docs/real_weights.md, then python -m tave.doctor again")
    yield from (f"  {line}" for line in dict.fromkeys(following))


def _work(options: DoctorOptions, _: Context) -> None:
    from rich.console import Console

    findings: list[Finding] = []
    with Console(stderr=True).status("looking") as status:
        for finding in examine(options):
            findings.append(finding)
            status.update(f"{finding.area}: {finding.name}")
    print("\n".join(report(findings)))
    if not works(findings):
        raise SystemExit(1)


main = entry_point("what is installed here, and what is missing", "doctor", _work)

if __name__ == "__main__":
    main()
