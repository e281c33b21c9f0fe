"""Shared by all tests: no network, a tiny backbone, and small checkpoints in the real ones' formats."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TAVE_DRAWN", str(Path(__file__).parents[1] / "outputs/drawn"))  # tests work in many folders

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img import StableUnCLIPImg2ImgPipeline
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn

from tave.backbone import Backbone, load_backbone, tiny_backbone
from tave.config import BackboneOptions
from tave.encoders import Condition, Encoders
from tave.roadside.cases import NAMED
from tave.roadside.files import write_case


def random_picture() -> torch.Tensor:
    """`1 3 32 32` in [-1, 1]."""
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    """Shared by all tests, so not to be changed: those that inflate or tune take ``unet``."""
    return tiny_backbone()


@pytest.fixture
def unet(tiny: Backbone) -> UNet2DConditionModel:
    """A copy of the tiny image UNet."""
    return copy.deepcopy(tiny.unet)


@pytest.fixture(scope="session")
def condition(tiny: Backbone) -> Condition:
    """One prompt with one picture, b = 1."""
    return Encoders(tiny).condition("a white bus on the road", [random_picture()])


@pytest.fixture(scope="session")
def pipeline(tiny: Backbone) -> StableUnCLIPImg2ImgPipeline:
    """The library's pipeline over the same parts."""
    assert tiny.noising is not None
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=len(tiny.noising.mean))
    normalizer.mean = nn.Parameter(tiny.noising.mean[None])
    normalizer.std = nn.Parameter(tiny.noising.std[None])
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=tiny.feature_extractor,
        image_encoder=tiny.image_encoder,
        image_normalizer=normalizer,
        image_noising_scheduler=tiny.noising.scheduler,  # type: ignore[arg-type]
        tokenizer=tiny.tokenizer,
        text_encoder=tiny.text_encoder,
        unet=tiny.unet,
        scheduler=tiny.scheduler,  # type: ignore[arg-type]
        vae=tiny.vae,
    )


@pytest.fixture(scope="session")
def saved(tiny: Backbone, pipeline: StableUnCLIPImg2ImgPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny parts as the library saves them, with the scheduler class of the real checkpoints. Not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    scheduler = PNDMScheduler.from_config(tiny.scheduler.config)
    StableUnCLIPImg2ImgPipeline(**{**pipeline.components, "scheduler": scheduler}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved_ip_adapter(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small Stable Diffusion 1.5 as the library saves it, and an adapter in its repository's layout."""
    folder, adapter = tmp_path_factory.mktemp("sd15"), tmp_path_factory.mktemp("adapter")
    generator = torch.Generator().manual_seed(8)
    config = dict(tiny.unet.config) | {"class_embed_type": None, "projection_class_embeddings_input_dim": None}
    config |= {"use_linear_projection": False, "attention_head_dim": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        unet = cast(UNet2DConditionModel, UNet2DConditionModel.from_config(config))
    StableDiffusionPipeline(
        tokenizer=tiny.tokenizer,
        text_encoder=tiny.text_encoder,
        feature_extractor=tiny.feature_extractor,
        unet=unet,
        scheduler=PNDMScheduler.from_config(tiny.scheduler.config, prediction_type="epsilon"),  # type: ignore[arg-type]
        vae=tiny.vae,
        safety_checker=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    ).save_pretrained(folder)
    tiny.image_encoder.save_pretrained(adapter / "models/image_encoder")
    text, image = tiny.text_encoder.config.hidden_size, tiny.image_width
    shapes = {"image_proj.proj.weight": (4 * text, image), "image_proj.proj.bias": (4 * text,)}
    shapes |= {"image_proj.norm.weight": (text,), "image_proj.norm.bias": (text,)}
    layers = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, layer in enumerate(layers):
        inner = unet.get_submodule(f"{layer.removesuffix('.processor')}.to_k").out_features
        shapes |= {f"ip_adapter.{2 * number + 1}.to_{kind}_ip.weight": (inner, text) for kind in "kv"}
    tensors = {
        name: torch.randn(shape, generator=generator).half() / shape[-1] ** 0.5 for name, shape in shapes.items()
    }
    save_file(tensors, adapter / "models/ip-adapter_sd15.safetensors")
    return folder, adapter


@pytest.fixture(scope="session")
def ip_adapter(saved_ip_adapter: tuple[Path, Path]) -> Backbone:
    """The second family's small backbone. Shared, so not to be changed."""
    path, adapter = map(str, saved_ip_adapter)
    return load_backbone(BackboneOptions(family="ip_adapter", path=path, adapter=adapter))


@pytest.fixture(params=["tiny", "ip_adapter"], ids=["sd_unclip", "ip_adapter"])
def family(request: pytest.FixtureRequest) -> Backbone:
    """Each family's small backbone in turn. Shared, so not to be changed."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def family_condition(family: Backbone) -> Condition:
    """One prompt with one picture, b = 1, for ``family``."""
    return Encoders(family).condition("a white bus on the road", [random_picture()])


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A named clip at the tiny backbone's size: source.mp4, target.png, truth. Not to be changed."""
    folder = tmp_path_factory.mktemp("clip")
    write_case(NAMED["bus_to_suv"], folder, 32)
    return folder


def age(folder: Path) -> None:
    """Turn a saved folder into the published checkpoints' format: their names of weights, files and classes."""
    old_names: dict[str, Callable[[str], str]] = {
        "text_encoder/model": lambda name: f"text_model.{name}",
        "vae/diffusion_pytorch_model": lambda name: (
            name.replace("to_q", "query")
            .replace("to_k", "key")
            .replace("to_v", "value")
            .replace("to_out.0", "proj_attn")
        ),
    }
    for stem, renamed in old_names.items():
        tensors = {renamed(name): tensor for name, tensor in load_file(folder / f"{stem}.safetensors").items()}
        if stem.startswith("text"):
            tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})
    model = json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]
    (folder / "tokenizer/tokenizer.json").unlink()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(model["vocab"]))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "tokenizer/merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]))
    if (file := folder / "feature_extractor/preprocessor_config.json").is_file():
        config = json.loads(file.read_text()) | {"feature_extractor_type": "CLIPFeatureExtractor"}
        file.write_text(json.dumps(config | {"image_processor_type": "CLIPFeatureExtractor"}))
    file = folder / "scheduler/scheduler_config.json"
    config = json.loads(file.read_text())
    file.write_text(
        json.dumps({key: config[key] for key in config if key not in ("timestep_spacing", "trained_betas")})
    )


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy of a small SD-unCLIP checkpoint in the format of the real ones."""
    folder = Path(shutil.copytree(saved, tmp_path / "checkpoint"))
    age(folder)
    return folder


@pytest.fixture
def sd15(saved_ip_adapter: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Copies of a small Stable Diffusion 1.5 in the format of the real one, and of its adapter."""
    folder, adapter = (Path(shutil.copytree(each, tmp_path / each.name)) for each in saved_ip_adapter)
    age(folder)
    return folder, adapter


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], Path]:
    """An empty hub cache; the function puts a copy of a folder there as `owner/name` and returns its snapshot."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))

    def put(name: str, folder: Path) -> Path:
        at = cache / f"models--{name.replace('/', '--')}"
        commit = "0123456789abcdef0123456789abcdef01234567"
        (at / "refs").mkdir(parents=True)
        (at / "refs/main").write_text(commit)
        for number, file in enumerate(path for path in sorted(folder.rglob("*")) if path.is_file()):
            blob, link = at / "blobs" / f"{number:064x}", at / "snapshots" / commit / file.relative_to(folder)
            for path in (blob, link):
                path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
        return at / "snapshots" / commit

    return put
