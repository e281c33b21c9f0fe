"""Decoded colours -> the 8-bit sRGB that a player shows: HDR to SDR, and alpha over a backdrop."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

BACKDROPS = {"black": (0, 0, 0), "grey": (128, 128, 128), "white": (255, 255, 255)}
WHITE_NITS = 203.0  # HDR reference white (ITU-R BT.2408), which becomes SDR white
HLG_PEAK_NITS = 1000.0  # the display that HLG's system gamma of 1.2 stands for (ITU-R BT.2100)
HLG_GAMMA = 1.2
PQ, HLG = 16, 18  # transfer characteristics of ITU-T H.273
BT2020 = 9  # its primaries
_WIDE = {BT2020: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_TO_BT709 = np.array(  # linear light, BT.2020 -> BT.709 primaries (ITU-R BT.2087)
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
_CODES = 1 << 16


class Colour(NamedTuple):
    """How a stream's numbers are meant, as codes of ITU-T H.273; 2 is unspecified. ``full``: the range is 0..255."""

    matrix: int = 2
    primaries: int = 2
    transfer: int = 2
    full: bool = False

    @property
    def hdr(self) -> bool:
        """Whether :func:`hdr_to_sdr` is needed."""
        return self.transfer in (PQ, HLG)

    @property
    def note(self) -> str | None:
        """What the user should know of the conversion, in one line."""
        if self.hdr:
            name = "PQ" if self.transfer == PQ else "HLG"
            return f"{name} HDR is shown as SDR: {WHITE_NITS:g} nits become white, what is brighter is clipped"
        if wide := _WIDE.get(self.primaries):
            return f"{wide} primaries are taken as they are stored, a little paler than a colour-managed player's"
        return None


def hdr_to_sdr(pixels: np.ndarray, colour: Colour, rgb: bool = False) -> np.ndarray:
    """`H W 3` uint16 Y'CbCr (or ``rgb``) of a PQ or HLG stream -> `H W 3` uint8 sRGB.

    Each step is one of FFmpeg's ``zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,tonemap=clip,
    zscale=t=iec61966-2-1``: display light relative to 203 nits (BT.2100; HLG's system gamma on each channel), BT.709
    primaries, and where the largest channel exceeds white all three are scaled down, which keeps the hue.
    """
    light = _light(colour.transfer)[pixels if rgb else _to_rgb(pixels, colour)]
    if colour.primaries in (BT2020, 2):
        light = light @ _TO_BT709.T
    light /= np.maximum(light.max(axis=-1, keepdims=True), 1)
    codes = (light * (_CODES - 1) + 0.5).clip(0, _CODES - 1).astype(np.uint16)
    return _srgb_bytes()[codes]


def _to_rgb(pixels: np.ndarray, colour: Colour) -> np.ndarray:
    """`H W 3` uint16 Y'CbCr -> uint16 R'G'B' of full range. FFmpeg's own has an error of a level, and PQ is steep."""
    red, blue, low, luma, chroma = _coding(colour)
    y = (pixels[..., 0].astype(np.float32) - low) / luma
    cb, cr = ((pixels[..., i].astype(np.float32) - 32_768) / chroma for i in (1, 2))
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    g = (y - red * r - blue * b) / (1 - red - blue)
    return (np.stack((r, g, b), axis=-1) * (_CODES - 1) + 0.5).clip(0, _CODES - 1).astype(np.uint16)


@cache
def _light(transfer: int) -> np.ndarray:
    """Light for each 16-bit code, 1 = 203 nits."""
    signal = np.linspace(0, 1, _CODES)
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = signal ** (1 / m2)
        nits = 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        nits = HLG_PEAK_NITS * scene**HLG_GAMMA
    return (nits / WHITE_NITS).astype(np.float32)


@cache
def _srgb_bytes() -> np.ndarray:
    """The sRGB byte for each 16-bit code of linear light."""
    light = np.linspace(0, 1, _CODES)
    signal = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return (signal * 255 + 0.5).astype(np.uint8)


def sdr_to_hdr(pixels: np.ndarray, colour: Colour) -> np.ndarray:
    """The inverse of :func:`hdr_to_sdr`: `H W 3` uint8 sRGB -> uint16 Y'CbCr of a PQ or HLG stream."""
    light = _srgb_light()[pixels]
    if colour.primaries in (BT2020, 2):
        light = (light @ np.linalg.inv(_TO_BT709).T.astype(np.float32)).clip(0)
    signal = np.interp(light, _light(colour.transfer), np.linspace(0, 1, _CODES))
    red, blue, low, luma, chroma = _coding(colour)
    y = red * signal[..., 0] + (1 - red - blue) * signal[..., 1] + blue * signal[..., 2]
    cb, cr = (signal[..., 2] - y) / (2 - 2 * blue), (signal[..., 0] - y) / (2 - 2 * red)
    coded = np.stack([low + luma * y, 32_768 + chroma * cb, 32_768 + chroma * cr], axis=-1)
    return (coded + 0.5).clip(0, _CODES - 1).astype(np.uint16)


def _coding(colour: Colour) -> tuple[float, float, int, int, int]:
    """Shares of red and blue in luma, and for 16 bit: black, the span of luma, that of chroma."""
    red, blue = (0.2126, 0.0722) if colour.matrix == 1 else (0.2627, 0.0593)  # BT.709, else BT.2020
    low, luma, chroma = (0, 65_535, 65_535) if colour.full else (16 << 8, 219 << 8, 224 << 8)
    return red, blue, low, luma, chroma


@cache
def _srgb_light() -> np.ndarray:
    """Linear light for each sRGB byte."""
    signal = np.arange(256) / 255
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4).astype(np.float32)


def over(pixels: np.ndarray, backdrop: str) -> np.ndarray:
    """`H W 4` uint8 with straight alpha over the ``backdrop`` -> `H W 3` uint8."""
    colour = np.array(BACKDROPS[backdrop], np.float32)
    alpha = pixels[..., 3:].astype(np.float32) / 255
    return (pixels[..., :3] * alpha + colour * (1 - alpha) + 0.5).astype(np.uint8)
