"""What a round of the scripts costs: python -m experiments.benchmark writes results/benchmark.md, in minutes.

The scripts themselves run, on random data of simple_spread; a round's time is that from one evaluation to the
next, the fastest of several. What a round asks of a device is counted; after how many rounds a published
score is reached is read from the tables of results.
"""

import contextlib
import io
import itertools
import os
import platform
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import spacql
import spacql_continuous
from data.datasets import MEASURED, Dataset, write_dataset
from envs import make_env
from envs.shipped import rollout
from experiments import original_recipe
from experiments.plan import FLAGS
from experiments.report import CURVES_CSV, PUBLISHED, markdown, read_csv
from utils.files import TOP, atomic, current_commit, run_script, say

SCRIPTS = (spacql, spacql_continuous)
DEFAULT = dict(num_seeds=1, num_critics=10, agents=3, batch_size=256, penalty_agents=1)
CASES = [{}, dict(batch_size=1024), dict(batch_size=1024, penalty_agents=3)]  # the last is the paper's size
CASES += [dict(num_critics=2), dict(num_critics=5), dict(num_critics=20), dict(agents=5), dict(agents=10)]
CASES += [dict(num_seeds=2), dict(num_seeds=5), dict(num_seeds=10), dict(batch_size=4096)]
EVERY, TIMES = 10, 4  # rounds from one evaluation to the next, and how many of these
CALL_US, GB_PER_MS, GFLOP_PER_MS = 5, 3.35, 67
TIMED = [  # to the published scores: script, method, batch
    *((original_recipe, f"{backup}-original", 1024) for backup in ("joint", "icql-qs", "spacql")),
    *((spacql_continuous, *pair) for pair in (("icql-qs-2", 1024), ("icql-qs-2", 256), ("spacql", 256))),
]
EPISODES = 400  # of data
OUT = TOP / "results/benchmark.md"
REPORT = f"""# Benchmark

Written by `python -m experiments.benchmark`: {{facts}}.
ms of a round, the fastest of several. Networks have 64 units; by default ten critics, three agents, one seed,
batch 256, one agent in the penalty.

{{rounds}}

## What a round asks of a device

Counted: calls of torch that compute (views left out), what they read and write, and the FLOPs of matrix
products. Predicted from these, as no card was at hand: {CALL_US} us a call, and an H100 that moves
{GB_PER_MS} GB and multiplies {GFLOP_PER_MS} GFLOP (float32) in a ms.

{{demands}}

## Seconds to the published score

Rounds after which the mean of the seeds first reached SPaCQL's published score on random data
([csv/curves.csv](csv/curves.csv)), times the ms of a round here: one core, one seed, with 10 episodes of
evaluation a round, as there.

{{reached}}
"""


class Demands(TorchDispatchMode):
    """Counts calls that compute, the bytes that these read and write, and the FLOPs of matrix products."""

    calls = bytes = flops = 0

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = call(*args, **kwargs)
        if not call.is_view:
            self.calls += 1
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
            self.bytes += sum(x.nbytes for x in tensors)
        if call.overloadpacket in flop_registry:
            self.flops += flop_registry[call.overloadpacket](*args, **kwargs, out_val=result)
        return result


def train(script, flags="", agents=3, **sizes):
    """Train on random play of so many agents; returns the seconds to each evaluation."""
    kind = "discrete" if script is spacql else "continuous"
    env = make_env("simple_spread", EPISODES, agents, seed=0, action_kind=kind)
    facts = dict(env_id="simple_spread", quality="random", action_kind=kind)
    facts |= dict(random_score=0.0, expert_score=1.0) | dict.fromkeys(MEASURED, 0.0)
    dataset = Dataset(**rollout(env, None, torch.Generator().manual_seed(0)), facts=facts)
    with tempfile.TemporaryDirectory() as folder:
        sizes |= dict(dataset=f"{folder}/random.h5", out=folder, env_id="simple_spread", device="cpu")
        write_dataset(Path(sizes["dataset"]), dataset)
        words = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return script.main([*flags.split(), *words])["eval_seconds"]


def round_ms(script, flags="", eval_episodes=1, **sizes):
    """ms of a round."""
    sizes |= dict(rounds=EVERY * TIMES, eval_every=EVERY, eval_episodes=eval_episodes)
    seconds = train(script, flags, **sizes)
    return 1000 * min(after - before for before, after in itertools.pairwise(seconds)) / EVERY


def demands(script, num_seeds):
    """What a round asks of a device, and what it takes on a card."""
    found = []
    for rounds in (2, 3):  # which differ by a round alone
        at_once = mock.patch.object(script, "CACHE_NUMBERS", sys.maxsize)  # as on a card
        with at_once, Demands() as asked:
            train(script, rounds=rounds, eval_episodes=1, **(DEFAULT | dict(num_seeds=num_seeds)))
        found.append((asked.calls, asked.bytes / 1e9, asked.flops / 1e9))
    calls, gigabytes, gigaflops = (after - before for before, after in zip(*found, strict=True))
    row = dict(calls=calls, GB=gigabytes, GFLOP=gigaflops)
    row |= {"ms of calls": calls * CALL_US / 1000, "of memory": gigabytes / GB_PER_MS}
    row |= {"of products": gigaflops / GFLOP_PER_MS}
    texts = {name: f"{number:.4g}" for name, number in row.items()}
    return dict(script=script.SCRIPT, seeds=str(num_seeds), **texts)


def scaling():
    """The ms of a round, by script and case."""
    rows = []
    for script, sizes in itertools.product(SCRIPTS, CASES):
        ms = round_ms(script, **(DEFAULT | sizes))
        name = ", ".join(f"{k} {v}" for k, v in sizes.items()) or "default"
        rows.append(dict(script=script.SCRIPT, case=name, ms=f"{ms:.4g}"))
        say(f"{script.SCRIPT}, {name}: {ms:.4g} ms")
    return rows


def reached(curves):
    """Rounds and seconds of one core to SPaCQL's published scores on random data."""
    curves = curves.query("dataset == 'random' and grid != 'discrete' and rounds <= 2000")  # forces
    curves = curves.groupby(["method", "batch_size", "env_id"])
    rows = []
    for script, method, batch_size in TIMED:
        ms = round_ms(script, FLAGS[method], 10 * EVERY, batch_size=batch_size)
        row = dict(script=script.SCRIPT, method=method, batch=str(batch_size), ms=f"{ms:.0f}")
        for place, of_task in curves:
            if place[:2] == (method, batch_size):
                published = float(PUBLISHED[place[2], "random"].split()[1])
                above = of_task.groupby("round")["score"].mean() >= published
                first = above.idxmax()
                text = f"round {first}, {first * ms / 1000:.0f} s" if above.any() else "not reached"
                row[f"{place[2]} ({published})"] = text
        rows.append(row)
    return rows


def main():
    """Measure, and write the report."""
    parts = dict(rounds=scaling(), demands=[demands(*case) for case in itertools.product(SCRIPTS, (1, 20))])
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    facts = f"{platform.machine()}, {threads}, torch {torch.__version__}, commit {current_commit()}"
    torch.set_num_threads(1)
    parts["reached"] = reached(read_csv(TOP / "results" / CURVES_CSV))
    texts = {name: markdown(rows) for name, rows in parts.items()}
    with atomic(OUT) as partial:
        partial.write_text(REPORT.format(facts=facts, **texts))


if __name__ == "__main__":
    run_script("experiments.benchmark", main)
