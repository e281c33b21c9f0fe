"""A run on a device other than the CPU: no tensors are mixed that a GPU would refuse, and the edit is the CPU's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from elsewhere import DEVICE, Elsewhere
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tave.backbone import load_backbone
from tave.cli import compose_options
from tave.config import WHOLE
from tave.files import read_json
from tave.train import train
from tave.video import read_clip

OTHERS = {
    "separate": ["mask.branches=separate", "mask.union=unconditional", "correction.space=x0", "reference.frame=middle"],
    # autocast follows the real device, so half precision is not simulated
    "patent": ["experiment=patent", "memory=8gb", "memory.weights=full", "trainer.precision=32-true"],
    "lora": ["tuning.trainables=lora", "mask.threshold=quantile", "correction.space=features"],
    "in_context": ["reference.mode=in_context", "correction.restore_variance=true", "condition.noise_level=300"],
}
# Of a range of 2: other orders of sums, amplified by an untrained network and a threshold. A wrong number made it 0.27.
ALIKE = 4 / 255
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Anywhere(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainers work on :data:`DEVICE`; how they find a GPU is up to Lightning."""
    plain, autocast = L.Trainer, torch.autocast

    def trainer(**settings: Any) -> L.Trainer:
        settings.pop("accelerator")
        # wrapped tensors have no inference mode
        return plain(**settings, strategy=SingleDeviceStrategy(DEVICE, Anywhere()), inference_mode=False)

    monkeypatch.setattr(L, "Trainer", trainer)
    monkeypatch.setattr(torch, "autocast", lambda kind, **settings: autocast("cpu", **settings))


def edited(clip: Path, folder: Path, *overrides: str, on: str = "cpu") -> Tensor:
    words = [f"video.path={clip / 'source.mp4'}", f"video.edits.suv.target_image={clip / 'target.png'}"]
    words += ["video.edits.suv.truth=null", "metrics.enabled=false", f"cache={folder / 'cache'}", "video=bus_to_suv"]
    words += ["backbone=tiny", "tuning.steps=2", "inversion.steps=2", "inversion.gate=off", f"trainer.accelerator={on}"]
    options = compose_options("train", [*words, *overrides])
    with sdpa_kernel(SDPBackend.MATH):  # the only one on the simulated device: the same sums, the same bits
        train(options, folder / "run", show=False)
    return read_clip(folder / "run/edits/suv/edited.mp4", WHOLE).frames


def test_the_simulated_device_refuses_what_a_gpu_refuses() -> None:
    with Elsewhere():
        there = torch.ones(2, 3).to(DEVICE)
        assert torch.equal((there + 1).cpu(), torch.full((2, 3), 2.0)) and (there * torch.tensor(2.0)).device == DEVICE
        with pytest.raises(RuntimeError, match="is on the CPU"):
            _ = there + torch.ones(2, 3)
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("overrides", OTHERS.values(), ids=OTHERS)
def test_a_run_on_another_device_makes_the_same_edit(
    overrides: list[str], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = edited(clip, tmp_path / "cpu", *overrides)
    pretend(monkeypatch)
    with Elsewhere():
        there = edited(clip, tmp_path / "elsewhere", *overrides)
        assert (there - expected).abs().mean() < ALIKE
        if overrides == OTHERS["lora"]:  # cached results are moved to the device
            (tmp_path / "elsewhere/run").rename(tmp_path / "before")
            assert torch.equal(edited(clip, tmp_path / "elsewhere", *overrides), there)
            stages = read_json(tmp_path / "elsewhere/run/metrics.json")["stages"]
            assert "tuning" not in stages and stages["inversion"]["seconds"] == 0


def second_family(folder: Path, adapter: Path) -> list[str]:
    place = ["backbone=sd15_ip_adapter", f"backbone.path={folder}", f"backbone.adapter={adapter}"]
    return [*place, "video.width=32", "video.height=32", "video.multiple=8", "video.frames=2"]


@pytest.mark.slow
def test_the_second_family_makes_the_same_edit_on_another_device(
    clip: Path, tmp_path: Path, sd15: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = second_family(*sd15)
    expected = edited(clip, tmp_path / "cpu", *words)
    loaded = load_backbone(compose_options("train", ["video=bus_to_suv", *words]).backbone)  # loading uses meta tensors
    monkeypatch.setattr("tave.run.load_backbone", lambda *_: loaded)
    pretend(monkeypatch)
    with Elsewhere():
        assert (edited(clip, tmp_path / "elsewhere", *words) - expected).abs().mean() < ALIKE


def test_float32_is_not_rounded_to_tf32(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With convolutions in TF32 the edit differed by 0.1 of a range of 2 on an H200."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    edited(clip, tmp_path, "video.frames=2", "tuning.steps=0")
    assert not torch.backends.cudnn.allow_tf32


@gpu
@pytest.mark.parametrize("overrides", [[], *OTHERS.values()], ids=["default", *OTHERS])
def test_a_gpu_makes_the_same_edit(overrides: list[str], clip: Path, tmp_path: Path) -> None:
    expected, there = (edited(clip, tmp_path / on, *overrides, on=on) for on in ("cpu", "gpu"))
    assert (there - expected).abs().mean() < ALIKE


@gpu
@pytest.mark.parametrize("preset", ["8gb", "12gb", "16gb", "24gb", "80gb"])
def test_presets_run_on_a_gpu_and_repeat_to_the_bit(preset: str, clip: Path, tmp_path: Path) -> None:
    first, second = (edited(clip, tmp_path / name, f"memory={preset}", on="gpu") for name in "ab")
    assert torch.equal(first, second)


@gpu
@pytest.mark.parametrize("memory", [[], OTHERS["patent"][1:]], ids=["full", "8gb"])
def test_the_second_family_makes_the_same_edit_on_a_gpu(
    memory: list[str], clip: Path, tmp_path: Path, sd15: tuple[Path, Path]
) -> None:
    expected, there = (edited(clip, tmp_path / on, *second_family(*sd15), *memory, on=on) for on in ("cpu", "gpu"))
    assert (there - expected).abs().mean() < ALIKE
