"""Runs when a Python process starts with this folder on PYTHONPATH: the fault of ``TAVE_FAULT`` (see faults.py)."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("_faults", Path(__file__).parents[1] / "faults.py")
if _spec is not None and _spec.loader is not None:
    import sys

    _faults = importlib.util.module_from_spec(_spec)
    sys.modules["_faults"] = _faults  # dataclasses look their module up
    _spec.loader.exec_module(_faults)
    _faults.from_environment()
