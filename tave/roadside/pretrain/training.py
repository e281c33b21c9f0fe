"""What all trainings share, and that of the autoencoder.

Each step's batch is a function of the seed and ``global_step``, so that a resumed training continues exactly.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from tave.roadside.pretrain.data import TrainingSet, to_signed

OBJECT_WEIGHT = 4.0  # of the loss inside the object's box, a tenth of the frame, relative to the rest


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
