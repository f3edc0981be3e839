"""Estimates of u_k(s'), how little is known about a joint action a'^(k): what --uncertainty chooses from.

    std         deviation over the members of Q_j(s', a'^(k)): the paper's equation (3)
    range       the largest member minus the smallest
    relative    deviation over the members of Q_j(s', a'^(k)) - Q_j(s', a'), the change from the logged joint action a'
    likelihood  minus the log-likelihood of a'^(k) at s', in nats, under a model of the behaviour fitted to the data
    neighbour   distance of (s', a'^(k)) to the nearest of some logged pairs (state, joint action)

std and range hold the members' disagreement about s' itself, which all sizes k share; relative does not, and the last
two do not ask the critics. Where replacement changed nothing (the policy chose what was logged) relative is 0, so that
weights u_k^-1 would all go to such sizes: see `soften`.

Array letters: S seeds, E critics, B batch, K replacement sizes, N agents, A numbers of an action, D state numbers,
W numbers of a joint action's row as the critics take it, F choices that a joint action is made of, V values of each,
M logged pairs.
"""

import sys

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from data.behaviour import init_mlp, mlp
from envs.particles import NUM_ACTIONS
from utils.stacked import per_seed

KINDS = ("std", "range", "relative", "likelihood", "neighbour")
FLOOR = 0.1  # of `soften`
BINS = 7  # in which the model of the behaviour sees each number of a continuous action
HIDDEN, STEPS, BATCH, RATE = 64, 600, 512, 0.005  # of that model
DOUBT = 0.01  # share of each of its choices that is taken to be uniform: nothing is impossible
NEIGHBOURS = 2048  # [M]


def estimator(args, data, uncertainty, critic_values, norm=None, floor=FLOOR):
    """The estimate args.uncertainty for a training script: a function (critic, state, joint, logged) -> u [S, B, K].

    It takes states [S, B, D], joint actions [S, B, K, W] as rows of zeros and ones or of numbers in [-1, 1], and the
    logged joint actions, [S, B, N] indices or [S, B, N, A] numbers. The script gives its arguments, its data, its
    functions `uncertainty` and `critic_values`, and `norm` if it has one: from rows [S, B, K, C, W] to what the critics
    take, [S, B, K * C, W]. What is fitted or drawn here has random numbers of its own, by seed, the same every time.
    """

    def members(critic, state, rows):  # rows [S, B, K, C, W] -> Q [S, E, B, K, C]
        inputs = norm(rows) if norm else rows.flatten(2, 3)
        return critic_values(critic, state, inputs).unflatten(-1, rows.shape[2:4])

    def deviation(critic, state, joint, logged):
        return uncertainty(members(critic, state, joint.unsqueeze(3)).squeeze(-1))

    def spread(critic, state, joint, logged):
        q = members(critic, state, joint.unsqueeze(3)).squeeze(-1)
        return q.amax(1) - q.amin(1)

    def relative(critic, state, joint, logged):
        # Both go through one normalisation: with one each, the shift between them would pass as a change of action.
        both = torch.stack([joint, as_rows(logged).to(joint).unsqueeze(2).expand_as(joint)], dim=3)
        changed, unchanged = members(critic, state, both).unbind(-1)
        return soften(uncertainty(changed - unchanged), floor)

    if args.uncertainty in (by_critics := {"std": deviation, "range": spread, "relative": relative}):
        return by_critics[args.uncertainty]
    seeds = range(args.seed, args.seed + args.num_seeds)
    generators = [own_generator(seed, data["state"].device) for seed in seeds]
    measure = {"likelihood": surprise, "neighbour": distance}[args.uncertainty](data, generators)
    return lambda critic, state, joint, logged: soften(measure(state, joint), floor)


def soften(u, floor=FLOOR):
    """u [S, B, K], with `floor` times its root mean square over the sizes added to each in quadrature.

    An estimate that can be 0 would otherwise give a transition's whole weight to the sizes where it is. So they differ
    by a factor of sqrt(1 + K / floor^2) at most, and hardly change where they were alike.
    """
    return (u.square() + floor**2 * u.square().mean(-1, keepdim=True)).sqrt()


def as_rows(actions):
    """Joint actions [..., N] of indices or [..., N, A] of numbers as the rows [..., W] that the critics take."""
    rows = actions if actions.is_floating_point() else functional.one_hot(actions, NUM_ACTIONS).float()
    return rows.flatten(-2)


def own_generator(seed, device):
    """A generator whose stream is not that of the training script's with the same seed."""
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))


def logged_pairs(data, index):
    """States [..., D] and joint actions as rows [..., W] of the steps `index` [...] among all steps of all episodes."""
    return data["state"][index + index // data["horizon"]], as_rows(data["actions"][index])


# ------------------------------------------------------------------------- likelihood under the behaviour


def surprise(data, generators):
    """Fits a model of the behaviour for each seed. Returns a function of states [S, B, D] and joint actions
    [S, B, K, W] that gives minus their log-likelihoods under their seed's model, [S, B, K], all above 0."""
    continuous = data["actions"].is_floating_point()
    # One seed after the other, so that each ends with the same bits in whatever company.
    models = zip(*(fit_behaviour(data, continuous, generator) for generator in generators), strict=True)
    models = [torch.stack(params) for params in models]
    return lambda state, joint: -log_likelihood(models, state, as_choices(joint, continuous))


def as_choices(rows, continuous):
    """Joint actions as rows [..., W] -> the choices they are made of, [..., F]: every agent's action, or the bin of
    every number in [-1, 1]."""
    if continuous:
        return ((rows + 1) / 2 * BINS).long().clamp(0, BINS - 1)
    return rows.unflatten(-1, (-1, NUM_ACTIONS)).argmax(-1)


@torch.enable_grad()
def fit_behaviour(data, continuous, generator):
    """F networks fitted by maximum likelihood: number f tells choice f from the state and the choices before it.

    Returns [W, b, W, b, W, b] with W [F, in, out]; inputs are the state and all choices as zeros and ones, of which
    the first weights of network f are 0 from choice f on.
    """
    values, device = BINS if continuous else NUM_ACTIONS, generator.device
    dim, count, rows = data["state"].shape[-1], data["actions"][0].numel(), len(data["actions"])
    place = torch.arange(count, device=device)
    earlier = (place < place[:, None]).repeat_interleave(values, dim=1)  # [F, F * V]
    seen = torch.cat([earlier.new_ones(count, dim), earlier], dim=1).unsqueeze(-1)  # [F, D + F * V, 1]
    params = init_mlp(count, (dim + count * values, HIDDEN, HIDDEN, values), generator)
    adam = torch.optim.Adam([p.requires_grad_() for p in params], fused=True)
    for step in tqdm(range(STEPS), desc="model of the behaviour", unit="step", leave=False, file=sys.stderr):
        index = torch.randint(rows, (BATCH,), generator=generator, device=device)
        state, joint = logged_pairs(data, index)
        choices = as_choices(joint, continuous)  # [BATCH, F]
        inputs = torch.cat([state, functional.one_hot(choices, values).flatten(1)], dim=1)
        logits = mlp([params[0] * seen, *params[1:]], inputs.expand(count, -1, -1))  # [F, BATCH, V]
        adam.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), choices.T.flatten(), reduction="sum").div(BATCH).backward()
        adam.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        adam.step()
    return [p.detach() for p in (params[0] * seen, *params[1:])]


def log_likelihood(models, state, choices):
    """Log-likelihoods [S, B, K] of choices [S, B, K, F] at states [S, B, D], sums over the F networks of each seed."""
    (num_seeds, count), values = models[0].shape[:2], models[-1].shape[-1]
    states = state.unsqueeze(2).expand(-1, -1, choices.shape[2], -1)
    inputs = torch.cat([states, functional.one_hot(choices, values).flatten(-2)], dim=-1).flatten(1, 2)
    logits = mlp([p.flatten(0, 1) for p in models], inputs.repeat_interleave(count, dim=0))  # [S * F, B * K, V]
    chosen = choices.flatten(1, 2).mT.flatten(0, 1).unsqueeze(-1)  # [S * F, B * K, 1]
    likelihood = (1 - DOUBT) * logits.softmax(-1).gather(-1, chosen) + DOUBT / values
    return likelihood.log().view(num_seeds, count, *choices.shape[1:3]).sum(1)


# -------------------------------------------------------------------------------- nearest logged pair


def distance(data, generators):
    """Draws M logged pairs for each seed. Returns a function of states [S, B, D] and joint actions [S, B, K, W] that
    gives their distances to the nearest of them, [S, B, K].

    State and joint action count alike: each part's squared distance is divided by its mean between two of the pairs.
    """
    index = per_seed(torch.randperm, generators, len(data["actions"]))[:, :NEIGHBOURS]
    units, pairs = [], []
    for part in logged_pairs(data, index):  # [S, M, D], [S, M, W]
        units.append((2 * part.var(1, correction=0).sum(-1)).sqrt().clamp(min=1e-6).view(-1, 1, 1))
        pairs.append(part / units[-1])

    def measure(state, joint):
        states = squared_distances(state / units[0], pairs[0]).unsqueeze(2)  # [S, B, 1, M]
        actions = squared_distances(joint.flatten(1, 2) / units[1], pairs[1]).unflatten(1, joint.shape[1:3])
        return (states + actions).amin(-1).clamp(min=0).sqrt()  # rounding may fall below 0

    return measure


def squared_distances(x, y):
    """Between all rows of x [S, P, W] and y [S, M, W], [S, P, M], by one product of matrices."""
    return torch.baddbmm(x.square().sum(-1, keepdim=True) + y.square().sum(-1).unsqueeze(1), x, y.mT, alpha=-2)
