"""``report.html`` of a run folder: one file that opens from disk, with clips, maps, figures and how to reproduce them.

:mod:`tave.report.read` reads what a folder holds, :mod:`tave.report.page` writes it as HTML, :mod:`tave.report.charts`
draws. Everything in it comes from files that may be anybody's: text is escaped, and no address leaves the file.
"""

from __future__ import annotations

from pathlib import Path

from tave.files import whole_file
from tave.locks import UPDATE, claimed
from tave.record import REPORT, rewriting


def write_report(folder: Path) -> Path:
    """Write ``report.html`` of the run ``folder`` from its files; returns its path.

    Raises ValueError, in one line, for a file that has changed since it was made or can't be read.
    """
    from tave.report.page import page
    from tave.report.read import read_report

    path = folder / REPORT
    with claimed(path, UPDATE):
        text = page(read_report(folder))
        with rewriting(folder, REPORT), whole_file(path) as waiting:
            waiting.write_text(text, encoding="utf-8", errors="backslashreplace")  # a lone surrogate is no UTF-8
    return path
