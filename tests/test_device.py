"""The whole of a run on a device that isn't the CPU: nothing is mixed that a GPU would refuse, and the edit is the CPU's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from elsewhere import DEVICE, Elsewhere
from hydra import compose, initialize_config_dir
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tave.backbone import load_ip_adapter
from tave.config import CONF, typed
from tave.run import Run
from tave.train import train
from tave.video import read_clip
from tave.video.read import ReadOptions


class Anywhere(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every run's trainer works on :data:`DEVICE`; how a trainer finds a GPU is Lightning's own affair."""
    plain, autocast = Run._trainer, torch.autocast

    def trainer(self: Run, callbacks: list[Any], logger: Any) -> L.Trainer:
        options = self.options
        given = {key: value for key, value in options.trainer.items() if key != "accelerator"}
        # wrapped tensors have no inference mode
        given |= {"strategy": SingleDeviceStrategy(DEVICE, Anywhere()), "inference_mode": False}
        self.options = replace(options, trainer=given)
        made = plain(self, callbacks, logger)
        self.options = options
        return made

    monkeypatch.setattr(Run, "_trainer", trainer)
    monkeypatch.setattr(torch, "autocast", lambda kind, **told: autocast("cpu", **told))
    with Elsewhere():
        yield


def made(clip: Path, folder: Path, *overrides: str, on: str = "cpu") -> Tensor:
    given = [f"video.path={clip / 'source.mp4'}", f"video.edits.suv.target_image={clip / 'target.png'}"]
    given += ["video.edits.suv.truth=null", "metrics.enabled=false", f"cache={folder / 'cache'}"]
    small = ["backbone=tiny", "tuning.steps=2", "inversion.steps=3", "inversion.gate=off", f"trainer.accelerator={on}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        options = typed(compose("train", ["+video=bus_to_suv", *given, *small, *overrides]))
    with sdpa_kernel(SDPBackend.MATH):  # what attention is made of on the pretended device: the same sums, the same bits
        train(options, folder / "run", show=False)
    return read_clip(folder / "run/edits/suv/edited.mp4", ReadOptions(frames=None, multiple=1)).frames


def test_the_pretended_device_refuses_what_a_gpu_refuses() -> None:
    with Elsewhere():
        there = torch.ones(2, 3).to(DEVICE)
        assert torch.equal((there + 1).cpu(), torch.full((2, 3), 2.0)) and (there * torch.tensor(2.0)).device == DEVICE
        with pytest.raises(RuntimeError, match="is on the CPU"):
            _ = there + torch.ones(2, 3)
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()


OTHERS = {
    "patent": ["experiment=patent"],
    "otherwise": [
        "mask.union=cross_attention",
        "mask.threshold=quantile",
        "correction.space=features",
        "reference.mode=in_context",
    ],
    "confined": ["reference.confine=source", "sampler.image_guidance_scale=2", "reference.frame=per_frame"],
    # autocast follows the true device, so halves are not pretended
    "8gb": ["memory=8gb", "memory.weights=full", "trainer.precision=32-true", "reference.mode=neutral"],
    "placed": ["sampler.start=placed", "mask.outline=colour", "reference.height_scale=null", "reference.heading=auto"],
    "lora": ["tuning=lora", "correction=variance", "inversion.refine=1", "condition.noise_level=300"],
}


# Of a range of 2: sums in another order, which an untrained network and a threshold amplify. A wrong number made it 0.27.
ALIKE = 4 / 255


@pytest.mark.parametrize(
    "overrides",
    [pytest.param([], id="default"), *(pytest.param(told, id=name, marks=pytest.mark.slow) for name, told in OTHERS.items())],
)
def test_a_run_on_another_device_is_the_same_edit(
    overrides: list[str], clip: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    expected = made(clip, tmp_path / "cpu", *overrides)
    request.getfixturevalue("device")
    there = made(clip, tmp_path / "elsewhere", *overrides)
    assert (there - expected).abs().mean() < ALIKE


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_float32_is_not_rounded_behind_the_users_back(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a GPU rounded convolutions to TF32, the edit was another one: 0.1 of a range of 2, on an H200."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    made(clip, tmp_path)
    assert not torch.backends.cudnn.allow_tf32


@gpu
@pytest.mark.parametrize("overrides", [[], *OTHERS.values()], ids=["default", *OTHERS])
def test_a_run_on_a_gpu_is_the_same_edit(overrides: list[str], clip: Path, tmp_path: Path) -> None:
    expected, there = (made(clip, tmp_path / on, *overrides, on=on) for on in ("cpu", "gpu"))
    assert (there - expected).abs().mean() < ALIKE


@gpu
@pytest.mark.parametrize("preset", ["8gb", "12gb", "16gb", "24gb", "80gb"])
def test_presets_run_on_a_gpu_and_repeat_to_the_bit(preset: str, clip: Path, tmp_path: Path) -> None:
    first, second = (made(clip, tmp_path / name, f"memory={preset}", on="gpu") for name in "ab")
    assert torch.equal(first, second)


def second_family(folder: Path, adapter: Path) -> list[str]:
    place = ["backbone=sd15_ip_adapter", f"backbone.path={folder}", f"backbone.adapter={adapter}"]
    return [*place, "video.width=32", "video.height=32", "video.multiple=8", "video.frames=2", "mask.union=cross_attention"]


@gpu
@pytest.mark.parametrize(
    "overrides", [[], ["memory=8gb", "memory.weights=full", "trainer.precision=32-true"]], ids=["full", "8gb"]
)
def test_the_second_family_is_the_same_on_a_gpu(
    overrides: list[str], clip: Path, tmp_path: Path, sd15: tuple[Path, Path]
) -> None:
    expected, there = (made(clip, tmp_path / on, *second_family(*sd15), *overrides, on=on) for on in ("cpu", "gpu"))
    assert (there - expected).abs().mean() < ALIKE


@pytest.mark.slow
def test_the_second_family_is_the_same_there_as_well(
    clip: Path, tmp_path: Path, sd15: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    folder, adapter = sd15
    family = second_family(folder, adapter)
    expected = made(clip, tmp_path / "cpu", *family)
    loaded = load_ip_adapter(folder, adapter)  # before the device is pretended: loading has a use of its own for "meta"
    monkeypatch.setattr("tave.run.open_backbone", lambda _: loaded)
    request.getfixturevalue("device")
    assert (made(clip, tmp_path / "elsewhere", *family) - expected).abs().mean() < ALIKE


@pytest.mark.slow
def test_what_is_remembered_is_brought_to_the_device(clip: Path, tmp_path: Path, device: None) -> None:
    first = made(clip, tmp_path)
    stages = json.loads((tmp_path / "run/run.json").read_text())["stages"]
    assert "tuning" in stages and "inversion" in stages
    (tmp_path / "run").rename(tmp_path / "before")
    assert torch.equal(made(clip, tmp_path), first)
    stages = json.loads((tmp_path / "run/run.json").read_text())["stages"]
    assert "tuning" not in stages and "inversion" not in stages
