"""What both training scripts refuse, in one line, with status 2 and before anything is written: bad flags,
foreign data, bad checkpoints, other settings for a run that goes on. And help, W&B, full disks.
"""

import pickle
import resource
import shutil
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
from common import Trap, differences, load, one_script, rejects, tree

from data.datasets import load_dataset
from data.export import write_prey
from envs.shipped import POLICY_DIR, load_policies
from utils import runs
from utils.errors import InputError
from utils.files import run_script

pytestmark = [pytest.mark.usefixtures("elsewhere"), pytest.mark.filterwarnings("error")]


def ended(script, argv):
    """The complaint of a script that ends with status 2: one line on stderr but for progress bars."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        run_script(script.name, partial(script.module.main, argv))
    bars = ("round/s", "s/round", "episode/s", "s/episode", ", mean score ")
    lines = [line for line in err.getvalue().splitlines() if line and not any(bar in line for bar in bars)]
    assert (stop.value.code, out.getvalue(), len(lines)) == (2, "", 1), lines
    assert lines[0].isprintable() and len(lines[0]) < 1000
    assert lines[0].startswith(f"{script.name}: error: ")
    return lines[0].removeprefix(f"{script.name}: error: ")


def refused(script, argv, *folders):
    """The complaint with which a script ends before anything is written."""
    before = [tree(folder) for folder in (".", *folders)]
    said = ended(script, argv)
    assert [tree(folder) for folder in (".", *folders)] == before
    return said


# ------ flags

TOO_LARGE = "99999999999999999999"
NOT_READ = "(truncated, damaged or foreign)"
BEYOND = "learning-rate nan,learning-rate 0.0,cql-alpha -0.1,clone-weight -0.1,gamma 0.0,gamma 1.5".split(",")
BAD_FLAGS = {
    "--env-id simple_spraed": "(choose from {tasks}); did you mean 'simple_spread'?",
    "--dataset mediun": "unknown dataset 'mediun' (choose from random, medium-replay, medium, expert);"
    " did you mean 'medium'?",
    "--dataset none.h5": "no dataset file none.h5",
    "--dataset damaged.h5": "cannot read damaged.h5",
    "--dataset mine.h5": "mine.h5 is data of simple_tag, not of simple_spread",
    "--backup icql": "unknown --backup 'icql' (choose from spacql, icql-qs, joint, uniform); did you mean",
    "--penalty cfcq": "unknown --penalty 'cfcq' (choose from cfcql, macql); did you mean 'cfcql'?",
    "--actor-others all": "unknown --actor-others 'all' (choose from logged, policy)",
    "--num-critic 3": "Unrecognized options: --num-critic, 3; did you mean --num-critics",
    "--rounds 1.5": "Error parsing --rounds: ",
    "--rounds 0": "--rounds must be at least 1, not 0",
    "--seed -1": "--seed must be at least 0, not -1",
    f"--data-seed {TOO_LARGE}": f"--data-seed {TOO_LARGE} is too large",
    "--dataset-size 24": "dataset size 24 is less than one episode of 25 transitions",
    "--num-seeds 1001": "--num-seeds 1001 is too large",
    f"--name {'x' * 201}": "name of 201 characters is too long: give --name",
    **{f"--{flag}": f"--{flag} is out of range" for flag in BEYOND},
    "--device quantum": "--device quantum cannot be used",
    "--device cuda:99": "--device cuda:99 cannot be used",
    "--device meta": "--device meta cannot be used",
    "--out file": "cannot write file/",
    "--data-dir file": "cannot write file/simple_spread",
    "--resume none": "no checkpoint none",
    "--resume .": "no checkpoint checkpoint.pt",
    "--resume damaged.h5": f"cannot read damaged.h5 as a checkpoint {NOT_READ}",
}
OF_KIND = {
    "discrete": {
        "--entropy-coef -1": "--entropy-coef -1.0 is out of range",
        "--output-l2 1": "Unrecognized options: --output-l2, 1",
        "--env-id HalfCheetah-2x3": "unknown --env-id 'HalfCheetah-2x3'",
        "--env-id two_doors": "two_doors has no medium data: choose random or mix:",
        "--dataset mix": "simple_spread has no teams to mix; two_doors has",
        "--env-id two_doors --dataset mix:share=2": "share must be a number from 0 to 1, not '2'",
        "--dataset other.h5": "holds continuous actions, not discrete ones; use spacql_continuous.py",
        "--resume {sister}": "is a run of spacql_continuous.py, not of spacql.py",
    },
    "continuous": {
        "--output-l2 -1": "--output-l2 -1.0 is out of range",
        "--entropy-coef 1": "Unrecognized options: --entropy-coef, 1",
        "--env-id HalfCheetah": "did you mean 'HalfCheetah-2x3'?",
        "--prey file": "--prey is for simple_tag and simple_world",
        "--env-id simple_tag --dataset folder --prey none.pt": "--prey: no file none.pt",
        "--env-id simple_tag --dataset random --prey damaged.h5": "cannot read damaged.h5 as the prey",
        "--env-id simple_tag --prey {prey}": "of medium data know another prey: python -m data.behaviour",
        "--env-id simple_tag --prey {prey} --policies {shipped}": "give them or --prey, not both",
        "--policies folder": "no policy file folder/simple_spread-continuous.npz",
        "--env-id simple_tag --dataset mediun": "did you mean 'medium'?",
        "--dataset folder": "folder",
        "--dataset other.h5": "holds discrete actions, not continuous ones; use spacql.py",
        "--resume {sister}": "is a run of spacql.py, not of spacql_continuous.py",
    },
}
RESUMED = {  # beside --resume; where the rounds may grow, this alone stands in the way
    "--rounds 6 --seed 1": "was made with --seed 7, not 1: only --rounds may grow",
    "--rounds 6 --num-seeds 3": "was made with --num-seeds 2, not 3",
    "--rounds 6 --dataset expert": "was made with --dataset medium, not expert",
    "--rounds 6 --backup joint": "was made with --backup spacql, not joint",
    "--rounds 6 --learning-rate 0.5": "was made with --learning-rate 0.01, not 0.5",
    "--rounds 6 --paper-size": "was made with --paper-size False, not True",
    "--rounds 6 --gamma 2": "--gamma 2.0 is out of range",
    "--rounds 6 --dataset ./same.h5": "these are not the data of the run: their mean, deviation or score",
    "--rounds 1": "was made with --rounds 4: they may only grow",
    "--rounds 4": "has done its 4 rounds: --rounds prolongs it",
}


def test_bad_flags_are_refused(script, finished, tmp_path_factory):
    trained, files = {kind: folder for kind, (folder, *_) in finished.items()}, {}
    for kind in ("discrete", "continuous"):
        folder = tmp_path_factory.mktemp(kind)
        load_dataset("simple_spread", "random", 100, 0, folder, kind)
        (files[kind],) = folder.iterdir()
    (sister,) = files.keys() - {script.kind}
    for name, kind in {"mine.h5": script.kind, "same.h5": script.kind, "other.h5": sister}.items():
        shutil.copy(files[kind], name)
    with h5py.File("mine.h5", "r+") as file:
        file.attrs["env_id"] = "simple_tag"
    Path("file").write_text("a regular file")
    Path("damaged.h5").write_bytes(b"\x89HDF\r\n\x1a\nand so on")
    Path("folder").mkdir()
    write_prey(Path("prey.pt"), load_policies("simple_tag", action_kind="continuous").prey)
    names = dict(sister=trained[sister], tasks=", ".join(script.module.TASKS))
    names |= dict(prey="prey.pt", shipped=POLICY_DIR)
    of_flags = BAD_FLAGS | OF_KIND[script.kind]
    cases = {(*script.small, *flags.split()): words for flags, words in of_flags.items()}
    cases |= {("--resume", str(trained[script.kind]), *flags.split()): RESUMED[flags] for flags in RESUMED}
    wrong = {}
    for flags, words in cases.items():
        said = refused(script, [flag.format(**names) for flag in flags], *trained.values())
        if words.format(**names) not in said:
            wrong[flags] = said
    assert wrong == {}


# ------ damaged checkpoints, which one function reads for both scripts


def changed(**values):
    """A checkpoint with some other entries, or without them where they are None."""
    return lambda saved: {k: v for k, v in (saved | values).items() if v is not None}


BAD_CHECKPOINTS = {  # bytes, the share of the file that is left, or what is saved; and the complaint
    "empty": (b"", NOT_READ),
    "most of it": (0.999, NOT_READ),
    "a pickle": (pickle.dumps(Trap("executed")), NOT_READ),
    "a torch file that executes code": (lambda _: Trap("executed"), NOT_READ),
    "an entry that executes code": (changed(facts=Trap("executed")), NOT_READ),
    "a foreign dict": (lambda _: {"model": torch.zeros(3), "epoch": 2}, NOT_READ),
    "a missing entry": (changed(actor_adam=None), NOT_READ),
    "arguments that are a text": (changed(args="[1, 2]"), NOT_READ),
    "arguments of another version": (changed(args=dict(colour="red")), "not those of this version"),
    "data of other rewards": (changed(facts=dict(data_score=1e3)), "these are not the data of the run"),
    "facts that say nothing": (changed(facts={}), "these are not the data of the run"),
    "networks that are no tensors": (changed(actor=[1, 2, 3, 4, 5, 6]), NOT_READ),
    "networks of other shapes": (changed(actor=[torch.zeros(2, 2)] * 6), "actor does not fit"),
    "no networks": (changed(actor=[]), "actor does not fit"),
    "an optimizer of nothing": (changed(critic_adam={}), "critic_adam does not fit"),
    "a scale of nothing": (changed(scale=[torch.zeros(1)] * 2), "scale does not fit"),
    "a round that is no number": (changed(round="many"), NOT_READ),
    "a generator that is none": (changed(generators=["state"] * 2), NOT_READ),
    "fewer seeds": (changed(generators=[torch.zeros(3)]), "holds 1 seeds, not 2"),
}


@one_script
@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_refused_and_not_executed(name, script, finished):
    damage, words = BAD_CHECKPOINTS[name]
    folder = finished[script.kind][0]
    content = (folder / "checkpoint.pt").read_bytes()
    if callable(damage):
        torch.save(damage(load(folder)), "bad.pt")
    else:
        cut = content[: int(damage * len(content))] if isinstance(damage, float) else damage
        Path("bad.pt").write_bytes(cut)
    assert words in refused(script, ["--resume", "bad.pt", "--rounds", "6"])
    assert not Path("executed").exists()


def check_flips(folder, count=50):
    """Of fifty copies with one wrong bit none is accepted, but where the bit is of no account: there the
    contents are the same, bit by bit."""
    content, whole = (folder / "checkpoint.pt").read_bytes(), load(folder)
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


def test_a_flipped_bit_is_noticed(finished, monkeypatch):
    check_flips(finished["discrete"][0])
    monkeypatch.setattr(runs.zipfile.ZipFile, "testzip", lambda _: None)
    rejects(check_flips, finished["discrete"][0])


# ------ Weights & Biases


def fake_wandb(monkeypatch, login=True):
    """A wandb module that talks and notes how it is started: returns the list of settings."""
    started = []
    fake = SimpleNamespace(login=lambda prompt: login, finish=lambda: print("bye"))
    fake.init = lambda **settings: started.append(settings) or print("hi")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return started


@one_script
def test_a_resumed_run_continues_its_wandb_run(script, run, monkeypatch, capfd):
    started = fake_wandb(monkeypatch)
    run("--track --rounds 1 --name one")
    run("--track --rounds 1 --name two")
    script.module.main("--resume runs/one --rounds 2".split())
    first, other, resumed = [settings["id"] for settings in started]
    assert first == resumed != other
    assert all(settings["resume"] == "allow" and settings["sync_tensorboard"] for settings in started)
    assert [settings["config"]["rounds"] for settings in started] == [1, 1, 2]
    assert [str(settings["dir"]) for settings in started] == ["runs/one", "runs/two", "runs/one"]
    assert len(capfd.readouterr().out.splitlines()) == 3


def test_wandb_is_asked_for_before_any_work(script, monkeypatch):
    fake_wandb(monkeypatch, login=False)
    argv = [*script.small, "--track", "--rounds", "1"]
    assert "--track needs a login: run `wandb login`, or set WANDB_MODE=offline" in refused(script, argv)
    monkeypatch.setenv("WANDB_MODE", "offline")
    runs.check_wandb()
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert refused(script, argv) == "--track needs the wandb package: pip install wandb"


# ------ disks that are full


@one_script
@pytest.mark.parametrize("strikes, size", [("args.json", 100), ("", 3000), ("checkpoint.pt", 50_000)])
def test_a_write_that_fails_is_told_in_one_line(strikes, size, script, data_dir, run, monkeypatch):
    """Wherever it strikes: the settings, the log (where no checkpoint is written before), the checkpoint. A
    limit on the size of files stands for a full disk, for which file systems would have to be mounted."""
    if not strikes:
        monkeypatch.setattr(runs, "save_checkpoint", lambda *_: None)
    run("--rounds 1")  # the data are there
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    flags = f"--data-dir {data_dir} --out full --rounds 80 --hidden 32"
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        said = ended(script, [*script.small, *flags.split()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in said and strikes in said
    assert not list(Path("full").rglob("*.partial*")) and not list(Path("full").rglob("checkpoint.pt"))


@one_script
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


# ------ help


def test_help_is_three_lines_and_the_flags(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", [script.name])
    with pytest.raises(SystemExit) as stop:
        script.module.main(["--help"])
    head, flags = capsys.readouterr().out.split(" options ")
    assert stop.value.code in (0, None) and max(map(len, flags.splitlines())) <= 80
    usage, *intro = [line for line in head.strip("╭─- \n").splitlines() if line.strip()]
    assert usage == f"usage: {script.name} [-h] [OPTIONS]" and len(intro) <= 3
    assert f"python {script.name} --env-id" in head
    text = "".join(c for c in flags if c not in "│╭╮╰╯─ \n")
    assert "TDtarget:w_kbyuncertainty" in text and "only--roundsmaygrow" in text
