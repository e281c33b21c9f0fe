"""The real models at full size on the meta device: shapes, names and counts without weights.

The configurations are those of the checkpoints, the sizes those of the published files.
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

from tave.counting import SHAPES
from tave.denoiser import Denoiser
from tave.encoders import Condition
from tave.inflate import inflate, select_trainables, tuned_state

SD: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2}  # shared by SD 1.5 and SD 2.1
SD |= {"block_out_channels": (320, 640, 1280, 1280), "center_input_sample": False, "flip_sin_to_cos": True}
SD |= {"down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "downsample_padding": 1, "freq_shift": 0}
SD |= {"up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, "mid_block_scale_factor": 1, "act_fn": "silu"}
SD |= {"norm_num_groups": 32, "norm_eps": 1e-05}
SD15 = SD | {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SD21 = SD | {"sample_size": 96, "cross_attention_dim": 1024, "class_embed_type": "projection"}
# The head dims are numbers of heads, despite the name.
SD21 |= {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True, "upcast_attention": True}
UNETS: dict[str, dict[str, Any]] = {
    "sd21_unclip": SD21 | {"projection_class_embeddings_input_dim": 2 * 1024},
    "sd21_unclip_small": SD21 | {"projection_class_embeddings_input_dim": 2 * 768},
    "sd15": SD15,
}
# The transformer blocks' widths, from the outermost level in: two down, three up, and the middle's.
WIDTHS = [320] * 5 + [640] * 5 + [1280] * 6
SQUARES, SUM = sum(w * w for w in WIDTHS), sum(WIDTHS)
TEMPORAL = 4 * SQUARES + 3 * SUM  # Q, K, V and out, whose bias and the norm's two vectors are a width each


def unet_of(name: str) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**UNETS[name])


@pytest.mark.parametrize(
    ("name", "millions"), [("sd21_unclip", 870.17), ("sd21_unclip_small", 869.52), ("sd15", 859.52)]
)
def test_unets_have_the_published_size(name: str, millions: float) -> None:
    assert unet_of(name).num_parameters() / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(
    ("backbone", "name"), [*(2 * (name,) for name in list(UNETS)[:2]), ("sd15_ip_adapter", "sd15")]
)
def test_memory_is_counted_on_these_models(backbone: str, name: str) -> None:
    unet = unet_of(name) if backbone == name else with_ip_adapter(unet_of(name))
    with torch.device("meta"):
        counted = SHAPES[backbone].network()
    mine, theirs = ({n: p.shape for n, p in each.named_parameters()} for each in (counted, unet))
    assert mine == theirs
    # what no parameter shows
    for key in ("attention_head_dim", "upcast_attention", "use_linear_projection", "encoder_hid_dim_type"):
        assert getattr(counted.config, key) == getattr(unet.config, key)


@pytest.mark.parametrize("name", ["sd21_unclip", "sd21_unclip_small"])
def test_the_inflated_network_predicts_in_the_clips_shape(name: str) -> None:
    unet = inflate(unet_of(name), 8)
    assert unet.num_parameters() == unet_of(name).num_parameters() + TEMPORAL
    vector = UNETS[name]["projection_class_embeddings_input_dim"]
    check_prediction(unet, 96, 1024, vector, "v_prediction")


def check_prediction(unet: UNet2DConditionModel, side: int, text_width: int, image_width: int, kind: Any) -> None:
    text, image = torch.zeros(1, 77, text_width, device="meta"), torch.zeros(1, 1, image_width, device="meta")
    latents = torch.zeros(1, 8, 4, side, side, device="meta")
    denoiser = Denoiser(unet, DDIMScheduler(prediction_type=kind))
    with torch.no_grad():
        prediction = denoiser.output(latents, torch.zeros(1, device="meta"), Condition(text, image, text))
    assert prediction.shape == latents.shape


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
def test_trainable_parameters_are_counted_exactly(trainables: str, count: int, names: int) -> None:
    unet = inflate(unet_of("sd21_unclip"), 8)
    chosen = select_trainables(unet, trainables, 4)
    assert len(chosen) == 16 * names
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) == count
    if trainables == "patent":
        assert count == 74_379_840 and set(tuned_state(unet)) == set(chosen)


def with_ip_adapter(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The published adapter's names and shapes: four tokens of 768 from an embedding of 1024."""
    projection = {"proj.weight": (4 * 768, 1024), "proj.bias": (4 * 768,), "norm.weight": (768,), "norm.bias": (768,)}
    widths = [320] * 2 + [640] * 2 + [1280] * 2 + [1280] * 3 + [640] * 3 + [320] * 3 + [1280]  # down, up, middle
    attention = {f"{2 * i + 1}.to_{kind}_ip.weight": (width, 768) for i, width in enumerate(widths) for kind in "kv"}
    with torch.device("meta"):
        state = [{name: torch.zeros(shape) for name, shape in group.items()} for group in (projection, attention)]
    unet._load_ip_adapter_weights([dict(zip(("image_proj", "ip_adapter"), state, strict=True))])
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
    check_prediction(unet, 64, 768, 1024, "epsilon")


def test_encoders_and_autoencoder_have_the_size_of_their_files() -> None:
    def text(width: int, layers: int, **more: Any) -> CLIPTextModel:
        sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
        return CLIPTextModel(CLIPTextConfig(vocab_size=49408, num_attention_heads=width // 64, **sizes, **more))

    def vision(width: int, layers: int, embedding: int) -> CLIPVisionModelWithProjection:
        sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
        grid: dict[str, Any] = {"num_attention_heads": 16, "image_size": 224, "patch_size": 14}
        return CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=embedding, **sizes, **grid))

    levels: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "latent_channels": 4, "layers_per_block": 2}
    levels |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        models = {
            "text": text(1024, 23, hidden_act="gelu"),  # SD 2 reads the penultimate of 24 layers
            "text of SD 1.5": text(768, 12),
            "ViT-L": vision(1024, 24, 768),
            "ViT-H": vision(1280, 32, 1024),
            "vae": AutoencoderKL(**levels),
        }
    sizes = {name: model.num_parameters() for name, model in models.items()}
    assert sizes["text"] * 4 / 1e9 == pytest.approx(1.36, abs=0.005)  # GB of float32
    assert sizes["vae"] * 4 / 1e6 == pytest.approx(335, abs=0.5)
    assert sizes["ViT-H"] * 4 / 1e9 == pytest.approx(2.53, abs=0.005)
    assert sizes["ViT-L"] / 1e6 == pytest.approx(304, abs=0.5)
    assert sizes["text of SD 1.5"] * 4 / 1e6 == pytest.approx(492, abs=0.5)  # MB of float32
    assert SHAPES["sd21_unclip"].encoders == sizes["text"] + sizes["ViT-H"]
    assert SHAPES["sd21_unclip_small"].encoders == sizes["text"] + sizes["ViT-L"]
    assert SHAPES["sd15_ip_adapter"].encoders == sizes["text of SD 1.5"] + sizes["ViT-H"]
