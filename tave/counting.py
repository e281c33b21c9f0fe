"""Memory of the full-size models: counted from shapes without storage, or measured on a GPU with random weights.

Counting runs the actual code on tensors that have shapes alone and adds up the storages that exist at a time. What the
libraries need for themselves (context, workspaces, fragmentation) is not included.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tave.config import MemoryOptions
from tave.correspondence import agreeing, correspond
from tave.denoiser import Denoiser, Tap
from tave.encoders import Condition, decode, encode, stack
from tave.inflate import inflate, select_trainables
from tave.memory import HALVES, adamw, has_8bit, held, hold, use_tiles

TOKENS = 77
# Stable Diffusion's configurations; the rest are the library's defaults.
SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
SD21: dict[str, Any] = {"sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}
SD21 |= {"use_linear_projection": True, "class_embed_type": "projection", "upcast_attention": True}
VAE: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 768}
VAE |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
# Parameters of the encoders: those of CLIP ViT-L and of OpenCLIP ViT-H, of whose text encoder SD 2 uses 23 layers.
TEXT_L, IMAGE_L, TEXT_H, IMAGE_H = 123_060_480, 303_966_208, 340_387_840, 632_076_800


@dataclass(frozen=True)
class Shapes:
    """A full-size checkpoint without its weights.

    unet: its configuration. image: width of the image condition. encoders: parameters of text and image encoder.
    adapter: the image condition comes by IP-Adapter, whose layers the UNet then has.
    """

    unet: dict[str, Any]
    prediction_type: str
    image: int
    encoders: int
    adapter: bool = False

    def network(self) -> UNet2DConditionModel:
        """The image UNet in float32, on the current device."""
        unet = UNet2DConditionModel(**self.unet)
        if self.adapter:
            add_ip_adapter(unet, self.image)
        return unet


def _unclip(image: int, encoders: int) -> Shapes:
    return Shapes(SD21 | {"projection_class_embeddings_input_dim": image}, "v_prediction", image, encoders)


SHAPES = {
    "sd21_unclip": _unclip(2048, TEXT_H + IMAGE_H),
    "sd21_unclip_small": _unclip(1536, TEXT_H + IMAGE_L),
    "sd15_ip_adapter": Shapes(SD15, "epsilon", 1024, TEXT_L + IMAGE_H, adapter=True),
}


def shapes_of(unet: nn.Module) -> Shapes:
    """The full-size checkpoint of :data:`SHAPES` whose UNet has the widths of ``unet``, else the largest."""
    config, keys = cast(Any, unet).config, ("cross_attention_dim", "projection_class_embeddings_input_dim")
    widths = [config.get(key) for key in keys]
    alike = (shapes for shapes in SHAPES.values() if [shapes.unet.get(key) for key in keys] == widths)
    return next(alike, SHAPES["sd21_unclip"])


@dataclass(frozen=True)
class Footprint:
    """Bytes. ``resident``: always on the device; ``activations``: kept for the backward pass.

    ``tuning``, ``editing``, ``coding``: peaks of a tuning step, a step of mask or sampling, and the autoencoder, each
    with what is resident.
    """

    resident: int
    optimizer: int
    gradients: int
    activations: int
    tuning: int
    editing: int
    coding: int

    @property
    def peak(self) -> int:
        return max(self.tuning, self.editing, self.coding)


class Ledger(TorchDispatchMode):
    """Counts the bytes of all storages that were made within it and still exist: ``now``, and their ``peak``."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._living: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for storage in (value.untyped_storage() for value in tree_leaves(result) if isinstance(value, Tensor)):
            if (key := storage._cdata) not in self._living:
                self._living[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._leave, key)
        return result

    def _leave(self, key: int) -> None:
        self.now -= self._living.pop(key, 0)


@contextmanager
def saved_bytes(network: nn.Module) -> Iterator[list[int]]:
    """Yields a list that gets, at the end, the bytes that autograd keeps for the backward pass, without parameters.

    Each storage counts once; what a checkpointed block recomputes does not count.
    """
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors too: their addresses could be reused once they are gone
    total: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in own:
            kept.setdefault(key, tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))


def add_ip_adapter(unet: UNet2DConditionModel, image: int) -> None:
    """Add the layers of the plain IP-Adapter in place: four tokens from an image embedding of width ``image``.

    The library adds them when it reads the adapter's file, which needs weights with storage.
    """
    text, made = int(unet.config["cross_attention_dim"]), dict(unet.attn_processors)
    for name in made:
        if name.endswith("attn2.processor"):
            width = cast(nn.Linear, unet.get_submodule(f"{name.removesuffix('.processor')}.to_k")).out_features
            made[name] = IPAdapterAttnProcessor2_0(width, text, (4,))
    unet.set_attn_processor(made)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(image, text, 4)])  # type: ignore[assignment]
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")


def held_bytes(network: nn.Module, counts: Callable[[nn.Parameter], bool] = lambda _: True) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters() if counts(p))


def tuning_step(denoiser: Denoiser, latents: Tensor, condition: Condition, autocast: Any) -> int:
    """Forward and backward of one tuning step; the gradients stay. Returns the bytes saved for the backward pass."""
    with autocast, saved_bytes(denoiser) as saved:
        loss = denoiser.output(latents, torch.tensor([500]), condition).float().square().mean()
    loss.backward()
    return saved[0]


@torch.no_grad()
def sampling_step(denoiser: Denoiser, latents: Tensor, condition: Condition, autocast: Any) -> None:
    """One guided step with its checked correspondence field, for a mask that covers the whole frame."""
    with autocast:
        features = denoiser(latents, 500, condition, 7.5, Tap(-2)).features
    assert features is not None
    agreeing(correspond(features[0]), 1)


@torch.no_grad()
def masking_step(denoiser: Denoiser, latents: Tensor, condition: Condition, autocast: Any) -> None:
    """One step of the mask: the source's, the target's and, for ``mask.union=disputed``, the unconditional branch."""
    with autocast:
        denoiser(torch.cat([latents] * 3), 500, stack(condition, condition, condition.null))


def footprint(
    shapes: Shapes,
    memory: MemoryOptions,
    precision: str,
    frames: int,
    side: int,
    trainables: str = "patent",
    measured: bool = False,
) -> Footprint:
    """The memory of ``shapes`` for clips of ``frames`` frames of ``side`` x ``side`` pixels."""
    device, half = torch.device("cuda" if measured else "cpu"), HALVES.get(precision)

    def autocast() -> Any:
        return torch.autocast(device.type, half) if half else nullcontext()

    with nullcontext() if measured else FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device(device):
            denoiser, vae = _models(shapes, memory, precision, frames, trainables)
            latents, pictures = torch.randn(1, frames, 4, side // 8, side // 8), torch.randn(frames, 3, side, side)
            text = torch.randn(1, TOKENS, shapes.unet["cross_attention_dim"])
            inputs = denoiser, latents, Condition(text, torch.randn(1, 1, shapes.image), text)
        if not measured:
            denoiser.alphas_cumprod = cast(Tensor, [0.5] * 1000)  # one value is read, where tensors have none
            if half:
                _norms_in_float32(denoiser)
        trained = held_bytes(denoiser, lambda p: p.requires_grad)
        encoders = shapes.encoders * held(memory, precision).itemsize
        resident = held_bytes(denoiser) + (0 if memory.offload else held_bytes(vae) + encoders)
        moments = trained // 2 if memory.optimizer == "8bit" and has_8bit() else 2 * trained
        optimizer = _stepped(inputs, memory.optimizer, autocast()) if measured else None
        saved: list[int] = []
        tuning = _peak(measured, lambda: saved.append(tuning_step(*inputs, autocast())))
        denoiser.zero_grad()
        del optimizer  # and its moments
        steps = (lambda: masking_step(*inputs, autocast()), lambda: sampling_step(*inputs, autocast()))
        editing = max(_peak(measured, step) for step in steps)
        codings = (lambda: encode(vae, pictures, memory.chunk), lambda: decode(vae, latents, memory.chunk))
        coding = max(_peak(measured, step) for step in codings)
    # A measurement lacks the encoders, and has the autoencoder on the device even where it would be offloaded.
    base = encoders * (not memory.offload) if measured else resident
    return Footprint(
        resident=resident,
        optimizer=moments,
        gradients=trained,
        activations=saved[0],
        tuning=base + tuning + (0 if measured else moments),
        editing=base + editing,
        coding=base + coding + (held_bytes(vae) if memory.offload and not measured else 0),
    )


def _models(
    shapes: Shapes, memory: MemoryOptions, precision: str, frames: int, trainables: str
) -> tuple[Denoiser, AutoencoderKL]:
    unet, vae = shapes.network(), AutoencoderKL(**VAE)
    vae.eval().requires_grad_(False)
    select_trainables(inflate(unet.eval(), frames), trainables)
    hold(unet, held(memory, precision))
    use_tiles(vae, memory.tile)
    if memory.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return Denoiser(unet, DDIMScheduler(prediction_type=cast(Any, shapes.prediction_type)), memory.branches), vae


def _stepped(inputs: tuple[Denoiser, Tensor, Condition], kind: str, autocast: Any) -> torch.optim.Optimizer:
    """An optimizer after its first step, which allocates its moments."""
    optimizer = adamw([p for p in inputs[0].parameters() if p.requires_grad], kind, 3e-5, 1e-2)
    tuning_step(*inputs, autocast)
    optimizer.step()
    inputs[0].zero_grad()
    return optimizer


def _peak(measured: bool, work: Callable[[], object]) -> int:
    """The peak memory while ``work`` runs: of its own tensors if counted, of the whole device if measured."""
    if not measured:
        with Ledger() as ledger:
            work()
        return ledger.peak
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def host(shapes: Shapes) -> tuple[int, int, int]:
    """Bytes of inflated UNet, encoders and autoencoder in the CPU's memory, float32 as they are read."""
    with torch.device("meta"):
        unet, vae = inflate(shapes.network(), 1), AutoencoderKL(**VAE)
    return held_bytes(unet), 4 * shapes.encoders, held_bytes(vae)


def _norms_in_float32(network: nn.Module) -> None:
    """What autocast does on a GPU but not on the CPU that counts: norms compute on, and keep, float32 copies."""
    for module in network.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
