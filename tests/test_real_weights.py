"""Real checkpoints: found, verified or refused; small ones in the published format stand in for them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tave.backbone import Backbone, BackboneError, load_backbone
from tave.cache import read_tensors, write_tensors
from tave.cli import compose_options
from tave.config import CONF, BackboneOptions, OptionError, TrainOptions
from tave.denoiser import Denoiser
from tave.encoders import Condition, Encoders, encode_text, image_embedding, noise_embedding
from tave.files import FileError, read_json
from tave.inflate import inflate, load_tuned, select_trainables, tuned_state
from tave.train import train

Put = Callable[[str, Path], Path]
UNET, NORMALIZER = "unet/diffusion_pytorch_model.safetensors", "image_normalizer/diffusion_pytorch_model.safetensors"
VAE, ADAPTER = "vae/diffusion_pytorch_model.safetensors", "models/ip-adapter_sd15.safetensors"
# All values that were published.
PUBLISHED = {
    ("sd21_unclip", "unet", "fp32"): "902a190c84ff59777cb0ecb7cd0eb86be822e6e2687376aa744ffb2d398b0b86",
    ("sd21_unclip", "unet", "fp16"): "a11c42f0619d06677f792a29b36277bf78bcefb7c010583c631da62e40630ff5",
    ("sd21_unclip_small", "unet", "fp32"): "344f13b7a6df648ed7638851b047e4d24ad6e4b91bd1cb3e052036356e8fdc3a",
    (
        "sd21_unclip_small",
        "image_normalizer",
        "fp32",
    ): "aeac478227b2f987af0addfe3b7417a2a7ff0bde5b8f5e5b08de9244c30a00c6",
}


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def options_of(choice: str, **more: Any) -> BackboneOptions:
    """The options of ``conf/backbone``, by default without the published hashes, which the stand-ins don't have."""
    options = compose_options("doctor", [f"backbone={choice}"]).backbone
    given = {key: str(value) if isinstance(value, Path) else value for key, value in more.items()}
    return replace(options, **{"sha256": {}, **given})


def load(choice: str, path: Path | None = None, **more: Any) -> Backbone:
    return load_backbone(options_of(choice, path=path, **more))


def refused(choice: str, path: Path | None = None, **more: Any) -> str:
    with pytest.raises(FileError) as caught:
        load(choice, path, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def weights_of(loaded: Backbone) -> set[str]:
    return {file for file in loaded.hashes if file.endswith(".safetensors")}


def change(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def flip(file: Path) -> None:
    """Flip a bit of the last tensor, which leaves a readable file."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


# ---- SD-unCLIP -------------------------------------------------------------------------------------------------------


def test_configured_hashes_are_the_published_ones() -> None:
    written = {
        (choice.stem, part, precision): value
        for choice in (CONF / "backbone").glob("sd*.yaml")
        for part, values in compose_options("doctor", [f"backbone={choice.stem}"]).backbone.sha256.items()
        for precision, value in values.items()
    }
    assert written == PUBLISHED


def test_a_checkpoint_in_the_published_format_is_read_completely(tiny: Backbone, checkpoint: Path) -> None:
    """Old names of weights, a tokenizer of two files, a scheduler with settings missing."""
    loaded = load("sd21_unclip", checkpoint)
    for part in ("unet", "vae", "text_encoder", "image_encoder"):
        mine, theirs = getattr(tiny, part).state_dict(), getattr(loaded, part).state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert torch.allclose(encode_text(loaded, ["señor's red bus"]), encode_text(tiny, ["señor's red bus"]), atol=1e-5)
    assert loaded.scheduler.config["prediction_type"] == "v_prediction"
    assert loaded.name == "sd21_unclip" and loaded.licence == "CreativeML Open RAIL++-M, 24 November 2022"


def test_files_without_a_published_hash_are_listed(checkpoint: Path) -> None:
    loaded = load("sd21_unclip", checkpoint, sha256={"unet": {"fp32": sha256(checkpoint / UNET)}})
    assert loaded.hashes[UNET] == sha256(checkpoint / UNET)
    assert set(loaded.unverified) == weights_of(loaded) - {UNET} and len(weights_of(loaded)) == 5


def test_what_describes_the_parts_is_hashed_too_and_other_settings_are_another_backbone(checkpoint: Path) -> None:
    """With another scaling factor the same weights make other latents."""
    loaded = load("sd21_unclip", checkpoint)
    described = {"vae/config.json", "scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json"}
    assert described <= loaded.hashes.keys() and any(name.startswith("tokenizer/") for name in loaded.hashes)
    load_backbone(options_of("sd21_unclip", path=str(checkpoint), sha256={}), loaded.hashes)
    change(checkpoint / "vae/config.json", scaling_factor=0.5)
    with pytest.raises(BackboneError, match=r"vae/config\.json is from another backbone"):
        load_backbone(options_of("sd21_unclip", path=str(checkpoint), sha256={}), loaded.hashes)


def test_a_published_hash_belongs_to_a_precision(checkpoint: Path) -> None:
    assert "sha256.unet=x names no precision" in refused("sd21_unclip", checkpoint, sha256={"unet": "x"})


@pytest.mark.parametrize(("part", "file"), [("unet", UNET), ("image_normalizer", NORMALIZER)])
def test_a_flipped_bit_is_refused_and_both_hashes_are_named(checkpoint: Path, part: str, file: str) -> None:
    published = sha256(checkpoint / file)
    flip(checkpoint / file)
    message = refused("sd21_unclip_small", checkpoint, sha256={part: {"fp32": published}})
    assert f"{file} has SHA-256 {sha256(checkpoint / file)}" in message and f"has {published}: copy it again" in message


def test_half_precision_has_a_hash_of_its_own(checkpoint: Path) -> None:
    single = sha256(checkpoint / UNET)
    half = {name: tensor.half() for name, tensor in load_file(checkpoint / UNET).items()}
    save_file(half, checkpoint / UNET, metadata={"format": "pt"})
    loaded = load("sd21_unclip", checkpoint, sha256={"unet": {"fp32": single, "fp16": sha256(checkpoint / UNET)}})
    assert UNET not in loaded.unverified and loaded.unet.dtype == torch.float32
    assert UNET in load("sd21_unclip", checkpoint, sha256={"unet": {"fp32": single}}).unverified


def test_a_pickle_is_refused(checkpoint: Path) -> None:
    weights = load_file(checkpoint / UNET)
    (checkpoint / UNET).unlink()
    torch.save(weights, checkpoint / "unet/diffusion_pytorch_model.bin")
    message = refused("sd21_unclip", checkpoint)
    assert "diffusion_pytorch_model.bin, a pickle" in message
    assert "put diffusion_pytorch_model.safetensors there" in message
    (checkpoint / "unet/diffusion_pytorch_model.bin").rename(checkpoint / UNET)
    assert f"{UNET} is a pickle by another name" in refused("sd21_unclip", checkpoint)


def test_a_missing_checkpoint_is_an_error_with_the_files_to_get(hub: Put) -> None:
    message = refused("sd21_unclip")
    assert "sd2-community/stable-diffusion-2-1-unclip" in message and "backbone.path=FOLDER" in message
    for file in ("unet/config.json + diffusion_pytorch_model.safetensors", "tokenizer/", "image_encoder/", "vae/"):
        assert file in message


def test_mirrors_are_tried_in_order(checkpoint: Path, hub: Put) -> None:
    second = hub("radames/stable-diffusion-2-1-unclip-img2img", checkpoint)
    assert load("sd21_unclip").hashes[UNET] == sha256(second / UNET)
    weights = load_file(checkpoint / UNET)
    save_file({name: 2 * tensor for name, tensor in weights.items()}, checkpoint / UNET, metadata={"format": "pt"})
    first = hub("sd2-community/stable-diffusion-2-1-unclip", checkpoint)
    assert load("sd21_unclip").hashes[UNET] == sha256(first / UNET) != sha256(second / UNET)
    (first / UNET).unlink()  # an incomplete copy: the next mirror is used
    assert load("sd21_unclip").hashes[UNET] == sha256(second / UNET)
    (second / "vae/config.json").unlink()
    assert f"{first / 'unet'} lacks diffusion_pytorch_model.safetensors" in refused("sd21_unclip")


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        ({"projection_class_embeddings_input_dim": 1536}, "use backbone=sd21_unclip_small"),
        ({"class_embed_type": None, "cross_attention_dim": 768}, "use backbone=sd15_ip_adapter"),
        ({"class_embed_type": None, "cross_attention_dim": 1024}, "plain Stable Diffusion 2 takes no image"),
        ({"class_embed_type": None, "addition_embed_type": "text_time"}, "SDXL is not supported"),
    ],
)
def test_another_model_is_refused_with_its_option(checkpoint: Path, config: dict[str, Any], remedy: str) -> None:
    change(checkpoint / "unet/config.json", **config)
    assert remedy in refused("sd21_unclip", checkpoint)


def test_a_scheduler_with_another_prediction_type_is_refused(checkpoint: Path) -> None:
    file = checkpoint / "scheduler/scheduler_config.json"
    change(file, prediction_type="epsilon")
    assert "has prediction_type=epsilon, but these weights predict v_prediction" in refused("sd21_unclip", checkpoint)
    change(file, prediction_type=None)
    assert load("sd21_unclip", checkpoint).scheduler.config["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("scheduler", "beta_schedule"),
        ("image_noising_scheduler", "beta_schedule"),
        ("scheduler", "beta_start"),
        ("scheduler", "beta_end"),
    ],
)
def test_a_scheduler_without_noise_levels_is_refused(checkpoint: Path, part: str, key: str) -> None:
    """The library would use its own, on which none of these were trained."""
    file = checkpoint / part / "scheduler_config.json"
    change(file, **{key: None})
    assert f"{file} lacks {key}" in refused("sd21_unclip", checkpoint)


def test_noise_levels_without_ends(checkpoint: Path) -> None:
    """A cosine schedule has none, nor have levels that are listed."""
    change(checkpoint / "image_noising_scheduler/scheduler_config.json", beta_start=None, beta_end=None)
    betas = torch.linspace(1e-3, 1e-2, 1000).tolist()
    file = checkpoint / "scheduler/scheduler_config.json"
    file.write_text(json.dumps({"prediction_type": "v_prediction", "trained_betas": betas}))
    assert torch.allclose(load("sd21_unclip", checkpoint).scheduler.betas, torch.tensor(betas))


@pytest.mark.parametrize("content", ["[]", "null", "{"])
def test_a_config_that_is_not_an_object_is_refused(checkpoint: Path, content: str) -> None:
    file = checkpoint / "scheduler/scheduler_config.json"
    file.write_text(content)
    message = refused("sd21_unclip", checkpoint)
    assert str(file) in message and message.endswith("copy it again")


# ---- Stable Diffusion 1.5 with IP-Adapter ----------------------------------------------------------------------------


def test_stable_diffusion_with_ip_adapter_is_read_completely(sd15: tuple[Path, Path], tiny: Backbone) -> None:
    """The adapter's tensors are in the UNet, at its precision, frozen; the image condition is the embedding."""
    folder, adapter = sd15
    loaded = load("sd15_ip_adapter", folder, adapter=adapter)
    weights, state = load_file(adapter / ADAPTER), loaded.unet.state_dict()
    key = "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.0.weight"
    stored = [tensor.float() for name, tensor in weights.items() if name.endswith("to_k_ip.weight")]
    assert any(torch.equal(tensor, state[key]) for tensor in stored)
    assert not any(parameter.requires_grad for parameter in loaded.unet.parameters())
    assert {parameter.dtype for parameter in loaded.unet.parameters()} == {torch.float32}
    assert loaded.noising is None and loaded.image_width == tiny.image_width
    assert loaded.scheduler.config["prediction_type"] == "epsilon" and loaded.name == "sd15_ip_adapter"
    assert {ADAPTER, "models/image_encoder/model.safetensors", UNET} <= set(loaded.unverified) == weights_of(loaded)
    picture = torch.rand(1, 3, 40, 48) * 2 - 1
    embedding = image_embedding(loaded, picture)
    assert torch.equal(Encoders(loaded).condition("a red bus", [picture]).image[0], embedding)
    with pytest.raises(OptionError, match="noise_level=3"):
        noise_embedding(loaded, embedding, 3, torch.ones(1, 24))


def test_an_adapter_that_does_not_fit_is_refused(sd15: tuple[Path, Path]) -> None:
    folder, adapter = sd15
    file = adapter / ADAPTER
    weights = load_file(file)

    def message_for(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, file)
        return refused("sd15_ip_adapter", folder, adapter=adapter)

    lacking = {name: tensor for name, tensor in weights.items() if name != "ip_adapter.1.to_k_ip.weight"}
    assert "does not fit the UNet's" in (message := message_for(lacking)) and "(1.to_k_ip.weight)" in message
    plus = {name.replace("image_proj.proj.weight", "image_proj.latents"): tensor for name, tensor in weights.items()}
    assert "is no plain IP-Adapter" in message_for(plus)
    wider = weights | {"image_proj.proj.weight": torch.zeros(4 * 2048, 24)}
    assert "makes 4 tokens of 2048 from an embedding of 24, but UNet and image encoder have 32 and 24" in message_for(
        wider
    )
    torch.save(weights, file)
    assert f"{ADAPTER} is a pickle by another name" in refused("sd15_ip_adapter", folder, adapter=adapter)
    file.rename(file.with_suffix(".bin"))
    assert "ip-adapter_sd15.bin is a pickle" in refused("sd15_ip_adapter", folder, adapter=adapter)


def test_missing_files_of_the_second_family_are_named(sd15: tuple[Path, Path], hub: Put) -> None:
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5, runwayml" in refused("sd15_ip_adapter")
    message = refused("sd15_ip_adapter", sd15[0])
    assert (
        "none of h94/IP-Adapter is in the local hub cache: give backbone.adapter=FOLDER" in message
        and ADAPTER in message
    )
    hub("h94/IP-Adapter", sd15[1])
    (sd15[0] / VAE).unlink()
    assert "vae lacks diffusion_pytorch_model.safetensors" in refused("sd15_ip_adapter", sd15[0])


def test_an_inpainting_network_is_refused(sd15: tuple[Path, Path]) -> None:
    change(sd15[0] / "unet/config.json", in_channels=9)
    assert "takes 9 channels, but its autoencoder makes 4" in refused("sd15_ip_adapter", sd15[0], adapter=sd15[1])


def test_families_are_distinguished_before_their_files_are_checked(checkpoint: Path, sd15: tuple[Path, Path]) -> None:
    message = refused("sd15_ip_adapter", checkpoint)
    assert "is not Stable Diffusion 1.5; it is an SD-unCLIP checkpoint: use backbone=" in message
    message = refused("sd21_unclip", sd15[0])
    assert "takes no image vector" in message and "use backbone=sd15_ip_adapter" in message
    change(sd15[0] / "unet/config.json", cross_attention_dim=1024)
    assert "plain Stable Diffusion 2 takes no image" in refused("sd15_ip_adapter", sd15[0])


def test_loading_an_adapter_logs_no_warning(sd15: tuple[Path, Path]) -> None:
    records: list[logging.LogRecord] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    listener, library, models = Listener(logging.WARNING), *map(logging.getLogger, ("diffusers", "diffusers.models"))
    before = models.getChild("modeling_utils").filters[:]
    library.addHandler(listener)
    try:
        load("sd15_ip_adapter", sd15[0], adapter=sd15[1])
    finally:
        library.removeHandler(listener)
    assert not records and models.getChild("modeling_utils").filters == before


@pytest.mark.parametrize("trainables", ["patent", "lora", "all_attention"])
@pytest.mark.parametrize("choice", ["sd21_unclip", "sd15_ip_adapter"])
def test_tuned_weights_are_restored_to_the_bit(
    checkpoint: Path, sd15: tuple[Path, Path], tmp_path: Path, choice: str, trainables: str
) -> None:
    """Tuned, saved and loaded into a new backbone: the same prediction bit for bit, and not the untuned one."""
    place: dict[str, Any] = {"path": checkpoint} if choice == "sd21_unclip" else {"path": sd15[0], "adapter": sd15[1]}
    latents = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def fresh() -> tuple[Denoiser, Condition]:
        backbone = load(choice, **place)
        picture = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
        return Denoiser(inflate(backbone.unet, 3), backbone.scheduler), Encoders(backbone).condition("a bus", [picture])

    denoiser, condition = fresh()
    select_trainables(denoiser.unet, trainables)
    with torch.no_grad():
        untuned = denoiser(latents, 500, condition, 3.0).noise
    optimizer = torch.optim.AdamW((p for p in denoiser.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(2):
        denoiser.output(latents, torch.tensor([500]), condition).square().mean().backward()
        optimizer.step()
    write_tensors(tmp_path / "tuned.safetensors", tuned_state(denoiser.unet), {})
    again, _ = fresh()
    load_tuned(again.unet, read_tensors(tmp_path / "tuned.safetensors")[0])
    with torch.no_grad():
        mine, theirs = (each(latents, 500, condition, 3.0).noise for each in (denoiser, again))
    assert torch.equal(mine, theirs) and not torch.allclose(mine, untuned, atol=1e-3)
    adapted = any("to_k_ip" in name for name in tuned_state(denoiser.unet))
    assert adapted == (choice == "sd15_ip_adapter" and trainables == "all_attention")


# ---- runs ------------------------------------------------------------------------------------------------------------


def small(clip: Path, cache: Path, *overrides: str) -> TrainOptions:
    """A run of two frames and a few steps on ``clip``."""
    words = [f"video.path={clip / 'source.mp4'}", "video.source_prompt=a bus", *overrides, "metrics.enabled=false"]
    words += ["video.width=32", "video.height=32", "video.multiple=8", "video.frames=2", "tuning.steps=2"]
    words += ["inversion.steps=3", "inversion.gate=off", f"video.target_image={clip / 'target.png'}"]
    return compose_options("train", [*words, "video.target_prompt=a red suv", "video.edit=suv", f"cache={cache}"])


@pytest.mark.slow  # several runs
@pytest.mark.parametrize("where", ["folder", "hub"])
@pytest.mark.parametrize("choice", ["sd21_unclip", "sd15_ip_adapter"])
def test_a_checkpoint_tunes_and_edits_without_a_network(
    checkpoint: Path, sd15: tuple[Path, Path], clip: Path, hub: Put, tmp_path: Path, where: str, choice: str
) -> None:
    hub("sd2-community/stable-diffusion-2-1-unclip", checkpoint)
    hub("runwayml/stable-diffusion-v1-5", sd15[0])
    hub("h94/IP-Adapter", sd15[1])
    if choice == "sd21_unclip":
        words, place = [f"backbone.sha256.unet.fp32={sha256(checkpoint / UNET)}"], [f"backbone.path={checkpoint}"]
        file, licence, heading = UNET, "CreativeML Open RAIL++-M, 24 November 2022", "CreativeML Open RAIL++-M License"
    else:
        words, place = [], [f"backbone.path={sd15[0]}", f"backbone.adapter={sd15[1]}"]
        file, heading = ADAPTER, "CreativeML Open RAIL-M\ndated August 22, 2022"
        licence = "CreativeML Open RAIL-M, 22 August 2022 (Stable Diffusion 1.5); Apache 2.0 (IP-Adapter)"
    words += place if where == "folder" else []
    run = tmp_path / "run"
    train(small(clip, tmp_path / "cache", f"backbone={choice}", *words), run, show=False)
    assert (run / "edits/suv/edited.mp4").is_file()
    record, tuned = (read_json(run / name) for name in ("run.json", "tuned.json"))
    assert record["weights"][file] == sha256((checkpoint if file == UNET else sd15[1]) / file)
    assert (file in record["weights_unverified"]) == (file == ADAPTER)
    assert tuned["licence"] == record["licence"] == licence
    assert heading in (run / "LICENSE-MODEL.txt").read_text()


def test_a_changed_file_without_published_hash_is_reported(
    checkpoint: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    options = small(clip, tmp_path / "cache", "backbone=folder", f"backbone.path={checkpoint}")
    train(options, tmp_path / "first")
    flip(checkpoint / VAE)
    assert "has changed" not in capsys.readouterr().err + caplog.text
    train(options, tmp_path / "second")
    assert f"{VAE} has changed" in " ".join((capsys.readouterr().err + caplog.text).split())


def test_wrong_weights_leave_nothing_behind(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    options = small(clip, tmp_path / "cache", "backbone=sd21_unclip", f"backbone.path={checkpoint}")
    with pytest.raises(BackboneError, match="has SHA-256"):  # the stand-in is not the published file
        train(options, tmp_path / "run", show=False)
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()
