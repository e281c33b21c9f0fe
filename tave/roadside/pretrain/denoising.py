"""The training of the UNet: velocity of noised latents, under captions and image vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tave.encoders import level_embedding, noise_levels
from tave.roadside.pretrain.data import Picture
from tave.roadside.pretrain.networks import EncodeText, schedulers
from tave.roadside.pretrain.training import Training, object_weight

NEITHER, NO_PICTURE, NO_WORDS = 0.05, 0.15, 0.3  # shares of pictures for which the UNet's conditions are dropped
NO_OBJECT = 0.1  # share of pictures that show none; they have neither condition
WINDOW, WINDOWED = 16, 0.6  # side in cells of the UNet's first pictures, and the share of steps that take them
MAX_SNR = 5.0  # up to which a noise level's weight in the UNet's loss grows
ELSEWHERE = 0.5  # share of pictures whose image vector is that of a photograph of the object


@dataclass(frozen=True)
class Encoded:
    """A training set's frames as latents ``n c h w`` and image embeddings ``n d``, and embeddings of its views.

    empty: latents ``m c h w`` of scenes without an object.
    """

    latents: Tensor
    embeds: Tensor
    views: Tensor
    empty: Tensor


def snr_weight(alphas: Tensor) -> Tensor:
    """Return loss weights of mean 1 for velocity at the levels ``alphas`` ``T``, each as often.

    An error of the velocity counts snr + 1 times as an error of the clean latents does; beyond ``MAX_SNR`` that factor
    stays, so that almost clean latents don't outweigh the others, as in min-SNR weighting (Hang et al. 2023). Unlike
    there, very noisy latents keep the weight of the velocity.
    """
    snr = alphas / (1 - alphas)
    weight = (MAX_SNR + 1) / (snr + 1).clamp(min=MAX_SNR + 1)
    return weight / weight.mean()


def timesteps(weights: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Draw ``count`` timesteps, each as often as its loss weighs in ``weights`` ``T``.

    This has a lower variance than a weighted loss at uniform timesteps. Stratification, one timestep from each
    ``count``-th part of the distribution, lowers it further (Kingma et al. 2021, "Variational Diffusion Models", I.1).
    """
    below = weights.cumsum(0) / weights.sum()
    at = (torch.arange(count) + rng.random()) / count
    return torch.searchsorted(below, at.to(below)).clamp(max=len(weights) - 1)


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
    object from another side, in another light and place, so that the model takes from it the object alone. Some have
    neither caption nor vector, for the unconditional branch of guidance; others lack one of the two. Most of the former
    show no object: if every picture had one, guidance would not lead away from an empty scene.

    The first ``WINDOWED`` of the steps take windows of the latents, which cost half; their vectors are all those of
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
        top = np.where(rng.random(self.batch) < 0.75, 60, 1000)
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
        empty = np.flatnonzero(rng.random(self.batch) < NO_OBJECT)
        others = rng.integers(len(self.data.empty), size=len(empty))
        clean[torch.from_numpy(empty)] = self.data.empty[torch.from_numpy(others)].float()
        windowed = self.global_step < WINDOWED * self.steps and clean.shape[-1] > WINDOW
        if windowed:
            clean, boxes = windows(clean, boxes, WINDOW, rng)
        boxes[empty] = 0
        weight = object_weight(boxes, clean.shape[-1]).to(self.device)
        elsewhere = torch.from_numpy(rng.random(self.batch) < (1.0 if windowed else ELSEWHERE))[:, None].to(self.device)
        image = self._image(torch.where(elsewhere, self.data.views[shown], self.data.embeds[shown]), rng, noise)
        lot = rng.random(self.batch)  # below NEITHER both are dropped, then the picture, then the words
        lot[empty] = 0
        with_image = torch.from_numpy(lot >= NEITHER + NO_PICTURE)[:, None].to(self.device)
        wordless = (lot < NEITHER) | ((lot >= NEITHER + NO_PICTURE) & (lot < NEITHER + NO_PICTURE + NO_WORDS))
        t = timesteps(self.weights, self.batch, rng)
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
        return (weight * (output.float() - (a.sqrt() * eps - (1 - a).sqrt() * clean)).square()).mean()
