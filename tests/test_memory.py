"""Every way to save memory gives the same result, within the rounding that it states."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from tave.backbone import Backbone
from tave.cache import read_tensors
from tave.cli import compose_options
from tave.config import PRESETS, MemoryOptions, OptionError
from tave.denoiser import Denoiser, Tap
from tave.encoders import Condition, Encoders, decode, encode, stack
from tave.inflate import inflate, select_trainables, tuned_state
from tave.memory import adamw, at_work, held, hold, preset_note, rounding, use_tiles
from tave.schedule import to_noise
from tave.train import train
from tave.windows import Window

FRAMES, T = 3, 500


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(1, FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def inflated(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    select_trainables(inflate(unet, FRAMES), "patent")
    return unet


def gradients(unet: UNet2DConditionModel, tiny: Backbone, latents: Tensor, condition: Condition) -> dict[str, Tensor]:
    unet.zero_grad()
    output = Denoiser(unet, tiny.scheduler).output(latents, torch.tensor([T]), condition)
    output.float().square().mean().backward()
    return {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_gives_the_same_gradients_to_the_bit(
    tiny: Backbone, inflated: UNet2DConditionModel, latents: Tensor, condition: Condition
):
    kept = gradients(inflated, tiny, latents, condition)
    inflated.enable_gradient_checkpointing()
    again = gradients(inflated, tiny, latents, condition)
    assert kept.keys() == again.keys() and kept
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_branches_alone_predict_as_together(
    tiny: Backbone, inflated: UNet2DConditionModel, latents: Tensor, condition: Condition
):
    other = Condition(condition.null_text, condition.image + 1, condition.null_text)
    both, twice = stack(condition, other), torch.cat([latents, latents.flip(1)])
    together, alone = (Denoiser(inflated, tiny.scheduler, kind) for kind in ("together", "alone"))
    with torch.no_grad():
        for scale in (1.0, 3.0):
            ours, theirs = (d(twice, T, both, scale, Tap(-2)) for d in (alone, together))
            assert torch.allclose(ours.noise, theirs.noise, atol=1e-4)
            assert ours.features is not None and theirs.features is not None
            assert torch.allclose(ours.features, theirs.features, atol=1e-4)
            one, all_ = (d(latents, T, condition, scale).noise for d in (alone, together))
            assert torch.allclose(one, all_, atol=1e-4)


def test_a_rewrite_gets_all_branches_even_if_they_run_alone(
    tiny: Backbone, inflated: UNet2DConditionModel, latents: Tensor, condition: Condition
):
    seen: list[int] = []

    def rewrite(conditional: Tensor, whole: Tensor, window: Window) -> Tensor:
        seen.append(len(whole))
        return whole

    with torch.no_grad():
        Denoiser(inflated, tiny.scheduler, "alone")(latents, T, condition, 3.0, Tap(-1, rewrite=rewrite))
    assert seen == [2]


def inflated_copy(backbone: Backbone) -> UNet2DConditionModel:
    unet = inflate(copy.deepcopy(backbone.unet), FRAMES)
    select_trainables(unet, "patent")
    return unet


def test_half_weights_are_those_that_do_not_train(family: Backbone):
    """Those of IP-Adapter included."""
    unet = inflated_copy(family)
    before = {name: p.detach().clone() for name, p in unet.named_parameters()}
    hold(unet, torch.bfloat16)
    for name, parameter in unet.named_parameters():
        layer = unet.get_submodule(name.rpartition(".")[0])
        frozen = isinstance(layer, nn.Linear | nn.Conv2d) and not parameter.requires_grad
        assert parameter.dtype == (torch.bfloat16 if frozen else torch.float32), name
        assert torch.allclose(parameter.float(), before[name], rtol=2**-8, atol=1e-12)  # bfloat16 keeps 8 bits
    halves = [name for name, parameter in unet.named_parameters() if parameter.dtype == torch.bfloat16]
    adapter = [name for name in halves if "_ip." in name or "encoder_hid_proj" in name]
    assert bool(adapter) == (family.noising is None)


# guidance scale -> largest relative error of the network's part of the noise under bf16
ROUNDING = {1.0: 0.02, 3.0: 0.05, 7.5: 0.09}
# likewise of the noise, at scale 3 and timestep t; under v-prediction a part of it is the latents', which is exact
NOISE = {"v_prediction": {100: 0.03, 500: 0.01, 900: 0.003}, "epsilon": {100: 0.05, 500: 0.05, 900: 0.05}}
SLOPE = 0.03


def apart(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize("weights", ["full", "half"])
@pytest.mark.parametrize("t", [100, 500, 900])
def test_bf16_agrees_with_float32(family: Backbone, family_condition: Condition, latents: Tensor, t: int, weights: str):
    """Within the tolerances above, less than half of the effect of the image condition."""
    unet = inflated_copy(family)
    denoiser = Denoiser(unet, family.scheduler)
    a, v = denoiser.alphas_cumprod[t], denoiser.prediction_type == "v_prediction"
    own = (1 - a).sqrt() * latents if v else torch.zeros_like(latents)  # not the network's

    def predictions(condition: Condition) -> tuple[list[Tensor], Tensor]:
        with torch.no_grad():
            noises = [denoiser(latents, t, condition, scale).noise for scale in ROUNDING]
        return noises, torch.cat([g.flatten() for g in gradients(unet, family, latents, condition).values()])

    noises, slope = predictions(family_condition)
    blind, blind_slope = predictions(replace(family_condition, image=family_condition.null_image))
    if weights == "half":
        hold(unet, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found, found_slope = predictions(family_condition)
    for tolerance, ours, exact, unseen in zip(ROUNDING.values(), found, noises, blind, strict=True):
        assert ours.dtype == torch.float32
        assert 0 < apart(ours - own, exact - own) < tolerance < 0.5 * apart(unseen - own, exact - own)
    assert apart(found[1], noises[1]) < NOISE[denoiser.prediction_type][t] < 0.5 * apart(blind[1], noises[1])
    assert 0 < apart(found_slope, slope) < SLOPE < 0.5 * apart(blind_slope, slope)


@pytest.mark.parametrize("scale", [3.0, 7.5])
def test_under_bf16_only_the_network_rounds(
    family: Backbone, family_condition: Condition, latents: Tensor, scale: float
):
    """Guidance and parametrisation are float32, so they add nothing to the rounding of the two branches."""
    denoiser = Denoiser(inflated_copy(family), family.scheduler)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        noise = denoiser(latents, T, family_condition, scale).noise
        null, seen = (
            denoiser.output(
                torch.cat([latents] * 2), torch.tensor([T, T]), stack(family_condition.null, family_condition)
            )
            .float()
            .chunk(2)
        )
    output = null + scale * (seen - null)
    expected = to_noise(output, latents, denoiser.alphas_cumprod[T], denoiser.prediction_type)
    assert torch.allclose(noise, expected, atol=1e-5)


def test_tiles_are_only_used_above_their_size():
    """With trained weights: in a random autoencoder the norms of a tile are far from its frame's."""
    folder = Path(__file__).parents[1] / "tave/roadside/weights/backbone/vae"
    vae = AutoencoderKL.from_pretrained(str(folder), local_files_only=True).eval()
    columns = torch.linspace(-0.8, 0.8, 96).expand(1, 3, 96, 96)
    latents = encode(vae, columns)
    whole = decode(vae, latents)
    use_tiles(vae, 96)
    assert torch.equal(decode(vae, latents), whole)
    use_tiles(vae, 64)
    tiled = decode(vae, encode(vae, columns))
    assert tiled.shape == whole.shape
    assert 0 < float((tiled - whole).abs().mean()) < 0.05  # of a range of 2
    use_tiles(vae, None)
    assert torch.equal(decode(vae, latents), whole)
    with pytest.raises(OptionError, match=r"memory\.tile=66"):
        use_tiles(vae, 66)


class Recorder(nn.Linear):
    """Records its moves between devices."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.sent: list[str] = []

    def to(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.sent.append(str(args[0]))
        return self


def test_a_part_is_on_the_device_while_it_works():
    stays, goes = Recorder(), Recorder()
    for part, offload in ((stays, False), (goes, True)):
        with pytest.raises(ZeroDivisionError), at_work(part, torch.device("cpu", 0), offload):
            assert part.sent == ["cpu:0"]
            raise ZeroDivisionError
    assert stays.sent == ["cpu:0"] and goes.sent == ["cpu:0", "cpu"]


@pytest.fixture
def frames() -> Tensor:
    return torch.rand(FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_chunks_and_offloading_change_nothing(tiny: Backbone, frames: Tensor):
    plain, spare = (Encoders(tiny, memory=memory) for memory in (MemoryOptions(), MemoryOptions(chunk=1, offload=True)))
    latents = plain.encode(frames)
    assert torch.allclose(spare.encode(frames), latents, atol=1e-5)
    assert torch.allclose(spare.decode(latents), plain.decode(latents), atol=1e-5)
    assert torch.allclose(spare.embed(frames), plain.embed(frames), atol=1e-5)


def test_encoders_keep_their_precision_under_autocast(tiny: Backbone, frames: Tensor):
    """The target is encoded under the Trainer's autocast, the source before: their conditions must be comparable."""
    encoders = Encoders(tiny)
    latents, condition = encoders.encode(frames), encoders.condition("a bus", [frames])
    decoded = encoders.decode(latents)
    with torch.autocast("cpu", torch.bfloat16):
        inside = encoders.condition("a bus", [frames])
        assert torch.equal(encoders.encode(frames), latents) and torch.equal(encoders.decode(latents), decoded)
    assert torch.equal(inside.image, condition.image) and torch.equal(inside.text, condition.text)


def stepped(unet: UNet2DConditionModel, kind: str) -> dict[str, Tensor]:
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer, generator = adamw(parameters, kind, 1e-3, 1e-2), torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return tuned_state(unet)


def test_the_fused_optimizer_takes_the_same_steps(inflated: UNet2DConditionModel):
    start = tuned_state(inflated)
    plain, fused = (stepped(copy.deepcopy(inflated), kind) for kind in ("adamw", "fused"))
    assert all(torch.allclose(plain[name], fused[name], atol=1e-6) for name in plain)
    assert all(not torch.equal(plain[name], start[name]) for name in plain)


def test_without_bitsandbytes_a_warning_names_the_substitute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("tave.memory.has_8bit", lambda: False)
    made = adamw([nn.Parameter(torch.zeros(1))], "8bit", 1e-3, 0.0)
    assert type(made) is torch.optim.AdamW
    assert [record.message for record in caplog.records if "bitsandbytes" in record.message]
    assert caplog.records[0].levelno == logging.WARNING


def test_keys_contain_the_settings_that_round():
    exact = MemoryOptions(gradient_checkpointing=True, chunk=1, branches="alone", offload=True)
    assert rounding(MemoryOptions(), "32-true") == rounding(exact, "32-true") == []
    assert rounding(MemoryOptions(), "bf16-mixed") != rounding(MemoryOptions(weights="half"), "bf16-mixed") != []


@pytest.mark.parametrize("preset", PRESETS)
def test_a_gpu_preset_on_a_cpu_gives_a_note(preset: str):
    options = compose_options("train", ["video=bus_to_suv", f"memory={preset}"])
    note = preset_note(options.memory, options.precision, has_gpu=False)
    assert (note is None) == (preset == "full") and (note is None or "set memory=full" in note)
    assert preset_note(options.memory, options.precision, has_gpu=True) is None


def test_presets_can_be_overridden():
    options = compose_options(
        "train", ["video=bus_to_suv", "memory=8gb", "memory.chunk=5", "trainer.precision=16-mixed"]
    )
    assert options.memory.chunk == 5 and options.precision == "16-mixed" and options.memory.offload
    assert held(options.memory, options.precision) == torch.float16
    full = compose_options("train", ["video=bus_to_suv", "memory=full"])
    assert full.memory == MemoryOptions() and held(full.memory, full.precision) == torch.float32


@pytest.mark.slow  # several runs
def test_the_smallest_preset_tunes_and_edits(clip: Path, tmp_path: Path):
    """On the CPU, where bf16 rounds as it does on a GPU. What is tuned is stored in float32."""
    words = ["video=bus_to_suv", "backbone=tiny", "video.frames=3", "video.edits.suv.truth=null", "memory=8gb"]
    words += [f"video.path={clip / 'source.mp4'}", "tuning.steps=2", "inversion.steps=2", "metrics.enabled=false"]
    folder = tmp_path / "run"
    train(compose_options("train", [*words, f"cache={tmp_path / 'cache'}"]), folder, show=False)
    assert (folder / "edits/suv/edited.mp4").is_file()
    assert {value.dtype for value in read_tensors(folder / "tuned.safetensors")[0].values()} == {torch.float32}
