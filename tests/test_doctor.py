"""The doctor tells what is, and its verdict is that of the default run."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console

from tave.backbone import Backbone, BackboneError
from tave.config import CONF, typed
from tave.doctor import (
    DoctorOptions,
    Finding,
    Report,
    device,
    examine,
    fitting,
    logging_,
    native_sides,
    packages,
    room,
    show,
    small_edit,
    video,
    weights,
)
from tave.footprint import GIB, SHAPES, footprint, preset
from tave.memory import has_8bit
from tave.options import OptionError
from tave.run import open_backbone

ROOT = Path(__file__).parents[1]
Put = Callable[[str, Path], Path]
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _configs():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def told(report: Report) -> str:
    sink = StringIO()
    show(report, Console(file=sink, width=100))
    return sink.getvalue()


def test_here_the_default_run_works() -> None:
    report = examine(DoctorOptions(edit=False))
    assert report.works
    page = told(report)
    assert "The default run works here" in page and "python -m tave.train +video=bus_to_suv" in page
    for name in ("torch", "backbone=roadside", "PyAV", "a shipped clip", "W&B"):
        assert name in page
    (shipped,) = (finding for finding in report.findings if finding.name == "backbone=roadside")
    assert shipped.good and shipped.needed


@pytest.mark.slow
def test_a_small_edit_goes_from_clip_to_mp4() -> None:
    (finding,) = small_edit()
    assert finding.good, finding.told


def test_packages_are_held_against_their_bounds() -> None:
    wanted = ["torch>=2.6", "torch>=99", "no-such-thing>=1", "no-such-thing>=1; sys_platform == 'nowhere'", "x; extra == 'dev'"]
    _python, fine, old, missing = packages(wanted)
    assert fine.good and not fine.remedy
    assert old.good is False and old.told == f"{version('torch')}, needed >=99" and old.remedy == "pip install 'torch>=99'"
    assert missing.good is False and missing.told.startswith("missing")
    report = Report([fine, missing])
    assert not report.works
    page = told(report)
    assert "does not work here" in page and "pip install 'no-such-thing>=1'" in page and "tave.train" not in page


@pytest.mark.parametrize(
    ("size", "preset"),
    [(6.4e9, None), (8.2e9, "8gb"), (12.6e9, "12gb"), (17.1e9, "16gb"), (25.3e9, "24gb"), (48.3e9, "24gb"), (85.0e9, "80gb")],
)
def test_a_card_gets_the_largest_preset_that_it_holds(size: float, preset: str | None) -> None:
    assert fitting(int(size)) == preset


def rows_of(heading: str) -> list[list[str]]:
    """The table of ``docs/memory.md`` whose first column is called ``heading``, without its head, bold or units."""
    below = (ROOT / "docs/memory.md").read_text().split(f"\n| {heading} |")[1].split("\n\n")[0]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in below.splitlines()[2:]]


PEAKS = {  # GiB, of the backbone that the doctor counts for, computed
    (name, int(frames), int(side)): float(peak)
    for backbone, name, frames, side, *_, peak, _measured in rows_of("backbone")
    if backbone == "sd21_unclip"
}


@pytest.mark.parametrize(
    ("size", "told", "remedy"),
    [
        (5e9, "none: the smallest is for 8 GB", "real weights need a card of 8 GB or more"),
        (
            8.2e9,
            "memory=8gb, room for 8 frames of 512 px, not for 768 px; counted for SD 2.1 unCLIP",
            "frames of 768 px do not fit here: add video.width=512 video.height=512",
        ),
        (12.6e9, "memory=12gb, room for 24 frames of 512 px or 8 frames of 768 px; counted for SD 2.1 unCLIP", ""),
    ],
    ids=["5 GB", "8 GB", "12 GB"],
)
def test_a_device_is_told_with_its_preset_and_what_fits_there(
    monkeypatch: pytest.MonkeyPatch, size: float, told: str, remedy: str
) -> None:
    """The peaks are the page's: counting them again takes seconds for each."""
    name = fitting(int(size))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=int(size)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(
        "tave.doctor.footprint",
        lambda _shapes, _memory, _precision, *at: SimpleNamespace(peak=int(PEAKS[(str(name), *at)] * GIB)),
    )
    card, fits = device()
    assert card.told.startswith(f"a card, {size / 1e9:.0f} GB")
    assert (fits.told, fits.remedy, fits.good) == (told, remedy, name is not None)


@pytest.mark.slow
@pytest.mark.skipif(has_8bit(), reason="the page is counted without bitsandbytes")
@pytest.mark.parametrize("side", [512, 768])
def test_the_page_on_memory_holds_what_is_counted(side: int) -> None:
    assert round(footprint(SHAPES["sd21_unclip"], *preset("8gb"), 8, side).peak / GIB, 1) == PEAKS["8gb", 8, side]


@pytest.mark.parametrize("row", rows_of("card"), ids=lambda row: row[0].split(" (")[0])
def test_the_page_on_memory_and_the_doctor_agree(row: list[str]) -> None:
    """Peaks from the page's long table, verdicts from its short one; a tight fit is one."""
    gigabytes = int(row[0].split()[0])
    name = fitting(int(gigabytes * 1e9))
    verdicts = dict(zip([(8, 512), (8, 768), (24, 512), (24, 768)], row[1:], strict=True))
    most = room(int(gigabytes * 1e9), lambda frames, side: int(PEAKS[str(name), frames, side] * GIB), [512, 768])
    for side in (512, 768):
        assert most[side] == max([n for n in (8, 24) if verdicts[n, side] in ("yes", "tight")], default=0), (name, side)


def test_the_sides_are_those_that_the_backbones_come_with() -> None:
    assert native_sides() == [512, 768]


def test_an_empty_machine_lacks_weights_and_nothing_is_broken(hub: Put) -> None:
    """With the true loaders: what is not there is neither a fault nor a thing to mend."""
    report = Report(list(weights({}, open_backbone)))
    told = {finding.name: (finding.good, finding.told) for finding in report.findings}
    assert told.pop("backbone=roadside") == (True, "shipped; loads")
    assert told == {f"backbone={name}": (None, "not found") for name in ("sd15_ip_adapter", "sd21_unclip", "sd21_unclip_small")}
    assert not report.remedies


def test_stable_diffusion_without_an_adapter_is_no_fault(hub: Put, sd15: tuple[Path, Path]) -> None:
    hub("stable-diffusion-v1-5/stable-diffusion-v1-5", sd15[0])
    found = {finding.name: finding for finding in weights({}, open_backbone)}["backbone=sd15_ip_adapter"]
    assert (found.good, found.told, found.remedy) == (None, "found without backbone.adapter: see docs/real_weights.md", "")


def test_weights_in_the_cache_that_lack_something_are_broken(hub: Put, checkpoint: Path) -> None:
    (checkpoint / UNET).unlink()
    hub("sd2-community/stable-diffusion-2-1-unclip", checkpoint)
    found = {finding.name: finding for finding in weights({}, open_backbone)}["backbone=sd21_unclip"]
    assert found.good is False and not found.needed and "unet lacks diffusion_pytorch_model.safetensors" in found.told
    assert found.remedy == "backbone=sd21_unclip: see what is wrong with its files"


def asked(*overrides: str) -> Finding:
    """What is told of the backbone that is asked for by the keys of the training."""
    options: DoctorOptions = typed(compose("doctor", list(overrides)))
    found = {finding.name: finding for finding in weights(options.backbone, open_backbone)}
    return found.get("your backbone") or found[overrides[0]]


def test_a_folder_is_tried_under_its_option_and_its_files_are_named(hub: Put, checkpoint: Path) -> None:
    known = f"backbone.sha256.unet.fp32={hashlib.sha256((checkpoint / UNET).read_bytes()).hexdigest()}"
    finding = asked("backbone=sd21_unclip", f"backbone.path={checkpoint}", known)
    assert finding.good
    verified, unverified = finding.told.split("; no published SHA-256: ")
    assert verified == f"found; loads; verified: {UNET}"
    assert set(unverified.split(", ")) == {
        "text_encoder/model.safetensors",
        "image_encoder/model.safetensors",
        "image_normalizer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    wrong = asked("backbone=sd21_unclip", f"backbone.path={checkpoint}")
    assert wrong.good is False and "has SHA-256" in wrong.told


def test_a_folder_of_the_second_family_is_tried_with_its_adapter(hub: Put, sd15: tuple[Path, Path]) -> None:
    place = ["backbone=sd15_ip_adapter", f"backbone.path={sd15[0]}"]
    finding = asked(*place, f"backbone.adapter={sd15[1]}")
    assert finding.good and "verified:" not in finding.told and "models/ip-adapter_sd15.safetensors" in finding.told
    lacking = asked(*place)
    assert lacking.good is False and "give backbone.adapter=FOLDER" in lacking.told and lacking.remedy


def test_a_folder_of_ones_own_is_tried(hub: Put, checkpoint: Path, tmp_path: Path) -> None:
    mine = asked("backbone=folder", f"backbone.path={checkpoint}")
    assert mine.good and "verified:" not in mine.told and UNET in mine.told
    assert asked("backbone=roadside").told == "shipped; loads"
    assert asked("backbone=roadside", f"backbone.path={checkpoint}").told == "found; loads"  # nothing was compared
    absent = asked("backbone=folder", f"backbone.path={tmp_path / 'nowhere'}")
    assert absent.good is False and "nowhere not found" in absent.told and absent.remedy


def test_a_path_wants_its_option() -> None:
    with pytest.raises(OptionError, match=r"backbone\.path goes with an option for it: add for example backbone=sd21_unclip"):
        typed(compose("doctor", ["+backbone.path=weights"]))


def test_the_documented_commands_name_known_keys() -> None:
    page = (ROOT / "docs/real_weights.md").read_text()
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("python -m tave.doctor")]
    named = [typed(compose("doctor", command[3:])).backbone.get("name") for command in commands]
    assert named == [None, "sd21_unclip", "sd15_ip_adapter"]


def test_damaged_shipped_weights_stop_the_default_run() -> None:
    def refuse(settings: dict[str, Any]) -> Backbone:
        raise BackboneError("vae/x.safetensors is no readable safetensors file")

    assert not Report(list(weights({}, refuse))).works


def test_a_clip_that_does_not_decode_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no clip")
    findings = list(video(tmp_path / "clip.mp4"))
    assert not Report(findings).works
    assert all(finding.good is not True for finding in findings)


def test_a_key_is_told_of_and_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert next(logging_()).good is None
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    finding = next(logging_())
    assert finding.good and "WANDB_API_KEY" in finding.told and "secret" not in finding.told


def test_what_is_optional_does_not_decide() -> None:
    assert Report([Finding("weights", "x", "broken", False)]).works
