"""The LightningModule and its data, without a Trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tave.backbone import tiny_backbone
from tave.build import build_editor
from tave.config import TrainOptions, TuningOptions
from tave.data import VideoData
from tave.editor import Editor, TuningBatch
from tave.inflate import tuned_state
from tave.pipeline import Pipeline, Target
from tave.reference import TargetImage
from tave.video import Clip

FRAMES = 2
pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")  # without a Trainer
BASE = TrainOptions()
OPTIONS = replace(BASE, inversion=replace(BASE.inversion, steps=2, gate="off"), tuning=TuningOptions(image_dropout=0.5))
CLIP = Clip(torch.rand(FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1, 8.0)


@pytest.fixture
def editor() -> Editor:
    return build_editor(OPTIONS, FRAMES, backbone=tiny_backbone())


@pytest.fixture
def data(editor: Editor) -> VideoData:
    images = [TargetImage(CLIP.frames[0].flip(-1))]
    targets = [Target(name, f"a {name} car", images) for name in ("red", "white")]
    return VideoData(editor.pipeline, CLIP, "a white bus", targets, steps=3)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the number of optimizer steps so far."""
    return lambda step: monkeypatch.setattr(Editor, "global_step", property(lambda self: step))


def batch_of(data: VideoData) -> TuningBatch:
    batches = list(data.train_dataloader())
    assert len(batches) == 3 and batches[0] is batches[2]  # one clip, encoded once
    return batches[0]


def test_a_step_trains_what_was_selected(editor: Editor, data: VideoData) -> None:
    batch = batch_of(data)
    assert batch.embeds.shape == (FRAMES, 24) and batch.latents.shape == (1, FRAMES, 4, 8, 8)
    before = {name: parameter.detach().clone() for name, parameter in editor.named_parameters()}
    optimizer = editor.configure_optimizers()
    for _ in range(2):  # in the first, what lies behind a zeroed projection has no gradient
        optimizer.zero_grad()
        loss = editor.training_step(batch, 0)
        loss.backward()
        editor.configure_gradient_clipping(optimizer, 1e-3)
        norms = [p.grad.norm() for p in editor.parameters() if p.grad is not None]
        assert float(torch.stack(norms).norm()) <= 1.001e-3 and 0 < loss.item() < 10
        optimizer.step()
    moved = {name for name, parameter in editor.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, parameter in editor.named_parameters() if parameter.requires_grad}


def test_draws_depend_on_seed_and_step_alone(editor: Editor, data: VideoData, at_step: Callable[[int], None]) -> None:
    """So a resumed run equals an uninterrupted one."""
    batch = batch_of(data)

    def losses(*steps: int) -> list[float]:
        found = []
        for step in steps:
            at_step(step)
            torch.rand(3)
            found.append(float(editor.training_step(batch, 0).detach()))
        return found

    whole = losses(0, 1, 2, 3)
    assert losses(2, 3) == whole[2:] and losses(0) == whole[:1] and len(set(whole)) == 4
    editor.seed += 1
    assert not set(losses(0, 1)) & set(whole)


def test_dropout_zeroes_the_whole_image_vector(
    editor: Editor, data: VideoData, at_step: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The level's part too; else the noised embedding of one frame, text and clip unchanged."""
    batch, seen, genuine = batch_of(data), [], editor.denoiser.output
    monkeypatch.setattr(editor.denoiser, "output", lambda z, t, c: seen.append((t, c)) or genuine(z, t, c))
    for step in range(12):
        at_step(step)
        editor.training_step(batch, 0)
    images = [condition.image for _, condition in seen]
    assert all(image.shape == (1, 1, 48) for image in images)
    dropped = [not image.any() for image in images]
    assert 2 < sum(dropped) < 10 and len({int(t) for t, _ in seen}) > 6
    assert all(torch.equal(condition.text, batch.condition.text) for _, condition in seen)


def test_a_checkpoint_holds_the_tuned_weights_alone(editor: Editor) -> None:
    checkpoint: dict = {"state_dict": editor.state_dict()}
    editor.on_save_checkpoint(checkpoint)
    names = {f"denoiser.unet.{name}" for name in tuned_state(editor.denoiser.unet)}
    assert set(checkpoint["state_dict"]) == names
    trained = {name for name, parameter in editor.named_parameters() if parameter.requires_grad}
    assert trained <= names < set(editor.state_dict())
    missing = editor.load_state_dict(checkpoint["state_dict"], strict=editor.strict_loading)
    assert not missing.unexpected_keys


def test_one_inversion_serves_all_edits_of_a_clip(
    editor: Editor, data: VideoData, monkeypatch: pytest.MonkeyPatch
) -> None:
    inverted, genuine = [], Pipeline.invert
    monkeypatch.setattr(Pipeline, "invert", lambda self, source: inverted.append(1) or genuine(self, source))
    edits = [editor.predict_step(task, i) for i, task in enumerate(data.predict_dataloader())]
    assert len(inverted) == 1 and [edit.target.name for edit in edits] == ["red", "white"]
    assert edits[0].inversion is edits[1].inversion and not torch.equal(edits[0].frames, edits[1].frames)
    for edit in edits:
        outside = (edit.alpha == 0).expand_as(edit.frames)
        assert torch.equal(edit.frames[outside], CLIP.frames[outside])
