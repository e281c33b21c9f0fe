"""How much memory full-size models need, by preset: counted from shapes, or measured on a GPU.

    python -m tave.footprint
    python -m tave.footprint backbones=[sd15_ip_adapter] presets=[8gb,16gb] frames=[8] sizes=[512,768]
    python -m tave.footprint measure=true          on a CUDA device, with random weights

Counting runs the very code, on tensors that have shapes and no storage: every tensor that comes to life is added, every
one that dies is taken off. What the libraries need for themselves (context, workspaces, fragments) is not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import product
from typing import Any, cast

import hydra
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from hydra import compose
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tave.conditions import Condition, stack
from tave.config import CONF, schema, typed
from tave.correspondence import agreeing, correspond
from tave.denoiser import Denoiser, Tap
from tave.inflate import inflate, select_trainables
from tave.latents import decode, encode
from tave.memory import HALVES, MemoryOptions, adamw, has_8bit, hold, use_tiles
from tave.options import OptionError, choice, within
from tave.train import guarded

GIB = 2**30
LIBRARIES = 1.5 * GIB  # at most, for what is not counted: context, workspaces, fragments
TOKENS = 77
# Stable Diffusion's (FIELD.md section 5); what is not said here or below is the library's default.
SD21: dict[str, Any] = {
    "sample_size": 96,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "class_embed_type": "projection",
    "upcast_attention": True,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
}
# Parameters of the encoders: CLIP ViT-L's two, OpenCLIP ViT-H's two, of whose text encoder SD 2 reads 23 layers.
TEXT_L, IMAGE_L, TEXT_H, IMAGE_H = 123_060_480, 303_966_208, 340_387_840, 632_076_800


@dataclass(frozen=True)
class Shapes:
    """A checkpoint of ``conf/backbone`` without its weights.

    unet: its configuration. image: width of the vector by which the network is told of a picture. encoders: parameters of
    text and image encoder. adapter: the picture comes by IP-Adapter, whose layers the UNet then has.
    """

    unet: dict[str, Any]
    prediction_type: str
    image: int
    encoders: int
    adapter: bool = False

    def network(self) -> UNet2DConditionModel:
        """The image UNet, float32, on the device of the surroundings."""
        unet = UNet2DConditionModel(**self.unet)
        if self.adapter:
            add_ip_adapter(unet, self.image)
        return unet


SHAPES = {
    "sd21_unclip": Shapes(SD21 | {"projection_class_embeddings_input_dim": 2048}, "v_prediction", 2048, TEXT_H + IMAGE_H),
    "sd21_unclip_small": Shapes(SD21 | {"projection_class_embeddings_input_dim": 1536}, "v_prediction", 1536, TEXT_H + IMAGE_L),
    "sd15_ip_adapter": Shapes({"sample_size": 64, "cross_attention_dim": 768}, "epsilon", 1024, TEXT_L + IMAGE_H, adapter=True),
}


@dataclass
class FootprintOptions:
    """The root of ``conf/footprint.yaml``. ``sizes``: sides of square frames in pixels; ``measure``: on a CUDA device."""

    backbones: list[str] = field(default_factory=lambda: ["sd21_unclip", "sd15_ip_adapter"])
    presets: list[str] = field(default_factory=lambda: ["full", "80gb", "24gb", "16gb", "12gb", "8gb"])
    frames: list[int] = field(default_factory=lambda: [8, 24])
    sizes: list[int] = field(default_factory=lambda: [512, 768])
    trainables: str = "patent"
    measure: bool = False

    def __post_init__(self) -> None:
        for name in self.backbones:
            choice("backbones", name, tuple(SHAPES))
        for count in self.frames:
            within("frames", count, 1, 10_000)
        for side in self.sizes:
            within("sizes", side, 64, 4096)
            if side % 64:
                raise OptionError(f"sizes={self.sizes}: give multiples of 64")
        if self.measure and not torch.cuda.is_available():
            raise OptionError("measure=true needs a CUDA device, and torch finds none: leave it out to count from shapes")


@dataclass(frozen=True)
class Footprint:
    """Bytes. ``resident``: what lies on the device all the time; ``activations``: kept for the backward pass.

    ``tuning``, ``editing``, ``coding``: the highest of one tuning step, of one step of the masking and one guided sampling
    step with its correspondences, and of the autoencoder at work, each with what is resident.
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
    """Counts the bytes of all storages that are born within it and not yet dead: ``now``, and their ``peak``."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._living: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._enter(value.untyped_storage())
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._living:
            self._living[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self.now -= self._living.pop(key, 0)


@contextmanager
def saved_bytes(network: nn.Module) -> Iterator[list[int]]:
    """Within it, what autograd keeps for the backward pass; after it the list holds its bytes, parameters left out.

    A storage that is kept more than once counts once; what a checkpointed block will compute again does not count.
    """
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors too: an address may be used anew once they are gone
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
    """Give ``unet`` the layers of the plain IP-Adapter, in place: four tokens from an embedding of width ``image``.

    They are the layers that reading the adapter's file makes, which needs weights that have storage.
    """
    text, made = int(unet.config["cross_attention_dim"]), dict(unet.attn_processors)
    for name in made:
        if name.endswith("attn2.processor"):
            width = cast(nn.Linear, unet.get_submodule(f"{name.removesuffix('.processor')}.to_k")).out_features
            made[name] = IPAdapterAttnProcessor2_0(width, text, (4,))
    unet.set_attn_processor(made)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(image, text, 4)])  # type: ignore[assignment]
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")


def held_bytes(network: nn.Module, wanted: Callable[[nn.Parameter], bool] = lambda _: True) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters() if wanted(p))


def tuning_step(denoiser: Denoiser, latents: Tensor, condition: Condition, autocast: Any) -> int:
    """Forward and backward of one step (METHOD 3); the gradients stay. Returns the bytes saved for the backward pass."""
    with autocast, saved_bytes(denoiser) as saved:
        loss = denoiser.output(latents, torch.tensor([500]), condition).float().square().mean()
    loss.backward()
    return saved[0]


@torch.no_grad()
def sampling_step(denoiser: Denoiser, latents: Tensor, condition: Condition, autocast: Any) -> None:
    """One guided step with the inter-frame field of its features and the agreement that it needs (METHOD 6).

    Every cell looks, and every cell is a candidate: no mask can have more of them.
    """
    with autocast:
        features = denoiser(latents, 500, condition, 7.5, Tap(-2)).features
    assert features is not None
    agreeing(correspond(features[0]), 1)


@torch.no_grad()
def masking_step(denoiser: Denoiser, latents: Tensor, condition: Condition, autocast: Any) -> None:
    """One step of the mask (METHOD 5): the source's, the target's and, for ``mask.union=disputed``, the null branch."""
    with autocast:
        denoiser(torch.cat([latents] * 3), 500, stack(condition, condition, condition.null))


def footprint(
    shapes: Shapes,
    memory: MemoryOptions,
    precision: str,
    frames: int,
    side: int,
    *,
    trainables: str = "patent",
    measured: bool = False,
) -> Footprint:
    """One row of the table, for the full-size model of ``shapes`` under ``precision`` (Lightning's names)."""
    device = torch.device("cuda" if measured else "cpu")
    half = HALVES.get(precision)
    with ExitStack() as stack:
        if not measured:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        with torch.device(device):
            unet, vae = shapes.network(), AutoencoderKL(**VAE)
            vae.eval().requires_grad_(False)
            select_trainables(inflate(unet.eval(), frames), trainables)
            hold(unet, memory.held(precision))
            use_tiles(vae, memory.tile)
            if memory.gradient_checkpointing:
                unet.enable_gradient_checkpointing()
            latents = torch.randn(1, frames, 4, side // 8, side // 8)
            text = torch.randn(1, TOKENS, shapes.unet["cross_attention_dim"])
            condition = Condition(text, torch.randn(1, 1, shapes.image), text)
            pictures = torch.randn(frames, 3, side, side)
        denoiser = Denoiser(unet, DDIMScheduler(prediction_type=cast(Any, shapes.prediction_type)), memory.branches)
        if not measured:
            denoiser.alphas_cumprod = cast(Tensor, [0.5] * 1000)  # the one value that is read, where tensors have none
            if half:
                _norms_in_float32(unet)
        weights, trained = held_bytes(unet), held_bytes(unet, lambda p: p.requires_grad)
        encoders = shapes.encoders * memory.held(precision).itemsize
        resident = weights + (0 if memory.offload else held_bytes(vae) + encoders)
        moments = trained // 2 if memory.optimizer == "8bit" and has_8bit() else 2 * trained

        def autocast() -> Any:
            return torch.autocast(device.type, half) if half else nullcontext()

        optimizer = None
        if measured:
            optimizer = adamw([p for p in unet.parameters() if p.requires_grad], memory.optimizer, 3e-5, 1e-2)
            tuning_step(denoiser, latents, condition, autocast())
            optimizer.step()  # its moments are there from now on
            unet.zero_grad()
        saved: list[int] = []
        tuning = _peak(measured, lambda: saved.append(tuning_step(denoiser, latents, condition, autocast())))
        unet.zero_grad()
        del optimizer  # tuning is over, and so are its moments
        editing = max(
            _peak(measured, lambda: masking_step(denoiser, latents, condition, autocast())),
            _peak(measured, lambda: sampling_step(denoiser, latents, condition, autocast())),
        )
        coding = max(
            _peak(measured, lambda: encode(vae, pictures, memory.chunk)),
            _peak(measured, lambda: decode(vae, latents, memory.chunk)),
        )
    # measured: the encoders are added by arithmetic, and the autoencoder lies on the device even where it would be offloaded
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


def _peak(measured: bool, work: Callable[[], object]) -> int:
    """The highest memory while ``work`` runs: of its own tensors if counted, of the whole device if measured."""
    if measured:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    with Ledger() as ledger:
        work()
    return ledger.peak


def host(shapes: Shapes) -> tuple[int, int, int]:
    """Bytes of inflated UNet, encoders and autoencoder as a run has read them, float32, before any of it is cast or moved."""
    with torch.device("meta"):
        unet, vae = inflate(shapes.network(), 1), AutoencoderKL(**VAE)
    return held_bytes(unet), 4 * shapes.encoders, held_bytes(vae)


def _norms_in_float32(network: nn.Module) -> None:
    """What autocast does on a GPU, and not on the CPU whose code is counted: norms work on, and keep, float32 copies."""
    for module in network.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))


def preset(name: str) -> tuple[MemoryOptions, str]:
    """What ``memory=NAME`` sets: the options and the Trainer's precision. Raises :class:`OptionError` for an unknown one."""
    known = sorted(path.stem for path in (CONF / "memory").glob("*.yaml"))
    if name not in known:
        raise OptionError(f"presets={name} is not known: choose of {', '.join(known)}")
    cfg = compose("train", ["+video=bus_to_suv", f"memory={name}"])
    options = typed(cfg)
    return options.memory, options.precision


def table(options: FootprintOptions, on_row: Callable[[str], None]) -> None:
    """The table as Markdown, a row at a time."""
    figures = ("resident", "optimizer", "gradients", "activations", "tuning", "editing", "coding")
    on_row(f"| backbone | preset | frames | px | {' | '.join(figures)} | peak |")
    on_row(f"| --- | --- {'| ---: ' * (len(figures) + 3)}|")
    for backbone, name in product(options.backbones, options.presets):
        memory, precision = preset(name)
        for frames, side in product(options.frames, options.sizes):
            try:
                row = footprint(
                    SHAPES[backbone],
                    memory,
                    precision,
                    frames,
                    side,
                    trainables=options.trainables,
                    measured=options.measure,
                )
                told = [*(f"{getattr(row, figure) / GIB:.2f}" for figure in figures), f"**{row.peak / GIB:.1f}**"]
            except torch.OutOfMemoryError:  # measured on a card that is too small for this row: the others go on
                told = [*["-"] * len(figures), "doesn't fit"]
            on_row(f"| {backbone} | {name} | {frames} | {side} | {' | '.join(told)} |")
            if options.measure:
                torch.cuda.empty_cache()  # the next row finds the card as the first did


def host_table(options: FootprintOptions, on_row: Callable[[str], None]) -> None:
    """What the weights need of the computer's own memory, as Markdown, a row at a time."""
    on_row("| backbone | UNet | encoders | autoencoder | together |")
    on_row("| --- | ---: | ---: | ---: | ---: |")
    for name in options.backbones:
        parts = host(SHAPES[name])
        on_row(f"| {name} | {' | '.join(f'{part / GIB:.2f}' for part in parts)} | **{sum(parts) / GIB:.1f}** |")


def _door(cfg: DictConfig) -> None:
    options: FootprintOptions = typed(cfg)
    how = f"measured on {torch.cuda.get_device_name()}" if options.measure else "computed from shapes"
    print(f"GiB, {how}, trainables={options.trainables}, torch {torch.__version__.partition('+')[0]}\n")
    table(options, lambda line: print(line, flush=True))
    print("\nGiB of the computer's own memory for the weights, float32 as they are read, computed from shapes\n")
    host_table(options, print)


ConfigStore.instance().store(name="footprint_schema", node=schema(FootprintOptions))


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="footprint")
def main(cfg: DictConfig) -> None:
    guarded(_door, cfg)


if __name__ == "__main__":
    main()
