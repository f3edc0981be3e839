"""What both training scripts refuse, in one line, with status 2 and before anything is written: bad flags,
damaged and foreign checkpoints, other settings for a run that goes on. And help, W&B, full disks.
"""

import pickle
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from common import ROOT, SCRIPTS, Trap, differences, load, one_line, rejects, tree

from data.datasets import load_dataset
from utils import runs
from utils.errors import InputError
from utils.files import run_script

pytestmark = [pytest.mark.usefixtures("elsewhere"), pytest.mark.filterwarnings("error")]


def ended(script, argv):
    """Status, stdout, and the lines on stderr but for progress bars, of a script that ends by an exit."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        run_script(script.name, partial(script.module.main, argv))
    bars = ("round/s", "episode/s", "mean score of")
    return (
        stop.value.code,
        out.getvalue(),
        [x for x in err.getvalue().splitlines() if x and not any(b in x for b in bars)],
    )


def refused(script, argv, *folders):
    """The complaint with which a script ends: one line on stderr and no other, and nothing is written."""
    before = [tree(folder) for folder in (".", *folders)]
    status, out, lines = ended(script, argv)
    assert (status, out, len(lines)) == (2, "", 1), lines
    assert lines[0].isprintable() and len(lines[0]) < 1000
    assert lines[0].startswith(f"{script.name}: error: ")
    assert [tree(folder) for folder in (".", *folders)] == before
    return lines[0].removeprefix(f"{script.name}: error: ")


# ------ flags

TOO_LARGE = "99999999999999999999"
BAD_FLAGS = {
    "--env-id simple_spraed": "unknown --env-id 'simple_spraed' (choose from {}); did you mean 'simple_spre",
    "--dataset mediun": "unknown dataset 'mediun' (choose from random, medium-replay, medium, expert);"
    " did you mean 'medium'?",
    "--dataset none.h5": "no dataset file none.h5",
    "--dataset damaged.h5": "cannot read damaged.h5",
    "--backup icql": "unknown --backup 'icql' (choose from spacql, icql-qs, joint, uniform); did you mean",
    "--penalty cfcq": "unknown --penalty 'cfcq' (choose from cfcql, macql); did you mean 'cfcql'?",
    "--actor-others all": "unknown --actor-others 'all' (choose from logged, policy)",
    "--num-critic 3": "Unrecognized options: --num-critic, 3; did you mean --num-critics",
    "--clone-power 3": "Unrecognized options: --clone-power, 3",
    "--clone-weight high": "could not convert string to float: 'high'",
    "--rounds 1.5": "Error parsing --rounds: ",
    "--rounds": "Missing value for argument '--rounds'",
    "--seed -1": "--seed must be at least 0, not -1",
    f"--seed {TOO_LARGE}": f"--seed {TOO_LARGE} is too large",
    f"--data-seed {TOO_LARGE}": f"--data-seed {TOO_LARGE} is too large",
    f"--batch-size {TOO_LARGE}": f"--batch-size {TOO_LARGE} is too large",
    "--dataset-size 24": "dataset size 24 is less than one episode of 25 transitions",
    "--device quantum": "--device quantum cannot be used",
    "--device cuda:99": "--device cuda:99 cannot be used",
    "--device meta": "--device meta cannot be used",
    "--resume none": "no checkpoint none",
    "--resume .": "no checkpoint checkpoint.pt",
    "--resume damaged.h5": "cannot read damaged.h5 as a checkpoint",
    "--out file": "cannot write file/",
    "--out file/below/it": "cannot write file/below/it",
    "--data-dir file": "cannot write file/simple_spread",
}
LEAST_1 = "num-critics penalty-agents num-seeds rounds batch-size hidden eval-every eval-episodes".split()
BAD_FLAGS |= {f"--{flag} 0": f"--{flag} must be at least 1, not 0" for flag in LEAST_1}
RATES = "learning-rate gamma cql-alpha clone-weight".split()
BAD_FLAGS |= {f"--{flag} -0.1": f"--{flag} -0.1 is out of range" for flag in RATES}
BAD_FLAGS |= {f"--{flag} nan": f"--{flag} must be a finite number, not nan" for flag in RATES}
BAD_FLAGS |= {"--gamma 1.5": "--gamma 1.5 is out of range", "--gamma 0": "--gamma 0.0 is out of range"}
OF_KIND = {
    "discrete": {
        "--entropy-coef -1": "--entropy-coef -1.0 is out of range",
        "--output-l2 1": "Unrecognized options: --output-l2, 1",
        "--env-id HalfCheetah-2x3": "unknown --env-id 'HalfCheetah-2x3'",
        "--env-id two_doors": "two_doors has no medium data: choose random or mix:",
        "--dataset mix:share=2": "share",
        "--dataset other.h5": "holds continuous actions, not discrete ones; use spacql_continuous.py",
    },
    "continuous": {
        "--output-l2 -1": "--output-l2 -1.0 is out of range",
        "--entropy-coef 1": "Unrecognized options: --entropy-coef, 1",
        "--env-id HalfCheetah": "did you mean 'HalfCheetah-2x3'?",
        "--prey file": "--prey is for OMAR folders of simple_tag and simple_world",
        "--env-id simple_tag --dataset folder --prey none.pt": "--prey: no file none.pt",
        "--env-id simple_tag --dataset gone/medium": "no dataset gone/medium, and so no prey",
        "--dataset folder": "folder",
        "--dataset other.h5": "holds discrete actions, not continuous ones; use spacql.py",
    },
}


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    """Small datasets of either kind of action, by kind."""
    folders = {script.kind: tmp_path_factory.mktemp(script.kind) for script in SCRIPTS}
    for kind, folder in folders.items():
        load_dataset("simple_spread", "random", 100, 0, folder, kind)
    return {kind: next(folder.iterdir()) for kind, folder in folders.items()}


def test_bad_flags_are_refused(script, others):
    Path("file").write_text("a regular file")
    Path("damaged.h5").write_bytes(b"\x89HDF\r\n\x1a\nand so on")
    Path("folder").mkdir()
    shutil.copy(others["continuous" if script.kind == "discrete" else "discrete"], "other.h5")
    wrong = {}
    for flags, words in (BAD_FLAGS | OF_KIND[script.kind]).items():
        said = refused(script, [*script.small, *flags.split()])
        if words.format(", ".join(script.module.TASKS)) not in said:
            wrong[flags] = said
    assert wrong == {}


def test_foreign_data_are_refused(script, others):
    shutil.copy(others[script.kind], "mine.h5")
    with h5py.File("mine.h5", "r+") as file:
        file.attrs["env_id"] = "simple_tag"
    words = "mine.h5 is data of simple_tag, not of simple_spread"
    assert words in refused(script, [*script.small, "--dataset", "mine.h5"])


# ------ checkpoints


@pytest.fixture(scope="session")
def trained(script, data_dir, tmp_path_factory):
    """The folder of a finished run of two seeds. Tests must leave it as it is."""
    out = tmp_path_factory.mktemp("trained")
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return Path(script.train(data_dir, f"--num-seeds 2 --out {out}")["folder"])


def changed(**values):
    """An edit of a checkpoint that sets some of its entries, or removes them where they are None."""
    return lambda saved: torch.save({k: v for k, v in (saved | values).items() if v is not None}, "bad.pt")


BAD_CHECKPOINTS = {
    "empty": lambda saved: Path("bad.pt").write_bytes(b""),
    "text": lambda saved: Path("bad.pt").write_text("hello\nworld\n"),
    "random bytes": lambda saved: Path("bad.pt").write_bytes(np.random.default_rng(0).bytes(5000)),
    "a pickle": lambda saved: Path("bad.pt").write_bytes(pickle.dumps(Trap("executed"))),
    "a torch file that executes code": lambda saved: torch.save(Trap("executed"), "bad.pt"),
    "an entry that executes code": changed(facts=Trap("executed")),
    "a foreign dict": lambda saved: torch.save({"model": torch.zeros(3), "epoch": 2}, "bad.pt"),
    "a tensor": lambda saved: torch.save(torch.zeros(3), "bad.pt"),
    "a missing entry": changed(actor_adam=None),
    "arguments that are a text": changed(args="[1, 2]"),
    "networks that are no tensors": changed(actor=[1, 2, 3, 4, 5, 6]),
    "no history": changed(history=None),
    "a round that is no number": changed(round="many"),
    "a generator that is none": changed(generators=["state"] * 2),
}
BAD_STATES = {
    "networks of other shapes": changed(actor=[torch.zeros(2, 2)] * 6),
    "no networks": changed(actor=[]),
    "fewer seeds": lambda saved: changed(generators=saved["generators"][:1])(saved),
    "an optimizer of nothing": changed(critic_adam={}),
    "arguments of another version": lambda saved: changed(args=saved["args"] | dict(colour="red"))(saved),
    "a scale of nothing": changed(scale=[torch.zeros(1)] * 2),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS | BAD_STATES)
def test_a_bad_checkpoint_is_refused_and_not_executed(name, script, trained):
    (BAD_CHECKPOINTS | BAD_STATES)[name](load(trained))
    said = refused(script, ["--resume", "bad.pt", "--rounds", "6"])
    assert (
        name in BAD_STATES or "cannot read bad.pt as a checkpoint (truncated, damaged or foreign): " in said
    )
    assert not Path("executed").exists()


def test_the_trap_works():
    pickle.loads(pickle.dumps(Trap("executed")))
    assert Path("executed").exists()


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(share, trained):
    content = (trained / "checkpoint.pt").read_bytes()
    Path("bad.pt").write_bytes(content[: int(share * len(content))])
    assert "cannot read bad.pt as a checkpoint (truncated, damaged or foreign): " in one_line(
        lambda: runs.load_checkpoint("bad.pt")
    )


def check_flips(trained, count=100):
    """Of a hundred copies with one wrong bit none is accepted, but where the bit is of no account: there the
    contents are the same, bit by bit."""
    content, whole = (trained / "checkpoint.pt").read_bytes(), load(trained)
    passed = 0
    for place in np.random.default_rng(0).integers(8 * len(content), size=count):
        wrong = bytearray(content)
        wrong[place // 8] ^= 1 << (place % 8)
        Path("bad.pt").write_bytes(wrong)
        try:
            _, saved = runs.load_checkpoint("bad.pt")
        except InputError:
            continue
        passed += 1
        assert differences(saved, whole) == [] and saved["args"] == whole["args"]
    assert passed < count / 4, "most of a checkpoint is of account"


def test_a_flipped_bit_is_noticed(trained, monkeypatch):
    check_flips(trained)
    monkeypatch.setattr(runs.zipfile.ZipFile, "testzip", lambda _: None)
    rejects(check_flips, trained)


OTHERS = {
    "--seed 1": "was made with --seed 0, not 1: only --rounds may grow",
    "--num-seeds 3": "was made with --num-seeds 2, not 3: only --rounds may grow",
    "--dataset expert": "was made with --dataset medium, not expert",
    "--data-seed 3": "was made with --data-seed 0, not 3",
    "--dataset-size 5000": "was made with --dataset-size 2500, not 5000",
    "--env-id simple_tag": "was made with --env-id simple_spread, not simple_tag",
    "--backup joint": "was made with --backup spacql, not joint",
    "--clone-weight 1": "was made with --clone-weight 0.0, not 1.0",
    "--learning-rate 0.5": "was made with --learning-rate 0.01, not 0.5",
    "--hidden 32": "was made with --hidden 16, not 32",
    "--num-critics 1": "was made with --num-critics 3, not 1",
    "--paper-size": "was made with --paper-size False, not True",
    "--rounds 1": "was made with --rounds 4: they may only grow",
    "--backup icql": "unknown --backup 'icql'",
    "--gamma 2": "--gamma 2.0 is out of range",
    "": "has done its 4 rounds: nothing to train (--rounds prolongs it)",
}


def test_a_run_goes_on_by_its_own_settings_alone(script, trained):
    wrong = {}
    for flags, words in OTHERS.items():
        said = refused(
            script,
            ["--resume", str(trained), "--rounds", "6", *flags.split()][: None if flags else 2],
            trained,
        )
        if words not in said:
            wrong[flags] = said
    assert wrong == {}


def test_a_run_goes_on_with_its_own_data_alone(script, others, run):
    shutil.copy(others[script.kind], "mine.h5")
    run("--dataset ./mine.h5 --name mine")
    with h5py.File("mine.h5", "r+") as file:
        file["observations"][...] = 2 * file["observations"][()]
    said = refused(script, "--resume runs/mine --rounds 6".split())
    assert "these are not the data of the run: their mean or deviation differs" in said


def test_a_checkpoint_of_the_sister_is_named(script, trained):
    (sister,) = (each for each in SCRIPTS if each is not script)
    said = refused(sister, ["--resume", str(trained), "--rounds", "6"], trained)
    assert said.endswith(f"is a run of {script.name}, not of {sister.name}")


# ------ Weights & Biases


def fake_wandb(monkeypatch, login=True):
    """A wandb module that talks and notes how it is started: returns the list of settings."""
    started = []
    fake = SimpleNamespace(
        login=lambda prompt: login, init=lambda **settings: started.append(settings) or print("hi")
    )
    fake.finish = lambda: print("bye")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return started


def test_a_resumed_run_continues_its_wandb_run(script, run, monkeypatch, capfd):
    started = fake_wandb(monkeypatch)
    run("--track --rounds 2 --name one")
    run("--track --rounds 2 --name two")
    script.module.main("--resume runs/one --rounds 4".split())
    first, other, resumed = [settings["id"] for settings in started]
    assert first == resumed != other
    assert all(settings["resume"] == "allow" and settings["sync_tensorboard"] for settings in started)
    assert [settings["config"]["rounds"] for settings in started] == [2, 2, 4]
    assert [Path(settings["dir"]) for settings in started] == [
        Path("runs/one"),
        Path("runs/two"),
        Path("runs/one"),
    ]
    assert len(capfd.readouterr().out.splitlines()) == 3


def test_wandb_is_asked_for_before_any_work(script, monkeypatch):
    fake_wandb(monkeypatch, login=False)
    argv = [*script.small, "--track", "--rounds", "1"]
    assert "--track needs a login: run `wandb login`, or set WANDB_MODE=offline" in refused(script, argv)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert refused(script, argv) == "--track needs the wandb package: pip install wandb"


def test_wandb_offline_needs_no_login(run, monkeypatch):
    started = fake_wandb(monkeypatch, login=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run("--track --rounds 1")
    assert len(started) == 1


# ------ disks and pipes that are full or gone


def mounted(size):
    """Whether ./full is now a file system of that size."""
    Path("full").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "full"]
    return shutil.which("mount") and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("size", ["4k", "8k", "200k"])
def test_a_full_disk_is_told_in_one_line(size, script, data_dir, run, monkeypatch):
    """Wherever it strikes: the settings, the log (where no checkpoint is written before), the checkpoint."""
    if size == "8k":
        monkeypatch.setattr(runs, "save_checkpoint", lambda *_: None)
    if not mounted(size):
        pytest.skip("file systems cannot be mounted here")
    try:
        argv = [
            *script.small,
            "--data-dir",
            str(data_dir),
            "--out",
            "full/runs",
            "--rounds",
            "80",
            "--hidden",
            "32",
        ]
        status, out, lines = ended(script, argv)
        assert (status, out, len(lines)) == (2, "", 1), lines
        assert "No space left on device" in lines[0] and lines[0].startswith(f"{script.name}: error: ")
        assert not list(Path("full").rglob("*.partial*"))
    finally:
        subprocess.run(["umount", "-l", "full"], check=True)  # the log may still be open


def test_a_full_disk_leaves_the_last_checkpoint(script, run, monkeypatch):
    """The third checkpoint breaks off half-written; the second is still there: the run goes on from it."""
    write, calls = Path.write_bytes, []

    def breaking(path, content):
        calls.append(path)
        write(path, content if len(calls) < 3 else content[:1000])
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", breaking)
        with pytest.raises(InputError, match=r"cannot write runs.*checkpoint\.pt: No space left on device"):
            run("--rounds 8 --name full")
    assert load("runs/full")["round"] == 4 and not list(Path("runs").rglob("*.partial*"))
    script.module.main(["--resume", "runs/full"])
    run("--rounds 8 --name whole")
    assert differences(load("runs/full"), load("runs/whole")) == []


def test_readers_that_go_and_disks_that_are_full_get_no_traceback(data_dir):
    """--help into a head that reads one line, and a result into a full device."""
    script = SCRIPTS[0]
    command = f"{sys.executable} {ROOT / script.name}"
    flags = " ".join([*script.small, "--data-dir", str(data_dir), "--rounds", "1"])
    shell = f"({command} --help | head -n 1) & {command} {flags} > /dev/full; echo status $?; wait"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=120)
    assert sorted(done.stdout.splitlines()) == ["status 2", f"usage: {ROOT / script.name} [-h] [OPTIONS]"]
    told = [line for line in done.stderr.splitlines() if "error" in line or "Traceback" in line]
    assert told == ["spacql.py: error: No space left on device"]


# ------ help


@pytest.mark.parametrize("width", [40, 80, 200])
def test_help_is_three_lines_and_the_flags(width, script, capsys, monkeypatch):
    """Each with its text; nothing is cut off."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "argv", [script.name])
    with pytest.raises(SystemExit) as stop:
        script.module.main(["--help"])
    said = capsys.readouterr().out
    head, flags = said.split(" options ")
    assert stop.value.code in (0, None) and max(map(len, flags.splitlines())) <= width
    usage, *intro = [line for line in head.strip("╭─- \n").splitlines() if line.strip()]
    assert usage == f"usage: {script.name} [-h] [OPTIONS]" and len(intro) <= 3
    assert f"python {script.name} --env-id" in head
    text = "".join(c for c in flags if c not in "│╭╮╰╯─ \n")
    for name in script.module.Args.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
    assert "TDtarget:w_kbyuncertainty" in text and "only--roundsmaygrow" in text
