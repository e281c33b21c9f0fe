"""The real models at their full size, on the meta device: shapes, names and counts without a byte of weights.

The configurations are written out as the checkpoints have them; the sizes are those of the published files.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers.models.clip.configuration_clip import CLIPTextConfig, CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPVisionModelWithProjection

from tave.conditions import Condition
from tave.denoiser import Denoiser
from tave.footprint import SHAPES
from tave.inflate import inflate, select_trainables, tuned_state

SD = {  # what SD 1.5 and SD 2.1 share
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-05,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD21 = SD | {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),  # numbers of heads, whatever the key says
    "use_linear_projection": True,
    "upcast_attention": True,
    "class_embed_type": "projection",
}
UNETS: dict[str, dict[str, Any]] = {
    "sd21_unclip": SD21 | {"projection_class_embeddings_input_dim": 2 * 1024},
    "sd21_unclip_small": SD21 | {"projection_class_embeddings_input_dim": 2 * 768},
    "sd15": SD,
}
# The transformer blocks' widths, from the outermost level in: two down, three up, and the middle's.
WIDTHS = [320] * 5 + [640] * 5 + [1280] * 6
SQUARES, SUM = sum(w * w for w in WIDTHS), sum(WIDTHS)
TEMPORAL = 4 * SQUARES + 3 * SUM  # Q, K, V and out, whose bias and the norm's two vectors are a width each


def unet_of(name: str) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**UNETS[name])


@pytest.mark.parametrize(("name", "millions"), [("sd21_unclip", 870.17), ("sd21_unclip_small", 869.52), ("sd15", 859.52)])
def test_unets_have_their_size(name: str, millions: float) -> None:
    assert unet_of(name).num_parameters() / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("backbone", "name"), [*(2 * (name,) for name in list(UNETS)[:2]), ("sd15_ip_adapter", "sd15")])
def test_memory_is_counted_on_these_models(backbone: str, name: str) -> None:
    unet = unet_of(name) if backbone == name else with_ip_adapter(unet_of(name))
    with torch.device("meta"):
        counted = SHAPES[backbone].network()
    mine, theirs = ({n: p.shape for n, p in each.named_parameters()} for each in (counted, unet))
    assert mine == theirs
    # what shows in no parameter; the library notes the last one beside the configuration
    for key in ("attention_head_dim", "upcast_attention", "use_linear_projection", "encoder_hid_dim_type"):
        assert getattr(counted.config, key) == getattr(unet.config, key)


@pytest.mark.parametrize("name", ["sd21_unclip", "sd21_unclip_small"])
def test_inflated_for_a_clip_it_answers_in_the_clips_shape(name: str) -> None:
    unet = inflate(unet_of(name), 8)
    before = unet.num_parameters() - TEMPORAL
    assert before == unet_of(name).num_parameters()
    vector = UNETS[name]["projection_class_embeddings_input_dim"]
    text, image = torch.zeros(1, 77, 1024, device="meta"), torch.zeros(1, 1, vector, device="meta")
    latents = torch.zeros(1, 8, 4, 96, 96, device="meta")
    denoiser = Denoiser(unet, DDIMScheduler(prediction_type="v_prediction"))
    with torch.no_grad():
        answer = denoiser.output(latents, torch.zeros(1, device="meta"), Condition(text, image, text))
    assert answer.shape == latents.shape


@pytest.mark.parametrize(
    ("trainables", "count", "names"),
    [
        ("patent", 2 * SQUARES + TEMPORAL, 2 + 7),
        ("temporal_only", TEMPORAL, 7),
        # ST-Attn's four square projections and a bias; C-Attn's K and V read the text's 1024 channels
        ("all_attention", 6 * SQUARES + 2 * 1024 * SUM + 2 * SUM + TEMPORAL, 5 + 5 + 7),
        ("lora", 4 * (8 * SUM + 6 * SUM + 2 * 1024 * 16) + TEMPORAL, 8 + 8 + 7),  # rank 4: in + out channels each
        ("none", 0, 0),
    ],
)
def test_the_trainable_set_has_its_size(trainables: str, count: int, names: int) -> None:
    unet = inflate(unet_of("sd21_unclip"), 8)
    chosen = select_trainables(unet, trainables, 4)
    assert len(chosen) == 16 * names
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) == count
    if trainables == "patent":
        assert count / 1e6 == pytest.approx(74.38, abs=0.005)
        assert set(tuned_state(unet)) == set(chosen)
        assert sum("attn1.to_q" in name for name in chosen) == sum("attn2.to_q" in name for name in chosen) == 16


def with_ip_adapter(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The published adapter's names and shapes: four tokens of 768 from an embedding of 1024."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "image_proj": {"proj.weight": (4 * 768, 1024), "proj.bias": (4 * 768,), "norm.weight": (768,), "norm.bias": (768,)}
    }
    inner = [320] * 2 + [640] * 2 + [1280] * 2 + [1280] * 3 + [640] * 3 + [320] * 3 + [1280]  # down, up, middle: its order
    shapes["ip_adapter"] = {
        f"{2 * layer + 1}.to_{kind}_ip.weight": (width, 768) for layer, width in enumerate(inner) for kind in "kv"
    }
    state = {group: {name: torch.zeros(shape, device="meta") for name, shape in of.items()} for group, of in shapes.items()}
    unet._load_ip_adapter_weights([state])
    return unet


def test_stable_diffusion_15_with_its_adapter_inflates() -> None:
    plain, unet = unet_of("sd15").num_parameters(), with_ip_adapter(unet_of("sd15"))
    added = unet.num_parameters() - plain
    assert added * 2 / 1e6 == pytest.approx(44.6, abs=0.05)  # MB of float16
    inflate(unet, 8)
    assert unet.num_parameters() == plain + added + TEMPORAL
    patent = select_trainables(unet, "patent")
    assert len(patent) == 16 * 9 and not any("_ip." in name for name in patent)
    assert sum("_ip." in name for name in select_trainables(unet, "all_attention")) == 16 * 2
    text, image = torch.zeros(1, 77, 768, device="meta"), torch.zeros(1, 1, 1024, device="meta")
    latents = torch.zeros(1, 8, 4, 64, 64, device="meta")
    with torch.no_grad():
        denoiser = Denoiser(unet, DDIMScheduler(prediction_type="epsilon"))
        answer = denoiser.output(latents, torch.zeros(1, device="meta"), Condition(text, image, text))
    assert answer.shape == latents.shape


def test_encoders_and_autoencoder_have_the_size_of_their_files() -> None:
    text: dict[str, Any] = {"hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    small: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    large: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "projection_dim": 768}
    huge: dict[str, Any] = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "projection_dim": 1024}
    sides: dict[str, Any] = {"num_attention_heads": 16, "image_size": 224, "patch_size": 14}
    levels: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    with torch.device("meta"):
        # 23 layers: SD 2 reads the penultimate one
        sizes = {
            "text": CLIPTextModel(CLIPTextConfig(vocab_size=49408, num_hidden_layers=23, **text)).num_parameters(),
            "text of SD 1.5": CLIPTextModel(CLIPTextConfig(vocab_size=49408, num_hidden_layers=12, **small)).num_parameters(),
            "ViT-L": CLIPVisionModelWithProjection(CLIPVisionConfig(**sides | large)).num_parameters(),
            "ViT-H": CLIPVisionModelWithProjection(CLIPVisionConfig(**sides | huge)).num_parameters(),
            "vae": AutoencoderKL(latent_channels=4, layers_per_block=2, **levels).num_parameters(),
        }
    assert sizes["text"] * 4 / 1e9 == pytest.approx(1.36, abs=0.005)  # GB of float32
    assert sizes["vae"] * 4 / 1e6 == pytest.approx(335, abs=0.5)
    assert sizes["ViT-H"] * 4 / 1e9 == pytest.approx(2.53, abs=0.005)
    assert sizes["ViT-L"] / 1e6 == pytest.approx(304, abs=0.5)
    assert sizes["text of SD 1.5"] * 4 / 1e6 == pytest.approx(492, abs=0.5)  # MB of float32
    assert SHAPES["sd21_unclip"].encoders == sizes["text"] + sizes["ViT-H"]
    assert SHAPES["sd21_unclip_small"].encoders == sizes["text"] + sizes["ViT-L"]
    assert SHAPES["sd15_ip_adapter"].encoders == sizes["text of SD 1.5"] + sizes["ViT-H"]
