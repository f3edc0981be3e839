"""What a round of the scripts costs: python -m experiments.benchmark writes results/benchmark.md, in minutes.

The scripts themselves run, on random data of simple_spread; a case's time is that from one evaluation to the
next, the fastest of several. An evaluation here is one episode.
"""

import contextlib
import io
import itertools
import math
import os
import platform
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import spacql
import spacql_continuous
from data.datasets import Dataset, write_dataset
from envs import make_env
from envs.shipped import rollout
from utils.files import TOP, atomic, current_commit, run_script, say

DEFAULT = dict(num_seeds=1, num_critics=10, agents=3, batch_size=256, penalty_agents=1)
CASES = [{}, dict(batch_size=1024), dict(batch_size=1024, penalty_agents=3)]  # the last is the paper's size
CASES += [dict(num_critics=2), dict(num_critics=5), dict(num_critics=20), dict(agents=5), dict(agents=10)]
CASES += [dict(num_seeds=2), dict(num_seeds=5), dict(num_seeds=10), dict(batch_size=4096)]
EVERY, TIMES = 10, 4  # rounds from one evaluation to the next, and how many of these
EPISODES = 400  # of data
OUT = TOP / "results/benchmark.md"
REPORT = """# Benchmark

Written by `python -m experiments.benchmark`: {facts}.
Networks of 64 units; by default ten critics, three agents, one seed, batch 256, one agent in the penalty.
ms of a round, the fastest of several; *exponent*: of the case's time over the default's, as a power of what
differs.

{table}
"""


def measure(script, folder, agents, **sizes):
    """ms of a round of these sizes, on random play of so many agents."""
    kind, path = "discrete" if script is spacql else "continuous", Path(folder) / "random.h5"
    env = make_env("simple_spread", EPISODES, agents, seed=0, action_kind=kind)
    facts = dict(env_id="simple_spread", quality="random", action_kind=kind)
    facts |= dict(random_score=0.0, expert_score=1.0)
    write_dataset(path, Dataset(**rollout(env, None, torch.Generator().manual_seed(0)), facts=facts))
    sizes |= dict(dataset=path, rounds=EVERY * TIMES, eval_every=EVERY, eval_episodes=1)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        seconds = script.main([*words, "--device=cpu", f"--out={folder}"])["eval_seconds"]
    return 1000 * float(np.diff(seconds).min()) / EVERY


def main():
    """Measure every script and case, and write the report."""
    rows, default = [], {}
    for script, sizes in itertools.product((spacql, spacql_continuous), CASES):
        with tempfile.TemporaryDirectory() as folder:
            ms = measure(script, folder, **(DEFAULT | sizes))
        default.setdefault(script, ms)
        name = ", ".join(f"{k} {v}" for k, v in sizes.items()) or "default"
        row = dict(script=script.SCRIPT, case=name, ms=f"{ms:.4g}")
        if len(sizes) == 1:
            ((axis, value),) = sizes.items()
            row["exponent"] = f"{math.log(ms / default[script]) / math.log(value / DEFAULT[axis]):.2f}"
        rows.append(row)
        say(f"{script.SCRIPT}, {name}: {row['ms']} ms")
    table = pd.DataFrame(rows).fillna("").to_markdown(index=False, disable_numparse=True)
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    facts = f"{platform.machine()}, {threads}, torch {torch.__version__}, commit {current_commit()}"
    with atomic(OUT) as partial:
        partial.write_text(REPORT.format(facts=facts, table=table))


if __name__ == "__main__":
    run_script("experiments.benchmark", main)
