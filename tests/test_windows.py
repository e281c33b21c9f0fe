"""A clip in windows: their geometry, and the network's answers against those for the clip as a whole."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from fakes import draw, made_schedule
from runs import evaluations, frames_of, options
from torch import Tensor, nn

from tave.backbone import Backbone
from tave.cache import StoredError, read_tensors
from tave.cli import typed
from tave.config import CorrectionOptions, OptionError, TuningOptions, WindowOptions
from tave.correction import InterFrame, Level, Step
from tave.denoiser import Denoiser, DenoiserError, Tap
from tave.edit import edit, options_of
from tave.editor import Editor, TuningBatch
from tave.encoders import Condition, Encoders
from tave.files import read_json
from tave.inflate import TemporalAttention, inflate
from tave.inversion import invert
from tave.masking import compare
from tave.pipeline import Pipeline
from tave.sampling import sample
from tave.train import train
from tave.windows import Window, windows

N, OVERLAP, F, T = 5, 1, 9, 500
LATENTS = draw(1, F, 4, 8, 8, seed=3, dtype=torch.float32)


def split(tiny: Backbone, unet: UNet2DConditionModel, kv_frames: str = "first_previous", frames: int = N) -> Denoiser:
    """A copy of the network, inflated for windows of ``frames`` frames."""
    return Denoiser(inflate(copy.deepcopy(unet), frames, kv_frames), tiny.scheduler, overlap=OVERLAP)


def stirred(denoiser: Denoiser) -> Denoiser:
    """With a T-Attn that does something."""
    for module in denoiser.unet.modules():
        if isinstance(module, TemporalAttention):
            nn.init.normal_(module.to_out.weight, std=0.1, generator=torch.Generator().manual_seed(4))
    return denoiser


# ---- geometry --------------------------------------------------------------------------------------------------------


def test_weights_sum_to_one_in_every_frame_for_any_length_window_and_overlap() -> None:
    dice = random.Random(0)
    for _ in range(100):
        frames = dice.randint(3, 32)
        clip, overlap = dice.randint(1, 200), dice.randint(0, frames - 3)
        parts = windows(clip, frames, overlap)
        total, seen = torch.zeros(clip, dtype=torch.float64), 0
        for part, later in zip(parts, [*parts[1:], None], strict=True):
            assert len(part.frames) == min(frames, clip) and (part.weights > 0).all()
            assert part.frames[part.context :] == list(range(part.start, part.stop))
            assert part.frames[: part.context] == ([0, part.start - 1] if part.start else [])
            assert later is None or (part.stop - later.start >= overlap and later.stop > part.stop)
            total[part.start : part.stop] += part.weights
            seen += part.stop - part.start
        assert parts[0].start == 0 and parts[-1].stop == clip
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)
        assert seen <= clip + (len(parts) - 1) * (overlap + (clip - frames) / max(len(parts) - 1, 1) + 1 + frames)


def test_weights_rise_and_fall_linearly_over_the_overlap() -> None:
    first, second = windows(12, 8, 2)
    assert (first.start, first.stop, second.start, second.stop) == (0, 8, 6, 12)
    torch.testing.assert_close(first.weights, torch.tensor([1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]).double())
    torch.testing.assert_close(second.weights, torch.tensor([1 / 3, 2 / 3, 1, 1, 1, 1]).double())


def test_a_window_without_a_new_frame_is_refused() -> None:
    with pytest.raises(OptionError, match=r"window.overlap=6 leaves windows of 8 frames no new one: set it below 6"):
        windows(20, 8, 6)
    with pytest.raises(OptionError, match=r"window.overlap=6 leaves no new frame in window.frames=8: set it to 5"):
        WindowOptions(frames=8, overlap=6)


# ---- the network -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_clip_that_fits_one_window_is_evaluated_as_ever(
    tiny: Backbone, unet: UNet2DConditionModel, condition: Condition
) -> None:
    denoiser, latents = stirred(split(tiny, unet)), LATENTS[:, :N]
    with_tap, without = denoiser(latents, T, condition, 3.0, Tap(-2)), denoiser(latents, T, condition, 3.0)
    once = denoiser._predict(latents, T, condition, 3.0, None, Window(0, N, torch.ones(N)))
    assert torch.equal(without.noise, once.noise) and torch.equal(with_tap.noise, once.noise)


@torch.no_grad()
def test_a_still_clip_gets_the_same_prediction_in_every_frame_of_every_window(
    tiny: Backbone, unet: UNet2DConditionModel, condition: Condition
) -> None:
    """Attention sees the same whatever the frame, so windows agree with each other and with a single one."""
    still = LATENTS[:, :1].expand(-1, F, -1, -1, -1)
    denoiser = stirred(split(tiny, unet))
    found = denoiser(still, T, condition, 3.0, Tap(-2))
    single = denoiser(still[:, :N], T, condition, 3.0, Tap(-2))
    assert found.features is not None and single.features is not None
    for ours, theirs in ((found.noise, single.noise), (found.features, single.features)):
        torch.testing.assert_close(ours, theirs[:, :1].expand_as(ours), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kv_frames", ["first_previous", "previous_current", "first_previous_current"])
def test_each_frame_reads_the_clips_first_and_its_true_predecessor(
    tiny: Backbone, unet: UNet2DConditionModel, condition: Condition, kv_frames: str
) -> None:
    """A network of one attention layer without T-Attn answers windows exactly as the whole clip."""
    whole, parts = (split(tiny, unet, kv_frames, frames) for frames in (F, N))
    for denoiser in (whole, parts):
        _keep_one_attention(denoiser.unet)
    expected = whole(LATENTS, T, condition).noise
    torch.testing.assert_close(parts(LATENTS, T, condition).noise, expected, rtol=0, atol=1e-5)
    moved = LATENTS.clone()
    moved[:, 0] += 1  # the first frame reaches all of them, but for kv_frames without it
    reached = (parts(moved, T, condition).noise - expected).abs().amax((0, 2, 3, 4)) > 1e-4
    assert reached.tolist() == [True, True, *[kv_frames != "previous_current"] * (F - 2)]


def _keep_one_attention(unet: nn.Module) -> None:
    """Leave ST-Attn its effect in the last transformer block alone."""
    blocks = [module for module in unet.modules() if hasattr(module, "attn1")]
    for block in blocks[:-1]:
        for parameter in block.get_submodule("attn1.to_out.0").parameters():
            nn.init.zeros_(parameter)


@torch.no_grad()
def test_pictures_of_frames_go_to_their_frames(
    tiny: Backbone, unet: UNet2DConditionModel, condition: Condition
) -> None:
    denoiser, moved = split(tiny, unet), F - 1
    pictures = condition.image.expand(-1, F, -1).clone()
    pictures[:, moved] += 1
    one, other = (
        denoiser(LATENTS, T, Condition(condition.text, image, condition.null_text)).noise
        for image in (condition.image, pictures)
    )
    assert ((one - other).abs().amax((0, 2, 3, 4)) > 1e-4).nonzero().flatten().tolist() == [moved]
    with pytest.raises(DenoiserError, match="2 pictures for 9 frames"):
        denoiser(LATENTS, T, Condition(condition.text, pictures[:, :2], condition.null_text))


@torch.no_grad()
def test_every_stage_takes_a_clip_of_several_windows(
    tiny: Backbone, unet: UNet2DConditionModel, condition: Condition
) -> None:
    """Inversion, maps and corrected sampling of a still clip give every frame what one window gives."""
    denoiser, plan = stirred(split(tiny, unet)), made_schedule(2)
    other = Condition(condition.text, condition.image + 1, condition.null_text)

    def run(frames: int) -> tuple[Tensor, Tensor, Tensor]:
        trajectory = invert(denoiser, plan, LATENTS[:, :1].expand(-1, frames, -1, -1, -1), condition, refine=1)
        maps = compare(denoiser, plan, trajectory, condition, other)
        correction = InterFrame(torch.ones(1, frames, 1, 8, 8), CorrectionOptions(restore_variance=False))
        start = trajectory.level(2)
        edited = sample(denoiser, plan, start, other, guidance_scale=2.0, corrections=[correction])
        return trajectory.latents[:, 0], maps.per_step, edited

    for ours, theirs in zip(run(F), run(N), strict=True):
        torch.testing.assert_close(ours, theirs[:, :1].expand_as(ours), rtol=1e-3, atol=1e-4)


# ---- correction ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [0, 1, 2])
@pytest.mark.parametrize("candidates", ["all", "masked"])
def test_neighbours_across_borders_are_those_of_the_unsplit_clip(overlap: int, candidates: str) -> None:
    features, mask = draw(1, F, 5, 8, 8), (draw(1, F, 1, 8, 8, seed=1) > 0).double()
    options = CorrectionOptions(candidates=candidates, agreement=0.2, steps=[0.0, 1.0])
    fields = []
    for parts in (windows(F, F, 0), windows(F, N, overlap)):
        correction = InterFrame(mask, options)
        for window in parts:
            correction._read(window.of(features), window)
        assert correction.field is not None
        fields.append(correction.field)
    whole, found = fields
    assert torch.equal(found.previous, whole.previous) and torch.equal(found.following, whole.following)
    assert (whole.previous[1:] >= 0).any((1, 2)).all()  # every border has matches


@torch.no_grad()
def test_features_are_read_window_by_window(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition) -> None:
    denoiser, seen = split(tiny, unet), []
    prediction = denoiser(LATENTS, T, condition, 3.0, Tap(-2, lambda part, window: seen.append((part, window))))
    assert prediction.features is None and [window for _, window in seen] == list(denoiser.windows(F))
    assert all(part.shape == (1, N, 32, 8, 8) for part, _ in seen)
    level = Level(0, 1, torch.tensor(0.5), torch.tensor(0.9))
    rewriting = InterFrame(torch.ones(1, F, 1, 8, 8), CorrectionOptions(space="features", steps=[0.0, 1.0]))
    noise = denoiser(LATENTS, T, condition, 3.0, rewriting.tap(0, 1)).noise
    assert not torch.allclose(noise, prediction.noise) and rewriting.field is not None
    step = Step(level, LATENTS, noise, LATENTS)
    assert rewriting(step) is LATENTS and (rewriting.field.previous[1:] >= 0).any((1, 2)).all()


# ---- tuning ----------------------------------------------------------------------------------------------------------


def test_each_step_tunes_on_a_drawn_window_and_its_predicted_frames(
    tiny: Backbone, unet: UNet2DConditionModel, condition: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = split(tiny, unet)
    editor, given = Editor(Pipeline(denoiser, made_schedule(2), Encoders(tiny)), TuningOptions(steps=8)), []

    def exact_where_predicted(self: Denoiser, latents: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """A network that is right about all but the context."""
        clean = batch.latents[:, given[-1].frames]
        signal, noise = self.alphas_cumprod[t].sqrt(), (1 - self.alphas_cumprod[t]).sqrt()
        output = (signal * (latents - signal * clean) / noise - noise * clean).float()
        output[:, : given[-1].context] += 100
        return output

    genuine = Window.of

    def recorded(self: Window, values: Tensor) -> Tensor:
        given.append(self)
        return genuine(self, values)

    monkeypatch.setattr(Window, "of", recorded)
    monkeypatch.setattr(Denoiser, "output", exact_where_predicted)
    embeds = torch.zeros(F, tiny.image_width)
    batch = TuningBatch(torch.arange(F).float().view(1, F, 1, 1, 1).expand(-1, -1, 4, 8, 8), condition, embeds)
    assert max(float(editor.loss(batch, step)) for step in range(20)) < 1e-4
    assert {window.start for window in given} == {window.start for window in denoiser.windows(F)}


# ---- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # several runs
def test_a_run_of_several_windows_is_edited_again_and_measured(clip: Path, tmp_path: Path) -> None:
    """The clip's 8 frames in windows of 5: tuned, inverted, edited; another edit goes by what the run recorded."""
    words = "window.frames=5", "window.overlap=1", "tuning.steps=1", "inversion.steps=1", "mask.steps=[0,1]"
    run = train(options(clip, tmp_path / "cache", *words, "metrics.judge=null"), tmp_path / "run", show=False)
    assert read_json(run / "run.json")["config"]["window"] == {"frames": 5, "overlap": 1}
    assert read_json(run / "run.json")["windows"] == [[0, 5], [3, 6], [5, 8]]
    stored = read_tensors(run / "trajectory.safetensors")[0]["latents"]
    assert stored.shape[:3] == (2, 1, 8)
    figures, facts = (read_json(run / "metrics.json")[part] for part in ("edits", "metrics"))
    assert {"seam_ratio", "seam_ratio_source", "object_drift", "object_drift_ideal"} <= figures["suv"].keys()
    assert facts["seam_ratio"]["unit"] == "ratio" and facts["object_drift"]["higher_is_better"] is False
    again = [
        "video.edit=other",
        f"video.target_image={clip / 'target.png'}",
        "video.target_prompt=a van",
        "logger=none",
    ]
    with evaluations() as seen:
        edit(run, typed(options_of(run, [*again, f"cache={tmp_path / 'cache'}", "metrics.enabled=false"])), show=False)
    assert seen and len(frames_of(run / "edits/other/edited.mp4")) == 8
    assert torch.equal(read_tensors(run / "trajectory.safetensors")[0]["latents"], stored)
    other = options(clip, tmp_path / "cache", *words, "metrics.enabled=false", "window.overlap=2")
    with pytest.raises(StoredError, match="another tuning"):
        train(other, run, show=False)
