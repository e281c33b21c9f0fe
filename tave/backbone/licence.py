"""The words of the licences that known weights carry: whoever passes on what was tuned from them has to pass these on."""

from __future__ import annotations

from pathlib import Path

TEXTS = {"CreativeML Open RAIL++-M": "openrail++-m.txt", "CreativeML Open RAIL-M": "openrail-m.txt"}


def licence_text(licence: str | None) -> str | None:
    """The whole text of a backbone's ``licence``, which begins with its name; None for one whose text isn't here."""
    files = [file for name, file in TEXTS.items() if (licence or "").startswith(name)]
    return (Path(__file__).parent / "licences" / files[0]).read_text(encoding="utf-8") if files else None
