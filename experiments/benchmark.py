"""What a round of the scripts costs, and why: writes results/benchmark.md, and its numbers as .json.

    python -m experiments.benchmark                   # minutes; --only round or --only scaling: a section
    python -m experiments.benchmark --quick --out /tmp/benchmark.md

A round is 5 times the target (equations 1 to 4) and the critics' step (5), then the actors' step (6); each is
timed by itself, on random data of the scripts' shapes. Beside it stands the same step with a network for each
seed, member and agent, and loops over seeds, members, sizes and agents: `Loops`, written as one would from
the paper. Both start from the same parameters and random numbers; tests show that they end with the same.
Times are those of the fastest of several runs: compare those of one table. Letters as in the scripts.
"""

import json
import math
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import one_hot
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import spacql
import spacql_continuous
from utils.files import atomic, current_commit, parse, run_script, say

PARTS = {"target": spacql.CRITIC_UPDATES, "critics": spacql.CRITIC_UPDATES, "actors": 1}  # times in a round
DEFAULT = dict(seeds=1, critics=10, agents=3, batch=256, penalty_agents=1)
CASES = {
    "default": {},
    "batch 1024": dict(batch=1024),
    "batch 1024, all agents in the penalty": dict(batch=1024, penalty_agents=3),  # the paper's size
}
AXES = {"critics": (2, 5, 10, 20), "agents": (3, 5, 7, 10), "seeds": (1, 2, 5, 10)}
OBS_PER_AGENT = 6  # an observation of simple_spread has 6 numbers for each agent that there is
ALPHA, RATE, GAMMA, HIDDEN = 0.5, 0.01, 0.95, 64
ENTROPY_COEF = OUTPUT_L2 = 0.1


@dataclass(frozen=True)
class Args:
    """What to measure."""

    only: Literal["all", "round", "scaling"] = "all"  # a section by itself
    quick: bool = False  # small and short: only to see that it works
    out: Path = Path("results/benchmark.md")  # the report; its numbers go beside it as .json


# ------ the scripts' steps


def make_case(script, seeds, critics, agents, batch, penalty_agents):
    """Networks, optimizers and a batch of random transitions of the script's shapes."""
    generators = [torch.Generator().manual_seed(s) for s in range(seeds)]
    dim, obs_dim = spacql.NUM_ACTIONS if script is spacql else 2, OBS_PER_AGENT * agents
    obs, next_obs = torch.randn(2, seeds, batch, agents, obs_dim, generator=generators[0])
    actions, next_actions = 2 * torch.rand(2, seeds, batch, agents, dim, generator=generators[0]) - 1
    if script is spacql:
        actions, next_actions = (script.one_hot(x.argmax(-1)) for x in (actions, next_actions))
    rewards = torch.randn(seeds, batch, generator=generators[0])
    critic_sizes, actor_sizes = (agents * (obs_dim + dim), HIDDEN, HIDDEN, 1), (obs_dim, HIDDEN, HIDDEN, dim)
    critic, target_critic = (script.init_networks(generators, critics, critic_sizes) for _ in range(2))
    actor, target_actor = (script.init_networks(generators, agents, actor_sizes) for _ in range(2))
    return SimpleNamespace(
        script=script,
        generators=generators,
        args=SimpleNamespace(penalty="cfcql", penalty_agents=penalty_agents),
        sizes=torch.arange(1, agents + 1),
        transitions=(obs.flatten(2), obs, actions, rewards, next_obs.flatten(2), next_obs, next_actions),
        critic=critic,
        actor=actor,
        target_critic=target_critic,
        target_actor=target_actor,
        critic_adam=torch.optim.Adam([p.requires_grad_() for p in critic], RATE, fused=True),
        actor_adam=torch.optim.Adam([p.requires_grad_() for p in actor], RATE, fused=True),
    )


@torch.no_grad()
def target(case):
    """Equations (1) to (4), as in the scripts' loop: Y [S, B]."""
    script, (*_, rewards, next_state, next_obs, logged) = case.script, case.transitions
    sampled = script.sample_policy(case.target_actor, next_obs, len(case.sizes), case.generators)
    order = script.per_seed(torch.rand, case.generators, sampled.shape[1:4])
    replaced = script.partial_replacement(logged, sampled, order, case.sizes)
    q_target = script.critic_values(case.target_critic, next_state, replaced)
    u = script.uncertainty(script.critic_values(case.critic, next_state, replaced))
    return script.spacql_target(rewards, q_target, script.replacement_weights(u), GAMMA)


def critics(case, y):
    """A step down equation (5); the losses [S, E]."""
    script, (state, _, actions, *_) = case.script, case.transitions
    policies = [] if script is spacql else [[]]
    candidates, log_weights = script.penalty_candidates(case.args, actions, *policies, case.generators)
    joint = torch.cat([actions.unsqueeze(2), candidates.flatten(2, 3)], dim=2)
    q = script.critic_values(case.critic, state, joint)
    q_data, q_candidates = q[..., 0], q[..., 1:].unflatten(-1, log_weights.shape[2:])
    loss = script.critic_loss(q_data, y, script.cql_penalty(q_candidates, log_weights, q_data), ALPHA)
    case.critic_adam.zero_grad()
    loss.sum().backward()
    script.clip_gradients(case.critic)
    case.critic_adam.step()
    return loss.detach()


def actors(case):
    """A step down equation (6); the losses [S, N]."""
    script, (state, obs, actions, *_) = case.script, case.transitions
    outputs = script.actor_outputs(case.actor, obs)
    everyone = torch.arange(actions.shape[2]).expand(*actions.shape[:2], -1)
    critic = [p.detach() for p in case.critic]
    if script is spacql:
        joint = script.counterfactuals(actions, everyone, torch.eye(actions.shape[-1])).flatten(2, 3)
        q = script.critic_values(critic, state, joint).mean(1).view_as(outputs)
        loss = script.actor_loss(outputs, q, actions, 0.0, ENTROPY_COEF)
    else:
        joint = script.counterfactuals(actions, everyone, outputs.tanh().unsqueeze(3)).flatten(2, 3)
        q = script.critic_values(critic, state, joint).mean(1)
        loss = script.actor_loss(outputs, q, actions, 0.0, OUTPUT_L2)
    case.actor_adam.zero_grad()
    loss.sum().backward()
    script.clip_gradients(case.actor)
    case.actor_adam.step()
    return loss.detach()


# ------ the same by plain loops


def separate(params, s, m):
    """Network m of seed s by itself."""
    layers = []
    for w, b in zip(params[::2], params[1::2], strict=True):
        layer = nn.Linear(*w.shape[2:])
        layer.weight.data.copy_(w.data[s, m].T)
        layer.bias.data.copy_(b.data[s, m, 0])
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def step(loss, network, adam):
    """One clipped step of one network."""
    adam.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), spacql.MAX_GRAD_NORM)
    adam.step()


class Loops:
    """The steps of a case with separate networks, which start as the case's do; random numbers too."""

    def __init__(self, case):
        self.discrete, self.args, self.sizes = case.script is spacql, case.args, case.sizes.tolist()
        self.seeds = range(len(case.generators))
        self.generators = [torch.Generator().set_state(g.get_state()) for g in case.generators]
        self.transitions = case.transitions
        for name in ("critic", "target_critic", "actor", "target_actor"):
            params = getattr(case, name)
            networks = [[separate(params, s, m) for m in range(params[0].shape[1])] for s in self.seeds]
            setattr(self, name, networks)  # [seed][member or agent]
        for name in ("critic", "actor"):
            networks = [network for of_seed in getattr(self, name) for network in of_seed]
            setattr(self, f"{name}_adam", {n: torch.optim.Adam(n.parameters(), RATE) for n in networks})

    def sample(self, outputs, noise):
        """Actions [B, A] of one agent from its outputs [B, A] and its noise, [B, 1] or [B, A]."""
        if self.discrete:
            chosen = (noise >= outputs.softmax(-1).cumsum(-1)[:, :-1]).sum(-1)
            return one_hot(chosen, outputs.shape[1]).to(outputs)
        return (outputs.tanh() + spacql_continuous.TARGET_NOISE * noise).clamp(-1, 1)

    @torch.no_grad()
    def target(self):
        ys = []
        for s in self.seeds:
            reward, next_state, next_obs, logged = (x[s] for x in self.transitions[3:])
            generator = self.generators[s]
            (batch, agents, dim), sizes = logged.shape, len(self.sizes)
            draw = torch.rand if self.discrete else torch.randn
            noise = draw((batch, sizes, agents, 1 if self.discrete else dim), generator=generator)
            order = torch.rand((batch, sizes, agents), generator=generator)
            lowest, inverse = [], []
            for j, k in enumerate(self.sizes):
                joint, rank = logged.clone(), order[:, j].argsort(-1).argsort(-1)
                for i, actor in enumerate(self.target_actor[s]):
                    act = self.sample(actor(next_obs[:, i]), noise[:, j, i])
                    joint[rank[:, i] < k, i] = act[rank[:, i] < k]
                inputs = torch.cat([next_state, joint.flatten(1)], dim=1)
                lowest.append(torch.stack([critic(inputs)[:, 0] for critic in self.target_critic[s]]).amin(0))
                spread = torch.stack([critic(inputs)[:, 0] for critic in self.critic[s]]).std(0, correction=0)
                inverse.append(1 / spread)
            mixed = sum(w * q for w, q in zip(inverse, lowest, strict=True)) / sum(inverse)
            ys.append(reward + GAMMA * mixed)
        return torch.stack(ys)

    def candidates(self, s, actions):
        """The agents in the penalty [B, M], and their actions [B, M, C, A]."""
        (batch, agents, dim), generator = actions.shape, self.generators[s]
        chosen = torch.rand((batch, agents), generator=generator).argsort(-1)[:, : self.args.penalty_agents]
        if self.discrete:
            return chosen, torch.eye(dim).expand(*chosen.shape, dim, dim)
        shape = (*chosen.shape, spacql_continuous.CANDIDATES, dim)
        return chosen, 2 * torch.rand(shape, generator=generator) - 1

    def critics(self, y):
        losses = []
        for s in self.seeds:
            state, actions = self.transitions[0][s], self.transitions[2][s]
            chosen, to = self.candidates(s, actions)
            for critic in self.critic[s]:
                q = critic(torch.cat([state, actions.flatten(1)], dim=1))[:, 0]
                penalty = 0.0
                for m in range(chosen.shape[1]):
                    values = []
                    for c in range(to.shape[2]):
                        joint = actions.clone()
                        joint[torch.arange(len(joint)), chosen[:, m]] = to[:, m, c]
                        values.append(critic(torch.cat([state, joint.flatten(1)], dim=1))[:, 0])
                    log_sum = torch.stack(values).logsumexp(0)
                    if not self.discrete:  # a mean over uniform candidates, over their density 2^-A
                        log_sum = log_sum - math.log(len(values)) + to.shape[-1] * math.log(2)
                    penalty = penalty + (log_sum - q) / chosen.shape[1]
                losses.append(((q - y[s]) ** 2 + ALPHA * penalty).mean())
                step(losses[-1], critic, self.critic_adam[critic])
        return torch.stack(losses).detach().view(len(self.seeds), -1)

    def actors(self):
        losses = []
        for s in self.seeds:
            state, obs, actions = (x[s] for x in self.transitions[:3])
            for i, actor in enumerate(self.actor[s]):
                outputs, joint = actor(obs[:, i]), actions.clone()
                if self.discrete:
                    qs = []
                    for action in torch.eye(outputs.shape[1]):
                        joint[:, i] = action
                        with torch.no_grad():
                            qs.append(self.mean_value(s, state, joint))
                    log_pi = outputs.log_softmax(-1)
                    gain = (log_pi.exp() * (torch.stack(qs, dim=1) - ENTROPY_COEF * log_pi)).sum(-1)
                else:
                    policy = outputs.tanh()
                    joint[:, i] = policy
                    small = spacql_continuous.ACTION_L2 * policy.square() + OUTPUT_L2 * outputs.square()
                    gain = self.mean_value(s, state, joint) - small.mean(-1)
                losses.append(-gain.mean())
                step(losses[-1], actor, self.actor_adam[actor])
        return torch.stack(losses).detach().view(len(self.seeds), -1)

    def mean_value(self, s, state, joint):
        """Mean over the members of Q [B] of joint actions [B, N, A]."""
        inputs = torch.cat([state, joint.flatten(1)], dim=1)
        return sum(critic(inputs)[:, 0] for critic in self.critic[s]) / len(self.critic[s])


# ------ measuring


class CountCalls(TorchDispatchMode):
    """Counts the operations that torch is asked for, but for views."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += not func.is_view
        return func(*args, **(kwargs or {}))


def measure(call, repetitions):
    """Of a step: ms of the fastest run, GFLOP of its matrix products, calls of torch; an array of these."""
    with FlopCounterMode(display=False) as flops, CountCalls() as counter:
        call()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return np.array([min(times), flops.get_total_flops() / 1e9, counter.calls])


def measure_steps(target, critics, actors, repetitions):
    """{part: what `measure` says} of three steps, and of a round of them."""
    y = target()
    calls = dict(target=target, critics=lambda: critics(y), actors=actors)
    found = {part: measure(call, repetitions) for part, call in calls.items()}
    return found | dict(round=sum(times * found[part] for part, times in PARTS.items()))


def steps_of(case):
    """The scripts' three steps on a case, as those of Loops are called."""
    return (lambda: target(case)), (lambda y: critics(case, y)), (lambda: actors(case))


def measure_rounds(quick):
    """Every script, case and part, beside plain loops."""
    rows, small, repetitions = [], dict(batch=32, critics=3) if quick else {}, 2 if quick else 20
    for script in (spacql, spacql_continuous):
        for name, sizes in CASES.items():
            case = make_case(script, **(DEFAULT | sizes | small))
            loops = Loops(case)
            own = measure_steps(*steps_of(case), repetitions)
            theirs = measure_steps(loops.target, loops.critics, loops.actors, max(2, repetitions // 4))
            for part in own:
                share = PARTS.get(part, 1) * own[part][0] / own["round"][0]
                row = dict(script=script.SCRIPT, case=name, part=part, share=f"{share:.0%}")
                for i, unit in enumerate(("ms", "GFLOP", "calls")):
                    ratio = f"{theirs[part][i] / own[part][i]:.1f}"
                    row |= {unit: f"{own[part][i]:.4g}", f"{unit}: loops / own": ratio}
                rows.append(row)
            say(f"{script.SCRIPT}, {name}: done")
    return rows


def measure_scaling(quick):
    """A round along every axis, relative to that at the axis' first value, and the slopes of logarithms."""
    rows = []
    for script in (spacql, spacql_continuous):
        for axis, values in AXES.items():
            values = values[:2] if quick else values
            found = []
            for value in values:
                steps = steps_of(make_case(script, **(DEFAULT | {axis: value})))
                found.append(measure_steps(*steps, 2 if quick else 10))
            row = dict(script=script.SCRIPT, axis=axis)
            for part in ("round", "target"):
                ms = np.array([parts[part][0] for parts in found])
                grown = zip(values, ms / ms[0], strict=True)
                row[f"{part}: times as long"] = ", ".join(f"{value}: {ratio:.2f}" for value, ratio in grown)
                row[f"{part}: exponent"] = f"{np.polyfit(np.log(values), np.log(ms), 1)[0]:.2f}"
            rows.append(row)
            say(f"{script.SCRIPT}, {axis}: done")
    return rows


SECTIONS = {"round": measure_rounds, "scaling": measure_scaling}
EXPLANATIONS = {
    "round": """Ten critics of 64 units, three agents, one seed, batch 256 unless said otherwise. A round has
five targets, five critics' steps and an actors' step: *share* is of its time. *loops / own*: of plain loops
over the scripts' own. GFLOP are those of matrix products; *calls* of torch leave out views.""",
    "scaling": """One axis at a time, the others at their defaults. *exponent*: slope of log time over log
value. More agents also mean wider observations; the target asks about n joint actions of n agents.""",
}


def main(argv=None):
    """Measure, and write the report and its numbers."""
    args = parse(Args, argv, description="\n".join(__doc__.splitlines()[:4]))
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    facts = f"{platform.machine()}, {threads}, torch {torch.__version__}, commit {current_commit()}"
    numbers, text = (
        dict(facts=facts),
        f"# Benchmark\n\nWritten by `python -m experiments.benchmark`: {facts}.\n",
    )
    for name, measure_section in SECTIONS.items():
        if args.only in ("all", name):
            numbers[name] = measure_section(args.quick)
            table = pd.DataFrame(numbers[name]).to_markdown(
                index=False, disable_numparse=True, tablefmt="github"
            )
            text += f"\n## {name.capitalize()}\n\n{EXPLANATIONS[name]}\n\n{table}\n"
    for path, content in ((args.out.with_suffix(".json"), json.dumps(numbers, indent=1)), (args.out, text)):
        with atomic(path) as partial_path:
            partial_path.write_text(content)


if __name__ == "__main__":
    run_script("experiments.benchmark", main)
