"""What a round of the scripts costs: python -m experiments.benchmark writes results/benchmark.md, in minutes.

A round is 5 times the target (equations 1 to 4) and the critics' step (5), then the actors' step (6); each is
timed by itself, on random data of the scripts' shapes. Letters as in the scripts.
"""

import itertools
import math
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch

import spacql
import spacql_continuous
from utils.files import TOP, atomic, current_commit, parse, run_script, say

PARTS = {"target": spacql.CRITIC_UPDATES, "critics": spacql.CRITIC_UPDATES, "actors": 1}  # times in a round
DEFAULT = dict(seeds=1, critics=10, agents=3, batch=256, penalty_agents=1)
CASES = [{}, dict(batch=1024), dict(batch=1024, penalty_agents=3)]  # the last is the paper's size
CASES += [dict(critics=2), dict(critics=5), dict(critics=20), dict(agents=5), dict(agents=10)]
CASES += [dict(seeds=2), dict(seeds=5), dict(seeds=10), dict(batch=4096)]
REPETITIONS = 50
ALPHA, RATE, GAMMA, HIDDEN, ENTROPY_COEF = 0.5, 0.01, 0.95, 64, 0.1
REPORT = """# Benchmark

Written by `python -m experiments.benchmark`: {facts}.
Networks of 64 units; by default ten critics, three agents, one seed, batch 256, one agent in the penalty.
ms of a round, the fastest of several, and the shares of its parts; *exponent*: of the case's time over the
default's, as a power of what differs.

{table}
"""


@dataclass(frozen=True)
class Args:
    """Measure the scripts' speed."""

    out: Path = TOP / "results" / "benchmark.md"  # the report


class Steps:
    """The script's steps on a batch of random transitions, of which the next ones are the same."""

    def __init__(self, script, seeds, critics, agents, batch, penalty_agents):
        self.script, self.sizes = script, torch.arange(1, agents + 1)
        self.args = SimpleNamespace(penalty="cfcql", penalty_agents=penalty_agents)
        self.generators = [torch.Generator().manual_seed(s) for s in range(seeds)]
        dim, obs_dim = 5 if script is spacql else 2, 6 * agents  # as on simple_spread
        self.obs, self.rewards = torch.randn(seeds, batch, agents, obs_dim), torch.randn(seeds, batch)
        self.actions, self.state = 2 * torch.rand(seeds, batch, agents, dim) - 1, self.obs.flatten(2)
        if script is spacql:
            self.actions = script.one_hot(self.actions.argmax(-1))
        critic_sizes = (agents * (obs_dim + dim), HIDDEN, HIDDEN, 1)
        self.critic = script.init_networks(self.generators, critics, critic_sizes)
        self.actor = script.init_networks(self.generators, agents, (obs_dim, HIDDEN, HIDDEN, dim))
        self.target_critic, self.target_actor = ([p + 0.01 for p in x] for x in (self.critic, self.actor))
        self.adams = {}
        for params in (self.critic, self.actor):
            self.adams[id(params)] = torch.optim.Adam([p.requires_grad_() for p in params], RATE, fused=True)

    @torch.no_grad()
    def target(self):
        """Equations (1) to (4): Y [S, B]."""
        script = self.script
        sampled = script.sample_policy(self.target_actor, self.obs, len(self.sizes), self.generators)
        order = script.per_seed(torch.rand, self.generators, sampled.shape[1:4])
        replaced = script.partial_replacement(self.actions, sampled, order, self.sizes)
        q_target = script.critic_values(self.target_critic, self.state, replaced)
        u = script.uncertainty(script.critic_values(self.critic, self.state, replaced))
        return script.spacql_target(self.rewards, q_target, script.replacement_weights(u), GAMMA)

    def critics(self, y):
        """A step down equation (5)."""
        script, policies = self.script, [] if self.script is spacql else [[]]
        inputs = (self.args, self.actions, *policies, self.generators)
        candidates, log_weights = script.penalty_candidates(*inputs)
        joint = torch.cat([self.actions.unsqueeze(2), candidates.flatten(2, 3)], dim=2)
        q = script.critic_values(self.critic, self.state, joint)
        q_data, q_candidates = q[..., 0], q[..., 1:].unflatten(-1, log_weights.shape[2:])
        loss = script.critic_loss(q_data, y, script.cql_penalty(q_candidates, log_weights, q_data), ALPHA)
        self.descend(loss, self.critic)

    def actors(self):
        """A step down equation (6)."""
        script, outputs = self.script, self.script.actor_outputs(self.actor, self.obs)  # [S, B, N, A]
        everyone = (self.sizes - 1).expand(*outputs.shape[:3])
        to = torch.eye(outputs.shape[3]) if script is spacql else outputs.tanh().unsqueeze(3)
        joint = script.counterfactuals(self.actions, everyone, to).flatten(2, 3)
        q = script.critic_values([p.detach() for p in self.critic], self.state, joint).mean(1)
        q = q.view_as(outputs) if script is spacql else q
        loss = script.actor_loss(outputs, q, self.actions, 0.0, ENTROPY_COEF)
        self.descend(loss, self.actor)

    def descend(self, loss, params):
        """A clipped step of stacked networks."""
        self.adams[id(params)].zero_grad()
        loss.sum().backward()
        self.script.clip_gradients(params)
        self.adams[id(params)].step()


def measure(steps):
    """{part: ms in a round, by the fastest run}."""
    y, found = steps.target(), {}
    calls = dict(target=steps.target, critics=lambda: steps.critics(y), actors=steps.actors)
    for part, call in calls.items():
        seconds = []
        for _ in range(REPETITIONS):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        found[part] = 1000 * PARTS[part] * min(seconds)
    return found


def main(argv=None):
    """Measure every script and case, and write the report."""
    args = parse(Args, argv, description="\n".join(__doc__.splitlines()[:1]))
    measure(Steps(spacql, **DEFAULT))  # a process is slow at first
    rows, default = [], {}
    for script, sizes in itertools.product((spacql, spacql_continuous), CASES):
        steps = Steps(script, **(DEFAULT | sizes))
        own = measure(steps)
        total = sum(own.values())
        default.setdefault(script, total)
        row = dict(script=script.SCRIPT, case=", ".join(f"{k} {v}" for k, v in sizes.items()) or "default")
        row |= dict(ms=f"{total:.4g}") | {part: f"{ms / total:.0%}" for part, ms in own.items()}
        if len(sizes) == 1:
            ((axis, value),) = sizes.items()
            row["exponent"] = f"{math.log(total / default[script]) / math.log(value / DEFAULT[axis]):.2f}"
        rows.append(row)
        say(f"{row['script']}, {row['case']}: {row['ms']} ms")
    table = pd.DataFrame(rows).fillna("").to_markdown(index=False, disable_numparse=True)
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    facts = f"{platform.machine()}, {threads}, torch {torch.__version__}, commit {current_commit()}"
    with atomic(args.out) as partial_path:
        partial_path.write_text(REPORT.format(facts=facts, table=table))


if __name__ == "__main__":
    run_script("experiments.benchmark", main)
