"""LPIPS of the background, where the weights of its AlexNet already lie on this disk."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from . import preservation
from .metric import ClipMetric
from .preservation import require_region, require_same_shape
from .weights import Weights, WeightsError, verify

TRUNK = "alexnet-owt-7be5be79.pth"
_SMALLEST = 64  # pixels a side below which AlexNet's strides leave nothing


def find_trunk(folder: Path | None = None) -> Weights:
    """torchvision's AlexNet in ``folder`` (torch's own cache by default), checked against the hash in its name.

    Raises:
        WeightsError: it isn't there, or is damaged.
    """
    path = (folder or Path(torch.hub.get_dir()) / "checkpoints") / TRUNK
    return verify(path, TRUNK.removesuffix(".pth").rpartition("-")[2])


class Lpips:
    """LPIPS 0.1 (Zhang et al. 2018) on AlexNet: torchmetrics' network and linear layers, torchvision's trunk.

    Raises:
        WeightsError: the file isn't torchvision's AlexNet.
    """

    def __init__(self, weights: Weights) -> None:
        # The public function averages over the whole picture; only the network itself gives the map.
        from torchmetrics.functional.image.lpips import _LPIPS

        net = _LPIPS(net="alex", spatial=True, pnet_rand=True)
        stored = torch.load(weights.path, map_location="cpu", weights_only=True)
        for part in net.net.children():
            for name, layer in part.named_children():
                if isinstance(layer, nn.Conv2d):
                    found = [stored.get(f"features.{name}.{which}") for which in ("weight", "bias")]
                    if any(value is None or value.shape != layer.get_parameter(which).shape
                           for value, which in zip(found, ("weight", "bias"), strict=True)):  # fmt: skip
                        raise WeightsError(f"{weights.path}: isn't torchvision's AlexNet; fetch {TRUNK} again")
                    layer.load_state_dict({"weight": found[0], "bias": found[1]})
        self._net = net.eval().requires_grad_(False)
        self.id = f"lpips-alex@{weights.sha256[:12]}"

    @torch.inference_mode()
    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """``f 3 H W`` twice, in [-1, 1] -> ``f H W``, at least 0."""
        pairs = zip(one.split(1), other.split(1), strict=True)
        return torch.cat([self._net(a, b)[:, 0] for a, b in pairs])  # type: ignore[index]


def background_lpips(edited: Tensor, source: Tensor, region: Tensor, lpips: Lpips) -> float | None:
    """Perceptual distance over ``region``, mean over its pixels in all frames, at least 0, lower is better.

    Outside the region the edit is filled with the source's own pixels: the network looks far, and blanking would show it an
    edge that neither clip has.

    Args:
        edited: ``f 3 H W`` in [-1, 1], at least 64 pixels a side.
        source: like ``edited``.
        region: ``f H W`` bool, the background.
        lpips: the network.

    Returns:
        None where the region is empty or the picture too small.
    """
    require_same_shape(edited=edited, source=source)
    require_region(region, edited)
    if not region.any() or min(edited.shape[2:]) < _SMALLEST:
        return None
    filled = torch.where(region[:, None], edited, source)
    return float(lpips.distance(filled, source)[region].mean(dtype=torch.float64))


class BackgroundLpipsOutsideMask(ClipMetric):
    figure = staticmethod(background_lpips)
    name, unit, over, higher_is_better = "background_lpips_outside_mask", "lpips", "pixels of all frames pooled", False


class BackgroundLpips(BackgroundLpipsOutsideMask):
    name = "background_lpips"


class BackgroundLpipsOutsideAnnotation(BackgroundLpipsOutsideMask):
    name = "background_lpips_outside_annotation"


class BackgroundLpipsOutsideUnion(BackgroundLpipsOutsideMask):
    name = "background_lpips_outside_union"


BACKGROUNDS: dict[str, tuple[type[ClipMetric], type[ClipMetric], type[ClipMetric]]] = {
    "truth": (preservation.BackgroundPsnr, preservation.BackgroundSsim, BackgroundLpips),
    "annotation": (
        preservation.BackgroundPsnrOutsideAnnotation,
        preservation.BackgroundSsimOutsideAnnotation,
        BackgroundLpipsOutsideAnnotation,
    ),
    "mask": (preservation.BackgroundPsnrOutsideMask, preservation.BackgroundSsimOutsideMask, BackgroundLpipsOutsideMask),
    "union": (preservation.BackgroundPsnrOutsideUnion, preservation.BackgroundSsimOutsideUnion, BackgroundLpipsOutsideUnion),
}
"""who says where the background is -> PSNR, SSIM and LPIPS over it; ``union``: neither annotation nor mask"""
