"""Each way to need less memory gives the same answer, within the rounding that it states."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from tave.backbone import Backbone
from tave.cache import read_tensors
from tave.conditions import Condition, ConditionOptions, stack
from tave.config import CONF, TrainOptions, typed
from tave.data import ClipData
from tave.denoiser import Denoiser, Tap
from tave.editor import EditingOptions, Editor, TuningOptions
from tave.inflate import inflate, select_trainables, tuned_state
from tave.latents import decode, encode
from tave.memory import MemoryOptions, adamw, at_work, hold, use_tiles
from tave.options import OptionError
from tave.reference import ReferenceOptions
from tave.schedule import Schedule, to_noise
from tave.train import train
from tave.video import Clip

FRAMES, T = 3, 500


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(1, FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def clip() -> Clip:
    frames = torch.randint(256, (FRAMES, 3, 32, 32), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    return Clip(frames, 8.0)


@pytest.fixture
def inflated(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    select_trainables(inflate(unet, FRAMES), "patent")
    return unet


def gradients(unet: UNet2DConditionModel, tiny: Backbone, latents: Tensor, condition: Condition) -> dict[str, Tensor]:
    unet.zero_grad()
    output = Denoiser(unet, tiny.scheduler).output(latents, torch.tensor([T]), condition)
    output.float().square().mean().backward()
    return {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}


def test_computing_activations_again_gives_the_same_gradients_to_the_bit(
    tiny: Backbone, inflated: UNet2DConditionModel, latents: Tensor, condition: Condition
):
    kept = gradients(inflated, tiny, latents, condition)
    inflated.enable_gradient_checkpointing()
    again = gradients(inflated, tiny, latents, condition)
    assert kept.keys() == again.keys() and kept
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_branches_alone_answer_as_together(
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


def test_a_rewrite_sees_all_branches_even_if_they_run_alone(
    tiny: Backbone, inflated: UNet2DConditionModel, latents: Tensor, condition: Condition
):
    seen: list[int] = []

    def rewrite(conditional: Tensor, whole: Tensor) -> Tensor:
        seen.append(len(whole))
        return whole

    with torch.no_grad():
        Denoiser(inflated, tiny.scheduler, "alone")(latents, T, condition, 3.0, Tap(-1, rewrite))
    assert seen == [2]


def inflated_copy(backbone: Backbone) -> UNet2DConditionModel:
    unet = inflate(copy.deepcopy(backbone.unet), FRAMES)
    select_trainables(unet, "patent")
    return unet


def test_half_weights_are_those_that_do_not_train(family: Backbone):
    """IP-Adapter's among them: its keys and values, and what makes tokens of a picture."""
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


# guidance scale -> how far bf16 may take the part of the noise that the network says, of that part's size
ROUNDING = {1.0: 0.02, 3.0: 0.05, 7.5: 0.09}
# ... and the noise itself, at scale 3 and timestep t: of v-prediction's a part is the latents', which nothing rounds
NOISE = {"v_prediction": {100: 0.03, 500: 0.01, 900: 0.003}, "epsilon": {100: 0.05, 500: 0.05, 900: 0.05}}
SLOPE = 0.03


def apart(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize("weights", ["full", "half"])
@pytest.mark.parametrize("t", [100, 500, 900])
def test_bf16_agrees_with_float32(family: Backbone, told: Condition, latents: Tensor, t: int, weights: str):
    """Within the tolerances above, which are less than half of what it makes if the picture isn't told."""
    unet = inflated_copy(family)
    denoiser = Denoiser(unet, family.scheduler)
    a, v = denoiser.alphas_cumprod[t], denoiser.prediction_type == "v_prediction"
    own = (1 - a).sqrt() * latents if v else torch.zeros_like(latents)  # in the noise, but not the network's

    def answers(condition: Condition) -> tuple[list[Tensor], Tensor]:
        with torch.no_grad():
            noises = [denoiser(latents, t, condition, scale).noise for scale in ROUNDING]
        return noises, torch.cat([g.flatten() for g in gradients(unet, family, latents, condition).values()])

    noises, slope = answers(told)
    blind, blind_slope = answers(Condition(told.text, told.null_image, told.null_text))
    if weights == "half":
        hold(unet, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found, found_slope = answers(told)
    for tolerance, ours, exact, unseen in zip(ROUNDING.values(), found, noises, blind, strict=True):
        assert ours.dtype == torch.float32
        assert 0 < apart(ours - own, exact - own) < tolerance < 0.5 * apart(unseen - own, exact - own)
    assert apart(found[1], noises[1]) < NOISE[denoiser.prediction_type][t] < 0.5 * apart(blind[1], noises[1])
    assert 0 < apart(found_slope, slope) < SLOPE < 0.5 * apart(blind_slope, slope)


@pytest.mark.parametrize("scale", [3.0, 7.5])
def test_under_bf16_the_network_alone_rounds(family: Backbone, told: Condition, latents: Tensor, scale: float):
    """Guidance multiplies what its two branches were rounded by, and adds nothing: it and the parametrisation are float32."""
    denoiser = Denoiser(inflated_copy(family), family.scheduler)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        noise = denoiser(latents, T, told, scale).noise
        null, seen = denoiser.output(torch.cat([latents] * 2), torch.tensor([T, T]), stack(told.null, told)).float().chunk(2)
    output = null + scale * (seen - null)
    expected = to_noise(output, latents, denoiser.alphas_cumprod[T], denoiser.prediction_type)
    assert torch.allclose(noise, expected, atol=1e-5)


def test_tiles_are_used_above_their_size_alone():
    """On the drawn world's autoencoder: a random one has norms that no tile shares with its frame."""
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


class Traveller(nn.Linear):
    """Notes where it is sent."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.sent: list[str] = []

    def to(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.sent.append(str(args[0]))
        return self


def test_a_part_is_on_the_device_while_it_works():
    stays, goes = Traveller(), Traveller()
    for part, offload in ((stays, False), (goes, True)):
        with pytest.raises(ZeroDivisionError), at_work(part, torch.device("cpu", 0), offload):
            assert part.sent == ["cpu:0"]
            raise ZeroDivisionError
    assert stays.sent == ["cpu:0"] and goes.sent == ["cpu:0", "cpu"]


def data(tiny: Backbone, clip: Clip, memory: MemoryOptions) -> ClipData:
    return ClipData(
        tiny,
        clip,
        "a white bus",
        steps=1,
        condition=ConditionOptions(),
        reference=ReferenceOptions(frame="per_frame"),
        inversion="source",
        seed=0,
        memory=memory,
    )


def test_chunks_and_offloading_change_nothing_that_is_seen(tiny: Backbone, clip: Clip):
    plain, spare = (data(tiny, clip, memory) for memory in (MemoryOptions(), MemoryOptions(chunk=1, offload=True)))
    for ours, theirs in (
        (spare.source.latents, plain.source.latents),
        (spare.source.round_trip, plain.source.round_trip),
        (spare.source.condition.image, plain.source.condition.image),
        (spare.lesson.embeds, plain.lesson.embeds),
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_encoders_and_autoencoder_keep_their_precision_under_autocast(tiny: Backbone, clip: Clip):
    """The target's condition is made while the Trainer's autocast is on, the source's before: they must compare."""
    made = data(tiny, clip, MemoryOptions())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.condition("a bus", clip.frames[:1]).image, made.condition("a bus", clip.frames[:1]).image)
        inside = made.condition("a white bus", clip.frames)
        frames = made.decode(made.source.latents)
    assert torch.equal(inside.image, made.source.condition.image) and torch.equal(inside.text, made.source.condition.text)
    assert torch.equal(frames, made.source.round_trip)


def tuned(tiny: Backbone, unet: UNet2DConditionModel, kind: str) -> dict[str, Tensor]:
    schedule = Schedule.from_scheduler(tiny.scheduler, 2)
    editor = Editor(Denoiser(unet, tiny.scheduler), schedule, TuningOptions(lr=1e-3), EditingOptions(), optimizer=kind)
    optimizer = editor.configure_optimizers()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in editor.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        editor.configure_gradient_clipping(optimizer, 1.0)
        optimizer.step()
    return tuned_state(unet)


def test_the_fused_optimizer_takes_the_same_steps(tiny: Backbone, inflated: UNet2DConditionModel):
    plain, fused = (tuned(tiny, copy.deepcopy(inflated), kind) for kind in ("adamw", "fused"))
    start = tuned_state(inflated)
    assert all(torch.allclose(plain[name], fused[name], atol=1e-6) for name in plain)
    assert all(not torch.equal(plain[name], start[name]) for name in plain)


def test_without_bitsandbytes_one_line_says_what_stands_in(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr("tave.memory.has_8bit", lambda: False)
    made = adamw([nn.Parameter(torch.zeros(1))], "8bit", 1e-3, 0.0)
    assert type(made) is torch.optim.AdamW
    assert [record.message for record in caplog.records if "bitsandbytes" in record.message]
    assert caplog.records[0].levelno == logging.WARNING


def test_what_does_not_go_together_is_told():
    with pytest.raises(OptionError, match=r"memory\.weights=half.*bf16-mixed"):
        MemoryOptions(weights="half").check("32-true")
    with pytest.raises(OptionError, match=r"memory\.optimizer=fused"):
        MemoryOptions(optimizer="fused").check("16-mixed")


def test_a_tuning_is_remembered_under_the_rounding_it_was_made_with():
    assert MemoryOptions().imprint("32-true") == []
    assert MemoryOptions(gradient_checkpointing=True, chunk=1, branches="alone", offload=True).imprint("32-true") == []
    assert MemoryOptions().imprint("bf16-mixed") != MemoryOptions(weights="half").imprint("bf16-mixed") != []


def options(cache: Path, *overrides: str) -> TrainOptions:
    base = ["+video=bus_to_suv", "backbone=tiny", f"cache={cache}", "metrics=none", "tuning.steps=2", "inversion.steps=2"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose("train", [*base, "video.frames=3", "video.edits.suv.truth=null", *overrides]))


@pytest.mark.parametrize("preset", ["full", "8gb"])
def test_a_preset_tunes_and_edits(preset: str, tmp_path: Path):
    """From float32 throughout to everything at once; on the CPU, where bf16 rounds as it does on a card."""
    folder = train(options(tmp_path / "cache", f"memory={preset}"), tmp_path / preset, show=False)
    assert (folder / "edits/suv/edited.mp4").is_file()
    state, about = read_tensors(folder / "tuned.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32} and about["tuning"]["steps"] == 2


def test_presets_only_set_options():
    """Each can be had without the preset, and outbid beside it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        names = sorted(path.stem for path in (CONF / "memory").glob("*.yaml"))
        made = {name: typed(compose("train", ["+video=bus_to_suv", f"memory={name}"])) for name in names}
        outbid = typed(compose("train", ["+video=bus_to_suv", "memory=8gb", "memory.chunk=5", "trainer.precision=16-mixed"]))
    assert names == ["12gb", "16gb", "24gb", "80gb", "8gb", "full"]
    assert (made["full"].memory, made["full"].precision) == (MemoryOptions(), "32-true")
    assert outbid.memory.chunk == 5 and outbid.precision == "16-mixed" and outbid.memory.offload
