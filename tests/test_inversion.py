"""Inversion followed by sampling returns the clip; v and epsilon models agree; the gate."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from fakes import draw
from torch import Tensor, nn

from tave.backbone import Backbone, tiny_backbone
from tave.denoiser import Denoiser, NoisePredictor, Prediction
from tave.encoders import Condition
from tave.inflate import inflate
from tave.inversion import InversionError, inversion_condition, invert, reconstruct, reconstruction_note
from tave.schedule import Schedule, to_noise

Z = draw(1, 2, 4, 4, 4)


class Constant:
    """Predicts one noise, or one v, whatever the latents."""

    def __init__(self, tiny: Backbone, prediction_type: str) -> None:
        self.output, self.prediction_type = draw(*Z.shape, seed=1), prediction_type
        self.alphas_cumprod = tiny.scheduler.alphas_cumprod.double()
        self.timesteps: list[int] = []

    def __call__(self, latents, t, condition, guidance_scale=1.0, tap=None) -> Prediction:
        assert guidance_scale == 1.0 and tap is None
        self.timesteps.append(t)
        return Prediction(to_noise(self.output, latents, self.alphas_cumprod[t], self.prediction_type))


def error(denoiser: NoisePredictor, schedule: Schedule, z: Tensor, condition: Condition, refine: int) -> float:
    """Relative error of inversion and sampling."""
    back = reconstruct(denoiser, schedule, invert(denoiser, schedule, z, condition, refine), condition)
    return float((back - z).norm() / z.norm())


def test_a_constant_noise_is_inverted_exactly_without_refinement(tiny: Backbone, condition: Condition):
    schedule = Schedule.from_scheduler(tiny.scheduler, 50)
    assert error(Constant(tiny, "epsilon"), schedule, Z, condition, refine=0) < 1e-12


def test_a_constant_v_needs_refinement(tiny: Backbone, condition: Condition):
    """Fails at 0; under 1e-3 at 3; every refinement helps until 1e-6."""
    schedule, model = Schedule.from_scheduler(tiny.scheduler, 50), Constant(tiny, "v_prediction")
    errors = [error(model, schedule, Z, condition, refine) for refine in (0, 1, 2, 3, 4, 5, 10)]
    assert errors[0] > 1e-2 and errors[3] < 1e-3 and errors[-1] < 1e-10
    for coarse, fine in pairwise(errors):
        assert fine < coarse or coarse < 1e-6


def test_refinement_inverts_the_tiny_unet(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition):
    schedule, denoiser = Schedule.from_scheduler(tiny.scheduler, 6), Denoiser(inflate(unet, 2), tiny.scheduler)
    assert error(denoiser, schedule, Z.float(), condition, refine=0) > 1e-2
    assert error(denoiser, schedule, Z.float(), condition, refine=6) < 1e-3


class AsEpsilon(nn.Module):
    """A v UNet whose output is converted to epsilon."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, sample: Tensor, timestep: Tensor, **kwargs) -> tuple[Tensor]:
        v = self.denoiser.unet(sample, timestep, **kwargs)[0]
        return (to_noise(v, sample, self.denoiser.alphas_cumprod[timestep], "v_prediction"),)


def test_v_and_epsilon_models_give_the_same_trajectory(tiny: Backbone, condition: Condition):
    schedule = Schedule.from_scheduler(tiny.scheduler, 4)
    v_model = Denoiser(tiny.unet, tiny.scheduler)
    epsilon_model = Denoiser(AsEpsilon(v_model), tiny_backbone(prediction_type="epsilon").scheduler)  # type: ignore[arg-type]
    ours, theirs = (invert(model, schedule, Z.float(), condition, 1).latents for model in (v_model, epsilon_model))
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_model_is_evaluated_at_the_upper_timestep(tiny: Backbone, condition: Condition):
    schedule, model, seen = Schedule.from_scheduler(tiny.scheduler, 3), Constant(tiny, "epsilon"), []
    trajectory = invert(model, schedule, Z, condition, refine=1, on_step=lambda *at: seen.append(at))
    assert model.timesteps == [1, 1, 334, 334, 667, 667]
    reconstruct(model, schedule, trajectory, condition, on_step=lambda *at: seen.append(at))
    assert model.timesteps[6:] == [667, 334, 1] and seen == 2 * [(1, 3), (2, 3), (3, 3)]


def test_trajectory_keeps_the_clean_latent_and_every_level(tiny: Backbone, condition: Condition):
    schedule, model = Schedule.from_scheduler(tiny.scheduler, 5), Constant(tiny, "epsilon")
    trajectory = invert(model, schedule, Z, condition)
    assert trajectory.latents.shape == (6, *Z.shape) and torch.equal(trajectory.level(0), Z)
    # with a constant noise the level is known in closed form
    clean = (Z - (1 - schedule.alphas[0]).sqrt() * model.output) / schedule.alphas[0].sqrt()
    for level, alpha in enumerate(schedule.alphas):
        expected = alpha.sqrt() * clean + (1 - alpha).sqrt() * model.output
        assert torch.allclose(trajectory.level(level), expected, atol=1e-12)
    with pytest.raises(InversionError, match="trajectory of 5 steps for a schedule of 4"):
        reconstruct(model, Schedule.from_scheduler(tiny.scheduler, 4), trajectory, condition)
    with pytest.raises(InversionError, match="b f c h w"):
        invert(model, schedule, Z[0], condition)


def test_conditions_of_the_inversion(condition: Condition):
    assert inversion_condition(condition, "source") is condition
    text = inversion_condition(condition, "text")
    assert text.text is condition.text and not text.image.any()
    empty = inversion_condition(condition, "empty")
    assert torch.equal(empty.text, condition.null_text) and not empty.image.any()


def test_the_gate_allows_three_decibels():
    assert reconstruction_note(27.1, 30.0, "strict") == "" == reconstruction_note(20.0, 30.0, "off")
    note = reconstruction_note(20.0, 30.0, "warn")
    assert "20.0 dB" in note and "30.0 dB" in note and "tuning.steps" in note
    with pytest.raises(InversionError, match=r"inversion\.steps"):
        reconstruction_note(20.0, 30.0, "strict")
