"""What the header of an H.264 stream in an mp4 says of all of its pictures."""

from __future__ import annotations

import re

# Profiles whose sequence parameter sets tell the chroma format (ITU-T H.264, 7.3.2.1.1).
_HIGH = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)


def may_interlace(extradata: bytes | None) -> bool:
    """Whether pictures may be stored as fields, by the parameter sets of an ``avcC`` box; True if it can't be read."""
    try:
        assert extradata is not None and extradata[0] == 1
        at, sets = 6, list[bytes]()
        for _ in range(extradata[5] & 31):
            length = int.from_bytes(extradata[at : at + 2], "big")
            sets.append(extradata[at + 2 : at + 2 + length])
            at += 2 + length
        return not sets or not all(map(_frames_only, sets))
    except (AssertionError, IndexError, ValueError):
        return True


def _frames_only(parameters: bytes) -> bool:
    """``frame_mbs_only_flag`` of a sequence parameter set; False for one with scaling lists, which are rare."""
    bits = _Bits(re.sub(b"\x00\x00\x03", b"\x00\x00", parameters[1:]))  # without emulation prevention
    profile = bits.take(8)
    bits.take(16)  # constraints, level
    bits.skip(1)
    if profile in _HIGH:
        if bits.number() == 3:  # 4:4:4
            bits.take(1)
        bits.skip(2)  # bit depths
        bits.take(1)
        if bits.take(1):
            return False
    bits.skip(1)
    order = bits.number()
    if order == 0:
        bits.skip(1)
    elif order == 1:
        bits.take(1)
        bits.skip(2)
        bits.skip(bits.number())
    bits.skip(1)  # reference frames
    bits.take(1)
    bits.skip(2)  # width, height
    return bool(bits.take(1))


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._text, self._at = "".join(f"{byte:08b}" for byte in data), 0

    def take(self, count: int) -> int:
        """The next ``count`` bits. Raises ValueError at the end."""
        self._at += count
        if self._at > len(self._text):
            raise ValueError
        return int(self._text[self._at - count : self._at], 2)

    def number(self) -> int:
        """The next number in Exp-Golomb code."""
        zeros = self._text.index("1", self._at) - self._at
        return self.take(2 * zeros + 1) - 1

    def skip(self, count: int) -> None:
        """Pass over ``count`` numbers."""
        for _ in range(count):
            self.number()
