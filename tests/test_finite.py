"""NaN and infinity end a stage with its name and step; what was good is kept, and nothing non-finite is stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import Following, draw, made_condition, made_schedule
from lightning import LightningModule
from runs import TINY, call
from torch import Tensor

import tave.train
from tave.backbone import tiny_backbone
from tave.build import build_editor
from tave.config import InversionOptions, TrainOptions
from tave.denoiser import Prediction
from tave.editor import Editor
from tave.encoders import Encoders
from tave.finite import NonFiniteError, Watch, check_finite
from tave.inflate import TunedStateError, load_tuned, tuned_state
from tave.inversion import Trajectory, invert, reconstruct
from tave.masking import compare
from tave.pipeline import Pipeline
from tave.sampling import sample
from tave.video import Clip

STEPS, Z, CONDITION = 6, draw(1, 2, 4, 4, 4), made_condition(dtype=torch.float64)


class Failing(Following):
    """Its noise holds one NaN or infinity at one timestep."""

    def __init__(self, at: int, value: float) -> None:
        self.at, self.value = at, value

    def __call__(self, latents, t, condition, guidance_scale=1.0, tap=None) -> Prediction:
        noise, features = super().__call__(latents, t, condition, guidance_scale, tap)
        if t == self.at:
            noise[-1, -1, -1, -1, -1] = self.value
        return Prediction(noise, features)


def trajectory() -> Trajectory:
    return invert(Following(), made_schedule(STEPS), Z, CONDITION, refine=0)


STAGES: dict[str, Callable[[Any], Any]] = {
    "inversion": lambda model: invert(model, made_schedule(STEPS), Z, CONDITION, refine=0),
    "reconstruction": lambda model: reconstruct(model, made_schedule(STEPS), trajectory(), CONDITION),
    "masking": lambda model: compare(model, made_schedule(STEPS), trajectory(), CONDITION, made_condition(1.0)),
    "sampling": lambda model: sample(model, made_schedule(STEPS), Z, CONDITION, guidance_scale=1.5),
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_the_step_at_which_a_value_is_not_finite(stage: str, value: float) -> None:
    STAGES[stage](Following())
    step = 4 if stage == "inversion" else STEPS - 3  # which goes up the levels, the others down
    with pytest.raises(
        NonFiniteError, match=f"^{stage}, step {step}: the (latent|map) is not finite; .*set "
    ) as caught:
        STAGES[stage](Failing(400, value))
    assert "\n" not in str(caught.value)


def test_values_of_an_accelerator_are_read_together_and_the_first_bad_one_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads, stack = [], torch.stack
    monkeypatch.setattr(torch, "stack", lambda flags: reads.append(len(flags)) or stack(flags))

    class There(Tensor):
        device = torch.device("cuda")

    watch = Watch("tuning", "lower tuning.lr")
    for step in range(1, 33):
        watch.add(step, "loss", torch.ones(()).as_subclass(There))
    assert reads == [16, 16]
    for value, step in ((1.0, 33), (math.nan, 34), (math.inf, 35)):
        watch.add(step, "loss", torch.tensor(value).as_subclass(There))
    with pytest.raises(NonFiniteError, match=r"^tuning, step 34: the loss is not finite; lower tuning\.lr$"):
        watch.read()


def test_whole_tensors_of_any_type_are_checked() -> None:
    check_finite(
        "stage", {"a": torch.ones(3), "b": torch.ones(2).int(), "c": torch.ones(()).bool(), "d": torch.ones(0)}
    )
    with pytest.raises(NonFiniteError, match=r"^stage: the b is not finite; set trainer\.precision"):
        check_finite("stage", {"a": torch.ones(3), "b": torch.tensor([0, math.inf]).bfloat16()})


@pytest.mark.parametrize(("part", "value"), [("encode", "latent"), ("decode", "round trip")])
def test_encoded_frames_are_checked(part: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Clip(torch.zeros(2, 3, 32, 32), 8.0)
    options = replace(TrainOptions(), inversion=InversionOptions(steps=2))
    pipeline: Pipeline = build_editor(options, 2, backbone=tiny_backbone()).pipeline
    genuine = getattr(Encoders, part)
    monkeypatch.setattr(Encoders, part, lambda self, *given: genuine(self, *given) * math.nan)
    with pytest.raises(NonFiniteError, match=f"^encoding: the {value} is not finite"):
        pipeline.encode(clip, "a bus")


def test_tuned_weights_that_are_not_finite_or_of_another_type_are_refused() -> None:
    editor = build_editor(TrainOptions(), 2, backbone=tiny_backbone())
    unet = editor.denoiser.unet
    state = tuned_state(unet)
    name = next(name for name in state if "to_q" in name)
    for value, message in (
        (state[name] * math.nan, rf"not finite, {name}: tune again"),
        (state[name].double(), rf"another type, {name} torch\.float64 not torch\.float32"),
        (state[name].int(), "another type"),
    ):
        with pytest.raises(TunedStateError, match=message):
            load_tuned(unet, {**state, name: value})
    assert all(torch.equal(value, state[name]) for name, value in tuned_state(unet).items())


# ---- the tuning ------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(clip: Path, tmp_path: Path) -> Callable[..., int]:
    """``tave.train`` without edits into ``tmp_path/run``."""

    def called(*words: str) -> int:
        given = ["video=custom", f"video.path={clip / 'source.mp4'}", "video.source_prompt=a bus", *TINY]
        folders = [f"hydra.run.dir={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}"]
        return call(tave.train.main, *given, "video.frames=2", "logger=none", *folders, *words)

    return called


def test_a_learning_rate_that_destroys_the_weights_ends_in_one_line_and_leaves_nothing(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("tuning.lr=1e30", "tuning.steps=8") == 1  # the first update overflows in any order of summation
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: tuning, step 2: the ")
    assert error.endswith(" is not finite; lower tuning.lr (now 1e+30)")
    assert not list((tmp_path / "cache").rglob("*.*")) and not list(tmp_path.rglob("tuned.safetensors"))


@pytest.mark.parametrize("part", ["loss", "gradient", "weight"])
def test_a_bad_step_is_named_and_the_checkpoint_before_it_is_kept(
    part: str, command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Step 7 of 8 with a checkpoint after each 3: the loss is NaN, or its gradient is, or the last update is."""
    genuine = Editor.loss

    def loss(self: Editor, batch: Any, step: int) -> Tensor:
        value = genuine(self, batch, step)
        if part == "gradient" and step == 6:
            value.register_hook(lambda gradient: gradient * math.nan)
        return value * math.nan if part == "loss" and step == 6 else value

    def update(self: Editor, *rest: Any) -> None:
        step = self.global_step
        LightningModule.optimizer_step(self, *rest)
        if part == "weight" and step == 6:
            with torch.no_grad():
                next(p for p in self.parameters() if p.requires_grad).view(-1)[0] = math.inf

    monkeypatch.setattr(Editor, "loss", loss)
    monkeypatch.setattr(Editor, "optimizer_step", update)
    monkeypatch.setattr("tave.checkpoints.STEPS", 3)
    assert command("tuning.steps=8", "inversion.gate=off") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    named = {"loss": "step 7: the loss", "gradient": "step 7: the gradient", "weight": "step 8: the loss"}
    assert error.startswith(f"error: tuning, {named[part]} is not finite; lower tuning.lr (now "), error
    (last,) = (tmp_path / "cache").glob("tuned-*/*")
    with last.open("rb") as file:
        file.readline()
        state = torch.load(file, weights_only=True)
    assert last.name == "last.ckpt" and state["global_step"] == 6
    check_finite("last", state["state_dict"])


@pytest.mark.slow  # several runs
def test_a_loss_that_the_tuning_made_grow_is_said_in_one_line(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Editor.loss
    assert command("tuning.steps=6", "tuning.lr=1e-3") == 0
    assert "made the loss grow" not in capsys.readouterr().err  # whose loss goes up and down with its random t
    monkeypatch.setattr(Editor, "loss", lambda self, batch, step: genuine(self, batch, step) * (1 + self.global_step))
    assert command("tuning.steps=6", "tuning.lr=2e-3", "hydra.run.dir=${cache}/../grown") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "made the loss grow" in line]
    assert len(lines) == 1 and lines[0].endswith("lower tuning.lr (now 0.002)")
