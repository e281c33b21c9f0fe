"""Noise levels and the deterministic step between them, against the library's scheduler."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from fakes import draw

from tave.backbone import Backbone
from tave.config import OptionError
from tave.schedule import Schedule, ScheduleError, add_noise, ddim_step, to_clean, to_noise, training_target

Z = draw(2, 3, 4, 8, 8)


def test_levels_ascend_from_the_clean_one_and_the_scheduler_is_unchanged(tiny: Backbone):
    before = tiny.scheduler.timesteps.clone()
    schedule = Schedule.from_scheduler(tiny.scheduler, 25)
    assert schedule.steps == 25 and len(schedule.timesteps) == len(schedule.alphas) == 26
    assert schedule.timesteps[:3] == [-1, 1, 41] and schedule.timesteps == sorted(schedule.timesteps)
    assert schedule.alphas.dtype == torch.float64
    assert schedule.alphas[0] == tiny.scheduler.alphas_cumprod[0].double()  # set_alpha_to_one is off: a[0], not 1
    assert torch.equal(schedule.alphas[1:], tiny.scheduler.alphas_cumprod.double()[schedule.timesteps[1:]])
    assert torch.equal(tiny.scheduler.timesteps, before)
    assert Schedule.from_scheduler(DDIMScheduler(set_alpha_to_one=True), 4).alphas[0] == 1


@pytest.mark.parametrize("steps", [0, 1000, 1001])  # 1000 with an offset of 1 would need timestep 1000
def test_steps_out_of_range_are_refused(tiny: Backbone, steps: int):
    with pytest.raises(ScheduleError, match=f"steps={steps} "):
        Schedule.from_scheduler(tiny.scheduler, steps)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_step_equals_the_library_scheduler(tiny: Backbone, prediction_type: str):
    scheduler = DDIMScheduler.from_config(tiny.scheduler.config, prediction_type=prediction_type)
    assert isinstance(scheduler, DDIMScheduler)
    scheduler.set_timesteps(5)
    schedule, output = Schedule.from_scheduler(tiny.scheduler, 5), Z.flip(0)
    for level in range(5, 0, -1):
        noise = to_noise(output, Z, schedule.alphas[level], prediction_type)
        ours = ddim_step(Z, noise, schedule.alphas[level], schedule.alphas[level - 1])
        theirs = scheduler.step(output, schedule.timesteps[level], Z).prev_sample  # type: ignore[arg-type,union-attr]
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_step_up_and_down_returns():
    noise = Z.flip(1)
    assert torch.allclose(ddim_step(ddim_step(Z, noise, 0.9, 0.2), noise, 0.2, 0.9), Z, atol=1e-12)


def test_target_noise_and_clean_latent_agree():
    noise, alpha = Z.flip(1), torch.tensor([0.9, 0.1], dtype=torch.float64)  # one level for each `b`
    noisy = add_noise(Z, noise, alpha)
    v = training_target(Z, noise, alpha, "v_prediction")
    assert torch.allclose(to_noise(v, noisy, alpha, "v_prediction"), noise, atol=1e-12)
    assert torch.allclose(to_clean(noisy, noise, alpha), Z, atol=1e-12)
    assert training_target(Z, noise, alpha, "epsilon") is noise
    assert torch.equal(noisy[:1], add_noise(Z[:1], noise[:1], 0.9))
    with pytest.raises(OptionError, match="prediction_type=sample"):
        to_noise(Z, Z, 0.5, "sample")


def test_roots_keep_their_precision_in_float32():
    alpha = 1 - 1e-9  # is 1 in float32, and the noise would vanish
    noisy = add_noise(Z.float(), torch.ones_like(Z).float(), alpha) - Z.float()
    assert noisy.dtype == torch.float32 and abs(float(noisy.mean()) - 3.16e-5) < 1e-6
