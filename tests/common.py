"""What the tests of both training scripts share: references written as loops, and runs looked at from outside."""

import contextlib
import functools
import io
import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import spacql
from data.files import run_script

# ---------------------------------------------------------------------------------------------- equations

repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=25)
SEEDS, SMALL = st.integers(0, 10**6), st.integers(1, 3)
SIGMAS = 5  # tolerance of every statistical comparison; all of them have fixed seeds


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


def refused(script, main, argv):
    """The complaint with which a script must end: status 2, an empty stdout, one line on stderr but for progress
    bars and the line that describes the data."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        run_script(script, functools.partial(main, argv))
    assert (stop.value.code, out.getvalue()) == (2, "")
    lines = [line for line in err.getvalue().split("\n") if line and "\r" not in line and "mean score of" not in line]
    assert len(lines) == 1 and lines[0].isprintable() and len(lines[0]) < 1000, lines
    assert lines[0].startswith(f"{script}: error: ")
    return lines[0].removeprefix(f"{script}: error: ")
