"""One frame through the inflated model equals the library's pipeline, step by step, for each family."""

from __future__ import annotations

import copy
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img import StableUnCLIPImg2ImgPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from fakes import draw
from PIL import Image
from torch import Tensor

from tave.backbone import Backbone, load_backbone
from tave.config import BackboneOptions, ConditionOptions
from tave.correction import Step
from tave.denoiser import Denoiser, Tap
from tave.encoders import Encoders
from tave.inflate import inflate
from tave.sampling import sample
from tave.schedule import Schedule

STEPS, PROMPT, NEGATIVE = 3, "a red bus on the road", "a white car"
START = draw(1, 4, 8, 8, seed=4, dtype=torch.float32)


class Watch:
    """A correction that changes nothing and keeps the latents `1 1 c h w` of every step."""

    def __init__(self) -> None:
        self.latents: list[Tensor] = []

    def tap(self, index: int, total: int) -> Tap | None:
        return None

    def __call__(self, step: Step) -> Tensor:
        self.latents.append(step.latents)
        return step.latents


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(256, size=(40, 48, 3), dtype=np.uint8))


def ours(backbone: Backbone, picture: Image.Image, scale: float, noise: Tensor, level: int = 0) -> list[Tensor]:
    """The latents after each step, by this package: inflated for a clip of one frame."""
    shown = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    encoders = Encoders(backbone, ConditionOptions(noise_level=level, negative_prompt=NEGATIVE))
    encoders.noise = noise
    denoiser = Denoiser(inflate(copy.deepcopy(backbone.unet), 1), backbone.scheduler)
    watch, schedule, condition = (
        Watch(),
        Schedule.from_scheduler(backbone.scheduler, STEPS),
        encoders.condition(PROMPT, [shown]),
    )
    sample(denoiser, schedule, START[None], condition, guidance_scale=scale, corrections=[watch])
    return [latents[0] for latents in watch.latents]


def check(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) == STEPS
    for step, (mine, reference) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.allclose(mine, reference, atol=1e-4), f"step {step}: {(mine - reference).abs().max():.1e} apart"


def theirs(pipeline: Any, folder: Path, **inputs: Any) -> list[Tensor]:
    """The latents after each step, by the library's pipeline with its DDIM scheduler."""
    pipeline.register_modules(scheduler=DDIMScheduler.from_pretrained(folder, subfolder="scheduler", clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    found: list[Tensor] = []
    inputs |= {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "latents": START}
    if "callback_on_step_end" in signature(pipeline.__call__).parameters:
        inputs["callback_on_step_end"] = lambda _, step, t, values: found.append(values["latents"]) or values
    else:
        inputs["callback"] = lambda step, t, latents: found.append(latents)
    pipeline(height=32, width=32, output_type="latent", **inputs)
    return found


@pytest.mark.parametrize(("scale", "level"), [(1.0, 0), (7.5, 0), (7.5, 400)])
def test_sd_unclip_equals_its_pipeline(saved: Path, picture: Image.Image, scale: float, level: int) -> None:
    """v-prediction, the picture as a vector added to the timestep's embedding."""
    backbone = load_backbone(BackboneOptions(path=str(saved)))
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(saved, local_files_only=True)
    generator = torch.Generator().manual_seed(6)
    reference = theirs(pipeline, saved, image=picture, guidance_scale=scale, noise_level=level, generator=generator)
    noise = torch.randn(1, 24, generator=generator.manual_seed(6))
    assert backbone.scheduler.config["prediction_type"] == "v_prediction"
    check(ours(backbone, picture, scale, noise, level), reference)


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_ip_adapter_equals_its_pipeline(
    saved_ip_adapter: tuple[Path, Path], ip_adapter: Backbone, picture: Image.Image, scale: float
) -> None:
    """epsilon-prediction, the picture as tokens in cross-attention."""
    folder, adapter = saved_ip_adapter
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)
    pipeline.load_ip_adapter(str(adapter), subfolder="models", weight_name="ip-adapter_sd15.safetensors")
    reference = theirs(pipeline, folder, ip_adapter_image=picture, guidance_scale=scale)
    assert ip_adapter.scheduler.config["prediction_type"] == "epsilon"
    made = ours(ip_adapter, picture, scale, torch.zeros(1, 24))
    check(made, reference)
    other = ours(ip_adapter, picture.rotate(180), scale, torch.zeros(1, 24))
    assert not torch.allclose(other[-1], made[-1], atol=1e-3)  # the picture matters at all
