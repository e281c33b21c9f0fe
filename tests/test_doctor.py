"""The doctor reports what is there, and its verdict is that of the default run."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tave.backbone import BackboneError
from tave.cli import compose_options
from tave.config import BackboneOptions, DoctorOptions
from tave.counting import SHAPES, footprint
from tave.doctor import (
    Finding,
    device,
    examine,
    fitting,
    logging_,
    native_sides,
    packages,
    report,
    room,
    small_edit,
    video,
    weights,
    works,
)
from tave.fitting import GIB
from tave.footprint import preset
from tave.memory import has_8bit

ROOT = Path(__file__).parents[1]
Put = Callable[[str, Path], Path]
UNET = "unet/diffusion_pytorch_model.safetensors"


def found_weights(asked: BackboneOptions = BackboneOptions()) -> dict[str, Finding]:
    return {finding.name: finding for finding in weights(asked)}


def test_the_default_run_works_here() -> None:
    findings = list(examine(DoctorOptions(edit=False)))
    assert works(findings)
    page = "\n".join(report(findings))
    assert "The default run works here" in page and "python -m tave.train video=bus_to_suv" in page
    for name in ("torch", "backbone=roadside", "PyAV", "the example clip", "W&B"):
        assert name in page
    (shipped,) = (finding for finding in findings if finding.name == "backbone=roadside")
    assert shipped.good and shipped.needed


@pytest.mark.slow
def test_a_small_edit_goes_from_clip_to_mp4() -> None:
    (finding,) = small_edit()
    assert finding.good, finding.text


def test_packages_are_compared_with_their_bounds() -> None:
    wanted = [
        "torch>=2.6",
        "torch>=99",
        "no-such-thing>=1",
        "no-such-thing>=1; sys_platform == 'nowhere'",
        "x; extra == 'dev'",
    ]
    _python, fine, old, missing = packages(wanted)
    assert fine.good and not fine.remedy
    assert (
        old.good is False and old.text == f"{version('torch')}, needed >=99" and old.remedy == "pip install 'torch>=99'"
    )
    assert missing.good is False and missing.text.startswith("missing")
    assert not works([fine, missing])
    page = "\n".join(report([fine, missing]))
    assert "does not work here" in page and "pip install 'no-such-thing>=1'" in page and "tave.train" not in page


@pytest.mark.parametrize(
    ("size", "preset"),
    [
        (6.4e9, None),
        (8.2e9, "8gb"),
        (12.6e9, "12gb"),
        (17.1e9, "16gb"),
        (25.3e9, "24gb"),
        (48.3e9, "24gb"),
        (85.0e9, "80gb"),
    ],
)
def test_a_card_gets_the_largest_preset_that_fits(size: float, preset: str | None) -> None:
    assert fitting(int(size)) == preset


def lines_below(heading: str) -> list[list[str]]:
    """The table of ``docs/memory.md`` whose first column is called ``heading``, without its head, bold or units."""
    below = (ROOT / "docs/memory.md").read_text().split(f"\n| {heading} |")[1].split("\n\n")[0]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in below.splitlines()[2:]]


PEAKS = {  # GiB, of the backbone that the doctor counts for, computed
    (name, int(frames), int(side)): float(peak)
    for backbone, name, frames, side, *_, peak, _measured in lines_below("backbone")
    if backbone == "sd21_unclip"
}


@pytest.mark.parametrize(
    ("size", "text", "remedy"),
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
def test_a_device_is_shown_with_its_preset_and_the_frames_that_fit(
    monkeypatch: pytest.MonkeyPatch, size: float, text: str, remedy: str
) -> None:
    """With the documented peaks, since counting takes seconds for each."""
    name = fitting(int(size))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=int(size)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(
        "tave.counting.footprint",
        lambda _shapes, _memory, _precision, *at: SimpleNamespace(peak=int(PEAKS.get((str(name), *at), 99) * GIB)),
    )
    card, fits, _ = device()
    assert card.text.startswith(f"a card, {size / 1e9:.0f} GB")
    assert (fits.text, fits.remedy, fits.good) == (text, remedy, name is not None)


@pytest.mark.slow
@pytest.mark.skipif(has_8bit(), reason="the page is counted without bitsandbytes")
def test_documented_peaks_are_those_that_are_counted() -> None:
    assert round(footprint(SHAPES["sd21_unclip"], *preset("8gb"), 8, 512).peak / GIB, 1) == PEAKS["8gb", 8, 512]


@pytest.mark.parametrize("cells", lines_below("card"), ids=lambda cells: cells[0].split(" (")[0])
def test_the_doctor_agrees_with_the_documentation(cells: list[str]) -> None:
    """Peaks are in the page's long table, verdicts in the short one; a tight fit counts as one."""
    gigabytes = int(cells[0].split()[0])
    name = fitting(int(gigabytes * 1e9))
    verdicts = dict(zip([(8, 512), (8, 768), (24, 512), (24, 768)], cells[1:], strict=True))
    most = room(int(gigabytes * 1e9), lambda frames, side: int(PEAKS[str(name), frames, side] * GIB), [512, 768])
    for side in (512, 768):
        assert most[side] == max([n for n in (8, 24) if verdicts[n, side] in ("yes", "tight")], default=0), (name, side)


def test_sides_are_those_of_the_real_checkpoints() -> None:
    assert native_sides() == [512, 768]


def test_missing_weights_are_not_a_fault(hub: Put) -> None:
    found = found_weights()
    shipped = found.pop("backbone=roadside")
    assert (shipped.good, shipped.text) == (True, "shipped; loads")
    assert set(found) == {f"backbone={name}" for name in ("sd15_ip_adapter", "sd21_unclip", "sd21_unclip_small")}
    assert {(finding.good, finding.text, finding.remedy) for finding in found.values()} == {(None, "not found", "")}


def test_stable_diffusion_without_an_adapter_is_not_a_fault(hub: Put, sd15: tuple[Path, Path]) -> None:
    hub("stable-diffusion-v1-5/stable-diffusion-v1-5", sd15[0])
    found = found_weights()["backbone=sd15_ip_adapter"]
    text = "found without backbone.adapter: see docs/real_weights.md"
    assert (found.good, found.text, found.remedy) == (None, text, "")


def test_incomplete_weights_are_a_fault(hub: Put, checkpoint: Path) -> None:
    (checkpoint / UNET).unlink()
    hub("sd2-community/stable-diffusion-2-1-unclip", checkpoint)
    found = found_weights()["backbone=sd21_unclip"]
    assert found.good is False and not found.needed and "unet lacks diffusion_pytorch_model.safetensors" in found.text
    assert found.remedy == "backbone=sd21_unclip: see what is wrong with its files"


def asked(*overrides: str) -> Finding:
    """The finding about the requested backbone."""
    found = found_weights(compose_options("doctor", list(overrides)).backbone)
    return found.get("your backbone") or found[overrides[0]]


@pytest.mark.slow  # several runs
def test_a_folder_is_tried_and_its_files_are_verified(hub: Put, checkpoint: Path) -> None:
    known = f"backbone.sha256.unet.fp32={hashlib.sha256((checkpoint / UNET).read_bytes()).hexdigest()}"
    finding = asked("backbone=sd21_unclip", f"backbone.path={checkpoint}", known)
    assert finding.good
    verified, unverified = finding.text.split("; no published SHA-256: ")
    assert verified == f"found; loads; verified: {UNET}" and len(unverified.split(", ")) == 4
    wrong = asked("backbone=sd21_unclip", f"backbone.path={checkpoint}")
    assert wrong.good is False and "has SHA-256" in wrong.text


@pytest.mark.slow  # builds and tries a whole backbone
def test_a_folder_of_the_second_family_is_tried_with_its_adapter(hub: Put, sd15: tuple[Path, Path]) -> None:
    place = ["backbone=sd15_ip_adapter", f"backbone.path={sd15[0]}"]
    finding = asked(*place, f"backbone.adapter={sd15[1]}")
    assert finding.good and "verified:" not in finding.text and "models/ip-adapter_sd15.safetensors" in finding.text
    lacking = asked(*place)
    assert lacking.good is False and "give backbone.adapter=FOLDER" in lacking.text and lacking.remedy


@pytest.mark.slow  # builds and tries a whole backbone
def test_a_folder_of_ones_own_is_tried(hub: Put, checkpoint: Path, tmp_path: Path) -> None:
    mine = asked("backbone=folder", f"backbone.path={checkpoint}")
    assert mine.good and "verified:" not in mine.text and UNET in mine.text
    assert asked("backbone=roadside").text == "shipped; loads"
    absent = asked("backbone=folder", f"backbone.path={tmp_path / 'nowhere'}")
    assert absent.good is False and "nowhere not found" in absent.text and absent.remedy


def test_documented_commands_have_known_keys() -> None:
    page = (ROOT / "docs/real_weights.md").read_text()
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("python -m tave.doctor")]
    named = [compose_options("doctor", command[3:]).backbone.name for command in commands]
    assert named == [None, "sd21_unclip", "sd15_ip_adapter"]


def test_damaged_shipped_weights_stop_the_default_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(options: BackboneOptions) -> None:
        raise BackboneError("vae/x.safetensors is damaged")

    monkeypatch.setattr("tave.backbone.load_backbone", refuse)
    assert not works(list(weights()))


def test_a_clip_that_does_not_decode_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no clip")
    findings = list(video(tmp_path / "clip.mp4"))
    assert not works(findings)
    assert all(finding.good is not True for finding in findings)


def test_a_key_is_found_and_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert next(logging_()).good is None
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    finding = next(logging_())
    assert finding.good and "WANDB_API_KEY" in finding.text and "secret" not in finding.text


def test_optional_parts_do_not_decide() -> None:
    assert works([Finding("weights", "x", "broken", False)])
