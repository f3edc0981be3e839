"""Fixtures of the tests."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' networks are tiny
pytest.register_assert_rewrite("common")  # so that failed assertions there show their values too

from common import SCRIPTS  # noqa: E402

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


@pytest.fixture
def run(script, data_dir, monkeypatch, elsewhere):
    """run(flags): train in this process, run folders under ./runs; later flags win over script.small. No plot
    is drawn, since that takes longer than all the rest."""
    monkeypatch.setattr(runs, "plot_history", lambda path, *_: path.touch())
    return lambda flags="": script.module.main([*script.small, "--data-dir", str(data_dir), *flags.split()])
