from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import load_file, save_file

from tave.backbone import Backbone, BackboneError, load_backbone, tiny_backbone
from tave.config import BackboneOptions
from tave.files import FileError

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved folder."""
    return Path(shutil.copytree(saved, tmp_path / "backbone"))


def loaded_from(path: Path | str) -> Backbone:
    return load_backbone(BackboneOptions(path=str(path)))


def refused(path: Path | str) -> str:
    with pytest.raises(FileError) as caught:
        loaded_from(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_saved_folder_is_read_completely(tiny: Backbone, saved: Path):
    loaded = loaded_from(saved)
    for part in ("unet", "vae", "text_encoder", "image_encoder"):
        mine, theirs = getattr(tiny, part).state_dict(), getattr(loaded, part).state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert not getattr(loaded, part).training
        assert not any(parameter.requires_grad for parameter in getattr(loaded, part).parameters())
    assert loaded.noising is not None and tiny.noising is not None
    assert torch.equal(loaded.noising.mean, tiny.noising.mean)
    assert torch.equal(loaded.noising.std, tiny.noising.std)
    assert loaded.tokenizer("a red bus").input_ids == tiny.tokenizer("a red bus").input_ids
    assert loaded.feature_extractor.crop_size == tiny.feature_extractor.crop_size
    assert loaded.name == str(saved) and loaded.vae_factor == 4


def test_ddim_replaces_another_scheduler(tiny: Backbone, saved: Path):
    assert json.loads((saved / "scheduler/scheduler_config.json").read_text())["_class_name"] == "PNDMScheduler"
    scheduler = loaded_from(saved).scheduler
    assert isinstance(scheduler, DDIMScheduler)
    assert torch.equal(scheduler.alphas_cumprod, tiny.scheduler.alphas_cumprod)
    for key in ("prediction_type", "set_alpha_to_one", "steps_offset", "timestep_spacing"):
        assert scheduler.config[key] == tiny.scheduler.config[key], key


def test_missing_settings_of_pndm_are_not_ddims_defaults(folder: Path):
    file = folder / "scheduler/scheduler_config.json"
    config = json.loads(file.read_text())
    del config["set_alpha_to_one"]
    file.write_text(json.dumps(config))
    scheduler = loaded_from(folder).scheduler
    assert scheduler.config["set_alpha_to_one"] is False and scheduler.config["clip_sample"] is False


@pytest.mark.parametrize("named", ["", ".fp16"])
def test_half_precision_files_are_cast(folder: Path, named: str):
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        file = folder / part / f"{stem}.safetensors"
        half = {name: tensor.half() for name, tensor in load_file(file).items()}
        file.unlink()
        save_file(half, folder / part / f"{stem}{named}.safetensors", metadata={"format": "pt"})
    loaded = loaded_from(folder)
    assert loaded.unet.dtype == loaded.text_encoder.dtype == torch.float32
    assert any(f"{named}.safetensors" in file for file in loaded.hashes)


def test_sharded_weights_are_read_and_hashed(tiny: Backbone, folder: Path):
    (folder / UNET).unlink()
    tiny.unet.save_pretrained(folder / "unet", max_shard_size="500KB")
    loaded = loaded_from(folder)
    assert sum(file.startswith("unet/") for file in loaded.hashes) > 1
    assert torch.equal(loaded.unet.conv_out.weight, tiny.unet.conv_out.weight)
    next((folder / "unet").glob("*-of-*.safetensors")).unlink()
    assert "unet lacks diffusion_pytorch_model-00001-of" in refused(folder)


@pytest.mark.parametrize("path", ["nowhere", "nobody/nothing", "/nowhere/at/all"])
def test_a_missing_folder_is_an_error_with_what_to_put_there(path: str):
    message = refused(path)
    assert f"backbone {path} not found: put the folder that" in message and "unet/config.json" in message


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("unet", "unet lacks config.json: copy its files there"),
        ("image_normalizer", "image_normalizer lacks config.json"),
        ("scheduler", "scheduler lacks scheduler_config.json"),
        ("tokenizer", "tokenizer lacks tokenizer.json or vocab.json + merges.txt"),
        (UNET, "unet lacks diffusion_pytorch_model.safetensors: copy"),
        ("feature_extractor/preprocessor_config.json", "feature_extractor lacks preprocessor_config.json"),
    ],
)
def test_a_missing_part_is_named(folder: Path, lost: str, message: str):
    shutil.rmtree(folder / lost) if (folder / lost).is_dir() else (folder / lost).unlink()
    assert message in refused(folder)


@pytest.mark.parametrize("file", [UNET, "image_encoder/model.safetensors", "unet/config.json"])
def test_a_truncated_file_is_named(folder: Path, file: str):
    (folder / file).write_bytes((folder / file).read_bytes()[:100])
    message = refused(folder)
    assert str(folder / Path(file).parent) in message and "copy it again" in message


@pytest.mark.parametrize("file", [UNET, "text_encoder/model.safetensors"])
def test_weights_with_gaps_are_refused(folder: Path, file: str):
    weights = load_file(folder / file)
    del weights[sorted(weights)[0]]
    save_file(weights, folder / file, metadata={"format": "pt"})
    assert "weights lack" in refused(folder)


def test_parts_of_two_checkpoints_are_refused(folder: Path):
    file = folder / "image_normalizer/diffusion_pytorch_model.safetensors"
    save_file({"mean": torch.zeros(1, 8), "std": torch.ones(1, 8)}, file)
    assert "differ in width" in refused(folder)


def test_frames_below_the_networks_coarsest_level_are_refused(tiny: Backbone):
    tiny.check_size(32, 48)  # two cells of 16 px
    with pytest.raises(BackboneError, match=r"16x48 px.*at least 32"):
        tiny.check_size(16, 48)


def test_tiny_backbone_depends_on_its_seed_alone(tiny: Backbone):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again, other = load_backbone(BackboneOptions(family="tiny")), tiny_backbone(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.hashes == tiny.hashes and again.name == tiny.name
    assert other.hashes["unet"] != tiny.hashes["unet"] and other.name != tiny.name
    assert tiny_backbone(prediction_type="epsilon").scheduler.config["prediction_type"] == "epsilon"


def test_tiny_tokenizer_encodes_any_text(tiny: Backbone):
    words = tiny.tokenizer
    for prompt in ("driving a white bus down a mountain road", "Señor Ünal's 3 café-racers?", ""):
        ids = words(prompt).input_ids
        assert words.unk_token_id not in ids[1:-1]
        assert str(words.decode(ids, skip_special_tokens=True)).replace(" ", "") == prompt.lower().replace(" ", "")


# ---- configurations that ask for what the files don't hold -----------------------------------------------------------


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        # a network that its weights cannot hold
        ("unet/config.json", {"block_out_channels": [10**9] * 3}, "block_out_channels=1000000000 is out of range"),
        ("unet/config.json", {"block_out_channels": [4096, 8192, 8192]}, "but its weights have"),
        ("unet/config.json", {"layers_per_block": 1000}, "layers_per_block=1000 is more than its"),
        (
            "unet/config.json",
            {"transformer_layers_per_block": 5000},
            "transformer_layers_per_block=5000 is more than its",
        ),
        ("unet/config.json", {"down_block_types": ["DownBlock2D"] * 1000}, "down_block_types has 1000 entries"),
        ("unet/config.json", {"cross_attention_dim": float("nan")}, "cross_attention_dim is nan"),
        ("unet/config.json", {"flip_sin_to_cos": 64}, "flip_sin_to_cos=64 is no value for it"),
        ("unet/config.json", {"attention_head_dim": -1}, "attention_head_dim=-1 is no value for it"),
        ("unet/config.json", {"_class_name": "AutoencoderKL"}, "is of a AutoencoderKL, not of a UNet2DConditionModel"),
        ("unet/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised weights"),
        ("vae/config.json", {"latent_channels": 10**400}, "latent_channels=10000000000000000000 is out of range"),
        ("vae/config.json", {"block_out_channels": "x"}, "describes no AutoencoderKL"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 is out of range"),
        ("text_encoder/config.json", {"hidden_size": 16_000, "intermediate_size": 16_000}, "but its weights have"),
        ("text_encoder/config.json", {"max_position_embeddings": "x"}, "describes no CLIPTextModel"),
        # without the names of the library's exception and of classes
        (
            "image_encoder/config.json",
            {"patch_size": ""},
            "doesn't match any type in (int, list[int], tuple[int, int], null",
        ),
        (
            "text_encoder/config.json",
            {"hidden_size": "2024"},
            "for field 'hidden_size': Field 'hidden_size' expected",
        ),
        ("image_encoder/config.json", {"image_size": 16_000}, "but its weights have"),
        ("image_encoder/config.json", {"attn_implementation": "nobody/kernel"}, "asks for code of a repository"),
        # a scheduler without noise levels
        (
            "scheduler/scheduler_config.json",
            {"num_train_timesteps": 10**9},
            "num_train_timesteps=1000000000 is out of range",
        ),
        (
            "scheduler/scheduler_config.json",
            {"num_train_timesteps": 16_000},
            "num_train_timesteps=16000 is not between 1 and 10000",
        ),
        (
            "scheduler/scheduler_config.json",
            {"num_train_timesteps": 0},
            "num_train_timesteps=0 is not between 1 and 10000",
        ),
        (
            "scheduler/scheduler_config.json",
            {"num_train_timesteps": 10.5},
            "num_train_timesteps=10.5 is not between 1 and 10000",
        ),
        ("scheduler/scheduler_config.json", {"beta_end": 2}, "its noise levels don't rise"),
        (
            "scheduler/scheduler_config.json",
            {"trained_betas": [0.5]},
            "its noise levels don't rise from 0 to 1, one a timestep",
        ),
        ("scheduler/scheduler_config.json", {"beta_schedule": "best"}, "describes no scheduler"),
        ("scheduler/scheduler_config.json", {"steps_offset": ["x"]}, "steps_offset=['x'] is no value for it"),
        ("scheduler/scheduler_config.json", {"_class_name": "os"}, "is of a os, not of a scheduler"),
        ("image_noising_scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "is out of range"),
        # inputs that the encoders do not take
        ("tokenizer/tokenizer_config.json", {"model_max_length": 10**30}, "the tokenizer makes 1000000000"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": [1]}, "the tokenizer makes [1] tokens"),
        ("feature_extractor/preprocessor_config.json", {"crop_size": 10**9}, "crop_size=1000000000 is out of range"),
        ("feature_extractor/preprocessor_config.json", {"image_std": "x"}, "tokenizer or feature extractor fail"),
        ("feature_extractor/preprocessor_config.json", {"crop_size": 64}, "makes pictures of (1, 3, 64, 64)"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(folder: Path, file: str, values: dict[str, Any], message: str):
    change(folder / file, **values)
    assert message in refused(folder)


@pytest.mark.parametrize("content", ["[]", "3", "", "\x00", '{"a":' * 5000, "[" * 100_000])
@pytest.mark.parametrize("file", ["unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"])
def test_a_configuration_that_is_no_object_is_named(folder: Path, file: str, content: str):
    (folder / file).write_text(content)
    assert str(folder / file) in refused(folder)


def test_links_in_a_circle_are_missing_files(folder: Path):
    file = folder / "unet" / "config.json"
    file.unlink()
    file.symlink_to(file)
    assert "unet lacks config.json" in refused(folder)


def test_an_index_names_files_beside_it_alone(folder: Path):
    (folder / UNET).rename(folder / "unet.safetensors")
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../unet.safetensors"}}))
    assert "names ../unet.safetensors, which is not beside it" in refused(folder)
    index.write_text(json.dumps({"weight_map": [1]}))
    assert "has no weight_map of file names" in refused(folder)


def test_code_in_a_folder_is_never_run(folder: Path):
    """A module that the configuration names as its class, and a pickle beside the weights."""
    mark = folder / "ran"
    for part in ("text_encoder", "image_encoder", "unet", "vae", "tokenizer", "feature_extractor"):
        (folder / part / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
        for file in (folder / part).glob("*config.json"):
            change(
                file,
                auto_map={"AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Evil"},
            )
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(_Opens(str(mark))))
    loaded_from(folder)
    (folder / UNET).unlink()
    assert "a pickle, which could run code and is not read" in refused(folder)
    (folder / UNET).write_bytes((folder / "unet" / "diffusion_pytorch_model.bin").read_bytes())
    assert "a pickle by another name, which is not read" in refused(folder)
    assert not mark.exists()


class _Opens:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")
