"""Fixtures of the tests."""

import json
import os
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' networks are tiny
pytest.register_assert_rewrite("common")  # so that failed assertions there show their values too

from common import SCRIPTS  # noqa: E402

from data.datasets import HORIZONS  # noqa: E402
from envs.half_cheetah import HalfCheetah  # noqa: E402
from utils import runs  # noqa: E402


@pytest.fixture(scope="session", params=SCRIPTS, ids=str)
def script(request):
    """Either training script."""
    return request.param


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The test runs in an empty folder, so that nothing is written by default into another."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where simulated datasets are kept."""
    return tmp_path_factory.mktemp("simulated")


@pytest.fixture(scope="session")
def finished(data_dir, tmp_path_factory):
    """By kind of action, a finished run of seeds 7 and 8: its folder, which tests must leave as it is, its
    summary, and what it told."""
    runs_of = {}
    for script in SCRIPTS:
        said, told, out = StringIO(), StringIO(), tmp_path_factory.mktemp("finished")
        with redirect_stdout(said), redirect_stderr(told):
            summary = script.train(data_dir, f"--num-seeds 2 --seed 7 --out {out}")
        assert said.getvalue().count("\n") == 1 and json.loads(said.getvalue()) == summary
        runs_of[script.kind] = Path(summary["folder"]), summary, told.getvalue()
    return runs_of


@pytest.fixture
def run(script, data_dir, monkeypatch, elsewhere):
    """run(flags): a small run of the script. HalfCheetah's episodes are short, and no plot is drawn, since
    that takes longer than all the rest."""
    monkeypatch.setattr(runs, "save_figure", lambda _, path, *__: path.touch())
    monkeypatch.setattr(HalfCheetah, "horizon", 25)
    monkeypatch.setitem(HORIZONS, "HalfCheetah-2x3", 25)
    return partial(script.train, data_dir)
