"""``python -m tave.roadside.pretrain``: draw the lessons and train the Roadside backbone and its judge, part by part.

Every part resumes where it was stopped (same command), and is skipped once its weights stand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from hydra.core.config_store import ConfigStore
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPVisionModelWithProjection

from tave.backbone import Backbone, load_backbone
from tave.conditions import level_embedding, noise_levels
from tave.roadside.pretrain import exam, parts, training
from tave.roadside.pretrain.lessons import Lessons, draw_lessons, load_lessons

TEXT_PROJECTION = "text_projection.safetensors"  # the one weight of the CLIP that no part of a backbone holds
STAGES = ("lessons", "autoencoder", "clip", "judge", "unet", "ship")


@dataclass
class PartOptions:
    """One training: optimizer steps, pictures a step, peak learning rate."""

    steps: int = 1000
    batch: int = 16
    lr: float = 1e-3


@dataclass
class PretrainOptions:
    """Everything that decides the weights; ``stages`` run in order."""

    folder: str = "outputs/pretrain"
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    seed: int = 0
    size: int = 96
    count: int = 24000
    crop: int = 48
    threads: int = 0
    precision: str = "32-true"  # Lightning's: bf16-mixed is twice as fast where the processor multiplies in bf16
    start: str = ""  # a shipped folder (backbone/, judge/): its parts train on, what isn't trained is taken over
    workers: int = 2
    target: str = "tave/roadside/weights"  # where the `ship` stage writes
    questions: int = 300  # held-out frames for the exam of autoencoder, CLIP and judge
    paintings: int = 60  # pictures that the UNet's exam samples for each kind of condition
    autoencoder: PartOptions = field(default_factory=PartOptions)
    clip: PartOptions = field(default_factory=PartOptions)
    judge: PartOptions = field(default_factory=PartOptions)
    unet: PartOptions = field(default_factory=PartOptions)


ConfigStore.instance().store(name="pretrain_schema", node=PretrainOptions)


def fit(part: training.Part, folder: Path, precision: Any, *, average: bool = False) -> None:
    """Train ``part`` in ``folder``, from its last checkpoint if there is one; ends with ``weights.safetensors``."""
    done = folder / "weights.safetensors"
    callbacks: list[Any] = [
        ModelCheckpoint(folder, train_time_interval=timedelta(minutes=1), save_last=True, save_top_k=0, save_on_exception=True),
        TQDMProgressBar(refresh_rate=20),
    ]
    if average:
        # Not from the first step: the random start would stay in the average for thousands of steps.
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
    )
    counted: Any = DataLoader(list(range(part.steps)), batch_size=1)  # type: ignore[arg-type]
    trainer.fit(part, counted, ckpt_path="last")
    state = {k: v.contiguous() for k, v in part.network.state_dict().items()}
    save_file(state, done, metadata={"steps": str(part.steps)})


def embedder(network: Any, words: Any) -> Any:
    """(pictures ``n 3 V V`` in [-1, 1], captions) -> projected image and text vectors of the conditioning CLIP."""
    extractor = parts.feature_extractor()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (extractor.image_mean, extractor.image_std))
    table: dict[str, Tensor] = {}

    def spoken(texts: list[str]) -> Tensor:
        ids = words(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(network.device)
        return network.text_projection(network.text_model(input_ids=ids).pooler_output)

    def embed(pictures: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        seen = (pictures / 2 + 0.5 - mean.to(pictures)) / std.to(pictures)
        images = network.visual_projection(network.vision_model(pixel_values=seen).pooler_output)
        if network.text_projection.weight.requires_grad:
            return images, spoken(texts)
        if new := sorted(set(texts) - set(table)):  # a text tower that doesn't train says the same each time
            with torch.no_grad(), torch.autocast(pictures.device.type, enabled=False):
                table.update(zip(new, spoken(new), strict=True))
        return images, torch.stack([table[text] for text in texts])

    return embed


def judge_model(folder: Path) -> Any:
    """The judge untrained, made by ``open_clip`` from its configuration, which is written to ``folder``."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "roadside-judge.json").write_text(json.dumps(parts.judge_config()["model_cfg"]))
    open_clip.add_model_config(folder / "roadside-judge.json")
    return open_clip.create_model("roadside-judge", pretrained=None)


def judge_embedder(network: Any) -> Any:
    import open_clip

    config = parts.judge_config()
    mean, std = (torch.tensor(config["preprocess_cfg"][k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    length = config["model_cfg"]["text_cfg"]["context_length"]
    tokenize = open_clip.SimpleTokenizer(context_length=length)

    def embed(pictures: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        seen = (pictures / 2 + 0.5 - mean.to(pictures)) / std.to(pictures)
        return network.encode_image(seen), network.encode_text(tokenize(texts).to(pictures.device))

    return embed


def take_over(shipped: Path, folder: Path, stages: list[str]) -> None:
    """Put the parts of a shipped set that ``stages`` don't train into ``folder``, as if they had been trained there.

    Raises ``FileNotFoundError`` or ``BackboneError`` naming what the set lacks.
    """
    backbone = load_backbone(shipped / "backbone")
    whole = {
        "autoencoder": dict(backbone.vae.state_dict()),
        "clip": shipped_clip(shipped, backbone),
        "judge": load_file(shipped / "judge" / "open_clip_model.safetensors"),
    }
    for name, state in whole.items():
        if name not in stages and not (folder / name / "weights.safetensors").exists():
            (folder / name).mkdir(parents=True, exist_ok=True)
            save_file({k: v.float().contiguous() for k, v in state.items()}, folder / name / "weights.safetensors")


def shipped_clip(shipped: Path, backbone: Backbone) -> dict[str, Tensor]:
    """Both towers of a ``shipped`` set, whose ``backbone`` this is, put together again."""
    text = {f"text_model.{k}": v for k, v in backbone.text_encoder.state_dict().items()}
    images = dict(backbone.image_encoder.state_dict())
    return {"logit_scale": torch.tensor(1.0), **text, **images, **load_file(shipped / TEXT_PROJECTION)}


def load(network: nn.Module, folder: Path) -> Any:
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    return network.eval().requires_grad_(False)


def working_device() -> torch.device:
    """Where ``accelerator="auto"`` trains."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


@torch.no_grad()
def encode_lessons(folder: Path, lessons: Lessons, options: PretrainOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (unscaled, fp16) and CLIP embeddings of frames and views; kept in ``folder`` for the next start."""
    kept = folder / "encoded.safetensors"
    if kept.exists():
        data = load_file(kept)
        return data["latents"], data["embeds"], data["views"]
    device, words = working_device(), parts.tokenizer()
    vae = load(parts.autoencoder(options.size), folder / "autoencoder").to(device, memory_format=torch.channels_last)
    clip = load(parts.clip(words), folder / "clip").to(device)
    embed = embedder(clip, words)
    latents, embeds, views = [], [], []
    for start in track(range(0, len(lessons), 100), description="encoding the lessons"):
        frames, portraits = (training.to_signed(of[start : start + 100], device) for of in (lessons.frames, lessons.views))
        frames = frames.contiguous(memory_format=torch.channels_last)
        small = nn.functional.interpolate(frames, parts.VISION_SIZE, mode="bicubic", antialias=True).clamp(-1, 1)
        with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in options.precision):
            latents.append(vae.encode(frames).latent_dist.mean.half().cpu())
            embeds.append(embed(small, ["a car"])[0].float().cpu())
            views.append(embed(portraits, ["a car"])[0].float().cpu())
    data = {"latents": torch.cat(latents), "embeds": torch.cat(embeds), "views": torch.cat(views)}
    data = {key: value.contiguous() for key, value in data.items()}
    save_file(data, kept)
    return data["latents"], data["embeds"], data["views"]


def train_unet(folder: Path, lessons: Lessons, options: PretrainOptions) -> None:
    latents, embeds, views = encode_lessons(folder, lessons, options)
    words = parts.tokenizer()
    text_model = load(parts.clip(words), folder / "clip").text_model
    denoising, noising = parts.schedulers()
    statistics = embeds.mean(0), embeds.std(0)
    scaled = latents * (1 / latents[:2000].float().std())
    table: dict[str, Tensor] = {}

    @torch.no_grad()
    def text(captions: list[str]) -> Tensor:
        new = sorted({c for c in captions if c not in table})
        if new:
            ids = words(new, padding="max_length", truncation=True, return_tensors="pt").input_ids
            table.update(zip(new, text_model(input_ids=ids).last_hidden_state, strict=True))
        return torch.stack([table[c] for c in captions])

    def noised(e: Tensor, levels: Tensor, drawn: Tensor) -> Tensor:
        return torch.cat([noise_levels(noising, e, levels, drawn, *statistics), level_embedding(levels, e.shape[1])], 1)

    torch.manual_seed(options.seed)
    network = parts.unet(latents.shape[-1])
    if options.start:
        network.load_state_dict(load_backbone(Path(options.start) / "backbone").unet.state_dict())
    if working_device().type == "cpu":  # at most 144 cells: the fused kernel's backward is slower there
        network.set_attn_processor(AttnProcessor())
    part = training.UNetPart(
        network,
        scaled,
        embeds,
        views,
        lessons.pictures,
        denoising.alphas_cumprod,
        text,
        noised,
        cell=options.size // latents.shape[-1],
        seed=options.seed,
        **vars(options.unet),
    )
    fit(part, folder / "unet", options.precision, average=True)


def unet_weights(folder: Path) -> dict[str, Tensor]:
    """The finished UNet, or the average of one that is still in training."""
    done = folder / "unet" / "weights.safetensors"
    if done.exists():
        return load_file(done)
    state = torch.load(folder / "unet" / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
    return {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}


def ship(folder: Path, target: Path, lessons: Lessons, options: PretrainOptions) -> None:
    """Write ``backbone`` (diffusers layout) and ``judge`` (open_clip folder) in half precision, examine, write the card."""
    latents, embeds, _ = encode_lessons(folder, lessons, options)
    words = parts.tokenizer()
    trained = load(parts.clip(words), folder / "clip")
    network = parts.unet(latents.shape[-1])
    network.load_state_dict(unet_weights(folder))
    vae = load(parts.autoencoder(options.size), folder / "autoencoder")
    vae.register_to_config(scaling_factor=1 / float(latents[:2000].float().std()))
    text = CLIPTextModel(trained.config.text_config)
    text.load_state_dict(trained.text_model.state_dict())
    image = CLIPVisionModelWithProjection(trained.config.vision_config)
    image.vision_model.load_state_dict(trained.vision_model.state_dict())
    image.visual_projection.load_state_dict(trained.visual_projection.state_dict())
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=parts.PROJECTION)
    normalizer.mean.data, normalizer.std.data = embeds.mean(0, keepdim=True), embeds.std(0, keepdim=True)
    denoising, noising = parts.schedulers()
    made: dict[str, Any] = {
        "feature_extractor": parts.feature_extractor(),
        "image_encoder": image,
        "image_normalizer": normalizer,
        "image_noising_scheduler": noising,
        "tokenizer": words,
        "text_encoder": text,
        "unet": network,
        "scheduler": denoising,
        "vae": vae,
    }
    for name, part in made.items():
        shipped: Any = part.half() if isinstance(part, nn.Module) else part
        shipped.save_pretrained(str(target / "backbone" / name))
    save_file({"text_projection.weight": trained.text_projection.weight.half().contiguous()}, target / TEXT_PROJECTION)
    ship_judge(folder / "judge", target / "judge")
    examine(folder, target, options)


def ship_judge(folder: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.half() for k, v in load_file(folder / "weights.safetensors").items()},
        target / "open_clip_model.safetensors",
    )
    (target / "open_clip_config.json").write_text(json.dumps(parts.judge_config(), indent=2) + "\n")
    (target / "classes.json").write_text(json.dumps(exam.captions_by_class(), indent=1) + "\n")


def examine(folder: Path, target: Path, options: PretrainOptions) -> None:
    """Measure the shipped files themselves and write README.md and samples.png beside them."""
    backbone = load_backbone(target / "backbone")
    judge = judge_embedder(load(judge_model(folder / "judge"), folder / "judge"))
    words = parts.tokenizer()
    clip = embedder(load(parts.clip(words), folder / "clip"), words)
    many = exam.questions(options.questions, options.size)
    few = exam.questions(options.paintings, options.size, seed=8)
    marks = [
        *exam.examine_autoencoder(backbone, many),
        *exam.examine_clip(clip, many, parts.VISION_SIZE),
        *exam.examine_judge(judge, many, 64),
    ]
    painted, pictures = exam.examine_unet(backbone, judge, few, 64)
    exam.picture_sheet(pictures).save(target / "samples.png")
    about = {
        "pictures": f"{options.count} of {options.size} px, seed {options.seed}",
        "steps": ", ".join(f"{name} {steps_taken(folder / name)}" for name in STAGES[1:5])
        + (f" on top of {options.start}" if options.start else ""),
        "questions": f"{len(many.scenes)} held-out frames, {len(few.scenes)} paintings of 25 steps at guidance 3",
        "rows of samples.png": ", ".join(pictures),
    }
    text = exam.card([*marks, *painted], about)
    (target / "README.md").write_text(text)
    print(text)


def steps_taken(folder: Path) -> int:
    """Optimizer steps of the last training; 0 for a part that was taken over."""
    if (folder / "weights.safetensors").exists():
        with safe_open(folder / "weights.safetensors", "pt") as written:
            return int((written.metadata() or {}).get("steps", 0))
    return int(torch.load(folder / "last.ckpt", weights_only=True, map_location="cpu")["global_step"])


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parents[3] / "conf"), config_name="pretrain")
def main(cfg: DictConfig) -> None:
    options: PretrainOptions = OmegaConf.to_object(cfg)  # type: ignore[assignment]
    if options.threads:
        torch.set_num_threads(options.threads)
    folder, size = Path(options.folder), options.size
    if "lessons" in options.stages:
        counted = draw_lessons(folder / "lessons", options.count, size, parts.VISION_SIZE, options.seed, options.workers)
        for _ in track(counted, total=-(-options.count // 500), description="drawing the lessons"):
            pass
    lessons = load_lessons(folder / "lessons", options.count)
    if options.start:
        take_over(Path(options.start), folder, options.stages)
    for stage in options.stages:
        torch.manual_seed(options.seed)
        np.random.seed(options.seed)
        if stage == "lessons" or (folder / stage / "weights.safetensors").exists():
            continue
        settings = {"seed": options.seed, **vars(getattr(options, stage, PartOptions()))}
        if stage == "autoencoder":
            network = parts.autoencoder(size)
            if options.start:
                network.load_state_dict(load_backbone(Path(options.start) / "backbone").vae.state_dict())
            part = training.AutoencoderPart(network, lessons, options.crop, **settings)
            fit(part, folder / stage, options.precision)
        elif stage == "clip":
            words = parts.tokenizer()
            network = parts.clip(words)
            if options.start:  # the UNet listens to this text tower already: the pictures come to its words
                network.load_state_dict(shipped_clip(Path(options.start), load_backbone(Path(options.start) / "backbone")))
                network.text_model.requires_grad_(False)
                network.text_projection.requires_grad_(False)
            sight = training.Sight(parts.PROJECTION)
            part = training.ClipPart(network, lessons, embedder(network, words), parts.VISION_SIZE, sight, **settings)
            fit(part, folder / stage, options.precision)
        elif stage == "judge":
            settings["seed"] += 17  # another draw than the conditioning CLIP's
            torch.manual_seed(settings["seed"])
            network = judge_model(folder / stage)
            part = training.ClipPart(network, lessons, judge_embedder(network), 64, None, **settings)
            fit(part, folder / stage, options.precision)
        elif stage == "unet":
            train_unet(folder, lessons, options)
        elif stage == "ship":
            ship(folder, Path(options.target), lessons, options)


if __name__ == "__main__":
    main()
