"""What a round of the scripts costs: python -m experiments.benchmark writes results/benchmark.md, in minutes.

A round is 5 times the target (equations 1 to 4) and the critics' step (5), then the actors' step (6); each is
timed by itself, on random data of the scripts' shapes: `Steps`. Beside those of spacql.py stand the same with
a network for each member and agent, and loops over members, sizes and agents: `Loops`, written as one would
from the paper. From the same parameters and random numbers both end with the same. Letters as in the scripts.
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
from torch import nn

import spacql
import spacql_continuous
from experiments.plan import TOP
from utils.files import atomic, current_commit, parse, run_script, say

PARTS = {"target": spacql.CRITIC_UPDATES, "critics": spacql.CRITIC_UPDATES, "actors": 1}  # times in a round
DEFAULT = dict(seeds=1, critics=10, agents=3, batch=256, penalty_agents=1)
CASES = [{}, dict(batch=1024), dict(batch=1024, penalty_agents=3)]  # the last is the paper's size
CASES += [dict(critics=2), dict(critics=5), dict(critics=20), dict(agents=5), dict(agents=10)]
CASES += [dict(seeds=2), dict(seeds=5), dict(seeds=10), dict(batch=4096)]
REPETITIONS = 20
ALPHA, RATE, GAMMA, HIDDEN, ENTROPY_COEF = 0.5, 0.01, 0.95, 64, 0.1
REPORT = """# Benchmark

Written by `python -m experiments.benchmark`: {facts}.
Networks of 64 units; by default ten critics, three agents, one seed, batch 256, one agent in the penalty.
ms of a round, the fastest of several, and the shares of its parts; *loops*: how many times as long plain
loops take; *exponent*: of the case's time over the default's, as a power of what differs.

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


class Loops:
    """The same steps of spacql.py with separate networks, which start as those of steps, of one seed."""

    def __init__(self, steps):
        self.steps, self.adams = steps, {}
        self.generator = torch.Generator().set_state(steps.generators[0].get_state())
        self.state, self.obs, self.actions = steps.state[0], steps.obs[0], steps.actions[0]
        for name in ("critic", "target_critic", "actor", "target_actor"):
            params = getattr(steps, name)
            networks = [separate(params, m) for m in range(params[0].shape[1])]
            setattr(self, name, networks)
            self.adams |= {network: torch.optim.Adam(network.parameters(), RATE) for network in networks}

    def values(self, critics, joint):
        """Q [E, B] of joint actions [B, N, A]."""
        inputs = torch.cat([self.state, joint.flatten(1)], dim=1)
        return torch.stack([critic(inputs)[:, 0] for critic in critics])

    @torch.no_grad()
    def target(self):
        batch, agents, dim = self.actions.shape
        noise = torch.rand((batch, agents, agents, 1), generator=self.generator)
        rank = torch.rand((batch, agents, agents), generator=self.generator).argsort(-1).argsort(-1)
        lowest, inverse = [], []
        for k in range(1, agents + 1):
            joint = self.actions.clone()
            for i, actor in enumerate(self.target_actor):
                cumulative = actor(self.obs[:, i]).softmax(-1).cumsum(-1)
                act = torch.eye(dim)[(noise[:, k - 1, i] >= cumulative[:, :-1]).sum(-1)]
                joint[:, i] = torch.where(rank[:, k - 1, i, None] < k, act, joint[:, i])
            lowest.append(self.values(self.target_critic, joint).amin(0))
            inverse.append(1 / self.values(self.critic, joint).std(0, correction=0))
        mixed = sum(w * q for w, q in zip(inverse, lowest, strict=True)) / sum(inverse)
        return self.steps.rewards[0] + GAMMA * mixed

    def critics(self, y):
        order = torch.rand(self.actions.shape[:2], generator=self.generator).argsort(-1)
        chosen = order[:, : self.steps.args.penalty_agents]  # [B, M]
        for critic in self.critic:
            (q,), penalty = self.values([critic], self.actions), 0.0
            for agent in chosen.T:
                candidates = []
                for action in torch.eye(self.actions.shape[2]):
                    joint = self.actions.clone()
                    joint[torch.arange(len(joint)), agent] = action
                    candidates.append(self.values([critic], joint))
                penalty = penalty + (torch.cat(candidates).logsumexp(0) - q) / chosen.shape[1]
            self.descend(((q - y) ** 2 + ALPHA * penalty).mean(), critic)

    def actors(self):
        for i, actor in enumerate(self.actor):
            log_pi, qs = actor(self.obs[:, i]).log_softmax(-1), []
            for action in torch.eye(self.actions.shape[2]):
                joint = self.actions.clone()
                joint[:, i] = action
                qs.append(self.values(self.critic, joint).mean(0).detach())
            gain = (log_pi.exp() * (torch.stack(qs, dim=1) - ENTROPY_COEF * log_pi)).sum(-1)
            self.descend(-gain.mean(), actor)

    def descend(self, loss, network):
        """A clipped step of one network."""
        self.adams[network].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), spacql.MAX_GRAD_NORM)
        self.adams[network].step()


def separate(params, m):
    """Network m of the first seed by itself."""
    layers = []
    for w, b in zip(params[::2], params[1::2], strict=True):
        layers += [nn.Linear(*w.shape[2:]), nn.ReLU()]
        layers[-2].weight.data.copy_(w.data[0, m].T)
        layers[-2].bias.data.copy_(b.data[0, m, 0])
    return nn.Sequential(*layers[:-1])


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
    """Measure every script and case, spacql.py beside plain loops, and write the report."""
    args = parse(Args, argv, description="\n".join(__doc__.splitlines()[:1]))
    rows, default = [], {}
    for script, sizes in itertools.product((spacql, spacql_continuous), CASES):
        steps = Steps(script, **(DEFAULT | sizes))
        own = measure(steps)
        total = sum(own.values())
        default.setdefault(script, total)
        row = dict(script=script.SCRIPT, case=", ".join(f"{k} {v}" for k, v in sizes.items()) or "default")
        row |= dict(ms=f"{total:.4g}") | {part: f"{ms / total:.0%}" for part, ms in own.items()}
        if script is spacql and "seeds" not in sizes:
            row["loops"] = f"{sum(measure(Loops(steps)).values()) / total:.1f}"
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
