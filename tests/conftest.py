"""What the tests of both training scripts run on. They read the script and its settings off the module of the test:
SCRIPT, the script's module; SMALL, the flags of a tiny run; NAME, what its folder's name begins with.
"""

import functools

import pytest

import utils.runs as runs

pytest.register_assert_rewrite("common")  # so that failed assertions there show their values, as those of tests do

from common import load  # noqa: E402


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The test runs in an empty folder, so that nothing is written by default into another."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Where the module's simulated datasets are kept."""
    return tmp_path_factory.mktemp("simulated")


@pytest.fixture
def run(request, data_dir, monkeypatch):
    """run(flags): train in this process, run folders under ./runs; later flags win over SMALL. No plot is drawn, since
    that takes longer than all the rest."""
    monkeypatch.setattr(runs, "plot_history", lambda path, *_: path.touch())
    script, small = request.module.SCRIPT, request.module.SMALL
    return lambda flags="": script.main([*small, "--data-dir", str(data_dir), *flags.split()])


@pytest.fixture(scope="module")
def finished(request, data_dir, tmp_path_factory):
    """A finished run of two seeds: its folder and its summary. Tests must leave it as it is."""
    module, out = request.module, tmp_path_factory.mktemp("finished")
    flags = ["--data-dir", str(data_dir), "--out", str(out), "--num-seeds", "2"]
    summary = module.SCRIPT.main([*module.SMALL, *flags])
    return out / f"{module.NAME}2", summary


@pytest.fixture(scope="module")
def whole(request, data_dir, tmp_path_factory):
    """whole(flags): the checkpoint of a run of 8 rounds that nothing interrupted."""
    module = request.module

    @functools.cache
    def train(flags=""):
        out = tmp_path_factory.mktemp("whole")
        places = ["--data-dir", str(data_dir), "--out", str(out), "--name", "whole"]
        module.SCRIPT.main([*module.SMALL, *flags.split(), *places, "--rounds", "8"])
        return load(out / "whole")

    return train
