from __future__ import annotations

import warnings
from itertools import pairwise

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from tave.backbone import Backbone, tiny_backbone
from tave.conditions import Condition
from tave.denoiser import Denoiser, NoisePredictor, Prediction, Tap
from tave.inflate import inflate
from tave.inversion import (
    InversionError,
    InversionOptions,
    check_reconstruction,
    inversion_condition,
    invert,
    reconstruct,
)
from tave.options import OptionError
from tave.schedule import Schedule, to_noise


class Deaf:
    """Predicts one noise, or one v, whatever it is shown."""

    def __init__(self, answer: Tensor, alphas_cumprod: Tensor, prediction_type: str) -> None:
        self.answer, self.alphas_cumprod, self.prediction_type = answer, alphas_cumprod, prediction_type
        self.asked: list[int] = []

    def __call__(
        self, latents: Tensor, t: int, condition: Condition, guidance_scale: float = 1.0, tap: Tap | None = None
    ) -> Prediction:
        assert guidance_scale == 1.0 and tap is None
        self.asked.append(t)
        return Prediction(to_noise(self.answer, latents, self.alphas_cumprod[t], self.prediction_type))


@pytest.fixture
def z() -> Tensor:
    return torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def deaf(tiny: Backbone, like: Tensor, prediction_type: str) -> Deaf:
    answer = torch.randn(like.shape, generator=torch.Generator().manual_seed(1), dtype=like.dtype)
    return Deaf(answer, tiny.scheduler.alphas_cumprod.double(), prediction_type)


def error(denoiser: NoisePredictor, schedule: Schedule, z: Tensor, condition: Condition, refine: int) -> float:
    """Relative error of the round trip."""
    back = reconstruct(denoiser, schedule, invert(denoiser, schedule, z, condition, refine), condition)
    return float((back - z).norm() / z.norm())


def test_round_trip_is_exact_for_a_deaf_noise_predictor(tiny: Backbone, z: Tensor, condition: Condition):
    schedule = Schedule.from_scheduler(tiny.scheduler, 50)
    assert error(deaf(tiny, z, "epsilon"), schedule, z, condition, refine=0) < 1e-12


def test_refinement_cures_a_deaf_v_predictor(tiny: Backbone, z: Tensor, condition: Condition):
    """Fails at 0; under 1e-3 at 3; every refinement helps until 1e-6."""
    schedule, model = Schedule.from_scheduler(tiny.scheduler, 50), deaf(tiny, z, "v_prediction")
    errors = [error(model, schedule, z, condition, refine) for refine in (0, 1, 2, 3, 4, 5, 10)]
    assert errors[0] > 1e-2 and errors[3] < 1e-3 and errors[-1] < 1e-10
    for coarse, fine in pairwise(errors):
        assert fine < coarse or coarse < 1e-6


def test_refinement_cures_the_tiny_unet(tiny: Backbone, unet: UNet2DConditionModel, condition: Condition):
    clip = torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    schedule, denoiser = Schedule.from_scheduler(tiny.scheduler, 20), Denoiser(inflate(unet, 2), tiny.scheduler)
    assert error(denoiser, schedule, clip, condition, refine=0) > 1e-2
    assert error(denoiser, schedule, clip, condition, refine=3) < 1e-3


def test_v_and_epsilon_models_give_the_same_trajectory(tiny: Backbone, condition: Condition):
    """One denoiser, told once in v and once in epsilon."""
    clip = torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    schedule = Schedule.from_scheduler(tiny.scheduler, 4)
    v_model = Denoiser(tiny.unet, tiny.scheduler)
    epsilon_model = Denoiser(AsEpsilon(v_model), tiny_backbone(prediction_type="epsilon").scheduler)  # type: ignore[arg-type]
    ours, theirs = (invert(model, schedule, clip, condition, 1).latents for model in (v_model, epsilon_model))
    assert torch.allclose(ours, theirs, atol=1e-4)


class AsEpsilon(nn.Module):
    """A v UNet that speaks epsilon."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, sample: Tensor, timestep: Tensor, **kwargs) -> tuple[Tensor]:
        v = self.denoiser.unet(sample, timestep, **kwargs)[0]
        return (to_noise(v, sample, self.denoiser.alphas_cumprod[timestep], "v_prediction"),)


def test_the_model_is_asked_at_the_upper_timestep(tiny: Backbone, z: Tensor, condition: Condition):
    schedule, model = Schedule.from_scheduler(tiny.scheduler, 3), deaf(tiny, z, "epsilon")
    trajectory = invert(model, schedule, z, condition, refine=1)
    assert model.asked == [1, 1, 334, 334, 667, 667]
    reconstruct(model, schedule, trajectory, condition)
    assert model.asked[6:] == [667, 334, 1]


def test_trajectory_keeps_the_clean_latent_and_every_level(tiny: Backbone, z: Tensor, condition: Condition):
    schedule, seen = Schedule.from_scheduler(tiny.scheduler, 5), []
    model = deaf(tiny, z, "epsilon")
    trajectory = invert(model, schedule, z, condition, on_step=lambda done, total: seen.append((done, total)))
    assert trajectory.latents.shape == (6, *z.shape) and torch.equal(trajectory.level(0), z)
    # with a fixed noise the level is known in closed form
    clean = (z - (1 - schedule.alphas[0]).sqrt() * model.answer) / schedule.alphas[0].sqrt()
    for level, alpha in enumerate(schedule.alphas):
        expected = alpha.sqrt() * clean + (1 - alpha).sqrt() * model.answer
        assert torch.allclose(trajectory.level(level), expected, atol=1e-12)
    assert seen == [(k, 5) for k in range(1, 6)]


def test_reconstruction_counts_its_steps_and_takes_its_own_schedule(tiny: Backbone, z: Tensor, condition: Condition):
    schedule, model, seen = Schedule.from_scheduler(tiny.scheduler, 5), deaf(tiny, z, "epsilon"), []
    trajectory = invert(model, schedule, z, condition)
    reconstruct(model, schedule, trajectory, condition, on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 5) for k in range(1, 6)]
    with pytest.raises(InversionError, match="trajectory of 5 steps for a schedule of 4"):
        reconstruct(model, Schedule.from_scheduler(tiny.scheduler, 4), trajectory, condition)
    with pytest.raises(InversionError, match="b f c h w"):
        invert(model, schedule, z[0], condition)


def test_inversion_may_be_told_less(condition: Condition):
    assert inversion_condition(condition, "source") is condition
    text = inversion_condition(condition, "text")
    assert text.text is condition.text and not text.image.any()
    empty = inversion_condition(condition, "empty")
    assert torch.equal(empty.text, condition.null_text) and not empty.image.any()


def test_gate_opens_within_three_decibels():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_reconstruction(27.1, 30.0, "strict") and not check_reconstruction(20.0, 30.0, "off")
    with pytest.warns(UserWarning, match=r"20\.0 dB where the autoencoder reaches 30\.0 dB.*tune for more steps"):
        assert not check_reconstruction(20.0, 30.0, "warn")
    with pytest.raises(InversionError, match=r"raise inversion\.steps"):
        check_reconstruction(20.0, 30.0, "strict")


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"refine": -1}, {"gate": "open"}, {"condition": "target"}])
def test_wrong_options_are_named(wrong: dict):
    with pytest.raises(OptionError, match=rf"inversion\.{next(iter(wrong))}="):
        InversionOptions(**wrong)
