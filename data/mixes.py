"""Mixtures of teams with different conventions, and how much logged actions depend on one another.

    python spacql.py --env-id two_doors --dataset mix:share=0.5,noise=0.1

A mix (`Mix`) lets the teams of two_doors, of which one walks left and one right, act in turn. At each step,
with probability `share` one team is drawn and all agents act as its members; otherwise every agent draws a
team of its own. So each agent's own action has the same distribution, given the state, whatever the share:
that is a dial of dependence alone, from none at 0 to as much as the conventions can make at 1. With
probability `noise` an agent's action is a uniform one instead.

`measure_dependence` estimates the mean over agents of the conditional mutual information I(a_i ; a_-i | s):
what the others' actions tell of an agent's action when the state is known, 0 for factorised behaviour.

Array letters: M teams, E episodes, T steps, N agents, W worlds, O observation numbers, A numbers of an
action, D state numbers, L latent classes.
"""

import itertools
import math
import re
from dataclasses import dataclass

import torch

from envs import two_doors
from envs.particles import NUM_ACTIONS
from envs.shipped import init_mlp, mlp
from utils.errors import InputError

# ------------------------------------------------------------------------------------------------ mixed teams


@dataclass(frozen=True)
class Mix:
    """A policy that mixes teams, which are policies themselves: functions of observations [W, N, O] and a
    generator, that return actions [W, N]. See the top of the file."""

    share: float = 0.5
    noise: float = 0.1
    teams: tuple = (two_doors.walk(two_doors.LEFT), two_doors.walk(two_doors.RIGHT))

    @property
    def name(self) -> str:
        """One name for all spellings of the same mix, which can be a file's."""
        return f"mix-share{self.share}-noise{self.noise}"

    def __call__(self, obs: torch.Tensor, generator) -> torch.Tensor:
        source, one = dict(generator=generator, device=generator.device), (len(obs), 1)
        together = torch.rand(one, **source) < self.share
        drawn = (torch.randint(len(self.teams), shape, **source) for shape in (one, obs.shape[:2]))
        drawn = torch.where(together, *drawn)  # whose member each agent acts as, [W, N]
        played = torch.stack([team(obs, generator) for team in self.teams])  # [M, W, N]
        actions = played.gather(0, drawn.unsqueeze(0)).squeeze(0)
        noisy = torch.rand(actions.shape, **source) < self.noise
        uniform = torch.randint(NUM_ACTIONS, actions.shape, **source)
        return torch.where(noisy, uniform, actions)


def parse_mix(dataset: str, env_id: str) -> Mix | None:
    """The mix that a --dataset like mix:share=0.5,noise=0.1 asks for; keys have defaults. None for others.

    Raises InputError where the task has no teams, and for what is not such a text.
    """
    kind, _, given = dataset.partition(":")
    if kind != "mix":
        return None
    if env_id != two_doors.ENV_ID:
        raise InputError(f"{env_id} has no teams to mix; {two_doors.ENV_ID} has")
    shares = {}
    for part in given.split(",") if given else []:
        key, _, value = part.partition("=")
        if key not in ("share", "noise") or key in shares:
            keys = "keys share, noise, each once at most"
            raise InputError(f"--dataset mix: expected KEY=VALUE,... with {keys}, not {given!r}")
        number = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value, re.ASCII)
        shares[key] = float(value) + 0.0 if number else math.nan  # -0 becomes 0
        if not 0 <= shares[key] <= 1:
            raise InputError(f"--dataset mix: {key} must be a number from 0 to 1, not {value!r}")
    return Mix(**shares)


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

    The shipped qualities measure at most 0.003. But what the model has not learnt of the state can pass for
    dependence where agents act alike: agents that all play one sharp function of the state measure more than
    0, and the more so the fewer episodes there are.
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
