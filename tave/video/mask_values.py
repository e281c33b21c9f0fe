"""What the values of a mask's pictures mean, in the forms that people have: white, alpha, object numbers, colours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tave.video.frames import VideoError, ranges
from tave.video.image import grey_levels, open_picture

HALF = 128  # of 255: where a soft mask ends
_MOST_NUMBERS = 64  # grey levels below this, and so many colours, are object numbers
_VOID = 255  # marks pixels that belong to no object in VOC's and DAVIS's palette
_COLOURED = 48  # levels between the channels of a pixel that is no grey after a video codec


class Plane(NamedTuple):
    """A mask picture as stored: ``pixels`` `H W` if they are grey, else `H W 3`, uint8; where it has some, ``alpha``
    and palette indices ``numbers`` `H W`, which are object numbers if any picture of the mask is ``numbered``.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    numbers: np.ndarray | None = None
    numbered: bool = False


PlaneMap = Callable[[Plane], np.ndarray]  # to `H W`


def picture_plane(path: Path) -> Plane:
    image = open_picture(path)
    if image.mode[0] in "IF":
        raw = np.asarray(image)
        small = image.mode != "F" and raw.min(initial=0) >= 0 and raw.max(initial=0) < _MOST_NUMBERS
        return Plane((raw if small else np.clip(grey_levels(image, path) + 0.5, 0, 255)).astype(np.uint8))
    transparent = "A" in image.getbands() or "transparency" in image.info
    alpha = np.asarray(image.convert("RGBA"))[..., 3] if transparent else None
    pixels = np.asarray(image.convert("RGB"))
    grey = bool((pixels.max(axis=2) == pixels.min(axis=2)).all())
    numbers = np.asarray(image) if image.mode == "P" else None
    return Plane(pixels[..., 0] if grey else pixels, alpha, numbers, _numbers_objects(image, grey))


def _numbers_objects(image: Image.Image, grey: bool) -> bool:
    """Whether the indices of a palette picture are object numbers: 0 is black, and the others are VOC's or no greys."""
    palette = np.array(image.getpalette() or [], np.uint8)
    palette = palette[: len(palette) // 3 * 3].reshape(-1, 3)
    if image.mode != "P" or not len(palette) or palette[0].any():
        return False
    first = min(len(palette), 22)
    return not grey or (first > 7 and np.array_equal(palette[:first], _voc_palette()[:first]))


def frame_plane(pixels: np.ndarray) -> Plane:
    """A frame of a video, whose codec shifts colours a little."""
    rgb, alpha = pixels[..., :3].astype(np.int16), pixels[..., 3] if pixels.shape[2] == 4 else None
    coloured = (rgb.max(axis=2) - rgb.min(axis=2) > _COLOURED).mean() > 1e-3
    return Plane(pixels[..., :3] if coloured else rgb.mean(axis=2).round().astype(np.uint8), alpha)


# ---- planes -> inside ------------------------------------------------------------------------------------------------


class Values:
    """The values that occur in a mask's pictures, of which none is kept. ``exact``: no codec has shifted them."""

    def __init__(self, exact: bool) -> None:
        self.exact, self.sizes = exact, set[tuple[int, int]]()  # width, height
        self._numbered, self._opaque, self._coloured = False, False, False
        # How many pixels have each level: of grey pictures, of alpha, of palette indices.
        self._levels, self._alphas, self._indices = np.zeros((3, 256), np.int64)
        self._colours = set[int]()

    def add(self, plane: Plane) -> None:
        """Count a picture in."""
        self.sizes.add((plane.pixels.shape[1], plane.pixels.shape[0]))
        self._numbered |= plane.numbered
        if plane.alpha is None:
            self._opaque = True
        else:
            self._alphas += _counts(plane.alpha)
        if plane.pixels.ndim == 2:
            self._levels += _counts(plane.pixels)
        else:
            self._coloured = True
            if self.exact and len(self._colours) <= _MOST_NUMBERS:
                self._colours.update(np.unique(_packed(plane.pixels)).tolist())
        if self.exact:
            self._indices += _counts(_indices(plane))

    def meaning(self, where: str, chosen: int | None) -> tuple[PlaneMap, list[str]]:
        """What is inside of each of the pictures, and what the user should know of that. ``where`` names the mask.

        Raises :class:`VideoError` if there is no object ``chosen``.
        """
        if self._numbered:
            return _objects(_indices, np.nonzero(self._indices)[0].tolist(), where, chosen)
        if not self._opaque and np.count_nonzero(self._alphas) > 1:
            return _soft(lambda plane: _known(plane.alpha), self._alphas, where, chosen)
        if self.exact and not self._coloured and 0 < self._highest < _MOST_NUMBERS:
            return _objects(lambda plane: plane.pixels, np.nonzero(self._levels)[0].tolist(), where, chosen)
        if self.exact and self._coloured:
            greys = (np.nonzero(self._levels)[0] * 0x010101).tolist()
            colours = sorted({*self._colours, *greys} - {0})
            if len(colours) <= _MOST_NUMBERS:
                return _colours(colours, where, chosen)
        if self._coloured:
            _refuse(where, chosen, "after a video codec its colours are not exact, so objects can't be distinguished")
            return _bright, ["its coloured pixels are inside"]
        return _soft(lambda plane: plane.pixels, self._levels, where, chosen)

    @property
    def _highest(self) -> int:
        return int(np.nonzero(self._levels)[0].max(initial=0))


def _soft(levels: PlaneMap, counts: np.ndarray, where: str, chosen: int | None) -> tuple[PlaneMap, list[str]]:
    _refuse(where, chosen, "it has no object numbers")
    soft = counts[26:230].sum() > 0.2 * counts[HALF:].sum()
    notes = [f"it is soft: inside is where it is at least half white, {HALF} of 255"] if soft else []
    return lambda plane: levels(plane) >= HALF, notes


def _bright(plane: Plane) -> np.ndarray:
    return plane.pixels.max(axis=2) >= HALF // 2 if plane.pixels.ndim == 3 else plane.pixels >= HALF


def _refuse(where: str, chosen: int | None, why: str) -> None:
    if chosen is not None:
        raise VideoError(f"{where}: {why}; leave out video.object, or give palette pictures (PNG)")


def _colours(colours: list[int], where: str, chosen: int | None) -> tuple[PlaneMap, list[str]]:
    """Objects by their colours, packed and in order: numbered as VOC's palette does if all are its own."""
    known = {int(code): index for index, code in enumerate(_packed(_voc_palette()[None])[0]) if index}
    said = []
    if not {*colours} <= {*known}:
        known = {code: index for index, code in enumerate(colours, 1)}
        names = ", ".join(f"{index} = ({c >> 16},{c >> 8 & 255},{c & 255})" for c, index in known.items())
        said = [f"its colours are numbered {names}"] if len(colours) > 1 else []

    def numbers(plane: Plane) -> np.ndarray:
        packed = _packed(plane.pixels)
        found = np.zeros(packed.shape, np.uint8)
        for code in colours:
            found[packed == code] = known[code]
        return found

    inside, notes = _objects(numbers, sorted(known[code] for code in colours), where, chosen)
    return inside, [*said, *notes]


def _objects(numbers: PlaneMap, found: list[int], where: str, chosen: int | None) -> tuple[PlaneMap, list[str]]:
    """All objects, or the chosen one, of those that were ``found`` (0 is none), by the ``numbers`` of pixels."""
    found, notes = [number for number in found if number], []
    if _VOID in found and len(found) > 1:
        found.remove(_VOID)
        notes.append(f"number {_VOID} is outside, since it marks pixels of no object")
    named = ranges(found)
    if chosen is None:
        if len(found) > 1:
            notes.append(f"it has the objects {named}, and all are inside; video.object={found[0]} would take one")
        return lambda plane: np.isin(numbers(plane), found), notes
    if chosen not in found:
        raise VideoError(f"{where}: has no object {chosen} in these frames; it has {named or 'none'}")
    if len(found) > 1:
        notes.append(f"object {chosen} of {named} is inside")
    return lambda plane: numbers(plane) == chosen, notes


def _known(plane: np.ndarray | None) -> np.ndarray:
    assert plane is not None
    return plane


def _counts(plane: np.ndarray) -> np.ndarray:
    return np.bincount(plane.ravel(), minlength=256)


def _indices(plane: Plane) -> np.ndarray:
    if plane.numbers is not None:
        return plane.numbers
    return plane.pixels if plane.pixels.ndim == 2 else plane.pixels.max(axis=2)


def _packed(rgb: np.ndarray) -> np.ndarray:
    """`... 3` uint8 -> one number for each colour."""
    if rgb.ndim == 2:
        rgb = np.repeat(rgb[..., None], 3, axis=-1)
    wide = rgb.astype(np.uint32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _voc_palette() -> np.ndarray:
    """The 256 colours of VOC's and DAVIS's palette, `256 3`: the bits of a number, spread over the channels."""
    number, colours = np.arange(256), np.zeros((256, 3), np.int64)
    for bit in range(3):
        for channel in range(3):
            colours[:, channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return colours.astype(np.uint8)
