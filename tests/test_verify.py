"""A run folder is as it was made, or a line names what has changed; made again it has the same bits."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import TINY, call, options
from safetensors.torch import load_file, save_file

import tave.verify
from tave import remake
from tave.cli import compose_options, typed
from tave.config import EditEntry, PlaceOptions, TrainOptions, VerifyOptions
from tave.edit import edit, options_of
from tave.files import FileError, file_digest, read_json, write_json
from tave.findings import Finding, find_input, inputs_of
from tave.inputs import input_digests, request_record
from tave.record import SUMS, read_sums
from tave.train import train


@pytest.fixture(scope="module")
def made(clip: Path, saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run ``run``, its edits ``suv`` and ``car``, its ``clip`` and ``weights``. Not to be changed."""
    home = tmp_path_factory.mktemp("made")
    shutil.copytree(clip, home / "clip")
    shutil.copytree(saved, home / "weights")
    common = [f"cache={home / 'cache'}", "logger=none"]
    small = [*TINY[1:], "backbone=folder", f"backbone.path={home / 'weights'}", "video.width=32", "video.height=32"]
    small += ["video.multiple=8", "video=bus_to_suv", f"video.path={home / 'clip/source.mp4'}", *common]
    small += [f"video.edits.suv.{key}={home / 'clip' / name}" for key, name in PICTURES.items()]
    train(compose_options("train", small), home / "run", show=False)
    words = [f"video.target_image={home / 'clip/target.png'}", "video.target_prompt=a red car", "video.edit=car"]
    edit(home / "run", typed(options_of(home / "run", [*words, "sampler.guidance_scale=2", *common])), show=False)
    return home


PICTURES = {"target_image": "target.png", "truth": "truth"}


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A copy, whose records name the copy's own inputs."""
    here = Path(shutil.copytree(made, tmp_path / "home"))
    for path in (here / "run/run.json", *here.glob("run/edits/*/edit.json")):
        path.write_text(path.read_text().replace(str(made), str(here)))
    reseal(here / "run")
    return here


def reseal(run: Path) -> None:
    for folder in (*sorted(run.glob("edits/*")), run):
        lines = [f"{file_digest(folder / name)}  {name}\n" for name in read_sums(folder)]
        (folder / SUMS).write_text("".join(lines))


def faults(home: Path, **more: object) -> list[str]:
    """The lines on what is no longer as it was made."""
    try:
        found = list(tave.verify.verify(VerifyOptions(str(home / "run"), **more)))  # type: ignore[arg-type]
    except FileError as error:
        return [str(error)]
    return [finding.line for finding in found if finding.ok is False]


def flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def swap(one: Path, other: Path) -> None:
    kept = one.rename(one.with_name("kept"))
    other.rename(one)
    kept.rename(other)


def scale(weights: Path) -> None:
    save_file({key: tensor * 1.01 for key, tensor in load_file(weights).items()}, weights)


def raise_figure(metrics: Path) -> None:
    metrics.write_text(re.sub(r'("mask_recall": )[\d.]+', r"\g<1>1.5", metrics.read_text(), count=1))


UNET = "weights/unet/diffusion_pytorch_model.safetensors"
MASKS = ("run/edits/suv/soft_mask.npz", "run/edits/car/soft_mask.npz")
CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "clip": (lambda home: flip(home / "clip/source.mp4"), r"input \S*clip/source\.mp4 has changed since the run"),
    "frames": (lambda home: flip(home / "run/source.mp4"), r"run/source\.mp4 has changed since it was made"),
    "picture": (lambda home: flip(home / "clip/target.png"), r"input \S*target\.png has changed since the run"),
    "base weights": (lambda home: scale(home / UNET), r"base weights unet/diffusion_\S* are not those"),
    "configuration": (
        lambda home: flip(home / "weights/vae/config.json"),
        r"base weights vae/config\.json are not those",
    ),
    "tuned weights": (lambda home: scale(home / "run/tuned.safetensors"), r"tuned\.safetensors has changed"),
    "metrics": (lambda home: raise_figure(home / "run/metrics.json"), r"metrics\.json has changed"),
    "options": (lambda home: flip(home / "run/run.json", 9), r"run\.json has changed"),
    "missing file": (lambda home: (home / "run/edits/suv/field.npz").unlink(), r"suv/field\.npz is missing"),
    "missing edit": (lambda home: shutil.rmtree(home / "run/edits/car"), r"edits/car/SHA256SUMS is missing"),
    "mask": (lambda home: swap(*(home / mask for mask in MASKS)), r"edits/suv/soft_mask\.npz has changed"),
    "edits": (lambda home: swap(*((home / mask).parent for mask in MASKS)), r"edits/suv/SHA256SUMS has changed"),
    "trajectory": (lambda home: flip(home / "run/trajectory.safetensors", -9), r"trajectory\.safetensors has changed"),
    "added file": (lambda home: (home / "run/edits/suv/more.npz").touch(), r"suv/more\.npz is not in SHA256SUMS"),
    "record": (lambda home: (home / "run/edits/suv/SHA256SUMS").unlink(), r"edits/suv/SHA256SUMS is missing"),
    "link": (lambda home: (home / "run/logs").symlink_to(home / "clip"), r"run/logs is a link to \S*clip, outside of"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_named(home: Path, change: str) -> None:
    apply, message = CHANGES[change]
    apply(home)
    found = faults(home)
    assert any(re.search(message, line) for line in found), found
    assert all("\n" not in line for line in found)


def test_a_run_as_it_was_made_has_no_fault_and_sha256sum_agrees(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tave.verify.main, str(made / "run")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all(line.startswith("as made") for line in lines)
    for folder in (made / "run", made / "run/edits/suv", made / "run/edits/car"):
        assert subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=folder, check=False).returncode == 0


def test_the_command_prints_what_has_changed_and_ends_in_1(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(home / "run/trajectory.safetensors", -9)
    assert call(tave.verify.main, f"run={home / 'run'}") == 1
    printed = capsys.readouterr()
    assert [line for line in printed.out.splitlines() if line.startswith("CHANGED")] == [
        f"CHANGED   {home}/run/trajectory.safetensors has changed since it was made (its SHA-256 is not that in "
        "SHA256SUMS): copy it again from where it was made, or delete it and give the command again that made it"
    ]
    assert printed.err.splitlines()[-1].startswith(f"error: {home}/run: 1 of 6 lines above")
    assert call(tave.verify.main, "nowhere") == 1
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_moved_inputs_and_weights_are_asked_for_and_found(home: Path, tmp_path: Path) -> None:
    (home / "clip").rename(tmp_path / "clip")
    (home / "weights").rename(tmp_path / "weights")
    found = list(tave.verify.verify(VerifyOptions(str(home / "run"))))
    assert not faults(home)
    asked = " ".join(finding.line for finding in found if finding.ok is None)
    assert "give inputs=FOLDER" in asked and "give backbone.path=FOLDER" in asked
    where = {"inputs": str(tmp_path / "clip"), "backbone": PlaceOptions(str(tmp_path / "weights"))}
    assert all(each.ok for each in tave.verify.verify(VerifyOptions(str(home / "run"), **where)))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/kmsg", "/usr", "\0a", "\ud800"])
def test_what_has_no_end_is_not_read_as_an_input(path: str) -> None:
    assert find_input(path, "0" * 64) is None


def test_inputs_are_found_from_any_folder(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip)
    entry = EditEntry("target.png", "a suv", mask="source.mp4")
    asked = options(clip, tmp_path, "video.path=source.mp4")
    known = input_digests(asked) | inputs_of(request_record(entry))
    monkeypatch.chdir(tmp_path)
    assert next(iter(known)) == str(clip / "source.mp4") and str(clip / "target.png") in known
    assert all(find_input(path, digest) == Path(path) for path, digest in known.items())


def test_what_was_not_checked_is_counted_last(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "clip").rename(home / "moved")
    assert call(tave.verify.main, str(home / "run")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[-1] == f"{sum(line.startswith('unchecked') for line in lines)} of 6 lines above say what was not checked"
    )


def test_escapes_of_a_record_are_shown_and_not_obeyed() -> None:
    assert str(Finding(True, "the input \x1b[2J\0\ud800")) == r"as made   the input \x1b[2J\x00\ud800"


def test_figures_that_are_not_made_again_are_named(tmp_path: Path) -> None:
    for name, figures in (("run", {"suv": {"residue": 1.5, "clip": 0.5}}), ("again", {"suv": {"residue": 1.0}})):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "metrics.json", {"edits": figures, "reconstruction_psnr": 99.0})
    found = [(each.ok, each.line.split(": ", 1)[1]) for each in remake._figures(tmp_path / "run", tmp_path / "again")]
    assert found == [
        (None, "reconstruction_psnr of the inversion are not measured here: not checked"),
        (False, "residue of suv differ, made again"),
        (None, "clip of suv are not measured here: not checked"),
    ]


@pytest.mark.parametrize(("label", "ok"), [({}, False), ({"benchmark": {"case": "a"}}, None)])
def test_an_edit_is_a_control_of_a_benchmark_alone(tmp_path: Path, label: dict[str, Any], ok: bool | None) -> None:
    (tmp_path / "suv").mkdir()
    write_json(tmp_path / "suv/edit.json", {"control": "copy", **label})
    (found,) = remake._edit(tmp_path / "suv", tmp_path, TrainOptions(), VerifyOptions(str(tmp_path)), None)
    assert found.ok is ok and "made again" in found.line


def test_another_platform_may_record_nothing_of_itself() -> None:
    (found,) = remake._platform({"hardware": {}})
    assert found.ok is None and "torch None, here" in found.line


@pytest.mark.slow  # two runs
def test_made_again_a_run_has_the_same_bits(home: Path) -> None:
    found = list(tave.verify.verify(VerifyOptions(str(home / "run"), remake=True)))
    assert all(finding.ok for finding in found), found
    lines = " ".join(finding.line for finding in found)
    for made in ("tuned.safetensors: made again", "trajectory.safetensors: made again"):
        assert made in lines
    for name in ("suv", "car"):
        assert re.search(rf"[1-9]\d* files of \S*edits/{name}, made again", lines)
        assert re.search(rf"[1-9]\d* figures of {name}, made again", lines)
    assert re.search(r"[1-9]\d* figures of the inversion, made again", lines)


@pytest.mark.slow
def test_made_again_a_forged_mask_and_figure_are_found(home: Path) -> None:
    """Somebody who also wrote the digests anew."""
    run = home / "run"
    swap(*(home / mask for mask in MASKS))
    raise_figure(run / "metrics.json")
    reseal(run)
    assert not faults(home)
    found = faults(home, remake=True)
    assert any(re.search(r"edits/suv: made again, soft_mask\.npz.* differ", line) for line in found), found
    assert any("mask_recall" in line for line in found)


@pytest.mark.slow
def test_made_again_figures_that_are_measured_no_more_and_a_false_label_are_found(home: Path) -> None:
    """Somebody who had the figures left out, and called the edit a control."""
    run = home / "run"
    raise_figure(run / "metrics.json")
    for path, key, value in (
        (run / "run.json", "metrics", {"enabled": False}),
        (run / "edits/car/edit.json", "control", True),
    ):
        record = read_json(path)
        (record["config"] if key == "metrics" else record)[key] = value
        write_json(path, record)
    swap(*(home / mask for mask in MASKS))
    reseal(run)
    found = list(tave.verify.verify(VerifyOptions(str(run), remake=True)))
    assert any(each.ok is None and "mask_recall" in each.line for each in found), found
    assert any(each.ok is False and "edits/car: made again, soft_mask.npz" in each.line for each in found), found
