"""Mixtures of teams with different conventions, and how much logged actions depend on one another.

    python spacql.py --dataset mix:teams=3,unit=step,share=0.5,noise=0.1 --cql-alpha 2
    python -m data.mixes     # retrains the teams that envs/policies/ ships, in minutes

A mix (`Mix`) lets expert teams, trained independently, act in turn. At each step, or once per episode (unit),
with probability `share` one team is drawn and all agents act as its members; otherwise every agent draws a
team of its own. With unit=step each agent's own action has the same distribution, given the state, whatever
the share: the share is a dial of dependence alone, from none at 0 to as much as the conventions can make at
1. With probability `noise` an agent's action is a uniform one instead, at each step anew.

`measure_dependence` estimates the mean over agents of the conditional mutual information I(a_i ; a_-i | s):
what the others' actions tell of an agent's action when the state is known, 0 for factorised behaviour.

Array letters: M teams, E episodes, T steps, N agents, W worlds, O observation numbers, A numbers of an
action, D state numbers, L latent classes.
"""

import functools
import itertools
import json
import math
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data.behaviour import default_args, train_behaviour
from envs import two_doors
from envs.particles import NUM_ACTIONS
from envs.shipped import POLICY_DIR, Softmax, init_mlp, load_policies, mlp, read_networks
from utils.errors import InputError
from utils.files import atomic, parse, reading, run_script, say

# ------------------------------------------------------------------------------------------------ mixed teams

TEAMS_ENV_ID = "simple_spread"
NUM_TEAMS = {TEAMS_ENV_ID: 4, two_doors.ENV_ID: 2}  # what can be mixed
UNITS = ("episode", "step")
TEAMS_FILE = "{}-discrete-teams.npz"


@dataclass(frozen=True)
class Mix:
    """How teams are mixed; see the top of the file."""

    teams: int
    unit: str
    share: float
    noise: float

    @property
    def name(self) -> str:
        """One name for all spellings of the same mix, which can be a file's."""
        return f"mix-teams{self.teams}-{self.unit}-share{self.share}-noise{self.noise}"


def is_mix(dataset: str) -> bool:
    """Whether a --dataset asks for a mix."""
    return dataset == "mix" or dataset.startswith("mix:")


def parse_mix(text: str, env_id: str) -> Mix:
    """The mix that a --dataset like mix:teams=3,unit=step,share=0.5,noise=0.1 asks for; keys have defaults.

    Raises InputError where the task has no teams, and for what is not such a text.
    """
    if env_id not in NUM_TEAMS:
        raise InputError(f"{env_id} has no teams to mix; {' and '.join(NUM_TEAMS)} have")
    most = NUM_TEAMS[env_id]
    values = dict(teams=str(min(3, most)), unit="step", share="0.5", noise="0.1")
    given = text.removeprefix("mix").removeprefix(":")
    pairs = [part.split("=") for part in given.split(",")] if given else []
    keys = [key for key, *_ in pairs]
    if not set(keys) <= set(values) or len(set(keys)) < len(keys) or any(len(pair) != 2 for pair in pairs):
        keys = f"keys {', '.join(values)}, each once at most"
        raise InputError(f"--dataset mix: expected KEY=VALUE,... with {keys}, not {given!r}")
    values |= dict(pairs)
    if values["teams"] not in map(str, range(1, most + 1)):
        raise InputError(f"--dataset mix: teams must be 1 to {most} for {env_id}, not {values['teams']!r}")
    if values["unit"] not in UNITS:
        raise InputError(f"--dataset mix: unit must be {' or '.join(UNITS)}, not {values['unit']!r}")
    shares = {}
    for key in ("share", "noise"):
        number = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", values[key], re.ASCII)
        shares[key] = float(values[key]) + 0.0 if number else math.nan  # -0 becomes 0
        if not 0 <= shares[key] <= 1:
            raise InputError(f"--dataset mix: {key} must be a number from 0 to 1, not {values[key]!r}")
    return Mix(int(values["teams"]), values["unit"], **shares)


class MixedTeams:
    """One episode played by a mix: called at every step with observations [W, N, O], returns actions [W, N].

    teams: functions of observations and generator, one for each team.
    """

    def __init__(self, mix: Mix, teams: list):
        self.mix, self.teams, self.drawn = mix, teams[: mix.teams], None

    def __call__(self, obs: torch.Tensor, generator) -> torch.Tensor:
        source, one = dict(generator=generator, device=generator.device), (len(obs), 1)
        if self.drawn is None or self.mix.unit == "step":  # whose member each agent acts as, [W, N]
            together = torch.rand(one, **source) < self.mix.share
            drawn = (torch.randint(self.mix.teams, shape, **source) for shape in (one, obs.shape[:2]))
            self.drawn = torch.where(together, *drawn)
        played = torch.stack([team(obs, generator) for team in self.teams])  # [M, W, N]
        actions = played.gather(0, self.drawn.unsqueeze(0)).squeeze(0)
        noisy = torch.rand(actions.shape, **source) < self.mix.noise
        uniform = torch.randint(NUM_ACTIONS, actions.shape, **source)
        return torch.where(noisy, uniform, actions)


def teams_file(env_id: str, folder: Path = POLICY_DIR) -> Path:
    """Where the teams are, but for the first, the shipped expert. Raises InputError where they are not."""
    path = Path(folder) / TEAMS_FILE.format(env_id)
    if not path.is_file():
        raise InputError(f"no policy file {path}; make it with: python -m data.mixes")
    return path


def load_teams(env_id: str, folder: Path = POLICY_DIR) -> tuple[list, list[dict]]:
    """All teams of a task as functions of observations [W, N, O] and a generator, and what is known of each.

    Raises InputError where the file of the teams is missing, or is not theirs.
    """
    if env_id == two_doors.ENV_ID:
        walks = {"left": two_doors.LEFT, "right": two_doors.RIGHT}
        return [two_doors.walk(action) for action in walks.values()], [dict(walks=name) for name in walks]
    expert, path = load_policies(env_id), teams_file(env_id, folder)
    with reading(path, f"the teams of {env_id}"):
        arrays, facts = read_networks(path, env_id)
        layers = [arrays[f"actor{j}"] for j in range(6)]  # [M - 1, N, ...]
        shapes = [(NUM_TEAMS[env_id] - 1, *layer.shape) for layer in expert.iterates[-1]]
        if [layer.shape for layer in layers] != shapes or len(facts["teams"]) != shapes[0][0]:
            raise ValueError(f"its networks have other shapes than {shapes}")
    actors = [expert.iterates[-1], *([layer[m] for layer in layers] for m in range(len(layers[0])))]
    known = [dict(training=expert.facts["training"]), *facts["teams"]]
    return [functools.partial(Softmax.act, actor) for actor in actors], known


# ----------------------------------------------------------------------------------------------- dependence

MEASURED_EPISODES, MEASURED_ROWS = 6000, 150_000  # at most so many episodes and transitions are looked at
HELD_OUT = 4  # one episode in so many is kept from the classifiers
CLASSES, HIDDEN = 6, 32  # latent classes, and units of their networks
UPDATES, EPOCHS, BATCH, LEARNING_RATE = 450, 4, 256, 0.01  # at most so many updates, and passes over the data
BIN_EDGES = torch.tensor([-1 / 3, 1 / 3])  # of each number of a continuous action


def measure_dependence(dataset, seed: int = 0) -> dict[str, float]:
    """Three facts: `dependence`, the mean over agents of I(a_i ; a_-i | s) in nats, at least 0; its standard
    error over held-out episodes, `dependence_error`; and `predictability`, 1 - H(a_i | s) / log(number of
    actions), from 0 to 1. Of fewer than 8 episodes nothing is said: 0, with an infinite error, and 0.

    dataset: has observations [E, T + 1, N, O] and actions [E, T, N] or [E, T, N, A]; the state is the
    observations side by side. Each number of a continuous action is put into one of three bins. Dependence is
    the difference of two held-out cross-entropies: of a classifier of a_i that sees s, and of one that also
    sees a_-i. Both are read off one model of the joint action, a mixture of L latent classes,
        p(a | s) = sum_l w_l(s) prod_i p_l,i(a_i | s),
    such as which team acts. (Two free networks learn less from as many transitions.)

    Dependence of mixed teams is underestimated; the shipped qualities measure at most 0.006. But what the
    model has not learnt of the state can pass for dependence where agents act alike: agents that all play one
    sharp function of the state measure more than 0, and the more so the fewer episodes there are.
    """
    states, actions, num_actions = look_at(dataset)
    if len(actions) < 2 * HELD_OUT:
        return dict(dependence=0.0, dependence_error=math.inf, predictability=0.0)
    held_out = torch.arange(len(actions)) % HELD_OUT == HELD_OUT - 1
    model = fit(states[~held_out].flatten(0, 1), actions[~held_out].flatten(0, 1), num_actions, seed)
    with torch.no_grad():
        log_w, log_p = log_mixture(model, states[held_out].flatten(0, 1), actions[held_out].flatten(0, 1))
        joint, own = log_w + log_p.sum(1), log_w.unsqueeze(1) + log_p  # [L, rows], [L, N, rows]
        others = (joint.unsqueeze(1) - log_p).logsumexp(0)  # log p(a_-i | s), [N, rows]
        alone = own.logsumexp(0)  # log p(a_i | s), [N, rows]
        gain = (joint.logsumexp(0) - others - alone).mean(0)  # of log p(a_i | s, a_-i) over log p(a_i | s)
    gain = gain.view(-1, actions.shape[1]).double().mean(1)  # of each held-out episode
    predictability = max(0.0, 1 + float(alone.double().mean()) / math.log(num_actions))
    error = float(gain.std() / len(gain) ** 0.5)
    return dict(
        dependence=max(0.0, float(gain.mean())), dependence_error=error, predictability=predictability
    )


def look_at(dataset) -> tuple[torch.Tensor, torch.Tensor, int]:
    """States [E, T, D], standardised, and actions as integers [E, T, N] below the number that is returned
    third; thinned out evenly to at most MEASURED_EPISODES and MEASURED_ROWS."""
    every = math.ceil(len(dataset.actions) / MEASURED_EPISODES)
    observations, actions = dataset.observations[::every, :-1], dataset.actions[::every]
    every = math.ceil(len(actions) * actions.shape[1] / MEASURED_ROWS)
    states, actions = observations[:, ::every].flatten(2), actions[:, ::every]
    std, mean = torch.std_mean(states, dim=(0, 1), correction=0)
    states = (states - mean) / torch.where(std < 1e-6, 1.0, std)
    return states, *as_integers(actions)


def as_integers(actions) -> tuple[torch.Tensor, int]:
    """Actions [..., N], or [..., N, A] with each number put into one of three bins, as integers [..., N]
    below the number that is returned second."""
    if not actions.is_floating_point():
        return actions, NUM_ACTIONS
    bins = torch.bucketize(actions.contiguous(), BIN_EDGES)  # [..., N, A]
    return (bins * 3 ** torch.arange(actions.shape[-1])).sum(-1), 3 ** actions.shape[-1]


def log_mixture(model, states, actions) -> tuple[torch.Tensor, torch.Tensor]:
    """log w_l(s) [L, rows] and log p_l,i(a_i | s) [L, N, rows] of states [rows, D] and actions [rows, N]."""
    weights, policies = model
    log_w = mlp(weights, states.unsqueeze(0))[0].log_softmax(-1).T
    log_p = mlp(policies, states.expand(len(policies[0]), -1, -1)).log_softmax(-1)  # [L * N, rows, actions]
    taken = actions.T.repeat(CLASSES, 1).unsqueeze(-1)
    return log_w, log_p.gather(-1, taken).squeeze(-1).unflatten(0, (CLASSES, -1))


def fit(states, actions, num_actions: int, seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The mixture of the largest likelihood, by Adam with a rate that falls to zero, on states [rows, D] and
    actions [rows, N]; returns the parameters of the networks of w and of p. The same data and seed give the
    same model."""
    generator = torch.Generator().manual_seed(seed)
    (rows, dim), num = states.shape, actions.shape[1]
    weights = init_mlp(1, (dim, HIDDEN, CLASSES), generator)
    policies = init_mlp(CLASSES * num, (dim, HIDDEN, HIDDEN, num_actions), generator)
    adam = torch.optim.Adam([p.requires_grad_() for p in weights + policies], lr=LEARNING_RATE, fused=True)
    epochs = (torch.randperm(rows, generator=generator).split(BATCH) for _ in range(EPOCHS))
    batches = list(itertools.islice(itertools.chain.from_iterable(epochs), UPDATES))
    for i, batch in enumerate(batches):
        adam.param_groups[0]["lr"] = LEARNING_RATE * (1 - i / len(batches))
        log_w, log_p = log_mixture((weights, policies), states[batch], actions[batch])
        loss = -(log_w + log_p.sum(1)).logsumexp(0).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return weights, policies


# ---------------------------------------------------------------------------------------- training of teams


@dataclass(frozen=True)
class Args:
    """Settings; the defaults made the shipped teams."""

    seeds: tuple[int, int, int] = (4, 5, 2)
    """of the teams beside the shipped expert, whose seed is 1; 2 (as 3) came to the same convention as 1"""
    out: Path = POLICY_DIR
    """folder of the policy file"""


def main(argv=None) -> None:
    args, start = parse(Args, argv, description=__doc__), time.time()
    path, settings = args.out / TEAMS_FILE.format(TEAMS_ENV_ID), default_args(TEAMS_ENV_ID)
    with atomic(path) as partial:  # around the training too: first it is seen whether the folder can be made
        trained = [train_behaviour(replace(settings, seed=seed)) for seed in args.seeds]
        actors = {f"actor{j}": np.stack([arrays[f"actor{j}"][-1] for arrays in trained]) for j in range(6)}
        facts = [json.loads(str(arrays["facts"])) for arrays in trained]
        teams = [{k: team[k] for k in ("training", "torch")} for team in facts]
        known = json.dumps(dict(env_id=TEAMS_ENV_ID, teams=teams))
        np.savez_compressed(partial, **actors, facts=np.array(known))
    say(f"{path}: {len(teams)} teams, {path.stat().st_size / 1e6:.1f} MB, {time.time() - start:.0f} s")


if __name__ == "__main__":
    run_script("data.mixes", main)
