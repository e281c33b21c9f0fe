"""Train the drawn world's backbone and judge: ``python -m tave.roadside.pretrain``.

Drawing and training resume where they were stopped. A part that was trained in the folder isn't trained again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from lightning.pytorch.callbacks import EMAWeightAveraging, LambdaCallback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPVisionModelWithProjection

from tave.backbone import load_backbone
from tave.checkpoints import CheckpointFile, resumable
from tave.cli import Context, entry_point
from tave.config import BackboneOptions, PretrainOptions
from tave.files import file_digest, prepare, whole_file, writing
from tave.interrupts import check, deferred
from tave.roadside.pretrain import contrastive, denoising, exam, networks, training
from tave.roadside.pretrain.data import Drawing, to_signed

log = logging.getLogger(__name__)

TEXT_PROJECTION = "text_projection.safetensors"  # the only weight of the CLIP that a backbone's folder doesn't hold
WEIGHTS, START = "weights.safetensors", "start.safetensors"
JUDGE_SEED = 17  # other pictures, weights and batches than the conditioning CLIP's
PARTS = ("autoencoder", "clip", "judge", "unet")


def read_shipped(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Return the weights of a shipped folder by part. BackboneError or FileNotFoundError name what is missing."""
    backbone = load_backbone(BackboneOptions(path=str(folder / "backbone")))
    text = {f"text_model.{name}": tensor for name, tensor in backbone.text_encoder.state_dict().items()}
    images, projection = dict(backbone.image_encoder.state_dict()), load_file(folder / TEXT_PROJECTION)
    return {
        "autoencoder": dict(backbone.vae.state_dict()),
        "clip": {"logit_scale": torch.tensor(1.0), **text, **images, **projection},
        "judge": load_file(folder / "judge" / "open_clip_model.safetensors"),
        "unet": dict(backbone.unet.state_dict()),
    }


def take_over(shipped: dict[str, dict[str, Tensor]], folder: Path, stages: list[str]) -> None:
    """Copy weights by part: as the start of those in ``stages``, as the result of the others."""
    for name, state in shipped.items():
        path = folder / name / (START if name in stages else WEIGHTS)
        if not path.exists():
            save({key: tensor.float().contiguous() for key, tensor in state.items()}, path)


def save(tensors: dict[str, Tensor], path: Path, **metadata: str) -> None:
    """Write a safetensors file, all or nothing."""
    with whole_file(path) as waiting:
        save_file(tensors, waiting, metadata or None)


def write(text: str, path: Path) -> None:
    """Write a text file, all or nothing."""
    with whole_file(path) as waiting:
        waiting.write_text(text, encoding="utf-8")


def load(network: Any, folder: Path) -> Any:
    """Load the trained weights of a part, frozen."""
    network.load_state_dict(load_file(folder / WEIGHTS))
    return network.eval().requires_grad_(False)


def working_device() -> torch.device:
    """Return the device that ``accelerator="auto"`` selects."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


# ---- stages ----------------------------------------------------------------------------------------------------------


def fit(part: training.Training, folder: Path, precision: Any, *, average: bool = False) -> None:
    """Train ``part``, from its last checkpoint in ``folder`` if there is one, and write its weights there."""
    callbacks: list[Any] = [
        ModelCheckpoint(
            folder, train_time_interval=timedelta(minutes=1), save_last=True, save_top_k=0, save_on_exception=True
        ),
        TQDMProgressBar(refresh_rate=20),
        LambdaCallback(on_train_batch_end=lambda *_: check()),  # a signal ends it between two steps
    ]
    if average:  # not from the first step: the random weights would stay in the average for thousands of steps
        callbacks.append(EMAWeightAveraging(decay=0.998, update_starting_at_step=part.steps // 3))
    trainer = L.Trainer(
        max_steps=part.steps,
        max_epochs=-1,
        accelerator="auto",
        devices=1,
        precision=precision,
        gradient_clip_val=1.0,
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=20,
        callbacks=callbacks,
        default_root_dir=folder,
        enable_model_summary=False,
        plugins=[CheckpointFile()],
    )
    steps, last = DataLoader(range(part.steps), batch_size=1), folder / "last.ckpt"  # type: ignore[arg-type]
    with deferred(), writing(folder):
        trainer.fit(part, steps, ckpt_path=resumable(last))
    state = {name: tensor.contiguous() for name, tensor in part.network.state_dict().items()}
    save(state, folder / WEIGHTS, steps=str(part.steps))


def pictures_of(folder: Path, options: PretrainOptions) -> Drawing:
    """Return the training set of all parts but the judge."""
    return Drawing(folder / "data", options.count, options.size, networks.VISION_SIZE, options.seed)


def judge_pictures_of(folder: Path, options: PretrainOptions) -> Drawing:
    """Return the judge's own training set, half as large."""
    seed = options.seed + JUDGE_SEED
    return Drawing(folder / "judge_data", options.count // 2, options.size, networks.VISION_SIZE, seed)


def _started(network: nn.Module, folder: Path) -> Any:
    """Load the start of a training, of which a network of another size takes what fits by name and shape."""
    if (folder / START).exists():
        own = network.state_dict()
        start = load_file(folder / START)
        fitting = {name: tensor for name, tensor in start.items() if name in own and own[name].shape == tensor.shape}
        network.load_state_dict({**own, **fitting})
        log.info("%s: %d of %d tensors start from %s", folder.name, len(fitting), len(own), START)
    return network


def autoencoder_training(folder: Path, options: PretrainOptions) -> training.Training:
    network = _started(networks.autoencoder(options.size), folder / "autoencoder")
    settings = asdict(options.autoencoder) | {"seed": options.seed}
    return training.AutoencoderTraining(network, pictures_of(folder, options).load(), options.crop, **settings)


def clip_training(folder: Path, options: PretrainOptions) -> training.Training:
    words = networks.tokenizer()
    network = _started(networks.clip(words), folder / "clip")
    readout, embed = contrastive.AttributeReadout(networks.PROJECTION), networks.clip_embedder(network, words)
    settings = asdict(options.clip) | {"seed": options.seed}
    data = pictures_of(folder, options).load()
    return contrastive.ClipTraining(network, data, embed, networks.VISION_SIZE, readout, **settings)


def judge_training(folder: Path, options: PretrainOptions) -> training.Training:
    seed = options.seed + JUDGE_SEED
    torch.manual_seed(seed)
    network = _started(networks.judge(folder / "judge"), folder / "judge")
    embed, settings = networks.judge_embedder(network), asdict(options.judge) | {"seed": seed}
    data = judge_pictures_of(folder, options).load()
    return contrastive.ClipTraining(network, data, embed, networks.JUDGE_SIZE, None, **settings)


def unet_training(folder: Path, options: PretrainOptions) -> training.Training:
    encoded, words = encode_data(folder, options), networks.tokenizer()
    text_model = load(networks.clip(words), folder / "clip").text_model
    text = networks.cached(lambda texts: networks.text_model_output(text_model, words, texts).last_hidden_state)
    torch.manual_seed(options.seed)
    scale = scaling_factor(encoded.latents)
    latents = encoded.latents * scale
    network = _started(networks.unet(latents.shape[-1]), folder / "unet")
    if working_device().type == "cpu":  # for at most 576 cells the fused kernel's backward is slower
        network.set_attn_processor(AttnProcessor())
    encoded = denoising.Encoded(latents, encoded.embeds, encoded.views, encoded.empty * scale)
    settings = asdict(options.unet) | {"seed": options.seed}
    cell, pictures = options.size // latents.shape[-1], pictures_of(folder, options).pictures()
    return denoising.UNetTraining(network, encoded, pictures, text, cell, **settings)


def scaling_factor(latents: Tensor) -> float:
    """Return the factor that gives latents a standard deviation of one."""
    return 1 / float(latents[:2000].float().std())


@torch.no_grad()
def encode_data(folder: Path, options: PretrainOptions) -> denoising.Encoded:
    """Return latents (unscaled, fp16) and CLIP embeddings of the training set, and store them in ``folder``."""
    stored = folder / "encoded.safetensors"
    parts = [file_digest(folder / name / WEIGHTS) for name in ("autoencoder", "clip")]
    drawing = pictures_of(folder, options)
    origin = json.dumps([*parts, options.count, drawing.origin])
    if stored.exists() and metadata_of(stored).get("origin") == origin:
        return denoising.Encoded(**load_file(stored))
    device, words, data = working_device(), networks.tokenizer(), drawing.load()
    vae = load(networks.autoencoder(options.size), folder / "autoencoder")
    vae = vae.to(device, memory_format=torch.channels_last)
    embed = networks.clip_embedder(load(networks.clip(words), folder / "clip").to(device), words)

    def latents(frames: Tensor) -> Tensor:
        return vae.encode(frames.contiguous(memory_format=torch.channels_last)).latent_dist.mean.half()

    def vectors(pictures: Tensor) -> Tensor:
        small = nn.functional.interpolate(pictures, networks.VISION_SIZE, mode="bicubic", antialias=True).clamp(-1, 1)
        return embed(small, ["a car"])[0].float()

    def encoded(pictures: np.ndarray, encode: Callable[[Tensor], Tensor], what: str) -> Tensor:
        batches = [pictures[start : start + 100] for start in range(0, len(pictures), 100)]
        with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in options.precision):
            made = [encode(to_signed(each, device)).cpu() for each in track(batches, description=f"encoding {what}")]
        return torch.cat(made).contiguous()

    tensors = {
        "latents": encoded(data.frames, latents, "the training pictures"),
        "empty": encoded(data.empty, latents, "scenes without an object"),
        "embeds": encoded(data.frames, vectors, "what CLIP sees in the pictures"),
        "views": encoded(data.views, vectors, "what CLIP sees in the photographs"),
    }
    save(tensors, stored, origin=origin)
    return denoising.Encoded(**tensors)


# ---- shipping --------------------------------------------------------------------------------------------------------


def ship(folder: Path, options: PretrainOptions) -> None:
    """Write ``backbone`` (diffusers' layout) and ``judge`` (open_clip's) in half precision, and examine them."""
    target, encoded, words = Path(options.target), encode_data(folder, options), networks.tokenizer()
    clip = load(networks.clip(words), folder / "clip")
    vae = load(networks.autoencoder(options.size), folder / "autoencoder")
    vae.register_to_config(scaling_factor=scaling_factor(encoded.latents))
    text = CLIPTextModel(clip.config.text_config)
    text.load_state_dict(clip.text_model.state_dict())
    image = CLIPVisionModelWithProjection(clip.config.vision_config)
    image.vision_model.load_state_dict(clip.vision_model.state_dict())
    image.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=networks.PROJECTION)
    normalizer.mean.data, normalizer.std.data = (
        part(encoded.embeds, 0, keepdim=True) for part in (torch.mean, torch.std)
    )
    denoising, noising = networks.schedulers()
    parts: dict[str, Any] = {
        "feature_extractor": networks.feature_extractor(),
        "image_encoder": image,
        "image_normalizer": normalizer,
        "image_noising_scheduler": noising,
        "tokenizer": words,
        "text_encoder": text,
        "unet": load(networks.unet(encoded.latents.shape[-1]), folder / "unet"),
        "scheduler": denoising,
        "vae": vae,
    }
    for name, part in parts.items():
        saved: Any = part.half() if isinstance(part, nn.Module) else part
        with writing(target / "backbone" / name):
            saved.save_pretrained(str(target / "backbone" / name))
    projection = clip.text_projection.weight.half().contiguous()
    save({"text_projection.weight": projection}, target / TEXT_PROJECTION)
    halves = {name: tensor.half() for name, tensor in load_file(folder / "judge" / WEIGHTS).items()}
    save(halves, target / "judge" / "open_clip_model.safetensors")
    write(json.dumps(networks.JUDGE, indent=2) + "\n", target / "judge" / "open_clip_config.json")
    write(json.dumps(exam.captions_by_class(), indent=1) + "\n", target / "judge" / "classes.json")
    examine(folder, target, options)


def examine(folder: Path, target: Path, options: PretrainOptions) -> None:
    """Measure the shipped weights and write README.md and samples.png beside them."""
    shipped, words = read_shipped(target), networks.tokenizer()
    backbone = load_backbone(BackboneOptions(path=str(target / "backbone")))
    network, clip = networks.judge(folder / "judge"), networks.clip(words)
    network.load_state_dict(shipped["judge"])
    clip.load_state_dict(shipped["clip"])
    judge = networks.judge_embedder(network.eval())
    many = exam.held_out_frames(options.exam_frames, options.size)
    few = exam.held_out_frames(options.exam_samples, options.size, seed=8)
    marks = [
        *exam.examine_autoencoder(backbone, many),
        *exam.examine_clip(networks.clip_embedder(clip.eval(), words), many, networks.VISION_SIZE),
        *exam.examine_judge(judge, many),
    ]
    unet_marks, pictures = exam.examine_unet(backbone, judge, few)
    with whole_file(target / "samples.png") as waiting:
        exam.picture_sheet(pictures).save(waiting, "PNG")
    steps = ", ".join(f"{name} {steps_of(folder / name)}" for name in PARTS)
    facts = {
        "pictures": f"{options.count} of {options.size} px, seed {options.seed}; for the judge {options.count // 2} "
        f"others, seed {options.seed + JUDGE_SEED}",
        "steps": steps + (f" on top of {options.start}" if options.start else ""),
        "exam": f"{len(many.scenes)} held-out frames; {len(few.scenes)} samples of {exam.STEPS} steps, "
        f"guidance {exam.GUIDANCE:g}",
        "rows of samples.png": ", ".join(pictures),
    }
    text = exam.card([*marks, *unet_marks], facts)
    write(text, target / "README.md")
    print(text)


def steps_of(folder: Path) -> int:
    """Return the optimizer steps of a part's last training; 0 if it wasn't trained here."""
    path = folder / WEIGHTS
    return int(metadata_of(path).get("steps", 0)) if path.exists() else 0


def metadata_of(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file."""
    with safe_open(path, "pt") as stored:
        return stored.metadata() or {}


STAGES: dict[str, Callable[[Path, PretrainOptions], training.Training]] = {
    "autoencoder": autoencoder_training,
    "clip": clip_training,
    "judge": judge_training,
    "unet": unet_training,
}


def draw_pictures(drawing: Drawing, workers: int) -> None:
    """Draw a training set with a bar of progress."""
    title = f"drawing {drawing.count} training pictures"
    for _ in track(drawing.draw(workers), total=drawing.chunks, description=title):
        pass


def pretrain(options: PretrainOptions) -> None:
    """Run the stages of ``options``, without the trainings that have ended; the stage ship always runs."""
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = Path(options.folder)
    prepare(folder, *([Path(options.target)] if "ship" in options.stages else []))
    if options.start:
        take_over(read_shipped(Path(options.start)), folder, options.stages)
    if "data" in options.stages:
        draw_pictures(pictures_of(folder, options), options.workers)
        if "judge" in options.stages:
            draw_pictures(judge_pictures_of(folder, options), options.workers)
    for stage in options.stages:
        torch.manual_seed(options.seed)
        if stage == "ship":
            ship(folder, options)
        elif stage in STAGES and steps_of(folder / stage):
            log.warning("%s: %s exists, so it isn't trained again", stage, folder / stage / WEIGHTS)
        elif stage in STAGES:
            fit(STAGES[stage](folder, options), folder / stage, options.precision, average=stage == "unet")


def _work(options: PretrainOptions, _: Context) -> None:
    pretrain(options)


main = entry_point("train the drawn world's networks", "pretrain", _work)

if __name__ == "__main__":
    main()
