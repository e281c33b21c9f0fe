"""The architectures of the Roadside backbone: the classes of SD-unCLIP "small" at a size that two CPU cores can run."""

from __future__ import annotations

from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from transformers.models.clip.configuration_clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.modeling_clip import CLIPModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from tave.backbone import byte_tokenizer
from tave.roadside.scene import vocabulary

TOKENS, PROJECTION, TEXT_WIDTH, VISION_SIZE = 32, 128, 128, 96


def tokenizer() -> CLIPTokenizer:
    """CLIP's own tokenizer class with one token for each word that Roadside's captions use; any text still encodes."""
    return byte_tokenizer(tuple(sorted({part for word in vocabulary() for part in word.split("-")})), TOKENS)


def clip(words: CLIPTokenizer) -> CLIPModel:
    """Both towers of the conditioning CLIP; pre-training splits it into text model and image encoder."""
    specials: dict[str, Any] = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=PROJECTION,
        **specials,
    )
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=VISION_SIZE,
        patch_size=12,
        projection_dim=PROJECTION,
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=PROJECTION)
    config._attn_implementation = "eager"  # a few dozen tokens: the fused kernel's backward is twice as slow on a CPU
    return CLIPModel(config)


def feature_extractor() -> CLIPImageProcessor:
    size = {"height": VISION_SIZE, "width": VISION_SIZE}
    return CLIPImageProcessor(size={"shortest_edge": VISION_SIZE}, crop_size=size)


def autoencoder(size: int) -> AutoencoderKL:
    """Factor 4, 8 latent channels, no attention: what it does is local, so it is the same at every size."""
    shape: dict[str, Any] = {  # the library annotates its tuples as being of one element
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 8,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "block_out_channels": (24, 48, 96),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "mid_block_add_attention": False,
        "sample_size": size,
    }
    return AutoencoderKL(**shape)


def unet(latent_size: int, widths: tuple[int, int, int] = (64, 128, 192)) -> UNet2DConditionModel:
    """v-prediction UNet with a projected image condition; attention at the two coarser levels only."""
    shape: dict[str, Any] = {
        "sample_size": latent_size,
        "in_channels": 8,
        "out_channels": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": widths,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": (2, 4, 6),  # the number of heads of each level, by diffusers' old misnomer
        "cross_attention_dim": TEXT_WIDTH,
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 2 * PROJECTION,
    }
    return UNet2DConditionModel(**shape)


def schedulers() -> tuple[DDIMScheduler, DDPMScheduler]:
    """The denoising scheduler and the image noising scheduler, both as in SD-unCLIP."""
    denoising = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
    return denoising, DDPMScheduler(beta_schedule="squaredcos_cap_v2")


def judge_config() -> dict[str, Any]:
    """The judge: a convolutional ``open_clip`` model, another family than the conditioning CLIP's transformer."""
    return {
        "model_cfg": {
            "embed_dim": 96,
            "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 24, "head_width": 32},
            "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2},
        },
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
