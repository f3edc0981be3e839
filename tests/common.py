"""What tests of several areas share: references, tolerances, and the two training scripts behind one face."""

import itertools
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import keystr, tree_flatten_with_path

import spacql
import spacql_continuous
from utils.errors import InputError

ROOT = Path(__file__).parent.parent
repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=25)
SEEDS, SMALL = st.integers(0, 10**6), st.integers(1, 3)
SIGMAS = 5  # tolerance of every statistical comparison; all of them have fixed seeds


# ------ mutants: functions that a check must reject


def rejects(check, *args):
    """The check must fail on these arguments, by an assertion and not by a crash."""
    with pytest.raises(AssertionError):
        check(*args)


# ------ numbers


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


def evenly(outcomes, cells):
    """Each of `cells` outcomes came up equally often, up to chance; outcomes: a tensor of whole numbers."""
    counts, total = outcomes.unique(return_counts=True)[1], outcomes.numel()
    spread = SIGMAS * math.sqrt(total * (1 / cells) * (1 - 1 / cells))
    assert len(counts) == cells and (counts - total / cells).abs().max() <= spread


def indices(*shape):
    """All index tuples of an array of this shape."""
    return itertools.product(*(range(n) for n in shape))


# ------ files


def tree(folder):
    """What is under a folder: path, size and time of writing of everything."""
    found = [(path, path.lstat()) for path in Path(folder).rglob("*")]
    return sorted((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found)


def one_line(call):
    """The message of the InputError that `call` must raise; it must be a single readable line."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert message == " ".join(message.split()) and message.isprintable()
    assert 10 < len(message) < 700, repr(message)
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


# ------ runs


def load(folder):
    """A run's checkpoint."""
    return torch.load(Path(folder) / "checkpoint.pt", weights_only=True)


def differences(first, second):
    """Places where two checkpoints differ in any bit. Settings and seconds may: one run may be resumed."""
    leaves = [tree_flatten_with_path(saved)[0] for saved in (first, second)]
    first, second = ({keystr(path): leaf for path, leaf in found} for found in leaves)
    assert len(first) > 50 and any("exp_avg_sq" in k for k in first) and any("generators" in k for k in first)
    same = {k for k in first.keys() & second.keys() if identical(first[k], second[k])}
    found = sorted((first.keys() | second.keys()) - same)
    return [place for place in found if not place.startswith(("['args']", "['history']['seconds']"))]


def identical(first, second):
    """Whether two leaves are the same, tensors bit by bit."""
    tensors = isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
    return torch.equal(first, second) if tensors else type(first) is type(second) and first == second


# ------ the two training scripts


@dataclass(frozen=True)
class Script:
    """What the tests need to know of a training script; where the two differ, they differ here."""

    module: ModuleType
    kind: str  # of action
    dim: int  # numbers of an action on the particle worlds
    extra: str  # the flag of the last weight in the actors' loss
    world: str  # a task that only this script has, and flags for it
    world_flags: str
    small = (
        "--dataset-size 2500 --hidden 16 --num-critics 3 --batch-size 32 --rounds 4 --eval-every 2"
        " --eval-episodes 8 --device cpu"
    ).split()

    def __str__(self):
        return self.kind

    @property
    def name(self):
        return f"{self.module.__name__}.py"

    def train(self, data_dir, flags=""):
        """A small run in this process, in ./runs; later flags win."""
        return self.module.main([*self.small, "--data-dir", str(data_dir), *flags.split()])

    def edited(self, old, new):
        """The script with another text in one place."""
        source = Path(self.module.__file__).read_text()
        assert source.count(old) == 1, old
        module = ModuleType(self.module.__name__)
        exec(compile(source.replace(old, new), self.module.__file__, "exec"), module.__dict__)
        return replace(self, module=module)

    def actions(self, seed, *shape):
        """Random actions [..., A] as they are inside the script: one-hot, or forces in [-1, 1]."""
        if self.kind == "continuous":
            return normal(seed, *shape, self.dim).tanh()
        return torch.eye(self.dim).double()[torch.randint(self.dim, shape, generator=generator(seed))]

    def dataset(self, seed, states):
        """Four episodes of three steps of two agents: observations [4, 4, 2, 5] and states [4, 4, 7] or None,
        of different scales, some numbers constant."""
        widths, means = torch.tensor([1, 30, 0.01, 1, 1]), torch.tensor([0, 7, 1, 0, 0])
        observations = normal(seed, 4, 4, 2, 5) * widths + means
        observations[:, :, 0, 3], observations[:, :, 1, 4] = 1e4 / 3, 0.0
        state = normal(seed + 1, 4, 4, 7).float() * torch.logspace(-2, 2, 7) + 3
        state[..., 2] = 1e4 / 3
        actions = self.actions(seed + 2, 4, 3, 2).float()
        actions = actions.argmax(-1) if self.kind == "discrete" else actions
        rewards = normal(seed + 3, 4, 3, 2).float()
        states = state if states else None
        found = dict(observations=observations.float(), actions=actions, rewards=rewards, states=states)
        return SimpleNamespace(**found)


SCRIPTS = (
    Script(spacql, "discrete", 5, "entropy_coef", "two_doors", "--dataset mix:share=0.5,noise=0.1"),
    Script(spacql_continuous, "continuous", 2, "output_l2", "HalfCheetah-2x3", "--eval-episodes 2"),
)
one_script = pytest.mark.parametrize("script", SCRIPTS[:1], ids=str)  # for tests of what the two share


def double_networks(script, seed, num_seeds, count, sizes):
    """The script's stacked networks in double precision, with gradients."""
    params = script.module.init_networks([generator(seed + s) for s in range(num_seeds)], count, sizes)
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


def gradients(network):
    """The gradients of a separate network, in the order and layout of the stacked ones."""
    pairs = [(layer.weight.grad.T, layer.bias.grad[None]) for layer in network[::2]]
    return list(itertools.chain(*pairs))
