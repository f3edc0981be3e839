"""What the tests of both training scripts share: references written as loops, runs looked at from outside, and checks
that hold for both (a `script` is its module); and what the tests of files share."""

import ast
import contextlib
import functools
import inspect
import io
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import spacql
import utils.runs as runs
import utils.stacked as stacked
from data.datasets import load_dataset
from utils.errors import InputError
from utils.files import run_script

ROOT = Path(__file__).parent.parent

# ---------------------------------------------------------------------------------------------- equations

repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=25)
SEEDS, SMALL = st.integers(0, 10**6), st.integers(1, 3)
SIGMAS = 5  # tolerance of every statistical comparison; all of them have fixed seeds
PARTS = st.sampled_from([1, 50, 10**9])  # one transition in each part of a batch, some, all


def mistakes_in(table):
    """mistakes(name): parametrise a test over the deliberate mistakes of a property, table[name]."""
    return lambda name: pytest.mark.parametrize("wrong", table[name].values(), ids=table[name].keys())


def rejects(check, *args):
    """The check must fail on these arguments, by an assertion and not by a crash."""
    with pytest.raises(AssertionError):
        check(*args)


def generator(seed):
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    """Standard normal numbers in double precision."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@contextlib.contextmanager
def in_parts_of(numbers):
    """Critics go through a batch in parts for each of which a layer puts out this many numbers."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(stacked, "PART_NUMBERS", numbers)
        yield


def close(actual, expected, tolerance=1e-10):
    """Equal up to rounding, in shape too."""
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def evenly(counts, total, cells):
    """Each of `cells` outcomes came up total / cells times, up to chance; counts are those that came up at all."""
    spread = SIGMAS * math.sqrt(total * (1 / cells) * (1 - 1 / cells))
    assert len(counts) == cells
    assert all(abs(count - total / cells) <= spread for count in counts)


def indices(*shape):
    """All index tuples of an array of this shape."""
    return itertools.product(*(range(n) for n in shape))


def check_replaces_exactly_k(replace, inputs, sizes, num, seed):
    """For each k in sizes, be they the same for all transitions or each one's own, the k agents first in order play
    their policy's whole action and the others the logged one. inputs: makes both, never alike, and the order."""
    logged, policy, order, ks = inputs(seed, 2, 4, sizes, num)
    own = ks[torch.randint(len(sizes), (2, 4, len(sizes)), generator=generator(seed))]
    for chosen in (ks, own):
        mixed = replace(logged, policy, order, chosen)
        assert mixed.shape == policy.shape
        for s, b, j in indices(2, 4, len(sizes)):
            k = int(chosen.expand(2, 4, -1)[s, b, j])
            first = sorted(range(num), key=lambda i, row=order[s, b, j]: float(row[i]))[:k]
            expected = [(policy[s, b, j, i] if i in first else logged[s, b, i]).tolist() for i in range(num)]
            assert mixed[s, b, j].tolist() == expected
            assert sum(a != d for a, d in zip(expected, logged[s, b].tolist(), strict=True)) == k


def double_networks(seed, num_seeds, count, sizes):
    """The project's stacked networks in double precision, with gradients."""
    params = spacql.init_networks([generator(seed + s) for s in range(num_seeds)], count, sizes)
    return [p.double().requires_grad_() for p in params]


def separate_network(params, s, m):
    """Network m of seed s by itself, from torch's own layers, with the stacked weights copied."""
    layers = []
    for w, b in zip(params[::2], params[1::2], strict=True):
        layer = nn.Linear(*w.shape[2:]).double()
        layer.weight.data.copy_(w.data[s, m].T)
        layer.bias.data.copy_(b.data[s, m, 0])
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def compare_gradients(params, s, m, network):
    """The stacked parameters' gradients at (s, m) are those of the separate network."""
    for (w, b), layer in zip(zip(params[::2], params[1::2], strict=True), network[::2], strict=True):
        close(w.grad[s, m], layer.weight.grad.T)
        close(b.grad[s, m, 0], layer.bias.grad)


# --------------------------------------------------------------------------------------------------- runs


def load(folder):
    """A run's checkpoint."""
    return torch.load(Path(folder) / "checkpoint.pt", weights_only=True)


def tree(folder):
    """What is under a folder: path, size and time of writing of everything."""
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in Path(folder).rglob("*"))


def leaves(value, path=""):
    """All tensors, numbers and texts of nested dicts and lists, by their place."""
    if isinstance(value, dict):
        return {k: v for key in value for k, v in leaves(value[key], f"{path}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, item in enumerate(value) for k, v in leaves(item, f"{path}/{i}").items()}
    return {path: value}


def differences(first, second):
    """Places where two checkpoints differ in any bit. The arguments may: one run was resumed, the other was not."""
    first, second = ({k: v for k, v in leaves(saved).items() if k != "/args"} for saved in (first, second))
    assert len(first) > 50 and any("exp_avg_sq" in k for k in first) and any("generators" in k for k in first)
    same = {k for k in first.keys() & second.keys() if identical(first[k], second[k])}
    return sorted((first.keys() | second.keys()) - same)


def identical(first, second):
    """Whether two leaves are the same, tensors bit by bit."""
    tensors = isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
    return torch.equal(first, second) if tensors else type(first) is type(second) and first == second


def without(summary, *keys):
    """The summary without its running time."""
    return {k: v for k, v in summary.items() if k not in ("wall_s", *keys)}


def points(folder, tag):
    """(step, value) of a TensorBoard curve, as TensorBoard shows it."""
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


class Stop(Exception):
    """The moment a run dies."""


def die_at(monkeypatch, module, name, call, after=False):
    """Let the call-th call of module.name raise Stop, before or after doing its work."""
    original, calls = getattr(module, name), []

    def dying(*args, **kwargs):
        calls.append(name)
        if len(calls) == call and not after:
            raise Stop
        result = original(*args, **kwargs)
        if len(calls) == call:
            raise Stop
        return result

    monkeypatch.setattr(module, name, dying)


def refused(script, argv):
    """The complaint with which a script must end: status 2, an empty stdout, one line on stderr but for progress
    bars and the line that describes the data."""
    out, err, name = io.StringIO(), io.StringIO(), f"{script.__name__}.py"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        run_script(name, functools.partial(script.main, argv))
    assert (stop.value.code, out.getvalue()) == (2, "")
    lines = [line for line in err.getvalue().split("\n") if line and "\r" not in line and "mean score of" not in line]
    assert len(lines) == 1 and lines[0].isprintable() and len(lines[0]) < 1000, lines
    assert lines[0].startswith(f"{name}: error: ")
    return lines[0].removeprefix(f"{name}: error: ")


def killed(command, folder):
    """Start the command, kill it once folder/checkpoint.pt has been (re)written; returns the rounds it had done."""
    path = folder / "checkpoint.pt"
    before = path.stat().st_mtime_ns if path.exists() else 0
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not path.exists() or path.stat().st_mtime_ns == before:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    said, _ = process.communicate()
    assert (process.returncode, said) == (-signal.SIGKILL, b"")
    return load(folder)["round"]


# ------------------------------------------------------------------------------ checks of both training scripts

KEYS = "env_id dataset backup seeds scores score_mean score_std best_mean k_eff weights wall_s device".split()
WEIGHTS = {"icql-qs": ([1, 0, 0], 1), "joint": ([0, 0, 1], 3), "uniform": ([1 / 3] * 3, 2)}  # and k_eff, by backup
# Products of stacked matrices may be summed in another order for another number of seeds, and Adam's first steps pass
# on such rounding at full size where a gradient is near 0. Measured after 4 rounds: at most 1e-6; the networks of two
# seeds differ by more than 0.1.
TOLERANCE = 2e-3


def check_stdout(script, flags, capfd):
    """A run of two seeds prints its summary, and nothing else; returns it."""
    summary = script.main([*flags, "--num-seeds", "2", "--seed", "7"])
    said = capfd.readouterr()
    (line,) = said.out.splitlines()
    assert json.loads(line) == summary and list(summary) == KEYS
    assert (summary["dataset"], summary["backup"], summary["device"]) == ("medium", "spacql", "cpu")
    assert summary["seeds"] == [7, 8] and len(summary["scores"]) == 2 and summary["wall_s"] > 0
    assert "100%" in said.err and "mean score of the data" in said.err and "arning" not in said.err
    return summary


def check_run_folder(script, finished, episodes, history, unit):
    """The folder of a finished run of two seeds on spread; returns the arguments and the arrays in it.

    episodes: how many there were in the end. history: names of what is noted. unit: (random, expert) scores.
    """
    folder, summary = finished
    names = sorted(path.name for path in folder.iterdir())
    assert names[:2] + names[3:] == ["args.json", "checkpoint.pt", "progress.png", "returns.npz"]
    assert names[2].startswith("events.out.tfevents.")
    args = json.loads((folder / "args.json").read_text())
    assert list(args) == [field.name for field in fields(script.Args)]
    assert (args["rounds"], args["num_seeds"], args["hidden"]) == (4, 2, 16)
    assert args["cql_alpha"] == script.CQL_ALPHA["simple_spread"]["medium"]

    with np.load(folder / "returns.npz", allow_pickle=False) as file:
        kept = dict(file)
    assert sorted(kept) == sorted(["returns", "args", "summary", *(f"history_{name}" for name in history)])
    assert json.loads(str(kept["args"])) == args and json.loads(str(kept["summary"])) == summary
    assert kept["returns"].shape == (2, episodes) and np.isfinite(kept["returns"]).all()
    scores = 100 * (kept["returns"].astype(float).mean(1) - unit[0]) / (unit[1] - unit[0])
    assert np.allclose(scores, summary["scores"], atol=0.006)  # printed with two decimals
    assert np.isclose(scores.mean(), summary["score_mean"], atol=0.006)
    assert np.isclose(scores.std(), summary["score_std"], atol=0.006) and scores.std() > 0.01
    assert kept["history_round"].tolist() == [2, 4]
    assert np.isclose(kept["history_scores"].max(0).mean(), summary["best_mean"], atol=0.006)
    assert kept["history_weights"].shape == kept["history_u"].shape == (2, 2, 3)
    assert np.allclose(kept["history_weights"].sum(-1), 1, atol=1e-5)
    assert all(np.isfinite(kept[f"history_{name}"]).all() for name in history)
    with Image.open(folder / "progress.png") as picture:
        assert picture.width > 500 and len(picture.convert("L").getcolors(256)) > 10
    return args, kept


def check_networks_move(saved, starts):
    """Four rounds have moved every network from its start, {name: parameters}, and the targets after it."""
    for name, start in starts.items():
        for online, slow, first in zip(saved[name], saved[f"target_{name}"], start, strict=True):
            assert ((online - first).abs().amax((2, 3)) > 1e-4).all(), "every network of every seed"
            assert ((slow - first).abs().amax((2, 3)) > 1e-6).all()
            assert (slow - first).norm() < 0.1 * (online - first).norm(), "a step of tau = 0.01 in each of 4 rounds"


def check_weights(summary, backup):
    """The weights of a run with three agents are the backup's."""
    assert summary["backup"] == backup and np.isfinite(summary["scores"]).all()
    weights, k_eff = summary["weights"], summary["k_eff"]
    if backup == "spacql":
        assert min(weights) > 0 and sum(weights) == pytest.approx(1, abs=1e-3) and weights != [1 / 3] * 3
        assert k_eff == pytest.approx(np.dot(weights, [1, 2, 3]), abs=1e-3) and 1 < k_eff < 3
    else:
        assert (weights, k_eff) == (pytest.approx(WEIGHTS[backup][0], abs=1e-4), pytest.approx(WEIGHTS[backup][1]))


def check_cloning(run):
    """--actor-loss bc: whatever the critics learn, the actors end the same."""
    for i, flags in enumerate(("", "--cql-alpha 0.1 --gamma 0.1 --clone-weight 2", "--actor-loss td3bc")):
        run(f"--actor-loss bc --rounds 2 --final-episodes 1 {flags} --name {i}")
    ends = [load(f"runs/{i}") for i in range(3)]
    assert not torch.equal(ends[0]["critic"][0], ends[1]["critic"][0])
    assert all(map(torch.equal, ends[0]["actor"], ends[1]["actor"]))
    assert not torch.equal(ends[0]["actor"][0], ends[2]["actor"][0])


def check_clone_weight(script, run, monkeypatch, action_kind):
    """The weight that reaches the actors' loss: as given with power 0, else times a power of the predictability."""
    loss, seen = script.actor_loss, []
    monkeypatch.setattr(script, "actor_loss", lambda *args: seen.append(args[4]) or loss(*args))
    flags = "--dataset expert --rounds 1 --critic-updates 1 --final-episodes 1 --dataset-size 5000 --data-dir clones"
    for given in ("", "--clone-weight 3 --clone-power 0", "--clone-weight 3", "--clone-weight 3 --clone-power 1"):
        run(f"{flags} {given} --name run{len(seen)}")
    share = load_dataset("simple_spread", "expert", 5000, 0, "clones", action_kind).facts["predictability"]
    assert 0.1 < share < 0.9
    assert seen == pytest.approx([0, 3, 3 * share**2, 3 * share])


def check_actor_others(script, run, monkeypatch):
    """--actor-others: alternatives are tried against the logged actions of others, or against the policies'.

    Returns the latter, and the actors' outputs at the same states.
    """
    counterfactuals, loss, played, seen = script.counterfactuals, script.actor_loss, [], []
    monkeypatch.setattr(script, "counterfactuals", lambda *args: played.append(args[0]) or counterfactuals(*args))
    monkeypatch.setattr(script, "actor_loss", lambda *args: seen.append(args) or loss(*args))
    lasts = []  # the actors' call is the last one of a round
    for others in script.CHOICES["actor_others"]:
        flags = "--penalty none --rounds 1 --critic-updates 1 --final-episodes 1"
        run(f"{flags} --actor-others {others} --name {others}")
        lasts.append(played[-1])
    (_, _, q_logged, logged, *_), (_, outputs, q_policy, same, *_) = seen
    assert torch.equal(lasts[0], logged) and torch.equal(logged, same)
    assert lasts[1].shape == logged.shape and not torch.equal(lasts[1], logged)
    assert not lasts[1].requires_grad and not torch.equal(q_logged, q_policy)
    return lasts[1], outputs


def check_flags_matter(run, flags, more=""):
    """A flag that is read and then ignored would leave the same networks."""
    ends = []
    for i, extra in enumerate(flags):
        run(f"--rounds 2 {more} {extra} --name {i}")
        saved = load(f"runs/{i}")
        ends.append(torch.cat([p.flatten() for k in ("target_critic", "actor") for p in saved[k]]).numpy().tobytes())
    assert len(set(ends)) == len(flags)


def check_all_sizes_drawn(run, backup, counts):
    """As many --k-samples as the backup has sizes, or more, are the default, bit by bit."""
    run(f"--backup {backup} --rounds 2 --name default")
    for count in counts:
        run(f"--backup {backup} --rounds 2 --k-samples {count} --name {count}")
        assert differences(load("runs/default"), load(f"runs/{count}")) == []


def check_sizes_of_a_run(run, script, num_updates):
    """With --k-samples 2 every update, seed and transition has two of the three sizes of its own, all three equally
    often; what is told of the weights is still told of all sizes."""
    replace, given = script.partial_replacement, []
    with pytest.MonkeyPatch.context() as monkeypatch:
        spy = lambda logged, policy, order, sizes: given.append(sizes) or replace(logged, policy, order, sizes)  # noqa: E731
        monkeypatch.setattr(script, "partial_replacement", spy)
        check_weights(run("--k-samples 2 --num-seeds 2"), "spacql")
    assert {sizes.tolist() == [1, 2, 3] for sizes in given if sizes.ndim == 1} == {True}, "the diagnosis has all"
    drawn = torch.cat([sizes for sizes in given if sizes.ndim > 1])  # [updates * S, B, 2]
    assert drawn.shape == (2 * num_updates, 32, 2) and len(drawn.unique(dim=0)) == len(drawn)
    assert (drawn[..., 0] < drawn[..., 1]).all()
    evenly(drawn.flatten().unique(return_counts=True)[1], drawn.numel(), 3)


def check_help(script, capsys, monkeypatch):
    """--help names the paper, and every setting with its text."""
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert stop.value.code in (0, None) and "arXiv 2511.07629" in said
    body = ast.parse(inspect.getsource(script.Args)).body[0].body
    texts = {
        field.target.id: text.value.value
        for field, text in zip(body[:-1], body[1:], strict=True)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    for field in fields(script.Args):
        assert f"--{field.name.replace('_', '-')}" in said, field.name
        assert len(texts[field.name]) > 5 and texts[field.name][:40] in said, field.name


def check_seeds_together(run, flags):
    """Seeds trained side by side end like seeds trained alone, and unlike one another."""
    together = run(f"{flags} --seed 3 --num-seeds 3 --name together")
    stacked = load("runs/together")
    for i in range(3):
        alone = run(f"{flags} --seed {3 + i} --name alone{i}")
        single = load(f"runs/alone{i}")
        assert alone["scores"][0] == pytest.approx(together["scores"][i], abs=0.5)
        assert torch.equal(single["generators"][0], stacked["generators"][i])
        for name in runs.NETWORKS:
            for a, b in zip(single[name], stacked[name], strict=True):
                assert torch.allclose(a[0], b[i], rtol=0, atol=TOLERANCE), name
        apart = max(
            float((a[0] - b[(i + 1) % 3]).abs().max()) for a, b in zip(single["actor"], stacked["actor"], strict=True)
        )
        assert apart > 50 * TOLERANCE, "another seed is another run"


def check_resumed(run, flags, death, saved):
    """A run of 8 rounds that dies (`death`: see die_at) and is resumed ends as `saved`, one that did not die."""
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Stop):
        die_at(monkeypatch, *death)
        run(f"{flags} --rounds 8")
    assert not list(Path("runs").rglob("*.partial*"))
    torch.rand(5)  # global random numbers must not matter
    summary = run(f"{flags} --rounds 8 --resume")
    (folder,) = Path("runs").iterdir()
    assert differences(load(folder), saved) == []
    assert summary["best_mean"] == round(float(np.max(saved["history"]["scores"], axis=0).mean()), 2)
    assert [step for step, _ in points(folder, "train/scores")] == [2, 4, 6, 8], "no point is lost or shown twice"
    assert (folder / "returns.npz").exists() and (folder / "progress.png").exists()


def check_killed(script, run, small, data_dir, folder):
    """A process that is killed twice and goes on in this one ends as if nothing had been."""
    flags = [*small, "--data-dir", str(data_dir), "--out", str(folder / "runs"), "--name", "killed"]
    command = [sys.executable, f"{script.__name__}.py", *flags, "--rounds", "1000000"]
    first = killed(command, folder / "runs" / "killed")
    second = killed([*command, "--resume"], folder / "runs" / "killed")
    assert second > first >= 2
    rounds = second + 4
    run(f"--name killed --resume --rounds {rounds}")
    run(f"--name whole --rounds {rounds}")
    assert differences(load(folder / "runs" / "killed"), load("runs/whole")) == []


def check_resumed_settings(script, finished, **new):
    """Only --checkpoint, --resume and what is new are given: the rest comes from the checkpoint. Returns the learning
    rates that Adam then has, by network."""
    shutil.copytree(finished[0], "copy")
    flags = [word for name, value in new.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    script.main(["--resume", "--checkpoint", "copy", "--rounds", "6", *flags])
    before, after = (json.loads(load(folder)["args"]) for folder in (finished[0], "copy"))
    changed = {k for k in before if before[k] != after[k]}
    assert changed == {"rounds", *new}, "not how the run was resumed"
    assert load("copy")["history"]["round"] == [2, 4, 6]
    return {k: [group["lr"] for group in load("copy")[f"{k}_optimizer"]["param_groups"]] for k in ("critic", "actor")}


def check_eval_only(script, small, given, finished, capfd, folder):
    """--eval-only with a checkpoint's file or folder, or with its flags, repeats the scores and writes nothing."""
    out, summary = finished
    flags = dict(
        file=["--checkpoint", str(out / "checkpoint.pt")],
        folder=["--checkpoint", str(out)],
        nothing=[*small, "--out", str(out.parent), "--num-seeds", "2"],
    )[given]
    before = tree(out.parent)
    again = script.main([*flags, "--eval-only", "--data-dir", str(folder / "none")])
    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line) == again and without(again) == without(summary)
    assert tree(out.parent) == before and tree(folder) == []


def check_video(run, env_id):
    """--video leaves a film."""
    run(f"--env-id {env_id} --rounds 1 --name film --num-seeds 2 --video")
    with Image.open("runs/film/greedy.gif") as film:
        assert film.format == "GIF" and film.n_frames > 20 and min(film.size) > 100


def check_learning(run, flags, bar):
    """Training with these flags passes the bar, from far below it."""
    before = run(f"{flags} --rounds 1 --learning-rate 1e-9 --name untrained")["score_mean"]
    assert before < 15
    after = run(flags)["score_mean"]
    assert after > before + 25 and after > bar, (before, after)


def check_refused(script, argv, words, *folders):
    """The script complains in these words and changes nothing in the folders."""
    before = [tree(folder) for folder in folders]
    assert words in refused(script, argv)
    assert [tree(folder) for folder in folders] == before


def check_process_refused(script, argv, words, folder):
    """The same of the script in a process of its own."""
    before = tree(folder)
    command = [sys.executable, ROOT / f"{script.__name__}.py", *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "") and line.startswith(f"{script.__name__}.py: error: {words}")
    assert tree(folder) == before


# -------------------------------------------------------------------------------------------------- files


def one_line(call):
    """The message of the InputError that `call` must raise; it must be a single readable line."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert message == " ".join(message.split()) and message.isprintable() and 10 < len(message) < 700, repr(message)
    return message


def put(name, change):
    """An edit of an HDF5 file: array `name` becomes change(array)."""

    def edit(file):
        new = change(file[name][()])
        del file[name]
        file[name] = new

    return edit


def poke(name, place, value):
    """An edit of an HDF5 file: one element becomes value."""

    def edit(file):
        file[name][place] = value

    return edit


def attribute(name, value):
    """An edit of an HDF5 file: set an attribute, or remove it where value is None."""

    def edit(file):
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value

    return edit


def swapped(array, dim):
    """Agents 0 and 1 exchanged along `dim`."""
    return array.index_select(dim, torch.tensor([1, 0, *range(2, array.shape[dim])]))


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)
