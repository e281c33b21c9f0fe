"""The trainings of autoencoder, conditioning CLIP, judge and UNet.

Each step's batch is a function of the seed and ``global_step``, so that a resumed training continues exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tave.encoders import level_embedding, noise_levels
from tave.roadside.pretrain.data import Picture, TrainingSet, square_crop, to_signed
from tave.roadside.pretrain.networks import PATCH, Embed, EncodeText, PatchEmbed, schedulers
from tave.roadside.scene import COLORS, HOURS, KINDS, PATTERNS, PLACES, SECTORS, Subject, caption, sector

OBJECT_WEIGHT = 4.0  # of the loss inside the object's box, a tenth of the frame, relative to the rest
NEITHER, NO_PICTURE, NO_WORDS = 0.1, 0.12, 0.08  # shares of pictures for which the UNet's conditions are dropped
SHORT = [caption(Subject(kind, color)) for kind in KINDS for color in COLORS]
WINDOW, WINDOWED = 16, 0.6  # side in cells of the UNet's first pictures, and the share of steps that take them
MAX_SNR = 5.0  # up to which a noise level's weight in the UNet's loss grows
LOOKED_AT, IN_PART = 48, 0.6  # patches of each of CLIP's first pictures, and the share of steps that look at no others
ELSEWHERE = 0.5  # share of pictures whose image vector is that of a photograph of the object


class Training(L.LightningModule):
    """A network and its loss: AdamW, a warm-up of 100 steps, a constant rate, then linear to zero in the last third."""

    def __init__(self, network: nn.Module, *, steps: int, batch: int, lr: float, seed: int):
        super().__init__()
        self.network, self.steps, self.batch, self.lr, self.seed = network, steps, batch, lr, seed

    def rng(self) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.global_step))

    def noise(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + self.global_step)

    def loss(self) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss()
        self.log("loss", loss, prog_bar=True)
        return loss

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters())}]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameter_groups(), lr=self.lr, betas=(0.9, 0.98), weight_decay=1e-3)

        def factor(step: int) -> float:
            return min((step + 1) / 100, 1.0, max(0.0, (self.steps - step) / (self.steps / 3)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def object_weight(boxes: np.ndarray, size: int) -> Tensor:
    """Return weights ``n 1 size size`` of mean 1, ``OBJECT_WEIGHT`` times as high inside ``boxes`` ``n 4``."""
    at = torch.arange(size) + 0.5
    x0, y0, x1, y1 = torch.from_numpy(np.asarray(boxes, np.float32))[:, :, None].unbind(1)
    inside = ((at > y0) & (at < y1))[:, None, :, None] & ((at > x0) & (at < x1))[:, None, None, :]
    weight = 1 + (OBJECT_WEIGHT - 1) * inside.float()
    return weight / weight.mean(dim=(2, 3), keepdim=True)


class AutoencoderTraining(Training):
    """L1, L2 and gradient loss on crops, most of them around the object, and a small KL divergence."""

    def __init__(self, network: nn.Module, data: TrainingSet, crop: int, **settings: Any):
        super().__init__(network, **settings)
        self.data, self.crop = data, crop

    def _crop(self, rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, int, int, int]]:
        """Return a crop and the object's box in it."""
        index = int(rng.integers(len(self.data)))
        frame, crop = self.data.frames[index], self.crop
        limit = frame.shape[0] - crop
        x0, y0, x1, y1 = self.data.pictures[index].box
        if rng.random() < 0.25:
            x, y = rng.integers(0, limit + 1, size=2)
        else:
            x, y = rng.integers(x0 - crop // 2, x1 - crop // 2 + 1), rng.integers(y0 - crop // 2, y1 - crop // 2 + 1)
        x, y = int(np.clip(x, 0, limit)), int(np.clip(y, 0, limit))
        piece = frame[y : y + crop, x : x + crop]
        if rng.random() < 0.5:
            return piece[:, ::-1], (crop - (x1 - x), y0 - y, crop - (x0 - x), y1 - y)
        return piece, (x0 - x, y0 - y, x1 - x, y1 - y)

    def loss(self) -> Tensor:
        rng = self.rng()
        crops, boxes = zip(*(self._crop(rng) for _ in range(self.batch)), strict=True)
        truth = to_signed(np.stack(crops), self.device)
        weight = object_weight(np.array(boxes), self.crop).to(self.device)
        posterior = self.network.encode(truth).latent_dist  # type: ignore[operator]
        drawn = torch.randn(posterior.mean.shape, generator=self.noise(), device=self.device)
        made = self.network.decode(posterior.mean + posterior.std * drawn).sample  # type: ignore[operator]
        error = made.float() - truth
        across, down = error.diff(dim=-1).abs(), error.diff(dim=-2).abs()
        slopes = (weight[..., 1:] * across).mean() + (weight[..., 1:, :] * down).mean()
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return (weight * (error.abs() + 2 * error.square())).mean() + slopes + 1e-4 * divergence


# ---- CLIP and judge --------------------------------------------------------------------------------------------------


def same(left: list[str], right: list[str]) -> Tensor:
    """Return the positives ``n m`` of a contrastive batch: 1 where two captions are equal."""
    number = {text: i for i, text in enumerate([*left, *right])}
    rows, columns = (torch.tensor([number[text] for text in texts]) for texts in (left, right))
    return (rows[:, None] == columns).float()


def contrastive(images: Tensor, texts: Tensor, positive: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric cross-entropy of ``n d`` and ``m d`` with several positives ``n m`` in a row."""
    with torch.autocast(images.device.type, enabled=False):  # a cosine in bf16, times up to 100, is noise
        logits = scale * F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
    rows = positive / positive.sum(1, keepdim=True).clamp(min=1)
    columns = positive.T / positive.T.sum(1, keepdim=True).clamp(min=1)
    seen = positive.T.sum(1) > 0  # captions without a picture in the batch have no target
    return F.cross_entropy(logits, rows) + F.cross_entropy(logits.T[seen], columns[seen])


class AttributeReadout(nn.Module):
    """Linear readout of what captions leave out: pattern, accent and, in whole frames, place, hour, yaw and box.

    It is used in training alone. A contrastive training on captions makes the image vector forget place and size of the
    object, in which an in-context reference differs from the source.
    """

    def __init__(self, width: int):
        super().__init__()
        kinds = {"pattern": PATTERNS, "accent": COLORS, "place": PLACES, "hour": HOURS, "sector": range(SECTORS)}
        self.names: dict[str, list[Any]] = {kind: list(names) for kind, names in kinds.items()}
        self.heads = nn.ModuleDict({kind: nn.Linear(width, len(names)) for kind, names in kinds.items()})
        self.box = nn.Linear(width, 4)

    def forward(self, vectors: Tensor, pictures: list[Picture], framed: list[bool], side: int) -> Tensor:
        """Return the loss of reading ``vectors`` ``n d``; ``framed``: whole frames, ``side`` pixels wide."""
        whole = torch.tensor(framed, device=vectors.device)
        patterned = torch.tensor([p.subject.pattern != "plain" for p in pictures], device=vectors.device)
        counted = {"pattern": torch.ones_like(whole), "accent": patterned}
        total = vectors.new_zeros(())
        for kind, head in self.heads.items():
            values = [_attribute(picture, kind) for picture in pictures]
            truth = torch.tensor([self.names[kind].index(value) for value in values], device=vectors.device)
            each = F.cross_entropy(head(vectors), truth, reduction="none")
            chosen = counted.get(kind, whole)
            total = total + (each * chosen).sum() / chosen.sum().clamp(min=1)
        x0, y0, x1, y1 = (torch.tensor([p.box for p in pictures], device=vectors.device) / side).unbind(1)
        truth = torch.stack([(x0 + x1) / 2, y1, x1 - x0, y1 - y0], 1)
        off = F.smooth_l1_loss(self.box(vectors), truth, beta=0.05, reduction="none").sum(1)
        return 0.5 * total + 10 * (off * whole).sum() / whole.sum().clamp(min=1)


def _attribute(picture: Picture, kind: str) -> Any:
    if kind == "sector":
        return sector(picture.yaw)
    return getattr(picture.subject if kind in ("pattern", "accent") else picture, kind)


def patches_near(boxes: np.ndarray, size: int, count: int, rng: np.random.Generator) -> Tensor:
    """Choose ``count`` patches, ``n count``, of each picture of ``size`` px: those in and near its box ``n 4`` (px).

    The order of their distance to the box is blurred, so that an object that has more patches shows some of them.
    """
    grid = size // PATCH
    at = (np.arange(grid) + 0.5) * PATCH
    x0, y0, x1, y1 = np.asarray(boxes, float).T[..., None]
    across, down = (np.maximum(np.maximum(low - at, at - high), 0) for low, high in ((x0, x1), (y0, y1)))
    distance = np.hypot(down[:, :, None], across[:, None, :]).reshape(len(across), -1)
    nearest = (distance + rng.uniform(0, 2 * PATCH, size=distance.shape)).argpartition(count, axis=1)[:, :count]
    return torch.from_numpy(nearest)


class ClipTraining(Training):
    """Contrastive training on frames and target images, against their captions and against all short captions.

    The first ``IN_PART`` of the steps look at a third of the patches, which costs a third (after FLIP, Li et al. 2023):
    in frames at those near the object, in photographs, which it fills, at any.

    readout: the attributes that image vectors have to keep; None for the judge, which sees crops around the object.
    """

    def __init__(
        self,
        network: nn.Module,
        data: TrainingSet,
        embed: Embed | PatchEmbed,
        size: int,
        readout: AttributeReadout | None,
        **settings: Any,
    ):
        super().__init__(network, **settings)
        self.data, self.embed, self.size, self.readout = data, embed, size, readout
        self.log_scale = nn.Parameter(torch.tensor(2.66))

    def _patches(self, described: list[Picture], framed: tuple[bool, ...], rng: np.random.Generator) -> Tensor | None:
        if self.readout is None or self.global_step >= IN_PART * self.steps:
            return None
        scale = self.size / self.data.frames.shape[2]
        boxes = [np.multiply(p.box, scale) if whole else (0, 0, self.size, self.size)
                 for p, whole in zip(described, framed, strict=True)]  # fmt: skip
        return patches_near(np.array(boxes), self.size, LOOKED_AT, rng).to(self.device)

    def _picture(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
        """Return a picture and whether it is a whole frame, in the place of its description."""
        frame, picture = self.data.frames[index], self.data.pictures[index]
        x0, y0, x1, y1 = picture.box
        if self.readout is None:  # boxes that are measured in an edit are a little off
            box = np.array(picture.box) + rng.uniform(-0.1, 0.1, size=4) * max(x1 - x0, y1 - y0)
            return square_crop(frame, tuple(box), self.size, float(rng.uniform(0.1, 0.7))), False
        if rng.random() < 0.4:
            return self.data.views[index], False
        if frame.shape[:2] == (self.size, self.size):
            return frame, True
        return square_crop(frame, (0, 0, frame.shape[1], frame.shape[0]), self.size, 0.0), True

    def loss(self) -> Tensor:
        rng = self.rng()
        indices = rng.integers(len(self.data), size=self.batch)
        shown, framed = zip(*(self._picture(int(i), rng) for i in indices), strict=True)
        described = [self.data.pictures[int(i)] for i in indices]
        turned = rng.random(self.batch) < 0.5
        side = self.data.frames.shape[2]
        described = [each.mirrored(side) if flip else each for each, flip in zip(described, turned, strict=True)]
        pictures = np.stack([each[:, ::-1] if flip else each for each, flip in zip(shown, turned, strict=True)])
        texts = []
        for picture, whole in zip(described, framed, strict=True):
            place, motion, hour, pattern = rng.random(4) < (0.5, 0.6, 0.5, 0.6)
            texts.append(picture.caption(place=whole and place, motion=motion, hour=hour, pattern=pattern))
        short = [caption(picture.subject) for picture in described]
        patches = self._patches(described, framed, rng)
        seen = to_signed(pictures, self.device)
        images, words = self.embed(seen, SHORT + texts, *([] if patches is None else [patches]))
        scale = self.log_scale.exp().clamp(max=100)
        loss = contrastive(images, words[: len(SHORT)], same(short, SHORT).to(self.device), scale)
        loss = loss + contrastive(images, words[len(SHORT) :], same(texts, texts).to(self.device), scale)
        if self.readout is None:
            return loss
        with torch.autocast(self.device.type, enabled=False):
            return loss + self.readout(images.float(), described, list(framed), side)

    def parameter_groups(self) -> list[dict[str, Any]]:
        beside = [self.log_scale, *(self.readout.parameters() if self.readout else ())]
        return [*super().parameter_groups(), {"params": beside, "weight_decay": 0.0}]


# ---- UNet ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """Latents ``n c h w`` and image embeddings ``n d`` of a training set's frames, and embeddings of its views."""

    latents: Tensor
    embeds: Tensor
    views: Tensor


def snr_weight(alphas: Tensor) -> Tensor:
    """Return loss weights of mean 1 for velocity at the levels ``alphas`` ``T``, each as often.

    An error of the velocity counts snr + 1 times as an error of the clean latents does; beyond ``MAX_SNR`` that factor
    stays, as in min-SNR weighting (Hang et al. 2023), so that almost clean latents don't outweigh the others.
    """
    snr = alphas / (1 - alphas)
    weight = (MAX_SNR + 1) / (snr + 1).clamp(min=MAX_SNR + 1)
    return weight / weight.mean()


def windows(latents: Tensor, boxes: np.ndarray, side: int, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
    """Cut a square of ``side`` cells out of each of ``n c h w``, with the middle of its box ``n 4`` (cells) inside.

    Returns ``n c side side`` and the boxes as they lie in the squares.
    """
    high, wide = latents.shape[-2:]
    middles = np.stack([boxes[:, [0, 2]].mean(1), boxes[:, [1, 3]].mean(1)], 1)
    corners = np.floor(middles - side * rng.uniform(0.2, 0.8, size=middles.shape)).astype(int)
    corners = corners.clip(0, (wide - side, high - side))
    cut = [one[:, y : y + side, x : x + side] for one, (x, y) in zip(latents, corners, strict=True)]
    return torch.stack(cut), boxes - np.tile(corners, 2)


class UNetTraining(Training):
    """v-prediction on cached latents, conditioned on a caption of any length and a noised image embedding.

    As in SD-unCLIP the image vector is that of the picture itself; for half of them it is that of a photograph of the
    object from another side, in another light and place, so that the model takes from it the object alone. One picture
    in ten has neither caption nor vector, for the unconditional branch of guidance; others lack one of the two.

    The first ``WINDOWED`` of the steps take windows of the latents, which cost a third; their vectors are all those of
    photographs, since that of a whole frame also says where in it the object is.
    """

    def __init__(
        self, network: nn.Module, data: Encoded, pictures: list[Picture], text: EncodeText, cell: int, **settings: Any
    ):
        super().__init__(network, **settings)
        self.data, self.pictures, self.text, self.cell = data, pictures, text, cell
        denoising, self.noising = schedulers()
        self.alphas = denoising.alphas_cumprod
        self.weights = snr_weight(self.alphas)
        self.mean, self.std = data.embeds.mean(0), data.embeds.std(0)

    def on_fit_start(self) -> None:
        self.data = Encoded(*(part.to(self.device) for part in vars(self.data).values()))  # small, read at each step
        self.alphas, self.weights = self.alphas.to(self.device), self.weights.to(self.device)

    def _image(self, embeds: Tensor, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
        # Most levels are low: edits use level 0.
        top = np.where(rng.random(self.batch) < 0.6, 60, 1000)
        levels = torch.from_numpy((rng.random(self.batch) * top).astype(np.int64)).to(self.device)
        drawn = torch.randn(embeds.shape, generator=noise, device=self.device)
        noised = noise_levels(self.noising, embeds, levels, drawn, self.mean, self.std)
        return torch.cat([noised, level_embedding(levels, embeds.shape[1])], 1)

    def _caption(self, picture: Picture, rng: np.random.Generator) -> str:
        place, motion, hour, pattern = rng.random(4) < (0.8, 0.8, 0.7, 0.3)
        return picture.caption(place=place, motion=motion, hour=hour, pattern=pattern)

    def loss(self) -> Tensor:
        rng, noise = self.rng(), self.noise()
        indices = rng.integers(len(self.pictures), size=self.batch)
        described = [self.pictures[int(i)] for i in indices]
        shown = torch.from_numpy(indices).to(self.device)
        clean, boxes = self.data.latents[shown].float(), np.array([p.box for p in described]) / self.cell
        windowed = self.global_step < WINDOWED * self.steps and clean.shape[-1] > WINDOW
        if windowed:
            clean, boxes = windows(clean, boxes, WINDOW, rng)
        weight = object_weight(boxes, clean.shape[-1]).to(self.device)
        elsewhere = torch.from_numpy(rng.random(self.batch) < (1.0 if windowed else ELSEWHERE))[:, None].to(self.device)
        image = self._image(torch.where(elsewhere, self.data.views[shown], self.data.embeds[shown]), rng, noise)
        lot = rng.random(self.batch)  # below NEITHER both are dropped, then the picture, then the words
        with_image = torch.from_numpy(lot >= NEITHER + NO_PICTURE)[:, None].to(self.device)
        wordless = (lot < NEITHER) | ((lot >= NEITHER + NO_PICTURE) & (lot < NEITHER + NO_PICTURE + NO_WORDS))
        t = torch.from_numpy(rng.integers(0, 1000, size=self.batch)).to(self.device)
        eps = torch.randn(clean.shape, generator=noise, device=self.device)
        a = self.alphas[t].view(-1, 1, 1, 1)
        captions = [self._caption(picture, rng) for picture in described]
        text = self.text(["" if dropped else each for each, dropped in zip(captions, wordless, strict=True)])
        output = self.network(
            a.sqrt() * clean + (1 - a).sqrt() * eps,
            t,
            encoder_hidden_states=text.to(self.device),
            class_labels=image * with_image,
        ).sample
        weight = weight * self.weights[t].view(-1, 1, 1, 1)
        return (weight * (output.float() - (a.sqrt() * eps - (1 - a).sqrt() * clean)).square()).mean()
