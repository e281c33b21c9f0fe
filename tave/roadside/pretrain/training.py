"""The four trainings: autoencoder, conditioning CLIP, judge, UNet. Each step's batch is a function of (seed, step).

That makes a killed run exact to resume: no sampler state is needed, ``global_step`` says which batch comes next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tave.roadside.pretrain.lessons import Lessons, Picture, square_crop
from tave.roadside.scene import COLORS, PATTERNS, PLACES, VEHICLES, Vehicle, caption


def to_signed(pictures: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """``n H W 3`` uint8 -> ``n 3 H W`` float32 in [-1, 1], on ``device``: bytes travel, a quarter of what floats would."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


class Part(L.LightningModule):
    """A network under training: AdamW, a short warm-up, then constant, then linear to zero over the last third."""

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

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.lr, betas=(0.9, 0.98), weight_decay=1e-3)

        def factor(step: int) -> float:
            return min((step + 1) / 100, 1.0, max(0.0, (self.steps - step) / (self.steps / 3)))

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"},
        }


OBJECT_WEIGHT = 4.0  # of a picture's loss, where the vehicle is: it covers a tenth of the frame and is what edits are about


def object_weight(boxes: np.ndarray, size: int) -> Tensor:
    """``n 1 size size`` of mean 1: ``OBJECT_WEIGHT`` times as high inside the boxes (``n 4``: x0 y0 x1 y1) as outside."""
    at = torch.arange(size) + 0.5
    x0, y0, x1, y1 = torch.from_numpy(np.asarray(boxes, np.float32))[:, :, None].unbind(1)
    inside = ((at > y0) & (at < y1))[:, None, :, None] & ((at > x0) & (at < x1))[:, None, None, :]
    weight = 1 + (OBJECT_WEIGHT - 1) * inside.float()
    return weight / weight.mean(dim=(2, 3), keepdim=True)


class AutoencoderPart(Part):
    """L1 + L2 + gradient loss on crops, three in four of them around the vehicle, and a faint pull to a unit normal."""

    def __init__(self, network: nn.Module, lessons: Lessons, crop: int, **settings: Any):
        super().__init__(network, **settings)
        self.lessons, self.crop = lessons, crop

    def _crop(self, rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, int, int, int]]:
        """A crop and where the vehicle is in it."""
        index = int(rng.integers(len(self.lessons)))
        frame, crop = self.lessons.frames[index], self.crop
        limit = frame.shape[0] - crop
        x0, y0, x1, y1 = self.lessons.pictures[index].box
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
        slopes = (weight[..., 1:] * error.diff(dim=-1).abs()).mean() + (weight[..., 1:, :] * error.diff(dim=-2).abs()).mean()
        pull = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return (weight * (error.abs() + 2 * error.square())).mean() + slopes + 1e-4 * pull


def same(left: list[str], right: list[str]) -> Tensor:
    """Positives of a contrastive batch: 1 where two captions are equal; equal captions are all positives."""
    number = {text: i for i, text in enumerate([*left, *right])}
    rows, columns = (torch.tensor([number[text] for text in texts]) for texts in (left, right))
    return (rows[:, None] == columns).float()


def contrastive(images: Tensor, texts: Tensor, positive: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy ``n d`` x ``m d`` with several positives a row."""
    with torch.autocast(images.device.type, enabled=False):  # a cosine in bf16, times a scale of up to 100, is noise
        logits = scale * F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
    rows = positive / positive.sum(1, keepdim=True).clamp(min=1)
    columns = positive.T / positive.T.sum(1, keepdim=True).clamp(min=1)
    seen = positive.T.sum(1) > 0  # a caption of the bank that no picture shows has nothing to be drawn to
    return F.cross_entropy(logits, rows) + F.cross_entropy(logits.T[seen], columns[seen])


SHORT = [caption(Vehicle(kind, color)) for kind in VEHICLES for color in COLORS]


def _describe(picture: Picture, rng: np.random.Generator, place: bool) -> str:
    where = picture.place if place and rng.random() < 0.5 else None
    return caption(picture.vehicle, picture.heading, where, pattern=bool(rng.random() < 0.6))


class Sight(nn.Module):
    """What an image vector must tell besides words: pattern, accent, and in whole frames place, heading and box.

    Linear readings of the projected vector, thrown away afterwards. A contrastive training on captions alone forgets
    where the vehicle stands and how large it is, and an in-context reference differs from the source in just that; the
    vectors of a CLIP that has seen the world still know.
    """

    def __init__(self, width: int):
        super().__init__()
        kinds = {"pattern": PATTERNS, "accent": COLORS, "place": PLACES, "heading": (-1, 1)}
        self.names: dict[str, list[Any]] = {kind: list(names) for kind, names in kinds.items()}
        self.heads = nn.ModuleDict({kind: nn.Linear(width, len(names)) for kind, names in kinds.items()})
        self.box = nn.Linear(width, 4)

    def forward(self, vectors: Tensor, pictures: list[Picture], framed: list[bool], side: int) -> Tensor:
        """Loss of reading ``vectors`` ``n d``; ``framed``: whole frames, ``side`` pixels wide, not portraits."""
        whole = torch.tensor(framed, device=vectors.device)
        striped = torch.tensor([p.vehicle.pattern != "plain" for p in pictures], device=vectors.device)
        asked = {"pattern": torch.ones_like(whole), "accent": striped, "place": whole, "heading": whole}
        total = vectors.new_zeros(())
        for kind, head in self.heads.items():
            told = [getattr(p.vehicle if kind in ("pattern", "accent") else p, kind) for p in pictures]
            truth = torch.tensor([self.names[kind].index(name) for name in told], device=vectors.device)
            each = F.cross_entropy(head(vectors), truth, reduction="none")
            total = total + (each * asked[kind]).sum() / asked[kind].sum().clamp(min=1)
        x0, y0, x1, y1 = (torch.tensor([p.box for p in pictures], device=vectors.device) / side).unbind(1)
        truth = torch.stack([(x0 + x1) / 2, y1, x1 - x0, y1 - y0], 1)
        off = F.smooth_l1_loss(self.box(vectors), truth, beta=0.05, reduction="none").sum(1)
        return 0.5 * total + 10 * (off * whole).sum() / whole.sum().clamp(min=1)


class ClipPart(Part):
    """Contrastive training on frames and on portraits; every step also tells apart all short captions.

    ``sight``: what the image vectors must tell besides; None for the judge.
    """

    def __init__(
        self,
        network: nn.Module,
        lessons: Lessons,
        embed: Callable[[Tensor, list[str]], tuple[Tensor, Tensor]],
        size: int,
        sight: Sight | None,
        **settings: Any,
    ):
        super().__init__(network, **settings)
        self.lessons, self.embed, self.size, self.sight = lessons, embed, size, sight
        self.log_scale = nn.Parameter(torch.tensor(2.66))

    def _picture(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
        """A picture and whether it shows the place of its description."""
        frame, picture = self.lessons.frames[index], self.lessons.pictures[index]
        x0, y0, x1, y1 = picture.box
        if self.sight is None:  # the judge: a box as it is measured in an edit, a little off
            jitter = rng.uniform(-0.1, 0.1, size=4) * max(x1 - x0, y1 - y0)
            return square_crop(frame, tuple(np.array(picture.box) + jitter), self.size, float(rng.uniform(0.1, 0.7))), False
        if rng.random() < 0.4:
            return self.lessons.views[index], False
        if frame.shape[:2] == (self.size, self.size):
            return frame, True
        return square_crop(frame, (0, 0, frame.shape[1], frame.shape[0]), self.size, 0.0), True

    def loss(self) -> Tensor:
        rng = self.rng()
        indices = rng.integers(len(self.lessons), size=self.batch)
        shown = [self._picture(int(i), rng) for i in indices]
        described = [self.lessons.pictures[int(i)] for i in indices]
        texts = [_describe(p, rng, place) for p, (_, place) in zip(described, shown, strict=True)]
        short = [caption(p.vehicle) for p in described]
        images, words = self.embed(to_signed(np.stack([s[0] for s in shown]), self.device), SHORT + texts)
        scale = self.log_scale.exp().clamp(max=100)
        bank, own = words[: len(SHORT)], words[len(SHORT) :]
        loss = contrastive(images, bank, same(short, SHORT).to(self.device), scale)
        loss = loss + contrastive(images, own, same(texts, texts).to(self.device), scale)
        if self.sight is None:
            return loss
        with torch.autocast(self.device.type, enabled=False):
            return loss + self.sight(images.float(), described, [place for _, place in shown], self.lessons.frames.shape[2])

    def configure_optimizers(self) -> Any:
        made = super().configure_optimizers()
        beside = [self.log_scale, *(self.sight.parameters() if self.sight else ())]
        made["optimizer"].add_param_group({"params": beside, "weight_decay": 0.0})
        schedule = made["lr_scheduler"]["scheduler"]
        made["lr_scheduler"]["scheduler"] = torch.optim.lr_scheduler.LambdaLR(made["optimizer"], [schedule.lr_lambdas[0]] * 2)
        return made


NEITHER, NO_PICTURE, NO_WORDS = 0.1, 0.12, 0.08  # shares of pictures that the UNet sees with conditions dropped


class UNetPart(Part):
    """The denoiser: v-prediction on cached latents, with a caption of any length and the picture's noised embedding.

    The image vector is that of the picture itself, as SD-unCLIP was trained; for 3 in 10 it is another view of
    the same vehicle, so that the vehicle, not the place, is what the model learns to take from it. One picture in ten
    comes with neither words nor vector, which is what guidance leads away from; more lack one of the two.
    """

    def __init__(
        self,
        network: nn.Module,
        latents: Tensor,
        embeds: Tensor,
        view_embeds: Tensor,
        pictures: list[Picture],
        alphas: Tensor,
        text: Callable[[list[str]], Tensor],
        noised: Callable[[Tensor, Tensor, Tensor], Tensor],
        cell: int,
        **settings: Any,
    ):
        super().__init__(network, **settings)
        self.latents, self.embeds, self.view_embeds, self.pictures = latents, embeds, view_embeds, pictures
        self.alphas, self.text, self.noised, self.cell = alphas, text, noised, cell

    def on_fit_start(self) -> None:
        for name in ("latents", "embeds", "view_embeds", "alphas"):  # small, and gathered at each step
            setattr(self, name, getattr(self, name).to(self.device))

    def _caption(self, picture: Picture, rng: np.random.Generator) -> str:
        place = picture.place if rng.random() < 0.8 else None
        return caption(picture.vehicle, picture.heading, place, pattern=bool(rng.random() < 0.3))

    def loss(self) -> Tensor:
        rng, noise = self.rng(), self.noise()
        indices = rng.integers(len(self.pictures), size=self.batch)
        boxes = np.array([self.pictures[int(i)].box for i in indices]) / self.cell
        shown = torch.from_numpy(indices).to(self.device)
        clean = self.latents[shown].float()
        weight = object_weight(boxes, clean.shape[-1]).to(self.device)
        elsewhere = torch.from_numpy(rng.random(self.batch) < 0.3)[:, None].to(self.device)
        embeds = torch.where(elsewhere, self.view_embeds[shown], self.embeds[shown])
        # Half of the levels are low: editing runs at level 0, and a small training can't spend itself on noise.
        top = np.where(rng.random(self.batch) < 0.6, 60, 1000)
        levels = torch.from_numpy((rng.random(self.batch) * top).astype(np.int64))
        drawn = torch.randn(embeds.shape, generator=noise, device=self.device)
        image = self.noised(embeds, levels.to(self.device), drawn)
        lot = rng.random(self.batch)  # below NEITHER nothing is told, then no picture, then no words
        kept = torch.from_numpy(lot >= NEITHER + NO_PICTURE)[:, None].to(self.device)
        wordless = (lot < NEITHER) | ((lot >= NEITHER + NO_PICTURE) & (lot < NEITHER + NO_PICTURE + NO_WORDS))
        t = torch.from_numpy(rng.integers(0, 1000, size=self.batch)).to(self.device)
        eps = torch.randn(clean.shape, generator=noise, device=self.device)
        a = self.alphas[t].view(-1, 1, 1, 1)
        captions = [self._caption(self.pictures[int(i)], rng) for i in indices]
        text = self.text(["" if dropped else told for told, dropped in zip(captions, wordless, strict=True)]).to(self.device)
        made = self.network(
            a.sqrt() * clean + (1 - a).sqrt() * eps, t, encoder_hidden_states=text, class_labels=image * kept
        ).sample
        return (weight * (made.float() - (a.sqrt() * eps - (1 - a).sqrt() * clean)).square()).mean()
