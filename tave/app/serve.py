"""Entry point: the page and the HTTP service.

python -m tave.app
python -m tave.app host=0.0.0.0 port=8000
"""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from tave.cli import Context, entry_point
from tave.config import AppOptions, OptionError
from tave.files import check_writable

INSTALL = "the app needs Gradio: pip install -e '.[app]'"


def _work(options: AppOptions, _: Context) -> None:
    if find_spec("gradio") is None:
        raise OptionError(INSTALL)
    folder = Path(options.folder).absolute()
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not options.local and options.token is None:
        options = replace(options, token=secrets.token_urlsafe(24))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from tave.app.page import run

    run(replace(options, folder=str(folder)))


main = entry_point("a page and an HTTP service to edit on", "app", _work)

if __name__ == "__main__":
    main()
