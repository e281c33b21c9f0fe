"""Texts of the licences of known weights, which apply to weights tuned from them as well."""

from __future__ import annotations

from pathlib import Path

TEXTS = {"CreativeML Open RAIL++-M": "openrail++-m.txt", "CreativeML Open RAIL-M": "openrail-m.txt"}


def licence_text(licence: str | None) -> str | None:
    """The text of a backbone's ``licence``, which begins with the licence's name; None if it isn't included here."""
    files = [file for name, file in TEXTS.items() if (licence or "").startswith(name)]
    return (Path(__file__).parent / "licences" / files[0]).read_text(encoding="utf-8") if files else None
