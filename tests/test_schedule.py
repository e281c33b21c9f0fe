from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from tave.backbone import Backbone
from tave.options import OptionError
from tave.schedule import Schedule, ScheduleError, add_noise, ddim_step, to_clean, to_noise, training_target


@pytest.fixture
def z() -> torch.Tensor:
    return torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_levels_ascend_from_the_clean_one(tiny: Backbone):
    schedule = Schedule.from_scheduler(tiny.scheduler, 25)
    assert schedule.steps == 25 and len(schedule.timesteps) == len(schedule.alphas) == 26
    assert schedule.timesteps[:3] == [-1, 1, 41] and schedule.timesteps == sorted(schedule.timesteps)
    assert schedule.alphas.dtype == torch.float64
    assert schedule.alphas[0] == tiny.scheduler.alphas_cumprod[0].double()  # set_alpha_to_one is off: a[0], not 1
    assert torch.equal(schedule.alphas[1:], tiny.scheduler.alphas_cumprod.double()[schedule.timesteps[1:]])


def test_the_scheduler_is_left_alone(tiny: Backbone):
    before = tiny.scheduler.timesteps.clone()
    Schedule.from_scheduler(tiny.scheduler, 7)
    assert torch.equal(tiny.scheduler.timesteps, before)


def test_clean_level_is_one_where_the_scheduler_says_so():
    assert Schedule.from_scheduler(DDIMScheduler(set_alpha_to_one=True), 4).alphas[0] == 1


@pytest.mark.parametrize("steps", [0, 1000, 1001])  # 1000 with an offset of 1 would ask for timestep 1000
def test_steps_that_do_not_fit_are_refused(tiny: Backbone, steps: int):
    with pytest.raises(ScheduleError, match=f"steps={steps} "):
        Schedule.from_scheduler(tiny.scheduler, steps)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_step_equals_the_library_scheduler(tiny: Backbone, z: torch.Tensor, prediction_type: str):
    scheduler = DDIMScheduler.from_config(tiny.scheduler.config, prediction_type=prediction_type)
    assert isinstance(scheduler, DDIMScheduler)
    scheduler.set_timesteps(5)
    schedule, output = Schedule.from_scheduler(tiny.scheduler, 5), z.flip(0)
    for level in range(5, 0, -1):
        noise = to_noise(output, z, schedule.alphas[level], prediction_type)
        ours = ddim_step(z, noise, schedule.alphas[level], schedule.alphas[level - 1])
        theirs = scheduler.step(output, schedule.timesteps[level], z).prev_sample  # type: ignore[arg-type,union-attr]
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_step_up_and_down_returns(z: torch.Tensor):
    noise = z.flip(1)
    assert torch.allclose(ddim_step(ddim_step(z, noise, 0.9, 0.2), noise, 0.2, 0.9), z, atol=1e-12)


def test_target_noise_and_clean_latent_agree(z: torch.Tensor):
    noise, alpha = z.flip(1), torch.tensor([0.9, 0.1], dtype=torch.float64)  # one level for each `b`
    noisy = add_noise(z, noise, alpha)
    v = training_target(z, noise, alpha, "v_prediction")
    assert torch.allclose(to_noise(v, noisy, alpha, "v_prediction"), noise, atol=1e-12)
    assert torch.allclose(to_clean(noisy, noise, alpha), z, atol=1e-12)
    assert training_target(z, noise, alpha, "epsilon") is noise
    assert torch.equal(noisy[:1], add_noise(z[:1], noise[:1], 0.9))


def test_roots_keep_their_precision_in_single(z: torch.Tensor):
    alpha = 1 - 1e-9  # in single precision this is 1, and the noise's share would vanish
    noisy = add_noise(z.float(), torch.ones_like(z).float(), alpha) - z.float()
    assert noisy.dtype == torch.float32 and abs(float(noisy.mean()) - 3.16e-5) < 1e-6


def test_unknown_parametrisation_is_named(z: torch.Tensor):
    with pytest.raises(OptionError, match="prediction_type='sample'"):
        to_noise(z, z, 0.5, "sample")
