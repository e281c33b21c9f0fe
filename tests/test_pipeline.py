"""The method on the tiny backbone: values in, values out."""

from __future__ import annotations

import builtins
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tave.backbone import tiny_backbone
from tave.cache import Cache
from tave.config import EditingOptions, OptionError, TrainOptions
from tave.denoiser import Denoiser
from tave.encoders import Encoders
from tave.inflate import inflate
from tave.pipeline import Edit, Inversion, Pipeline, Source, Target
from tave.reference import TargetImage
from tave.schedule import Schedule
from tave.video import Clip

FRAMES, STEPS = 3, 2
BACKBONE = tiny_backbone()
inflate(BACKBONE.unet, FRAMES)


def options_with(**groups: dict[str, Any]) -> EditingOptions:
    """The defaults, a quick and simple variant of them, and ``groups``."""
    simple = {"reference": {"mode": "as_is"}, "inversion": {"steps": STEPS, "gate": "off"}}
    simple["mask"] = {"threshold": "quantile", "quantile": 0.7}
    options = TrainOptions().editing
    for changes in (simple, groups):
        options = replace(options, **{name: replace(getattr(options, name), **part) for name, part in changes.items()})
    return options


def pipeline(options: EditingOptions | None = None, seed: int = 0, cache: Cache | None = None) -> Pipeline:
    denoiser, schedule = Denoiser(BACKBONE.unet, BACKBONE.scheduler), Schedule.from_scheduler(BACKBONE.scheduler, STEPS)
    encoders = Encoders(BACKBONE, seed=seed)
    return Pipeline(denoiser, schedule, encoders, options or options_with(), seed=seed, cache=cache)


def moving_block() -> Clip:
    frames = torch.linspace(-0.8, 0.8, 32).expand(FRAMES, 3, 32, 32).clone()
    for i in range(FRAMES):
        frames[i, :, 12:24, 4 + 4 * i : 16 + 4 * i] = torch.tensor([0.9, 0.9, 0.8])[:, None, None]
    return Clip(frames, 8.0)


def picture() -> TargetImage:
    """A red object on green."""
    rgb, alpha = torch.tensor([-0.5, 0.3, -0.5])[:, None, None].repeat(1, 40, 40), torch.zeros(1, 40, 40)
    rgb[:, 10:30, 8:32], alpha[:, 10:30, 8:32] = torch.tensor([0.9, -0.8, -0.8])[:, None, None], 1
    return TargetImage(rgb, alpha)


CLIP, TARGET = moving_block(), Target("red", "a red car on the road", [picture()])
Encoded = tuple[Source, Inversion]


@pytest.fixture(scope="module")
def encoded() -> Encoded:
    """The clip, encoded and inverted once: neither depends on what these tests vary."""
    made = pipeline()
    source = made.encode(CLIP, "a white bus on the road")
    return source, made.invert(source)


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Returns the number of network evaluations since its last call."""
    calls, genuine = [0], Denoiser.forward

    def forward(self: Denoiser, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return genuine(self, *args, **kwargs)

    def since() -> int:
        calls[0], found = 0, calls[0]
        return found

    monkeypatch.setattr(Denoiser, "forward", forward)
    return since


def corner() -> Tensor:
    """A region `f 1 H W` that no method would find."""
    region = torch.zeros(FRAMES, 1, 32, 32)
    region[:, :, :8, :12] = 1
    return region


def region_of(edit: Edit) -> Tensor:
    """`f 1 H W` in {0, 1}."""
    return edit.mask.mask[0].repeat_interleave(4, -1).repeat_interleave(4, -2)


def test_two_runs_are_bit_equal_and_another_seed_differs(encoded: Encoded) -> None:
    def run(seed: int) -> Edit:
        made = pipeline(seed=seed)
        source = made.encode(CLIP, "a white bus on the road")
        return made.edit(source, made.invert(source), TARGET)

    first, again, other = run(0), run(0), run(1)
    for name in ("frames", "alpha"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert torch.equal(first.mask.soft, again.mask.soft) and not torch.equal(first.frames, other.frames)
    assert torch.equal(first.frames, pipeline().edit(*encoded, TARGET).frames)
    assert first.field is not None and not torch.equal(first.frames, CLIP.frames)


def test_an_edit_reads_no_file(encoded: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
    """It depends on clip, prompts and images alone: a true region that lies beside the clip can't reach it."""
    opened: list[str] = []

    def spy(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(str(file))
        return genuine(file, *args, **kwargs)

    genuine = io.open
    monkeypatch.setattr(io, "open", spy)
    monkeypatch.setattr(builtins, "open", spy)
    pipeline(options_with(reference={"mode": "joint"})).edit(*encoded, TARGET)
    assert [name for name in opened if not name.startswith("/proc/self/")] == []  # peak memory is read there


def test_another_region_moves_the_edit_and_leaves_the_source_outside(encoded: Encoded) -> None:
    found, given = (pipeline().edit(*encoded, replace(TARGET, region=region)) for region in (None, corner()))
    for edit in (found, given):
        outside = (edit.alpha == 0).expand_as(edit.frames)
        assert outside.any() and torch.equal(edit.frames[outside], CLIP.frames[outside])
    strict = pipeline(options_with(mask={"drop_unchanged": 1.0}))
    assert not strict.edit(*encoded, TARGET).alpha.any()  # no pixel changes by the whole range
    assert torch.equal(region_of(strict.edit(*encoded, given.target)), corner())  # not narrowed, not grown
    inside, elsewhere = corner() > 0, (found.alpha > 0) & (given.alpha == 0)
    assert given.alpha[inside].eq(1).all() and elsewhere.any()
    changed, before = ((edit.frames - CLIP.frames).abs().amax(1, keepdim=True) for edit in (given, found))
    assert float(changed[inside].mean()) > 0.05 and not changed[elsewhere].any() and before[elsewhere].any()


def test_another_threshold_costs_no_comparison(encoded: Encoded, tmp_path: Path, count: Callable[[], int]) -> None:
    source, _ = encoded
    made = pipeline(cache=Cache(tmp_path))
    inversion = made.invert(source)
    count()
    first = made.edit(source, inversion, TARGET)
    assert count() == STEPS // 2 + STEPS  # the mask reads the noisy half of the schedule
    made = pipeline(options_with(mask={"quantile": 0.9, "dilate": 0.1}), cache=Cache(tmp_path))
    assert torch.equal(made.invert(source).trajectory.latents, inversion.trajectory.latents)
    second = made.edit(source, inversion, TARGET)
    assert count() == STEPS and not torch.equal(first.mask.binary, second.mask.binary)
    pipeline(options_with(mask={"steps": [0.0, 1.0]}), cache=Cache(tmp_path)).edit(source, inversion, TARGET)
    assert count() == 2 * STEPS
    made.edit(source, inversion, replace(TARGET, prompt="a red bus on the road"))
    assert count() == STEPS // 2 + STEPS


@pytest.mark.parametrize("mode, shown", [("as_is", 1), ("neutral", 1), ("in_context", 1), ("joint", 2), ("none", 0)])
def test_every_mode_edits(encoded: Encoded, mode: str, shown: int) -> None:
    edit = pipeline(options_with(reference={"mode": mode, "frame": "middle"})).edit(*encoded, TARGET)
    assert [len(reference.pictures) for reference in edit.references] == [shown]
    assert bool(edit.frames.isfinite().all()) and edit.mask.mask.any() and edit.mask.mask.mean() < 1
    outside = (edit.alpha == 0).expand_as(edit.frames)
    assert torch.equal(edit.frames[outside], CLIP.frames[outside]) and not torch.equal(edit.frames, CLIP.frames)


def test_joint_takes_its_mask_from_the_picture_in_place(encoded: Encoded) -> None:
    """A picture on grey differs from the source frame everywhere, which would leak into the mask."""
    neutral, in_context, joint = (
        pipeline(options_with(reference={"mode": mode})).edit(*encoded, TARGET)
        for mode in ("neutral", "in_context", "joint")
    )
    assert torch.equal(joint.mask.soft, in_context.mask.soft) and not torch.equal(joint.mask.soft, neutral.mask.soft)
    assert not torch.equal(joint.frames, in_context.frames)  # sampled with both pictures
    place = joint.references[0].pictures[0]
    assert place.shape == CLIP.frames.shape and not torch.equal(place, CLIP.frames)


def test_text_alone_needs_no_picture(encoded: Encoded) -> None:
    made = pipeline(options_with(reference={"mode": "none"}))
    words, picture = (made.edit(*encoded, each) for each in (replace(TARGET, images=[]), TARGET))
    assert torch.equal(words.frames, picture.frames) and words.references == [] and words.mask.soft.max() == 1
    same = replace(TARGET, images=[], prompt="a white bus on the road")
    for mode in ("none", "as_is", "joint"):
        assert not pipeline(options_with(reference={"mode": mode})).edit(*encoded, same).mask.mask.any()


def test_a_target_that_equals_the_source_returns_the_clip(encoded: Encoded) -> None:
    made = pipeline(options_with(reference={"frame": "first"}))
    source = made.encode(CLIP, "a white bus on the road")
    same = Target("same", "a white bus on the road", [TargetImage(CLIP.frames[0])])
    edit = made.edit(source, encoded[1], same)
    assert not edit.mask.soft.any() and not edit.alpha.any() and torch.equal(edit.frames, CLIP.frames)
    made = pipeline(options_with(reference={"frame": "first"}, sampler={"composite": False}))
    torch.testing.assert_close(made.edit(source, encoded[1], same).frames, source.round_trip)  # ends at z_0


def test_the_whole_frame_may_be_edited(encoded: Encoded, count: Callable[[], int]) -> None:
    edit = pipeline(options_with(mask={"region": "whole"}, reference={"mode": "joint"})).edit(*encoded, TARGET)
    assert count() == STEPS and edit.alpha.eq(1).all() and edit.mask.mask.eq(1).all()
    plain = options_with(correction={"enabled": False}, sampler={"fresh_noise": 0.0}, mask={"region": "whole"})
    assert pipeline(plain).edit(*encoded, TARGET).field is None


def test_nothing_found_is_noted(encoded: Encoded, caplog: pytest.LogCaptureFixture) -> None:
    made = pipeline(options_with(reference={"mode": "in_context"}, mask={"quantile": 1.0}))
    edit = made.edit(*encoded, TARGET)
    assert not edit.mask.mask.any() and "found nothing to edit" in edit.references[0].note
    assert edit.references[0].note in caplog.text


@pytest.mark.parametrize(
    ("group", "values"),
    [("correction", {"block": 3}), ("mask", {"steps": [0.0, 0.05]}), ("correction", {"steps": [0.0, 0.05]})],
)
def test_options_that_this_network_or_schedule_lacks_are_refused(group: str, values: dict[str, Any]) -> None:
    pipeline().check()
    with pytest.raises(OptionError, match=f"{group}.{next(iter(values))}"):
        pipeline(options_with(**{group: values})).check()
