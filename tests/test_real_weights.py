"""Real checkpoints: found, verified, refused in one line; small ones in their true format stand in for them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file

from tave.backbone import Backbone, BackboneError
from tave.cache import StoredError
from tave.conditions import encode_text
from tave.config import CONF, TrainOptions, typed
from tave.edit import edit, recorded
from tave.roadside.cases import NAMED, write_case
from tave.run import open_backbone
from tave.train import train

Put = Callable[[str, Path], Path]
UNET, NORMALIZER = "unet/diffusion_pytorch_model.safetensors", "image_normalizer/diffusion_pytorch_model.safetensors"
# FIELD.md, section 5: all the values that are known.
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


def load(choice: str, path: Path | None = None, known: Mapping[str, Any] | None = None) -> Backbone:
    """The backbone of ``conf/backbone``, with the stand-in's hashes in place of the published ones."""
    settings = dict(composed(f"backbone={choice}").backbone)
    settings |= {"sha256": known or {}} | ({} if path is None else {"path": str(path)})
    return open_backbone(settings)


def refused(choice: str, path: Path | None = None, known: Mapping[str, Any] | None = None) -> str:
    with pytest.raises(BackboneError) as caught:
        load(choice, path, known)
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


@pytest.mark.parametrize(("part", "file"), [("unet", UNET), ("image_normalizer", NORMALIZER)])
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


# ---- the user's story --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_case(NAMED["bus_to_suv"], folder, 32)
    return folder


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


def test_unverified_files_are_compared_from_then_on(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    run = train(small(clip, tmp_path / "cache", "backbone=folder", f"backbone.path={checkpoint}"), tmp_path / "run", show=False)
    before = sha256(checkpoint / "vae/diffusion_pytorch_model.safetensors")
    flip(checkpoint / "vae/diffusion_pytorch_model.safetensors")
    after = sha256(checkpoint / "vae/diffusion_pytorch_model.safetensors")
    cfg = recorded(run)
    cfg.video.target_image, cfg.video.target_prompt = str(clip / "target.png"), "a red suv"
    with pytest.raises(StoredError, match=f"vae/diffusion_pytorch_model.safetensors was {before}, is {after}"):
        edit(run, typed(cfg), show=False)


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
