"""What the tests of data share beside tests/common.py."""

import subprocess
import sys

import numpy as np
from common import ROOT


def run_python(code, **kwargs):
    """A fresh interpreter in the repository's folder, with code or a list of arguments."""
    command = [sys.executable, *(["-c", code] if isinstance(code, str) else code)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **kwargs)


def edit_npz(path, copy, change):
    """A copy of a file of arrays, changed: change gets the dict of arrays."""
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(copy, **arrays)
