"""Real checkpoints: found, verified, refused in one line; small ones in their true format stand in for them."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import load_file, save_file

import tave.edit
import tave.train
from eval.cases import read_cases
from tave.backbone import Backbone, BackboneError
from tave.cache import StoredError, read_tensors, write_tensors
from tave.conditions import Condition, encode_condition, encode_text, image_embedding
from tave.config import CONF, TrainOptions, typed
from tave.denoiser import Denoiser
from tave.edit import edit, recorded
from tave.inflate import inflate, load_tuned, select_trainables, tuned_state
from tave.options import OptionError
from tave.run import open_backbone
from tave.train import train
from tave.video import ReadOptions, read_clip

ROOT = Path(__file__).parents[1]
Put = Callable[[str, Path], Path]
UNET, NORMALIZER = "unet/diffusion_pytorch_model.safetensors", "image_normalizer/diffusion_pytorch_model.safetensors"
PARTS = {"unet": UNET, "image_normalizer": NORMALIZER}
ADAPTER = "models/ip-adapter_sd15.safetensors"
# All the values that are known.
PUBLISHED = {
    ("sd21_unclip", "unet", "fp32"): "902a190c84ff59777cb0ecb7cd0eb86be822e6e2687376aa744ffb2d398b0b86",
    ("sd21_unclip", "unet", "fp16"): "a11c42f0619d06677f792a29b36277bf78bcefb7c010583c631da62e40630ff5",
    ("sd21_unclip_small", "unet", "fp32"): "344f13b7a6df648ed7638851b047e4d24ad6e4b91bd1cb3e052036356e8fdc3a",
    ("sd21_unclip_small", "image_normalizer", "fp32"): "aeac478227b2f987af0addfe3b7417a2a7ff0bde5b8f5e5b08de9244c30a00c6",
}


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def composed(*overrides: str) -> TrainOptions:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose("train", ["video.path=clip.mp4", "video.source_prompt=x", *overrides]))


def load(choice: str, path: Path | None = None, known: Mapping[str, Any] | None = None, **more: Any) -> Backbone:
    """The backbone of ``conf/backbone``, with the stand-in's hashes in place of the published ones."""
    place = [] if path is None else [f"backbone.path={path}"]
    return open_backbone(dict(composed(f"backbone={choice}", *place).backbone) | {"sha256": known or {}} | more)


def refused(choice: str, path: Path | None = None, known: Mapping[str, Any] | None = None, **more: Any) -> str:
    with pytest.raises(BackboneError) as caught:
        load(choice, path, known, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def flip(file: Path) -> None:
    """One bit of the last tensor: still a readable file."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_only_published_hashes_are_written_down() -> None:
    written = {
        (choice.stem, part, precision): value
        for choice in (CONF / "backbone").glob("sd*.yaml")
        for part, values in composed(f"backbone={choice.stem}").backbone["sha256"].items()
        for precision, value in values.items()
    }
    assert written == PUBLISHED


def test_a_checkpoint_of_its_time_is_read_whole(tiny: Backbone, checkpoint: Path) -> None:
    """Old names of weights, a tokenizer of two files, a scheduler that leaves things unsaid."""
    loaded = load("sd21_unclip", checkpoint)
    for part in ("unet", "vae", "text_encoder", "image_encoder"):
        mine, theirs = getattr(tiny, part).state_dict(), getattr(loaded, part).state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert torch.allclose(encode_text(loaded, ["señor's red bus"]), encode_text(tiny, ["señor's red bus"]), atol=1e-5)
    assert loaded.scheduler.config["prediction_type"] == "v_prediction"
    assert loaded.name == "sd21_unclip" and loaded.licence == "CreativeML Open RAIL++-M, 24 November 2022"


def test_published_files_are_verified_and_the_rest_is_told_of(checkpoint: Path) -> None:
    loaded = load("sd21_unclip", checkpoint, {"unet": {"fp32": sha256(checkpoint / UNET)}})
    assert loaded.hashes[UNET] == sha256(checkpoint / UNET)
    assert set(loaded.unverified) == set(loaded.hashes) - {UNET} and len(loaded.hashes) == 5


@pytest.mark.parametrize(("part", "file"), list(PARTS.items()))
def test_a_flipped_byte_is_refused_and_both_hashes_are_named(checkpoint: Path, part: str, file: str) -> None:
    published = sha256(checkpoint / file)
    flip(checkpoint / file)
    told = refused("sd21_unclip_small", checkpoint, {part: {"fp32": published}})
    assert f"{file} has SHA-256 {sha256(checkpoint / file)}" in told and f"has {published}: copy it again" in told


def test_half_precision_has_a_value_of_its_own(checkpoint: Path) -> None:
    single = sha256(checkpoint / UNET)
    half = {name: tensor.half() for name, tensor in load_file(checkpoint / UNET).items()}
    save_file(half, checkpoint / UNET, metadata={"format": "pt"})
    loaded = load("sd21_unclip", checkpoint, {"unet": {"fp32": single, "fp16": sha256(checkpoint / UNET)}})
    assert UNET not in loaded.unverified and loaded.unet.dtype == torch.float32
    assert UNET in load("sd21_unclip", checkpoint, {"unet": {"fp32": single}}).unverified


def test_a_pickle_is_refused(checkpoint: Path) -> None:
    weights = load_file(checkpoint / UNET)
    (checkpoint / UNET).unlink()
    torch.save(weights, checkpoint / "unet/diffusion_pytorch_model.bin")
    told = refused("sd21_unclip", checkpoint)
    assert "diffusion_pytorch_model.bin, a pickle" in told and "put diffusion_pytorch_model.safetensors there" in told
    (checkpoint / "unet/diffusion_pytorch_model.bin").rename(checkpoint / UNET)
    assert f"{UNET} is a pickle by another name" in refused("sd21_unclip", checkpoint)


def test_a_missing_checkpoint_says_which_files_to_put_where(hub: Put) -> None:
    told = refused("sd21_unclip")
    assert "sd2-community/stable-diffusion-2-1-unclip" in told and "backbone.path=FOLDER" in told
    for file in ("unet/config.json + diffusion_pytorch_model.safetensors", "tokenizer/", "image_encoder/", "vae/"):
        assert file in told
    assert "unet/config.json + diffusion_pytorch_model.safetensors" in refused("sd21_unclip", Path("nowhere"))


def test_mirrors_are_tried_in_order(checkpoint: Path, hub: Put) -> None:
    radames = hub("radames/stable-diffusion-2-1-unclip-img2img", checkpoint)
    assert load("sd21_unclip").hashes[UNET] == sha256(radames / UNET)
    weights = load_file(checkpoint / UNET)
    save_file({name: 2 * tensor for name, tensor in weights.items()}, checkpoint / UNET, metadata={"format": "pt"})
    first = hub("sd2-community/stable-diffusion-2-1-unclip", checkpoint)
    assert load("sd21_unclip").hashes[UNET] == sha256(first / UNET) != sha256(radames / UNET)
    (first / UNET).unlink()  # half a copy: the next mirror is asked
    assert load("sd21_unclip").hashes[UNET] == sha256(radames / UNET)
    (radames / "vae/config.json").unlink()
    assert f"{first / 'unet'} lacks diffusion_pytorch_model.safetensors" in refused("sd21_unclip")


def test_the_other_variant_names_its_option(checkpoint: Path) -> None:
    file = checkpoint / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"projection_class_embeddings_input_dim": 1536}))
    assert "use backbone=sd21_unclip_small" in refused("sd21_unclip", checkpoint)


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        ({"class_embed_type": None, "cross_attention_dim": 768}, "use backbone=sd15_ip_adapter"),
        ({"class_embed_type": None, "cross_attention_dim": 1024}, "plain Stable Diffusion 2 takes no image"),
        ({"class_embed_type": None, "addition_embed_type": "text_time"}, "SDXL and its like have no family here"),
    ],
)
def test_another_family_names_the_right_option(checkpoint: Path, config: dict[str, Any], remedy: str) -> None:
    file = checkpoint / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    assert remedy in refused("sd21_unclip", checkpoint)


def test_a_scheduler_that_predicts_something_else_is_refused(checkpoint: Path) -> None:
    file = checkpoint / "scheduler/scheduler_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"prediction_type": "epsilon"}))
    assert "says epsilon, but these weights predict v_prediction" in refused("sd21_unclip", checkpoint)
    del config["prediction_type"]
    file.write_text(json.dumps(config))
    assert load("sd21_unclip", checkpoint).scheduler.config["prediction_type"] == "v_prediction"


@pytest.mark.parametrize("part", ["scheduler", "image_noising_scheduler"])
@pytest.mark.parametrize("lost", [None, "beta_schedule"])
def test_a_scheduler_that_leaves_its_levels_unsaid_is_refused(checkpoint: Path, part: str, lost: str | None) -> None:
    """The library would fill in a line from 0.0001 to 0.02, which none of these were trained on."""
    file = checkpoint / part / "scheduler_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in config.items() if lost and key != lost}))
    assert f"{file} lacks beta_schedule" in refused("sd21_unclip", checkpoint)


@pytest.mark.parametrize("key", ["beta_start", "beta_end"])
def test_a_line_of_levels_has_two_ends(checkpoint: Path, key: str) -> None:
    file = checkpoint / "scheduler/scheduler_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in config.items() if name != key}))
    assert f"{file} lacks {key}" in refused("sd21_unclip", checkpoint)
    noising = checkpoint / "image_noising_scheduler/scheduler_config.json"
    file.write_text(json.dumps(config))
    cosine = {name: value for name, value in json.loads(noising.read_text()).items() if name != key}
    noising.write_text(json.dumps(cosine))  # a cosine schedule has none
    assert load("sd21_unclip", checkpoint).noising is not None


def test_levels_that_were_learnt_need_no_line(checkpoint: Path) -> None:
    file = checkpoint / "scheduler/scheduler_config.json"
    betas = torch.linspace(1e-3, 1e-2, 1000).tolist()
    file.write_text(json.dumps({"prediction_type": "v_prediction", "trained_betas": betas}))
    assert torch.allclose(load("sd21_unclip", checkpoint).scheduler.betas, torch.tensor(betas))


@pytest.mark.parametrize("content", ["[]", "3", "null"])
def test_a_config_that_is_no_object_is_refused(checkpoint: Path, content: str) -> None:
    file = checkpoint / "scheduler/scheduler_config.json"
    file.write_text(content)
    assert f"{file} holds no JSON object: copy it again" in refused("sd21_unclip", checkpoint)


# ---- the second family ------------------------------------------------------------------------------------------------


def test_stable_diffusion_with_ip_adapter_is_read_whole(sd15: tuple[Path, Path], tiny: Backbone) -> None:
    """The adapter's tensors arrive in the UNet, at its precision, frozen; the picture reaches it as an embedding."""
    folder, adapter = sd15
    loaded = load("sd15_ip_adapter", folder, adapter=str(adapter))
    weights, state = load_file(adapter / ADAPTER), loaded.unet.state_dict()
    key = "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.0.weight"
    assert any(torch.equal(tensor.float(), state[key]) for name, tensor in weights.items() if name.endswith("to_k_ip.weight"))
    assert not any(parameter.requires_grad for parameter in loaded.unet.parameters())
    assert {parameter.dtype for parameter in loaded.unet.parameters()} == {torch.float32}
    assert loaded.noising is None and loaded.image_width == tiny.image_width
    assert loaded.scheduler.config["prediction_type"] == "epsilon" and loaded.name == "sd15_ip_adapter"
    assert {ADAPTER, "models/image_encoder/model.safetensors", UNET} <= set(loaded.unverified) == set(loaded.hashes)
    picture = torch.rand(1, 3, 40, 48) * 2 - 1
    told = encode_condition(loaded, "a red bus", picture, noise=torch.ones(1, 24))
    assert torch.equal(told.image[0], image_embedding(loaded, picture))
    with pytest.raises(OptionError, match="noise_level=3"):
        encode_condition(loaded, "a red bus", picture, level=3, noise=torch.ones(1, 24))


def test_an_adapter_that_does_not_fit_is_refused(sd15: tuple[Path, Path]) -> None:
    folder, adapter = sd15
    file = adapter / ADAPTER
    weights = load_file(file)

    def told(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, file)
        return refused("sd15_ip_adapter", folder, adapter=str(adapter))

    lacking = {name: tensor for name, tensor in weights.items() if name != "ip_adapter.1.to_k_ip.weight"}
    assert "does not fit the UNet's" in told(lacking) and "(1.to_k_ip.weight)" in told(lacking)
    plus = {name.replace("image_proj.proj.weight", "image_proj.latents"): tensor for name, tensor in weights.items()}
    assert "is no plain IP-Adapter" in told(plus)
    wider = weights | {"image_proj.proj.weight": torch.zeros(4 * 2048, 24)}
    assert "makes 4 tokens of 2048 from an embedding of 24, but UNet and image encoder have 32 and 24" in told(wider)
    torch.save(weights, file)
    assert f"{ADAPTER} is a pickle by another name" in refused("sd15_ip_adapter", folder, adapter=str(adapter))
    file.rename(file.with_suffix(".bin"))
    assert "ip-adapter_sd15.bin is a pickle" in refused("sd15_ip_adapter", folder, adapter=str(adapter))


def test_what_is_missing_of_the_second_family_is_named(sd15: tuple[Path, Path], hub: Put) -> None:
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5, runwayml" in refused("sd15_ip_adapter")
    told = refused("sd15_ip_adapter", sd15[0])
    assert "of h94/IP-Adapter none is in the local hub cache: give backbone.adapter=FOLDER" in told and ADAPTER in told
    hub("h94/IP-Adapter", sd15[1])
    (sd15[0] / "vae/diffusion_pytorch_model.safetensors").unlink()
    assert "vae lacks diffusion_pytorch_model.safetensors" in refused("sd15_ip_adapter", sd15[0])


def test_an_inpainting_network_is_refused(sd15: tuple[Path, Path]) -> None:
    """It also takes a mask and a picture, so its weights fit its own config and load."""
    folder, adapter = sd15
    file = folder / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"in_channels": 9}))
    weights = load_file(folder / UNET)
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([first, torch.zeros(len(first), 5, 3, 3)], 1)
    save_file(weights, folder / UNET, metadata={"format": "pt"})
    told = refused("sd15_ip_adapter", folder, adapter=str(adapter))
    assert f"{folder / 'unet'} takes 9 channels, but its autoencoder makes 4" in told


def test_families_are_not_mixed_up(checkpoint: Path, sd15: tuple[Path, Path]) -> None:
    """Told of the folder as it is, whole for its own family, before anybody looks for what the other one needs."""
    told = refused("sd15_ip_adapter", checkpoint)
    assert "is not Stable Diffusion 1.5; it is an SD-unCLIP checkpoint: use backbone=" in told
    for choice in ("sd21_unclip", "folder"):
        assert "takes no image vector" in (told := refused(choice, sd15[0])) and "use backbone=sd15_ip_adapter" in told
    file = sd15[0] / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cross_attention_dim": 1024}))
    assert "plain Stable Diffusion 2 takes no image" in refused("sd15_ip_adapter", sd15[0])


def test_loading_an_adapter_is_silent(sd15: tuple[Path, Path]) -> None:
    """And the library's own voice is left as it was."""
    records: list[logging.LogRecord] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    listener, library, voice = (
        Listener(logging.WARNING),
        *map(logging.getLogger, ("diffusers", "diffusers.models.modeling_utils")),
    )
    before = voice.filters[:]
    library.addHandler(listener)
    try:
        load("sd15_ip_adapter", sd15[0], adapter=str(sd15[1]))
    finally:
        library.removeHandler(listener)
    assert not [record.getMessage() for record in records] and voice.filters == before


# ---- the user's story --------------------------------------------------------------------------------------------------


def small(clip: Path, cache: Path, *overrides: str) -> TrainOptions:
    """A run of two frames and a few steps, on ``clip``."""
    size = ("video.width=32", "video.height=32", "video.multiple=8", "video.frames=2", "tuning.steps=2", "inversion.steps=3")
    asked = (f"video.target_image={clip / 'target.png'}", "video.target_prompt=a red suv on the road", "video.edit=suv")
    return composed(
        f"video.path={clip / 'source.mp4'}", *overrides, *size, *asked, "inversion.gate=off", "metrics=none", f"cache={cache}"
    )


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_a_checkpoint_tunes_and_edits_without_a_network(
    checkpoint: Path, clip: Path, hub: Put, tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = f"backbone.sha256.unet.fp32={sha256(checkpoint / UNET)}"
    place = [f"backbone.path={checkpoint}"] if where == "folder" else []
    hub("sd2-community/stable-diffusion-2-1-unclip", checkpoint)
    run = train(small(clip, tmp_path / "cache", "backbone=sd21_unclip", known, *place), tmp_path / "run")
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("CreativeML Open RAIL++-M") == 1 and "not verified" in told and "vae/diffusion_pytorch" in told
    assert (run / "edits/suv/edited.mp4").is_file()
    record, tuned = (json.loads((run / name).read_text()) for name in ("run.json", "tuned.json"))
    assert record["weights"][UNET] == sha256(checkpoint / UNET) and UNET not in record["weights_unverified"]
    assert tuned["licence"] == record["licence"] == "CreativeML Open RAIL++-M, 24 November 2022"
    assert "CreativeML Open RAIL++-M License\ndated November 24, 2022" in (run / "LICENSE-MODEL.txt").read_text()


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_the_second_family_tunes_and_edits_without_a_network(
    sd15: tuple[Path, Path], clip: Path, hub: Put, tmp_path: Path, where: str
) -> None:
    folder, adapter = sd15
    place = [f"backbone.path={folder}", f"backbone.adapter={adapter}"] if where == "folder" else []
    hub("runwayml/stable-diffusion-v1-5", folder)
    hub("h94/IP-Adapter", adapter)
    run = train(
        small(clip, tmp_path / "cache", "backbone=sd15_ip_adapter", "mask.union=cross_attention", *place),
        tmp_path / "run",
        show=False,
    )
    assert (run / "edits/suv/edited.mp4").is_file()
    record, tuned = (json.loads((run / name).read_text()) for name in ("run.json", "tuned.json"))
    assert record["weights"][ADAPTER] == sha256(adapter / ADAPTER)
    (case,) = read_cases(run)  # metrics learn which encoder steered the edit, from the cache as well
    assert case.conditioner is not None and (case.conditioner / "model.safetensors").is_file()
    assert tuned["licence"] == "CreativeML Open RAIL-M, 22 August 2022 (Stable Diffusion 1.5); Apache 2.0 (IP-Adapter)"
    assert "CreativeML Open RAIL-M\ndated August 22, 2022" in (run / "LICENSE-MODEL.txt").read_text()


def test_the_second_family_runs_on_a_small_card(
    sd15: tuple[Path, Path], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """memory=8gb: in float32 it makes the same edit; with its halves the tuning goes the same way, and an edit is made."""
    folder, adapter = sd15
    place = ("backbone=sd15_ip_adapter", f"backbone.path={folder}", f"backbone.adapter={adapter}")
    opened: list[Backbone] = []
    monkeypatch.setattr("tave.run.open_backbone", lambda options: opened.append(open_backbone(options)) or opened[-1])

    def made(name: str, *memory: str) -> tuple[torch.Tensor, torch.Tensor]:
        run = train(small(clip, tmp_path / name, *place, *memory), tmp_path / name / "run", show=False)
        state, _ = read_tensors(run / "tuned.safetensors")
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}
        # T-Attn's output starts at zero, so this is what it has learnt
        learnt = torch.cat([tensor.flatten() for key, tensor in state.items() if key.endswith("temporal.to_out.weight")])
        return read_clip(run / "edits/suv/edited.mp4", ReadOptions(frames=None, multiple=1)).frames, learnt

    frames, learnt = made("full", "memory=full")
    spare = ("memory=8gb", "memory.weights=full", "memory.optimizer=fused", "trainer.precision=32-true")
    same_frames, same_learnt = made("spare", *spare)
    half_frames, half_learnt = made("8gb", "memory=8gb")
    assert (same_frames - frames).abs().mean() < 2 / 255  # of 2
    assert (same_learnt - learnt).norm() < 0.01 * learnt.norm()
    assert half_frames.shape == frames.shape and not torch.equal(half_frames, frames)
    assert 0 < (half_learnt - learnt).norm() < 0.25 * learnt.norm()
    for backbone, kind in zip(opened, (torch.float32, torch.float32, torch.bfloat16), strict=True):
        adapter_keys = [p for name, p in backbone.unet.named_parameters() if "_ip." in name]
        held = [*adapter_keys, *backbone.image_encoder.parameters(), *backbone.text_encoder.parameters()]
        assert adapter_keys and {parameter.dtype for parameter in held} == {kind}


@pytest.mark.parametrize("trainables", ["patent", "lora", "all_attention"])
@pytest.mark.parametrize("family", ["sd21_unclip", "sd15_ip_adapter"])
def test_tuned_weights_come_back_to_the_bit(
    checkpoint: Path, sd15: tuple[Path, Path], tmp_path: Path, family: str, trainables: str
) -> None:
    """Tuned, saved, and loaded into a fresh backbone: the same answer bit for bit, and not the untuned one."""
    place: dict[str, Any] = {"path": checkpoint} if family == "sd21_unclip" else {"path": sd15[0], "adapter": str(sd15[1])}
    latents = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def fresh() -> tuple[Denoiser, Condition]:
        backbone = load(family, **place)
        noise, picture = torch.ones(1, 24), torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
        told = encode_condition(backbone, "a red bus", picture, noise=noise)
        return Denoiser(inflate(backbone.unet, 3), backbone.scheduler), told

    denoiser, told = fresh()
    select_trainables(denoiser.unet, trainables)
    with torch.no_grad():
        untuned = denoiser(latents, 500, told, 3.0).noise
    optimizer = torch.optim.AdamW((p for p in denoiser.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(2):
        denoiser.output(latents, torch.tensor([500]), told).square().mean().backward()
        optimizer.step()
    write_tensors(tmp_path / "tuned.safetensors", tuned_state(denoiser.unet), {})
    again, _ = fresh()
    load_tuned(again.unet, read_tensors(tmp_path / "tuned.safetensors")[0])
    with torch.no_grad():
        mine, theirs = (each(latents, 500, told, 3.0).noise for each in (denoiser, again))
    assert torch.equal(mine, theirs) and not torch.allclose(mine, untuned, atol=1e-3)
    state = tuned_state(denoiser.unet)
    assert any("to_k_ip" in name for name in state) == (family == "sd15_ip_adapter" and trainables == "all_attention")


def test_unverified_files_are_compared_from_then_on(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    run = train(small(clip, tmp_path / "cache", "backbone=folder", f"backbone.path={checkpoint}"), tmp_path / "run", show=False)
    before = sha256(checkpoint / "vae/diffusion_pytorch_model.safetensors")
    flip(checkpoint / "vae/diffusion_pytorch_model.safetensors")
    after = sha256(checkpoint / "vae/diffusion_pytorch_model.safetensors")
    cfg = recorded(run)
    cfg.video.target_image, cfg.video.target_prompt = str(clip / "target.png"), "a red suv"
    with pytest.raises(StoredError, match=f"vae/diffusion_pytorch_model.safetensors was {before}, is {after}"):
        edit(run, typed(cfg), show=False)


def test_a_new_run_says_which_unverified_files_have_changed(
    checkpoint: Path, clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def tuned(name: str) -> None:
        asked = ("backbone=folder", f"backbone.path={checkpoint}", "video.target_image=null", "video.target_prompt=null")
        train(small(clip, tmp_path / "cache", *asked), tmp_path / name, show=False)

    vae = checkpoint / "vae/diffusion_pytorch_model.safetensors"
    before = sha256(vae)
    tuned("first")
    tuned("second")
    assert "has changed" not in caplog.text
    flip(vae)
    tuned("third")
    assert caplog.text.count("has changed") == 1
    assert f"vae/diffusion_pytorch_model.safetensors has changed: it was {before}, is {sha256(vae)}" in caplog.text


def test_a_named_checkpoint_may_move(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    known = f"backbone.sha256.unet.fp32={sha256(checkpoint / UNET)}"
    place = f"backbone.path={checkpoint}"
    run = train(small(clip, tmp_path / "cache", "backbone=sd21_unclip", known, place), tmp_path / "run", show=False)
    moved = Path(shutil.move(checkpoint, tmp_path / "elsewhere"))
    cfg = recorded(run)
    cfg.backbone.path = str(moved)
    cfg.video.target_image, cfg.video.target_prompt, cfg.video.edit = str(clip / "target.png"), "a red suv", "again"
    assert edit(run, typed(cfg), show=False) == ["again"]


def test_wrong_weights_leave_nothing_behind(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    options = small(clip, tmp_path / "cache", "backbone=sd21_unclip", f"backbone.path={checkpoint}")
    with pytest.raises(BackboneError, match="has SHA-256"):  # small files are not the published ones
        train(options, tmp_path / "run", show=False)
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


@pytest.fixture
def doors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[list[str]], str]]:
    """A command without its interpreter -> the last line that it prints. What Hydra makes of logging is undone."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def say(command: list[str]) -> str:
        monkeypatch.setattr(sys, "argv", command)
        {"tave.train": tave.train.main, "tave.edit": tave.edit.main}[command[0]]()
        return capsys.readouterr().out.splitlines()[-1]

    yield say
    root.handlers[:], root.level = before, level


def test_the_second_family_may_move_with_its_adapter(
    doors: Callable[[list[str]], str], sd15: tuple[Path, Path], clip: Path, tmp_path: Path
) -> None:
    place = ("backbone=sd15_ip_adapter", f"backbone.path={sd15[0]}", f"backbone.adapter={sd15[1]}")
    run = train(small(clip, tmp_path / "cache", *place), tmp_path / "run", show=False)
    model, adapter = (shutil.move(each, tmp_path / f"moved-{each.name}") for each in sd15)
    asked = (f"video.target_image={clip / 'target.png'}", "video.target_prompt=a red suv", "video.edit=again")
    made = doors(["tave.edit", f"run={run}", f"backbone.path={model}", f"backbone.adapter={adapter}", *asked])
    assert Path(made) == run / "edits/again"


def test_an_adapter_is_refused_where_there_is_none(
    doors: Callable[[list[str]], str], checkpoint: Path, clip: Path, tmp_path: Path
) -> None:
    run = train(small(clip, tmp_path / "cache", "backbone=folder", f"backbone.path={checkpoint}"), tmp_path / "run", show=False)
    with pytest.raises(SystemExit, match=r"backbone\.adapter: .* has no such part"):
        doors(["tave.edit", f"run={run}", "backbone.adapter=elsewhere"])


def test_a_full_gpu_ends_in_one_line(doors: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    monkeypatch.setattr(tave.train, "train", full)
    with pytest.raises(SystemExit, match=r"^error: the GPU's memory is full: set memory=16gb.*video.frames.*height$"):
        doors(["tave.train", "+video=bus_to_suv"])


def documented(file: Path, heading: str) -> list[list[str]]:
    """The commands below ``heading``, without their interpreter."""
    below = file.read_text().split(f"\n{heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", below, re.DOTALL)
    return [shlex.split(block.replace("\\\n", " "))[2:] for block in blocks]


@pytest.mark.slow
def test_the_documented_commands_do_what_they_say(
    checkpoint: Path,
    sd15: tuple[Path, Path],
    clip: Path,
    hub: Put,
    tmp_path: Path,
    doors: Callable[[list[str]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small checkpoints stand in, so their own hash and a small size are added; nothing of the commands is left out."""
    here = tmp_path / "here"
    for name in ("sd21_unclip_small", "mine", "moved"):
        shutil.copytree(checkpoint, here / "weights" / name)
    shutil.copytree(sd15[0], here / "weights/stable-diffusion-v1-5")
    shutil.copytree(sd15[1], here / "weights/IP-Adapter")
    shutil.copy(clip / "source.mp4", here / "clip.mp4")
    Image.open(clip / "target.png").convert("RGB").save(here / "target.jpg")  # a photograph: nobody's matte
    hub("sd2-community/stable-diffusion-2-1-unclip", checkpoint)
    size = ["video.width=32", "video.height=32", "video.multiple=8", "video.frames=2", "tuning.steps=2", "inversion.steps=3"]
    unet, normalizer = (f"backbone.sha256.{part}.fp32={sha256(checkpoint / file)}" for part, file in PARTS.items())
    known = {"backbone=sd21_unclip": [unet], "backbone=sd21_unclip_small": [unet, normalizer]}
    commands = documented(ROOT / "docs/real_weights.md", "## Edit a clip")
    assert [command[0] for command in commands] == [*["tave.train"] * 4, "tave.edit"]
    commands += documented(ROOT / "README.md", "## With real weights")
    monkeypatch.chdir(here)
    printed: list[Path] = []
    for command in commands:
        for placeholder, meant in (("=FOLDER", "=weights/sd21_unclip_small"), ("RUN_FOLDER", str([*printed, ""][0]))):
            command = [part.replace(placeholder, meant) for part in command]
        if command[0] == "tave.train":
            command += size + [each for part in command for each in known.get(part, [])]
        printed.append(Path(doors(command)))
    for command, folder in zip(commands, printed, strict=True):
        made = folder if command[0] == "tave.edit" else folder / "edits/target"
        assert (made / "edited.mp4").is_file() and (made / "reference.png").is_file()
    told = [json.loads((folder / "tuned.json").read_text()) for folder in printed if (folder / "tuned.json").is_file()]
    names = ["sd21_unclip_small", "sd21_unclip", "sd15_ip_adapter", "weights/mine", "sd21_unclip_small"]
    assert [each["backbone"] for each in told] == names
    assert "RAIL" in told[0]["licence"] and told[3]["licence"] is None
