"""The doctor tells what is, and its verdict is that of the default run."""

from __future__ import annotations

from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from rich.console import Console

from tave.backbone import Backbone, BackboneError
from tave.config import CONF
from tave.doctor import DoctorOptions, Finding, Report, examine, fitting, logging_, packages, show, small_edit, video, weights


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


def test_a_device_is_told_with_its_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    from tave.doctor import device

    class Card:
        total_memory = int(25.3e9)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    card, fits = device()
    assert card.told.startswith("a card, 25 GB") and fits.told == "memory=24gb" and fits.good


def test_weights_are_found_broken_or_absent(tiny: Backbone, tmp_path: Path) -> None:
    def open_(settings: dict[str, Any]) -> Backbone:
        if settings["path"] == str(tmp_path):
            raise BackboneError(f"{tmp_path}/unet lacks config.json: copy it there")
        if "roadside" in str(settings["path"]):
            return tiny
        raise BackboneError(f"backbone {settings.get('name')} not found: put it somewhere")

    found = {finding.name: finding for finding in weights(str(tmp_path), open_)}
    assert found["backbone=roadside"].good and found["backbone=roadside"].needed
    assert (found["backbone=sd21_unclip"].good, found["backbone=sd21_unclip"].told) == (None, "not found")
    broken = found[str(tmp_path)]
    assert broken.good is False and not broken.needed and "lacks config.json" in broken.told and broken.remedy

    def refuse(settings: dict[str, Any]) -> Backbone:
        raise BackboneError("vae/x.safetensors is no readable safetensors file")

    assert not Report(list(weights(None, refuse))).works


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
