"""A backbone of the real classes at toy size with random weights, for tests."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor
from transformers.models.clip.configuration_clip import CLIPTextConfig, CLIPVisionConfig
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPVisionModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from tave.backbone.parts import Backbone, ImageNoising

TOKENS, TEXT_WIDTH, IMAGE_WIDTH, IMAGE_SIZE = 77, 32, 24, 32
LAYERS: dict[str, Any] = {"intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}


def tiny_backbone(seed: int = 0, prediction_type: str = "v_prediction") -> Backbone:
    """Random weights drawn from ``seed``, without touching global generators; 32 px frames give latents `4 8 8`.

    prediction_type: v_prediction (as SD-unCLIP) or epsilon.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = byte_tokenizer(("bus", "car", "road", "red", "white", "on", "the"), TOKENS)
        text, vision, unet, vae = _text(tokenizer), _vision(), _unet(), _autoencoder()
        mean, std = 0.1 * torch.randn(IMAGE_WIDTH), 0.5 + torch.rand(IMAGE_WIDTH)
    parts = {"text_encoder": text, "image_encoder": vision, "unet": unet, "vae": vae}
    hashes = {name: _sha256(list(part.state_dict().values())) for name, part in parts.items()}
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return Backbone(
        tokenizer=tokenizer,
        text_encoder=text,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size),
        image_encoder=vision,
        noising=ImageNoising(mean, std, DDPMScheduler(beta_schedule="squaredcos_cap_v2")),
        unet=unet,
        scheduler=_scheduler(prediction_type),
        vae=vae,
        name=f"tiny-{seed}-{prediction_type}",
        hashes=hashes | {"image_normalizer": _sha256([mean, std])},
    )


def byte_tokenizer(words: tuple[str, ...], length: int) -> CLIPTokenizer:
    """CLIP's tokenizer with one token for each of ``words`` and one for each byte, so that any text can be encoded.

    A word's merges come after those of earlier words; what these leave of it is joined from left to right. So no merge
    precedes one that an earlier word needs, and every word becomes one token.
    """
    letters = _byte_alphabet()
    symbols, merges = letters + [letter + "</w>" for letter in letters], []
    for word in words:
        pieces = _merged([*word[:-1], word[-1] + "</w>"], merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            symbols.append(pieces[0] + pieces[1])
            pieces = _merged(pieces, merges)
    # the two specials are the last ids, since CLIPTextModel pools at the largest id; "!" pads, as in SD 2
    vocab = {symbol: i for i, symbol in enumerate([*dict.fromkeys(symbols), "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token="!", model_max_length=length)


def _merged(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding: of adjacent pairs, the one with the earliest merge is joined first."""
    rank = {pair: i for i, pair in enumerate(merges)}
    while len(pieces) > 1:
        pairs = list(pairwise(pieces))
        best = min(pairs, key=lambda pair: rank.get(pair, len(rank)))
        if best not in rank:
            break
        at = pairs.index(best)
        pieces = [*pieces[:at], pieces[at] + pieces[at + 1], *pieces[at + 2 :]]
    return pieces


def _byte_alphabet() -> list[str]:
    """The 256 printable symbols of a byte-level BPE, in GPT-2's order."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte if byte in keep else next(spare)) for byte in range(256)]


def _text(tokenizer: Any) -> CLIPTextModel:
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "hidden_size": TEXT_WIDTH, "projection_dim": TEXT_WIDTH}
    return CLIPTextModel(CLIPTextConfig(max_position_embeddings=TOKENS, **sizes, **LAYERS, **special))


def _vision() -> CLIPVisionModelWithProjection:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "projection_dim": IMAGE_WIDTH,
    }
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, **LAYERS))


def _scheduler(prediction_type: Any) -> DDIMScheduler:
    levels: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    steps: dict[str, Any] = {"set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
    return DDIMScheduler(prediction_type=prediction_type, clip_sample=False, **levels, **steps)


def _unet() -> UNet2DConditionModel:
    heads: Any = (2, 4, 4)  # of each level; the library calls them head dims, and types them as one
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=heads,
        cross_attention_dim=TEXT_WIDTH,
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * IMAGE_WIDTH,
    )


def _autoencoder() -> AutoencoderKL:
    levels: dict[str, Any] = {  # the library types these as tuples of one element
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    return AutoencoderKL(norm_num_groups=8, sample_size=32, **levels)


def _sha256(tensors: list[Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()
