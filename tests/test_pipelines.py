"""One frame through the inflated model equals the library's pipeline at every step, for each family."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img import StableUnCLIPImg2ImgPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
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

STEPS, PROMPT, NEGATIVE = 5, "a red bus on the road", "a white car"


class Spy:
    """A correction that changes nothing and records the latents `1 1 c h w` of every step."""

    def __init__(self) -> None:
        self.latents: list[Tensor] = []

    def tap(self, index: int, total: int) -> Tap | None:
        return None

    def __call__(self, step: Step) -> Tensor:
        self.latents.append(step.latents)
        return step.latents


@pytest.fixture
def start() -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(5).integers(256, size=(40, 48, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ours(backbone: Backbone, start: Tensor, picture: Image.Image, scale: float, level: int = 0) -> list[Tensor]:
    """The latents after each step by this package, inflated for a clip of one frame."""
    shown = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    encoders = Encoders(backbone, ConditionOptions(level, NEGATIVE))
    encoders.noise = torch.randn(1, 24, generator=torch.Generator().manual_seed(6))  # as the pipeline draws it below
    condition = encoders.condition(PROMPT, [shown])
    denoiser = Denoiser(inflate(copy.deepcopy(backbone.unet), 1), backbone.scheduler)
    spy, schedule = Spy(), Schedule.from_scheduler(backbone.scheduler, STEPS)
    sample(denoiser, schedule, start[None], condition, guidance_scale=scale, corrections=[spy])
    return [latents[0] for latents in spy.latents]


def check(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) == STEPS
    for step, (mine, reference) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.allclose(mine, reference, atol=1e-4), f"step {step}: {(mine - reference).abs().max():.1e} apart"


@pytest.mark.parametrize(("scale", "level"), [(1.0, 0), (7.5, 0), (7.5, 400)])
def test_sd_unclip_equals_its_pipeline(
    saved: Path, start: Tensor, picture: Image.Image, scale: float, level: int
) -> None:
    """v-prediction; the image condition is added to the timestep embedding."""
    backbone = load_backbone(BackboneOptions(path=str(saved)))
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(saved, local_files_only=True)
    pipeline.register_modules(scheduler=DDIMScheduler.from_pretrained(saved, subfolder="scheduler", clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    theirs: list[Tensor] = []
    pipeline(
        image=picture,
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        guidance_scale=scale,
        num_inference_steps=STEPS,
        noise_level=level,  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(6),
        latents=start,
        height=32,
        width=32,
        callback=lambda step, t, latents: theirs.append(latents),
        output_type="latent",
    )
    assert backbone.scheduler.config["prediction_type"] == "v_prediction"
    check(ours(backbone, start, picture, scale, level), theirs)


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_ip_adapter_equals_its_pipeline(
    saved_ip_adapter: tuple[Path, Path], ip_adapter: Backbone, start: Tensor, picture: Image.Image, scale: float
) -> None:
    """Epsilon-prediction; the image condition is tokens in cross-attention."""
    folder, adapter = saved_ip_adapter
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)
    pipeline.load_ip_adapter(str(adapter), subfolder="models", weight_name="ip-adapter_sd15.safetensors")
    pipeline.register_modules(scheduler=DDIMScheduler.from_pretrained(folder, subfolder="scheduler", clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    theirs: list[Tensor] = []

    def keep(_pipeline: object, step: int, t: int, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        theirs.append(kwargs["latents"])
        return kwargs

    pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        ip_adapter_image=picture,
        guidance_scale=scale,
        num_inference_steps=STEPS,
        latents=start,
        height=32,
        width=32,
        callback_on_step_end=keep,  # type: ignore[arg-type]
        output_type="latent",
    )
    assert ip_adapter.scheduler.config["prediction_type"] == "epsilon"
    made = ours(ip_adapter, start, picture, scale)
    check(made, theirs)
    other = ours(ip_adapter, start, picture.rotate(180), scale)
    assert not torch.allclose(other[-1], made[-1], atol=1e-3)  # the picture has an effect
