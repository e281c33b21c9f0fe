"""What is here and what is missing: packages, device, weights, video, logging; and what to do next.

    python -m tave.doctor
    python -m tave.doctor backbone=sd21_unclip backbone.path=FOLDER    are these its files? The keys are those of training
    python -m tave.doctor segmenter=FOLDER     is this a network that can cut a target image out?

The exit code is 0 if the default run works here, weights and devices of larger models aside.
"""

from __future__ import annotations

import netrc
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import compose
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from tave.backbone import Backbone, BackboneError, BackboneMissingError
from tave.config import CONF, PACKAGE, schema, typed
from tave.footprint import LIBRARIES, SHAPES, FootprintOptions, footprint, preset
from tave.options import OptionError
from tave.reference import MatteError, load_segmenter
from tave.train import guarded
from tave.video import ReadOptions, read_clip

CLIP = PACKAGE / "roadside" / "clips" / "bus_to_suv" / "source.mp4"
FRAMES = 8


@dataclass
class DoctorOptions:
    """The root of ``conf/doctor.yaml``. ``backbone``: one to try, as for training; ``edit``: try a small edit as well.

    ``segmenter``: a folder with a segmentation network, or its name in the hub's local cache.
    """

    backbone: dict[str, Any] = field(default_factory=dict)
    video: dict[str, Any] = field(default_factory=dict)  # this and the next: what an option for a backbone brings along
    tuning: dict[str, Any] = field(default_factory=dict)
    inversion: dict[str, Any] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    mask: dict[str, Any] = field(default_factory=dict)
    correction: dict[str, Any] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)
    segmenter: str | None = None
    edit: bool = True

    def __post_init__(self) -> None:
        if self.backbone and "_target_" not in self.backbone:
            raise OptionError("backbone.path goes with an option for it: add for example backbone=sd21_unclip")


@dataclass(frozen=True)
class Finding:
    """One line. ``good``: None for what is merely told; a bad one that is ``needed`` stops the default run."""

    area: str
    name: str
    told: str
    good: bool | None = None
    needed: bool = False
    remedy: str = ""


@dataclass
class Report:
    """All findings, and those lines that say what to do next."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def works(self) -> bool:
        return not any(finding.needed and finding.good is False for finding in self.findings)

    @property
    def remedies(self) -> list[str]:
        return list(dict.fromkeys(finding.remedy for finding in self.findings if finding.remedy))


def packages(wanted: list[str] | None = None) -> Iterator[Finding]:
    """Each package that tave asks for, against its lower bound."""
    try:
        told = (requires("tave") or []) if wanted is None else wanted
    except PackageNotFoundError:
        told = []
        yield Finding("package", "tave", "not installed", False, True, "install it: make setup, or pip install -e .")
    yield Finding("package", "python", platform.python_version(), True)
    for requirement in map(Requirement, told):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = "missing"
        good = found != "missing" and requirement.specifier.contains(found, prereleases=True)
        bound = str(requirement.specifier)
        remedy = "" if good else f"pip install '{requirement.name}{bound}'"
        yield Finding("package", requirement.name, found if good else f"{found}, needed {bound}", good, True, remedy)


def device() -> Iterator[Finding]:
    """Which device the Trainer would take, its memory, the preset that suits it, and which frames fit with that."""
    if torch.cuda.is_available():
        size = torch.cuda.get_device_properties(0).total_memory
        yield Finding("device", "GPU", f"{torch.cuda.get_device_name(0)}, {size / 1e9:.0f} GB, CUDA {torch.version.cuda}", True)
        yield _preset(size)
        return
    cores = f"{torch.get_num_threads()} thread(s)"
    if torch.backends.mps.is_available():
        yield Finding("device", "GPU", f"Apple's, {cores}; memory=full", True)
        return
    yield Finding("device", "GPU", f"none; CPU, {cores}: enough for the drawn world, memory=full")


def _preset(size: int) -> Finding:
    name = fitting(size)
    if name is None:
        told, remedy = "none: the smallest is for 8 GB", "real weights need a card of 8 GB or more"
        return Finding("device", "preset", told, False, remedy=remedy)
    memory, precision = preset(name)
    most = room(
        size, lambda frames, side: footprint(SHAPES["sd21_unclip"], memory, precision, frames, side).peak, native_sides()
    )
    good = [side for side, count in most.items() if count]
    bad = [f"{side} px" for side, count in most.items() if not count]
    told = f"memory={name}, room for {' or '.join(f'{most[side]} frames of {side} px' for side in good) or 'nothing'}"
    told += f", not for {' or '.join(bad)}" if bad else ""
    remedy = f"frames of {bad[0]} do not fit here: add video.width={good[-1]} video.height={good[-1]}" if good and bad else ""
    return Finding("device", "preset", f"{told}; counted for SD 2.1 unCLIP", bool(good), remedy=remedy)


def room(size: int, peak: Callable[[int, int], int], sides: list[int]) -> dict[int, int]:
    """Side of square frames in pixels -> the largest number of frames that fits a device of ``size`` bytes; 0: none does.

    peak: (frames, side) -> bytes, of which the libraries need :data:`tave.footprint.LIBRARIES` more. The numbers that are
        tried are those that ``python -m tave.footprint`` counts.
    """
    most: dict[int, int] = {}
    for side in sides:
        most[side] = 0
        for frames in sorted(FootprintOptions().frames):
            if peak(frames, side) + LIBRARIES > size:
                break
            most[side] = frames
    return most


def native_sides() -> list[int]:
    """Sides of the frames, in pixels, that the options for real weights come with."""
    chosen = [compose("train", [f"backbone={name}"]) for name in _named_backbones()]
    return sorted({cfg.video.width for cfg in chosen if not _shipped(cfg.backbone)})


def fitting(size: int) -> str | None:
    """The largest ``memory=`` preset for a device of ``size`` bytes; cards hold a little less than they are sold by."""
    known = {int(path.stem.removesuffix("gb")): path.stem for path in (CONF / "memory").glob("*gb.yaml")}
    fits = [gigabytes for gigabytes in known if gigabytes <= size / 1e9 * 1.02]
    return known[max(fits)] if fits else None


def weights(asked: dict[str, Any], open_: Callable[[dict[str, Any]], Backbone]) -> Iterator[Finding]:
    """Each backbone that has an option, and the one ``asked`` for; those that are found are loaded, so they are known to work.

    asked: its settings, which stand in for those of the option by its name; {}: none is. What nobody asked for may be absent.
    """
    rows = {f"backbone={name}": _settings(name) for name in _named_backbones()}
    own = (shown for shown, settings in rows.items() if settings == asked or settings.get("name", "") == asked.get("name"))
    wanted = next(own, "your backbone") if asked else None
    for shown, settings in (rows | ({wanted: asked} if wanted else {})).items():
        shipped = _shipped(settings)
        try:
            found = open_(settings)
        except BackboneError as error:
            if isinstance(error, BackboneMissingError) and not shipped and shown != wanted:
                lacking = f"found without backbone.{error.key}: see docs/real_weights.md"
                yield Finding("weights", shown, "not found" if error.key == "path" else lacking)
            else:
                yield Finding("weights", shown, str(error), False, shipped, f"{shown}: see what is wrong with its files")
            continue
        told = ["shipped" if shipped else "found", "loads"]
        compared = [] if settings.get("sha256") is None else [file for file in found.hashes if file not in found.unverified]
        told += [f"verified: {', '.join(compared)}"] if compared else []
        told += [f"no published SHA-256: {', '.join(found.unverified)}"] if found.unverified else []
        yield Finding("weights", shown, "; ".join(told), True, shipped)


def _shipped(settings: Mapping[str, Any]) -> bool:
    return str(settings.get("path") or "").startswith(str(PACKAGE))


def _settings(name: str) -> dict[str, Any]:
    settings: Any = OmegaConf.to_container(compose("train", [f"backbone={name}"]).backbone, resolve=True)
    return settings


def segmenter(path: str) -> Iterator[Finding]:
    """The network of ``reference.segmenter``; it is loaded, so it is known to work."""
    try:
        found = load_segmenter(path)
        told = f"found, {len(found.classes)} classes, {len(found.hashes)} file(s) without a published SHA-256; loads"
        yield Finding("matte", path, told, True)
    except MatteError as error:
        yield Finding("matte", path, str(error), False, remedy=f"segmenter={path}: see what is wrong with its files")


def _named_backbones() -> list[str]:
    """Those whose weights have a place of their own: not the random one, and not that of any folder."""
    return sorted(path.stem for path in (CONF / "backbone").glob("*.yaml") if path.stem not in ("tiny", "folder"))


def video(clip: Path = CLIP) -> Iterator[Finding]:
    """Whether each reader decodes a shipped clip, and whether they agree; PyAV also writes."""
    import av

    try:
        with av.open(str(clip)) as container:
            count = sum(1 for _ in container.decode(video=0))
        yield Finding("video", f"PyAV {av.__version__}", f"decodes {count} frames", count >= FRAMES, True)
    except (OSError, ValueError) as error:  # FFmpegError is one or the other
        yield Finding("video", "PyAV", _line(error), False, True, "pip install --force-reinstall av")
    try:
        import decord

        count = len(decord.VideoReader(str(clip), num_threads=1))
        yield Finding("video", f"decord {decord.__version__}", f"decodes {count} frames", count >= FRAMES)
    except (ImportError, OSError, RuntimeError) as error:
        yield Finding("video", "decord", f"{_line(error)}; PyAV stands in")
    try:
        shape = tuple(read_clip(clip, ReadOptions(frames=FRAMES, multiple=1)).frames.shape)
        yield Finding("video", "a shipped clip", f"read as {shape}", True, True)
    except (OSError, ValueError) as error:
        yield Finding("video", "a shipped clip", _line(error), False, True, "install tave anew: its clips are damaged")


def logging_() -> Iterator[Finding]:
    """Whether W&B has a key; it is neither shown nor tried."""
    try:
        known = any("wandb" in host for host in netrc.netrc(os.environ.get("NETRC")).hosts)
    except (OSError, netrc.NetrcParseError):
        known = False
    key = "in WANDB_API_KEY" if os.environ.get("WANDB_API_KEY") else "in netrc" if known else ""
    told = f"a key {key}" if key else "no key: runs are logged to files; `wandb login` changes that"
    yield Finding("logging", "W&B", told, True if key else None)


def small_edit() -> Iterator[Finding]:
    """The default run with one tuning step and few frames, into a folder that goes away."""
    from tave.train import train

    with tempfile.TemporaryDirectory() as folder:
        asked = [
            "+video=bus_to_suv",
            "video.frames=2",
            "tuning.steps=1",
            "inversion.steps=2",
            "inversion.gate=off",
            "metrics=none",
        ]
        asked += ["logger=none", "video.edits.suv.truth=null", f"cache={folder}/cache"]
        try:
            made = train(typed(compose("train", asked)), Path(folder) / "run", show=False)
            good = (made / "edits" / "suv" / "edited.mp4").is_file()
            yield Finding("run", "a small edit", "from clip to mp4" if good else "wrote no clip", good, True)
        except (OSError, ValueError, RuntimeError) as error:
            yield Finding("run", "a small edit", _line(error), False, True, "python -m tave.train +video=bus_to_suv tells more")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def examine(options: DoctorOptions, on_finding: Callable[[Finding], None] = lambda _: None) -> Report:
    """All checks, one after another; ``on_finding`` hears of each as it is made."""
    from tave.run import open_backbone

    report = Report()
    parts = [packages(), device(), weights(options.backbone, open_backbone), video(), logging_()]
    if options.segmenter:
        parts.insert(3, segmenter(options.segmenter))
    for part in [*parts, small_edit()] if options.edit else parts:
        for finding in part:
            report.findings.append(finding)
            on_finding(finding)
    return report


def show(report: Report, console: Console) -> None:
    """A table of what was found, then what to do next."""
    grid = Table(box=None, pad_edge=False, show_header=False)
    area = ""
    for finding in report.findings:
        mark = {True: "[green]ok[/]", False: "[red]no[/]", None: "[dim]-[/]"}[finding.good]
        grid.add_row(f"[bold]{finding.area}[/]" if finding.area != area else "", mark, finding.name, finding.told)
        area = finding.area
    console.print(grid, highlight=False)
    console.print()
    if not report.works:
        console.print("[bold red]The default run does not work here.[/] Next:", highlight=False)
    else:
        console.print("[bold green]The default run works here.[/] Next:", highlight=False)
    usual = ["python -m tave.train +video=bus_to_suv"] if report.works else []
    real = "for real footage: weights as docs/real_weights.md says, then python -m tave.doctor again"
    found = any(f.area == "weights" and f.good and not f.needed for f in report.findings)
    for line in [*report.remedies, *usual, *([real] if report.works and not found else [])]:
        console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)


def _door(cfg: DictConfig) -> None:
    disable_progress_bar()  # one for each part of each backbone, gone in no time
    options: DoctorOptions = typed(cfg)
    console = Console()
    with console.status("looking") as status:
        report = examine(options, lambda finding: status.update(f"{finding.area}: {finding.name}"))
    show(report, console)
    if not report.works:
        raise SystemExit(1)


ConfigStore.instance().store(name="doctor_schema", node=schema(DoctorOptions))


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="doctor")
def main(cfg: DictConfig) -> None:
    guarded(_door, cfg)


if __name__ == "__main__":
    main()
