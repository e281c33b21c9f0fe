"""The networks of the drawn world: the classes of SD-unCLIP "small" at a size for two CPU cores, and the judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.modeling_clip import CLIPModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from tave.backbone import byte_tokenizer
from tave.roadside.scene import vocabulary

TOKENS, PROJECTION, TEXT_WIDTH, VISION_SIZE, JUDGE_SIZE = 32, 128, 128, 96, 64
PATCH = 8  # px; the smallest objects of whole frames are 14 px long

EncodeText = Callable[[list[str]], Tensor]
Embed = Callable[[Tensor, list[str]], tuple[Tensor, Tensor]]  # pictures `n 3 V V` in [-1, 1], captions -> `n d`, `m d`


class PatchEmbed(Protocol):
    """As ``Embed``; ``patches`` ``n k``: those that are looked at, row by row from the top left, or None for all."""

    def __call__(self, pictures: Tensor, texts: list[str], patches: Tensor | None = None) -> tuple[Tensor, Tensor]: ...


def tokenizer() -> CLIPTokenizer:
    """Return CLIP's tokenizer class with one token for each word of the captions; any other text encodes as bytes."""
    return byte_tokenizer(tuple(sorted({part for word in vocabulary() for part in word.split("-")})), TOKENS)


def clip(words: CLIPTokenizer) -> CLIPModel:
    """Return both towers of the conditioning CLIP."""
    specials: dict[str, Any] = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=TOKENS, projection_dim=PROJECTION, **specials,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_attention_heads=6, image_size=VISION_SIZE,
        patch_size=PATCH, projection_dim=PROJECTION,
    )  # fmt: skip
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=PROJECTION)
    config._attn_implementation = "eager"  # for a few dozen tokens the fused kernel's backward is slower on a CPU
    return CLIPModel(config)


def feature_extractor() -> CLIPImageProcessor:
    size = {"height": VISION_SIZE, "width": VISION_SIZE}
    return CLIPImageProcessor(size={"shortest_edge": VISION_SIZE}, crop_size=size)


def autoencoder(size: int) -> AutoencoderKL:
    """Return an autoencoder of factor 4 with 8 latent channels; without attention it is the same at every size."""
    shape: dict[str, Any] = {  # the library annotates its tuples as having one element
        "in_channels": 3, "out_channels": 3, "latent_channels": 8, "layers_per_block": 1, "norm_num_groups": 8,
        "block_out_channels": (24, 48, 96), "mid_block_add_attention": False, "sample_size": size,
        "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
    }  # fmt: skip
    return AutoencoderKL(**shape)


def unet(latent_size: int) -> UNet2DConditionModel:
    """Return the UNet with a projected image condition.

    On the way up there is attention at the finest level too: a pattern's layout, and where its neighbours are, lie
    below the resolution of the coarser levels. On the way down it would cost as much and gain less.
    """
    shape: dict[str, Any] = {
        "sample_size": latent_size, "in_channels": 8, "out_channels": 8, "layers_per_block": 1, "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "block_out_channels": (64, 128, 192), "attention_head_dim": (2, 4, 6),  # in diffusers the number of heads
        "cross_attention_dim": TEXT_WIDTH, "use_linear_projection": True,
        "class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * PROJECTION,
    }  # fmt: skip
    return UNet2DConditionModel(**shape)


def schedulers() -> tuple[DDIMScheduler, DDPMScheduler]:
    """Return the denoising scheduler and the scheduler of the image noise, both as in SD-unCLIP."""
    denoising = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading",
    )  # fmt: skip
    return denoising, DDPMScheduler(beta_schedule="squaredcos_cap_v2")


# A convolutional open_clip model, of another family than the conditioning CLIP.
JUDGE: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 96,
        "vision_cfg": {"image_size": JUDGE_SIZE, "layers": [1, 1, 1, 1], "width": 24, "head_width": 32},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
}


def judge(folder: Path) -> nn.Module:
    """Return the judge with random weights; open_clip makes it from a configuration that is written to ``folder``."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "roadside-judge.json").write_text(json.dumps(JUDGE["model_cfg"]))
    open_clip.add_model_config(folder / "roadside-judge.json")
    return open_clip.create_model("roadside-judge", pretrained=None)


# ---- embedding -------------------------------------------------------------------------------------------------------


def cached(encode: EncodeText) -> EncodeText:
    """Return ``encode`` for weights that don't train: every text is encoded once, in full precision."""
    table: dict[str, Tensor] = {}

    def encoded(texts: list[str]) -> Tensor:
        if new := sorted(set(texts) - set(table)):
            with torch.no_grad(), torch.autocast("cuda" if torch.cuda.is_available() else "cpu", enabled=False):
                table.update(zip(new, encode(new), strict=True))
        return torch.stack([table[text] for text in texts])

    return encoded


def text_model_output(model: Any, words: CLIPTokenizer, texts: list[str]) -> Any:
    """Return the output of a CLIP text model for ``texts``."""
    ids = words(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return model(input_ids=ids.to(next(model.parameters()).device))


def clip_embedder(network: Any, words: CLIPTokenizer) -> PatchEmbed:
    """Return the projected image and text vectors of the conditioning CLIP as a function."""
    extractor = feature_extractor()
    normalise = _normaliser(extractor.image_mean, extractor.image_std)

    def embed_text(texts: list[str]) -> Tensor:
        return network.text_projection(text_model_output(network.text_model, words, texts).pooler_output)

    text = embed_text if network.text_projection.weight.requires_grad else cached(embed_text)

    def embed(pictures: Tensor, texts: list[str], patches: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if patches is None:
            seen = network.vision_model(pixel_values=normalise(pictures)).pooler_output
        else:
            seen = _look_at(network.vision_model, normalise(pictures), patches)
        return network.visual_projection(seen), text(texts)

    return embed


def _look_at(vision: Any, pictures: Tensor, patches: Tensor) -> Tensor:
    """Return the pooled output of a CLIP vision model that is given some of each picture's patches alone."""
    tokens = vision.embeddings(pictures)  # the class token, then the patches
    chosen = F.pad(patches + 1, (1, 0))
    tokens = tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))
    hidden = vision.encoder(inputs_embeds=vision.pre_layrnorm(tokens)).last_hidden_state
    return vision.post_layernorm(hidden[:, 0])


def judge_embedder(network: Any) -> Embed:
    """Return the image and text vectors of the judge as a function."""
    import open_clip

    normalise = _normaliser(*(JUDGE["preprocess_cfg"][name] for name in ("mean", "std")))
    tokenize = open_clip.SimpleTokenizer(context_length=JUDGE["model_cfg"]["text_cfg"]["context_length"])

    def embed(pictures: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        return network.encode_image(normalise(pictures)), network.encode_text(tokenize(texts).to(pictures.device))

    return embed


def _normaliser(mean: Any, std: Any) -> Callable[[Tensor], Tensor]:
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return lambda pictures: (pictures / 2 + 0.5 - shift.to(pictures)) / scale.to(pictures)
