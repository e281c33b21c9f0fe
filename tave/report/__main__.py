"""Entry point: write a run's report.html again, from its folder alone.

python -m tave.report run=RUN_FOLDER
"""

from __future__ import annotations

from pathlib import Path

from tave.cli import Context, entry_point
from tave.config import ReportOptions
from tave.files import FileError


def _work(options: ReportOptions, _: Context) -> None:
    from tave.record import check_links
    from tave.report import write_report

    folder = Path(options.run)
    if not (folder / "run.json").is_file():
        raise FileError(f"{folder}: no finished run (run.json is missing); give the folder that tave.train printed")
    check_links(folder)
    print(write_report(folder))


main = entry_point("write a run's report", "report", _work)

if __name__ == "__main__":
    main()
