"""The estimates of u_k (experiments/estimators.py), each against a slow and obvious reference, what they do in a run of either
script, and what experiments/uncertainty.py says of them.

As in test_equations.py, a `check_...` helper must accept the project's function and reject every deliberate mistake
listed under the same property (`MISTAKES[...]`).

Array letters as in experiments/estimators.py: S seeds, E critics, B batch, K sizes, N agents, D state numbers, W numbers of a
joint action's row, F choices, V values of each, M logged pairs.
"""

import csv
import itertools
import math
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import common
import numpy as np
import pytest
import torch
from common import (
    SEEDS,
    SMALL,
    Stop,
    close,
    die_at,
    differences,
    double_networks,
    generator,
    indices,
    load,
    mistakes_in,
    normal,
    one_line,
    rejects,
    repeatable,
    separate_network,
    tree,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import spacql
import spacql_continuous
from data import datasets
from data.datasets import load_dataset
from envs.half_cheetah import HalfCheetah
from envs.particles import NUM_ACTIONS
from experiments import estimators, uncertainty
from utils import runs
from utils.stacked import init_networks

MISTAKES = {}  # property -> {what is wrong: a function that must be rejected}
mistakes = mistakes_in(MISTAKES)
SCRIPTS = {"discrete": spacql, "continuous": spacql_continuous}
NUM, DIM, STATE = 3, 2, 4  # agents, numbers of a continuous action, numbers of a state
BY_CRITICS = st.sampled_from(["std", "range", "relative"])
SHAPES = st.tuples(SMALL, SMALL, st.integers(2, 5), SMALL)  # seeds, critics, batch, sizes
TINY = (
    "--dataset-size 2500 --hidden 16 --num-critics 3 --batch-size 32 --rounds 4 --eval-every 2"
    " --eval-episodes 4 --final-episodes 8 --device cpu"
).split()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Models of the behaviour are fitted briefly, and there are few neighbours."""
    monkeypatch.setattr(estimators, "STEPS", 30)
    monkeypatch.setattr(estimators, "NEIGHBOURS", 64)


def asked_for(kind, num_seeds=1, seed=0):
    """Arguments of a run, as far as an estimate looks at them."""
    return SimpleNamespace(uncertainty=kind, seed=seed, num_seeds=num_seeds)


def joint_actions(actions, seed, num_seeds, batch, num_sizes):
    """Joint actions as rows in double precision, [S, B, K, W], and logged ones, [S, B, N] or [S, B, N, A]. Every third
    row is what was logged."""
    g = generator(seed)
    if actions == "discrete":
        played = torch.randint(NUM_ACTIONS, (num_seeds, batch, num_sizes, NUM), generator=g)
        logged = torch.randint(NUM_ACTIONS, (num_seeds, batch, NUM), generator=g)
    else:
        played = 2 * torch.rand((num_seeds, batch, num_sizes, NUM, DIM), generator=g) - 1
        logged = 2 * torch.rand((num_seeds, batch, NUM, DIM), generator=g) - 1
    played.flatten(0, 2)[::3] = logged.unsqueeze(2).expand_as(played).flatten(0, 2)[::3]
    return slow_rows(played).double(), logged


def slow_rows(actions):
    """Joint actions [..., N] of indices as zeros and ones, those [..., N, A] of numbers side by side."""
    if actions.is_floating_point():
        return actions.reshape(*actions.shape[:-2], -1)
    rows = torch.zeros(*actions.shape, NUM_ACTIONS)
    for place in indices(*actions.shape):
        rows[(*place, int(actions[place]))] = 1.0
    return rows.reshape(*actions.shape[:-1], -1)


# ------------------------------------------------------------------------------- what the critics say


def normalised(rows, norm):
    """What critics make of rows [B, W] that they get in one call."""
    if norm == "call":
        return nn.BatchNorm1d(rows.shape[1], affine=False).double().train()(rows)
    return rows - rows.mean(0) if norm == "centre" else rows


def check_by_critics(make, kind, actions, norm, seed=0, num_seeds=2, members=3, batch=5, num_sizes=3):
    """u_k by separate networks and by loops; `relative` asks about a'^(k) and a' in one call for each size."""
    width = NUM * (NUM_ACTIONS if actions == "discrete" else DIM)
    critic = double_networks(seed, num_seeds, members, (STATE + width, 6, 5, 1))
    state = normal(seed + 9, num_seeds, batch, STATE)
    joint, logged = joint_actions(actions, seed, num_seeds, batch, num_sizes)
    norms = [] if actions == "discrete" else [partial(spacql_continuous.batch_norm, kind=norm)]
    estimate = make(asked_for(kind), None, spacql.uncertainty, spacql.critic_values, *norms, floor=0.0)
    u, expected = estimate(critic, state, joint, logged), torch.zeros(num_seeds, batch, num_sizes)
    for s, k in indices(num_seeds, num_sizes):
        networks = [separate_network(critic, s, e) for e in range(members)]
        rows = joint[s, :, k]
        if kind == "relative":
            rows = torch.cat([rows, slow_rows(logged[s]).double()])
        states = state[s].repeat(len(rows) // batch, 1)
        inputs = torch.cat([states, normalised(rows, norm)], 1)
        values = [network(inputs)[:, 0].tolist() for network in networks]
        for b in range(batch):
            of_row = [v[b] - v[batch + b] if kind == "relative" else v[b] for v in values]
            mean = sum(of_row) / members
            deviation = math.sqrt(sum((v - mean) ** 2 for v in of_row) / members)
            expected[s, b, k] = max(of_row) - min(of_row) if kind == "range" else deviation
    close(u.detach(), expected.double(), 1e-6)


def making(change):
    """A mistake: the estimator with a change of what its function is asked, (critic, state, joint, logged) -> same."""

    def make(*args, **kwargs):
        estimate = estimators.estimator(*args, **kwargs)
        return lambda *asked: estimate(*change(*asked))

    return make


def instead(kind):
    """A mistake: another kind of estimate than asked for."""
    return lambda args, *rest, **kwargs: estimators.estimator(asked_for(kind), *rest, **kwargs)


def half_of_the_range(args, *rest, **kwargs):
    """A mistake: the largest member minus the mean."""
    estimate = estimators.estimator(asked_for("range"), *rest, **kwargs)
    return lambda *asked: estimate(*asked) / 2


def apart(args, data, uncertainty, critic_values, norm, floor):
    """A mistake: the logged joint actions are normalised by themselves."""

    def estimate(critic, state, joint, logged):
        rows = [norm(joint.unsqueeze(3)), norm(slow_rows(logged).double()[:, :, None, None])]
        changed, unchanged = (critic_values(critic, state, r) for r in rows)
        return uncertainty(changed - unchanged)

    return estimate


MISTAKES["std"] = {
    "range": instead("range"),
    "relative": instead("relative"),
    "another state": making(lambda critic, state, *rest: (critic, state.roll(1, 1), *rest)),
    "another size": making(lambda critic, state, joint, logged: (critic, state, joint.roll(1, 2), logged)),
}
MISTAKES["range"] = {"std": instead("std"), "half of it": half_of_the_range}
MISTAKES["relative"] = {
    "std": instead("std"),
    "another transition's logged actions": making(lambda *asked: (*asked[:3], asked[3].roll(1, 1))),
    "each normalised by itself": apart,
    "not normalised": lambda *args, floor: estimators.estimator(*args[:4], floor=floor),
}


@settings(repeatable, max_examples=10)
@given(BY_CRITICS, SEEDS, SHAPES)
def test_discrete_joint_actions_are_judged_by_the_critics(kind, seed, shape):
    check_by_critics(estimators.estimator, kind, "discrete", "none", seed, *shape)


@settings(repeatable, max_examples=20)
@given(BY_CRITICS, st.sampled_from(spacql_continuous.CHOICES["action_norm"]), SEEDS, SHAPES)
def test_continuous_joint_actions_are_judged_by_the_critics(kind, norm, seed, shape):
    check_by_critics(estimators.estimator, kind, "continuous", norm, seed, *shape)


@pytest.mark.parametrize(("kind", "wrong"), [(k, w) for k in ("std", "range", "relative") for w in MISTAKES[k]])
def test_a_wrong_judgement_by_the_critics_is_noticed(kind, wrong):
    rejects(check_by_critics, MISTAKES[kind][wrong], kind, "continuous", "centre")


def test_the_default_is_equation_3_bit_by_bit():
    critic = init_networks([generator(0)], 10, (STATE + NUM * DIM, 64, 64, 1))
    joint = 2 * torch.rand((1, 256, 3, NUM * DIM), generator=generator(1)) - 1
    state = torch.randn((1, 256, STATE), generator=generator(2))
    norm = partial(spacql_continuous.batch_norm, kind="call")
    args, functions = spacql_continuous.Args(), (spacql_continuous.uncertainty, spacql_continuous.critic_values)
    estimate = estimators.estimator(args, None, *functions, norm)
    q = spacql_continuous.critic_values(critic, state, norm(joint.unsqueeze(3)))
    assert torch.equal(estimate(critic, state, joint, None), spacql_continuous.uncertainty(q))


def check_blind_to_states(make, kind):
    """What a member thinks of a state, added to its every value there, changes nothing."""
    joint, logged = joint_actions("discrete", 0, 2, 6, 3)
    q = {"same": normal(1, 15), "states": 10 * normal(2, 2, 3, 6, 1)}  # of a joint action's numbers; of members, states

    def values(shift, critic, state, rows):
        return (rows * q["same"]).sin().sum(-1).unsqueeze(1) * torch.arange(1.0, 4).view(3, 1, 1) + shift * q["states"]

    estimates = [make(asked_for(kind), None, spacql.uncertainty, partial(values, shift), floor=0.0) for shift in (0, 1)]
    plain, shifted = (estimate(None, normal(3, 2, 6, STATE), joint, logged) for estimate in estimates)
    assert plain.max() > 0.1
    close(shifted, plain)


def test_relative_is_blind_to_what_members_think_of_a_state():
    check_blind_to_states(estimators.estimator, "relative")


@pytest.mark.parametrize("kind", ["std", "range"])
def test_the_others_are_not(kind):
    rejects(check_blind_to_states, estimators.estimator, kind)


def test_relative_is_0_where_nothing_changed_and_weights_show_it():
    """All the weight would go to sizes that changed nothing; the floor leaves the others something."""
    logged = torch.randint(NUM_ACTIONS, (1, 40, NUM), generator=generator(0))
    rows = slow_rows(logged).unsqueeze(2).repeat(1, 1, 3, 1)
    rows[:, :20, 1:] = rows[:, :20, 1:].roll(1, -1)  # k = 2 and 3 change something in the first 20 transitions
    critic = init_networks([generator(1)], 10, (STATE + rows.shape[-1], 64, 64, 1))
    weights = {}
    for floor in (0.0, estimators.FLOOR):
        estimate = estimators.estimator(
            asked_for("relative"), None, spacql.uncertainty, spacql.critic_values, floor=floor
        )
        u = estimate(critic, torch.randn((1, 40, STATE), generator=generator(2)), rows, logged)
        assert (u[:, :20, 1:] > 1e-3).all()
        if floor == 0:
            assert (u[:, :20, 0] < 1e-6).all() and (u[:, 20:] < 1e-6).all()
            u = u.where(u >= 1e-6, 0.0)  # but for rounding
        weights[floor] = spacql.replacement_weights(u)
    close(weights[0.0][:, :20], torch.tensor([1.0, 0, 0]).expand(1, 20, -1), 1e-5)
    close(weights[0.0][:, 20:], torch.full((1, 20, 3), 1 / 3), 1e-5)
    assert (weights[0.1][:, :20, 1:] > 0.01).all() and (weights[0.1][:, :20, 0] > 0.5).all()


def check_soften(soften):
    """u_k and a share of the root mean square over sizes, in quadrature, by loops; so ratios are bounded."""
    u = normal(0, 2, 5, 4).abs()
    u[0, 0], u[0, 1, 1:], u[1, 2, 0] = 0.0, 0.0, 0.0
    soft = soften(u, 0.3)
    for s, b in indices(2, 5):
        values = u[s, b].tolist()
        mean = sum(v**2 for v in values) / 4
        close(soft[s, b], [math.sqrt(v**2 + 0.09 * mean) for v in values])
        assert mean == 0 or soft[s, b].max() / soft[s, b].min() <= math.sqrt(1 + 4 / 0.09) + 1e-9
    close(soften(u, 0.0), u)


MISTAKES["soften"] = {
    "over the batch": lambda u, floor: (u.square() + floor**2 * u.square().mean(1, keepdim=True)).sqrt(),
    "added": lambda u, floor: u + floor * u.square().mean(-1, keepdim=True).sqrt(),
    "a fixed floor": lambda u, floor: u.clamp(min=floor),
    "not at all": lambda u, floor: u,
}


def test_floor_is_a_share_of_the_transitions_own_uncertainty():
    check_soften(estimators.soften)


@mistakes("soften")
def test_a_wrong_floor_is_noticed(wrong):
    rejects(check_soften, wrong)


# ------------------------------------------------------------------------------- likelihood of the behaviour


def synthetic(behave, episodes=400, horizon=10, seed=0):
    """A dataset as a script has it on the device: states of STATE random signs, and the actions behave(states,
    generator) [rows, N] or [rows, N, A] in them; an episode has one state more than actions."""
    g = generator(seed)
    state = torch.randint(2, (episodes * (horizon + 1), STATE), generator=g) * 2.0 - 1
    acted = torch.arange(horizon * episodes)
    return dict(state=state, horizon=horizon, actions=behave(state[acted + acted // horizon], g))


def conventions(state, g):
    """All agents agree, nine times out of ten, on action 0 or 1 if the state's first sign is -1, else on 2 or 3; with
    the tenth chance an agent acts at random. The state's other signs mean nothing."""
    agreed = (state[:, 0] > 0).long() * 2 + torch.randint(2, (len(state),), generator=g)
    random = torch.randint(NUM_ACTIONS, (len(state), NUM), generator=g)
    return torch.where(torch.rand((len(state), NUM), generator=g) < 0.1, random, agreed[:, None])


def forces(state, g):
    """The same with forces: the agreed number is the middle of a bin."""
    middles = (torch.arange(estimators.BINS) + 0.5) / estimators.BINS * 2 - 1
    return middles[conventions(state, g)].unsqueeze(-1).expand(-1, -1, 2)


def entropy_of_conventions():
    """In nats, by enumeration of all joint actions in one state."""
    total = 0.0
    for joint in itertools.product(range(NUM_ACTIONS), repeat=NUM):
        p = sum(0.5 * math.prod(0.9 * (a == agreed) + 0.1 / NUM_ACTIONS for a in joint) for agreed in (0, 1))
        total -= p * math.log(p)
    return total


def surprises(behave, rows_of):
    """The mean surprise at fresh logged pairs, and surprises at them and at the actions rows_of(states, generator)."""
    known, fresh = synthetic(behave), synthetic(behave, seed=1)
    measure = estimators.surprise(known, [estimators.own_generator(0, "cpu")])
    state, joint = estimators.logged_pairs(fresh, torch.arange(2000))
    other = estimators.as_rows(rows_of(state, generator(5)))
    logged, replaced = measure(state[None], torch.stack([joint, other], dim=1)[None])[0].unbind(-1)
    return float(logged.mean()), logged, replaced


def redraw_one(behave):
    """Joint actions in which agent 0's actions are those of another draw: each agent alone is as likely as before."""

    def rows_of(state, g):
        logged, other = behave(state, g), behave(state, g)
        return torch.cat([other[:, :1], logged[:, 1:]], dim=1)

    return rows_of


@pytest.mark.parametrize("behave", [conventions, forces])
def test_model_of_the_behaviour_learns_a_known_distribution(behave, monkeypatch):
    """Cross-entropy on fresh pairs near the entropy; and where agents agree, one that does not is found out."""
    monkeypatch.setattr(estimators, "STEPS", 400)
    mean, logged, replaced = surprises(behave, redraw_one(behave))
    assert entropy_of_conventions() - 0.1 < mean < entropy_of_conventions() + 0.15
    broken = replaced > 3.5
    assert 0.4 < broken.float().mean() < 0.65, "half of the draws agree on the other action"
    assert uncertainty.auroc(logged, replaced) > 0.65 and uncertainty.auroc(logged, replaced[broken]) > 0.9


def random_models(seed, num_seeds, count, values):
    """Stacked networks [S, F, in, out] in double precision that do not see their own choice nor later ones."""
    models = [3 * p.detach() for p in double_networks(seed, num_seeds, count, (STATE + count * values, 6, 5, values))]
    for f in range(count):
        models[0][:, f, STATE + f * values :] = 0.0
    return models


def check_likelihood(likelihood, seed=0, num_seeds=2, batch=3, num_sizes=4, count=3, values=3):
    """Sums over choices of log-probabilities, each from its own network and a little doubt, by loops; and those of all
    joint actions add up to 1."""
    models, state = random_models(seed, num_seeds, count, values), normal(seed + 1, num_seeds, batch, STATE)
    choices = torch.randint(values, (num_seeds, batch, num_sizes, count), generator=generator(seed))
    expected = torch.zeros(num_seeds, batch, num_sizes)
    for s, b, k in indices(num_seeds, batch, num_sizes):
        chosen = choices[s, b, k].tolist()
        flags = [float(chosen[f] == v) for f in range(count) for v in range(values)]
        for f, choice in enumerate(chosen):
            logits = separate_network(models, s, f)(torch.cat([state[s, b], torch.tensor(flags).double()]))
            p = float((logits[choice].exp() / logits.exp().sum()).detach())
            expected[s, b, k] += math.log(0.99 * p + 0.01 / values)
    close(likelihood(models, state, choices), expected.double(), 1e-5)
    every = torch.tensor(list(itertools.product(range(values), repeat=count)))
    log_p = likelihood(models, state, every.expand(num_seeds, batch, -1, -1))
    close(log_p.exp().sum(-1), torch.ones(num_seeds, batch))


MISTAKES["likelihood"] = {
    "mean over choices": lambda *args: estimators.log_likelihood(*args) / 3,
    "another network": lambda models, *rest: estimators.log_likelihood([p.roll(1, 1) for p in models], *rest),
    "another seed": lambda models, *rest: estimators.log_likelihood([p.flip(0) for p in models], *rest),
    "another state": lambda models, state, choices: estimators.log_likelihood(models, state.roll(1, 1), choices),
    "another joint action": lambda models, state, x: estimators.log_likelihood(models, state, x.roll(1, 2)),
    "choices in another order": lambda models, state, x: estimators.log_likelihood(models, state, x.flip(-1)),
}


def test_log_likelihood_is_that_of_separate_networks():
    check_likelihood(estimators.log_likelihood)


@mistakes("likelihood")
def test_a_wrong_likelihood_is_noticed(wrong):
    rejects(check_likelihood, wrong)


@pytest.mark.parametrize("behave", [conventions, forces])
def test_no_network_sees_its_own_choice_nor_later_ones(behave):
    known = synthetic(behave)
    first = estimators.fit_behaviour(known, behave is forces, generator(0))[0]  # [F, in, out]
    count, values = (6, estimators.BINS) if behave is forces else (3, NUM_ACTIONS)
    assert first.shape[:2] == (count, STATE + count * values)
    for f in range(count):
        seen = (first[f] != 0).any(-1)
        assert seen[: STATE + f * values].all() and not seen[STATE + f * values :].any()


def test_numbers_in_bins():
    """Equal bins from -1 to 1, both ends included, by loops; discrete actions are what they are."""
    rows = torch.linspace(-1, 1, 100).view(1, -1)  # none at an edge
    edges = [-1 + 2 * b / estimators.BINS for b in range(1, estimators.BINS)]
    expected = [sum(float(x) >= edge for edge in edges) for x in rows[0]]
    assert estimators.as_choices(rows, True)[0].tolist() == expected and max(expected) == estimators.BINS - 1
    actions = torch.randint(NUM_ACTIONS, (5, 4, NUM), generator=generator(0))
    assert torch.equal(estimators.as_choices(slow_rows(actions), False), actions)
    assert torch.equal(estimators.as_rows(actions), slow_rows(actions))
    assert torch.equal(estimators.as_rows(normal(0, 5, 4, 3, 2)), slow_rows(normal(0, 5, 4, 3, 2)))


def test_surprise_is_above_0_and_never_infinite():
    """Also of joint actions that the data do not hold."""
    same = lambda state, g: torch.zeros(len(state), NUM, dtype=torch.int64)  # noqa: E731
    _, logged, replaced = surprises(same, lambda state, g: same(state, g) + 3)
    assert 0 < logged.min() and logged.max() < 0.5 and 3 < replaced.min() and replaced.max() < NUM * 7


# -------------------------------------------------------------------------------------- the nearest pair


def check_neighbours(make):
    """The distance to the nearest of all logged pairs (fewer than M here), by loops, each part in units of its root
    mean squared distance between two of them."""
    data = synthetic(forces, episodes=4)
    pairs = [(data["state"][e * 11 + t], slow_rows(data["actions"][e * 10 + t])) for e in range(4) for t in range(10)]
    units = [
        math.sqrt(sum(float((a[part] - b[part]).square().sum()) for a in pairs for b in pairs) / len(pairs) ** 2)
        for part in (0, 1)
    ]
    state = normal(0, 2, 3, STATE).float()
    joint = (2 * torch.rand((2, 3, 2, NUM * DIM), generator=generator(1)) - 1).float()
    state[0, 0], joint[0, 0, 0] = pairs[13]
    u = make(data, [estimators.own_generator(seed, "cpu") for seed in (0, 1)])(state, joint)
    for s, b, k in indices(2, 3, 2):
        query = state[s, b], joint[s, b, k]
        away = [sum(float(((query[i] - p[i]) / units[i]).square().sum()) for i in (0, 1)) for p in pairs]
        assert float(u[s, b, k]) == pytest.approx(math.sqrt(min(away)), abs=2e-3)
    assert u[0, 0, 0] < 2e-3 < 0.1 < u[0, 0, 1]


def asking(change):
    """A mistake: the distance of other states and joint actions, change(state, joint)."""

    def make(data, generators):
        measure = estimators.distance(data, generators)
        return lambda state, joint: measure(*change(state, joint))

    return make


def with_pairs(logged_pairs):
    """A mistake: the pairs are put together in another way."""

    def make(*args):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(estimators, "logged_pairs", logged_pairs)
            return estimators.distance(*args)

    return make


def squares(*args):
    """A mistake: squared distances."""
    measure = estimators.distance(*args)
    return lambda *query: measure(*query).square()


PAIRS = estimators.logged_pairs
MISTAKES["neighbour"] = {
    "squared": squares,
    "the state does not count": asking(lambda state, joint: (0 * state, joint)),
    "joint actions do not count": asking(lambda state, joint: (state, 0 * joint)),
    "another size": asking(lambda state, joint: (state, joint.roll(1, 2))),
    "an episode has as many states as actions": with_pairs(
        lambda data, index: (data["state"][index], slow_rows(data["actions"][index]))
    ),
    "the state after": with_pairs(lambda data, index: (data["state"][index + index // 10 + 1], PAIRS(data, index)[1])),
    "one number in another unit": with_pairs(
        lambda data, index: (PAIRS(data, index)[0] * torch.tensor([3.0, 1, 1, 1]), PAIRS(data, index)[1])
    ),
}


def test_distance_to_the_nearest_logged_pair():
    check_neighbours(estimators.distance)


@mistakes("neighbour")
def test_a_wrong_distance_is_noticed(wrong):
    rejects(check_neighbours, wrong)


def test_every_seed_has_other_pairs_each_of_them_once():
    """At a pair of one's own the distance is 0: M of them for each seed."""
    data = synthetic(lambda state, g: 2 * torch.rand((len(state), NUM, DIM), generator=g) - 1, episodes=20)
    measure = estimators.distance(data, [estimators.own_generator(seed, "cpu") for seed in (0, 1)])
    state, joint = estimators.logged_pairs(data, torch.arange(200))
    own = measure(state.expand(2, -1, -1), joint[:, None].expand(2, -1, 1, -1))[..., 0] < 2e-3  # [S, 200]
    assert own.sum(1).tolist() == [64, 64] and not torch.equal(own[0], own[1])


# ----------------------------------------------------------------------------------------- random numbers


@pytest.mark.parametrize("kind", ["likelihood", "neighbour"])
def test_what_is_fitted_depends_on_the_seed_alone(kind):
    """The same again, the same for seeds side by side and alone, other for another seed; other random numbers stay."""
    data = synthetic(conventions)
    make = lambda **asked: estimators.estimator(asked_for(kind, **asked), data, None, None)  # noqa: E731
    joint = slow_rows(torch.randint(NUM_ACTIONS, (1, 9, 2, NUM), generator=generator(0))).float()
    state, before = torch.randn((1, 9, STATE), generator=generator(1)), torch.get_rng_state()
    both = make(seed=3, num_seeds=2)(None, state.expand(2, -1, -1), joint.expand(2, -1, -1, -1), None)
    alone = [make(seed=seed)(None, state, joint, None) for seed in (3, 4, 3)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(alone[0], alone[2]) and not torch.allclose(alone[0], alone[1], atol=1e-3)
    close(both, torch.cat(alone[:2]), 1e-5)


def test_models_of_seeds_side_by_side_have_the_bits_of_those_alone(monkeypatch):
    data, fitted = synthetic(conventions), []
    monkeypatch.setattr(estimators, "log_likelihood", lambda models, *_: fitted.append(models) or torch.zeros(1, 1, 1))
    for seeds in ((3, 4), (4,)):
        measure = estimators.surprise(data, [estimators.own_generator(seed, "cpu") for seed in seeds])
        measure(torch.zeros(1, 1, STATE), torch.zeros(1, 1, 1, NUM * NUM_ACTIONS))
    assert all(torch.equal(a[1], b[0]) for a, b in zip(*fitted, strict=True))


def test_streams_are_not_those_of_the_scripts():
    draws = {estimators.own_generator(seed, "cpu").get_state().numpy().tobytes() for seed in range(50)}
    draws |= {generator(seed).get_state().numpy().tobytes() for seed in range(50)}
    assert len(draws) == 100


# ---------------------------------------------------------------------------------------------- in a run


@pytest.fixture
def train(data_dir, elsewhere, monkeypatch):
    """train(script, flags): a tiny run in this process, its folder under ./runs."""
    monkeypatch.setattr(runs, "plot_history", lambda path, *_: path.touch())

    def run(actions, flags=""):
        return SCRIPTS[actions].main([*TINY, "--data-dir", str(data_dir), *flags.split()])

    return run


both_scripts = pytest.mark.parametrize("actions", SCRIPTS)
OTHERS = [kind for kind in estimators.KINDS if kind != "std"]


@both_scripts
def test_standard_deviation_and_plain_initialisation_are_the_defaults(actions, train):
    train(actions, "--name default")
    train(actions, "--uncertainty std --init-gain 1 --name explicit")
    assert differences(load("runs/default"), load("runs/explicit")) == []


@pytest.mark.parametrize("backup", ["spacql", "uniform"])
@both_scripts
def test_weights_are_made_of_the_estimate_that_is_told(actions, backup, train, monkeypatch):
    """In the loop and in the diagnosis, whatever the estimate."""
    script, given, asked = SCRIPTS[actions], [], []
    u = torch.tensor([1.0, 2.0, 4.0])
    estimate = lambda critic, state, joint, logged: asked.append(joint) or u.expand(joint.shape[:3])  # noqa: E731
    monkeypatch.setattr(script, "estimator", lambda *_: estimate)
    target = script.spacql_target
    monkeypatch.setattr(script, "spacql_target", lambda *args: given.append(args[2]) or target(*args))
    train(actions, f"--backup {backup} --weight-temperature 2 --name told")
    history = load("runs/told")["history"]
    expected = [16 / 21, 4 / 21, 1 / 21] if backup == "spacql" else [1 / 3] * 3
    assert np.allclose(history["weights"], [[expected]] * 2, atol=1e-6) and np.allclose(
        history["u"], [[u.tolist()]] * 2
    )
    assert len(given) == 20 and all(np.allclose(w, expected, atol=1e-6) for w in given)
    assert len(asked) == (22 if backup == "spacql" else 2), "in 20 updates and 2 diagnoses"
    assert all(rows.shape[2:] == (3, NUM * (NUM_ACTIONS if actions == "discrete" else DIM)) for rows in asked)
    assert all(0.9 < rows.abs().max() <= 1 for rows in asked), "not normalised yet"


@pytest.mark.parametrize("kind", OTHERS)
@both_scripts
def test_estimates_draw_from_streams_of_their_own(actions, kind, train):
    """With weights that do not ask the estimate, a run is the same bit by bit but for the u that it tells."""
    train(actions, "--backup uniform --name std")
    train(actions, f"--backup uniform --uncertainty {kind} --name other")
    places = differences(load("runs/std"), load("runs/other"))
    assert places and all(place.startswith("/history/u/") for place in places)


@pytest.mark.parametrize("kind", OTHERS)
@both_scripts
def test_runs_with_other_estimates_resume_bit_by_bit(actions, kind, train):
    flags = f"--uncertainty {kind} --k-samples 2 --num-seeds 2 --init-gain 2"
    train(actions, f"{flags} --name whole")
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Stop):
        die_at(monkeypatch, SCRIPTS[actions], "critic_loss", 14)
        train(actions, f"{flags} --name parts")
    train(actions, "--resume --checkpoint runs/parts")
    assert differences(load("runs/parts"), load("runs/whole")) == []


@pytest.mark.parametrize(
    ("actions", "kind"),
    [("discrete", "relative"), ("discrete", "likelihood"), ("continuous", "likelihood"), ("continuous", "neighbour")],
)
def test_seeds_together_are_seeds_alone_with_other_estimates(actions, kind, train):
    common.check_seeds_together(partial(train, actions), f"--uncertainty {kind} --init-gain 3")


@both_scripts
def test_scoring_a_checkpoint_fits_nothing(actions, train, monkeypatch):
    summary = train(actions, "--uncertainty likelihood --name fitted")
    monkeypatch.setattr(SCRIPTS[actions], "estimator", None)
    again = SCRIPTS[actions].main("--eval-only --checkpoint runs/fitted".split())
    assert again["scores"] == summary["scores"]


@both_scripts
def test_gain_is_on_the_critics_first_last_weights(actions, train):
    """At a learning rate of almost nothing the checkpoint holds the start."""
    for gain in (1, 3):
        train(actions, f"--init-gain {gain} --learning-rate 1e-12 --rounds 1 --name {gain}")
    plain, wide = load("runs/1"), load("runs/3")
    for name in ("critic", "target_critic"):
        assert torch.allclose(wide[name][4], 3 * plain[name][4], atol=1e-6)
        assert all(torch.allclose(wide[name][j], plain[name][j], atol=1e-6) for j in (0, 1, 2, 3, 5))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain["actor"], wide["actor"], strict=True))


# ------------------------------------------------------------------------------------ experiments/uncertainty.py


def check_auroc(measure, low, high):
    """All pairs: a win counts 1, a tie 1/2."""
    wins = sum((h > x) + (h == x) / 2 for h in high for x in low)
    assert measure(torch.tensor(low), torch.tensor(high)) == pytest.approx(wins / (len(low) * len(high)), abs=1e-9)


def without_ties(ties):
    """A mistake: ties count `ties`."""
    return lambda low, high: float(((high[:, None] > low) + ties * (high[:, None] == low)).double().mean())


MISTAKES["auroc"] = {
    "ties lose": without_ties(0.0),
    "ties win": without_ties(1.0),
    "swapped": lambda low, high: uncertainty.auroc(high, low),
    "at the same place only": lambda low, high: uncertainty.above(high[:3], low[:3]),
}


@repeatable
@given(*[st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)] * 2)
def test_auroc_is_the_share_of_pairs_won(low, high):
    check_auroc(uncertainty.auroc, low, high)


@mistakes("auroc")
def test_a_wrong_auroc_is_noticed(wrong):
    rejects(check_auroc, wrong, [1.0, 2.0, 2.0, 5.0], [2.0, 3.0, 0.0])


def test_auroc_of_nothing_is_no_number():
    assert math.isnan(uncertainty.auroc(torch.zeros(3), torch.zeros(0)))


def test_detection_counts_what_its_columns_say():
    """By loops over states and pairs of states."""
    g = generator(0)
    u, uniform = (torch.randint(4, (7, 4), generator=g).double() for _ in range(2))
    changed = torch.rand((7, 4), generator=g) < 0.6
    rows = uncertainty.detection(u, uniform, changed)
    half = lambda x, y: (x > y) + (x == y) / 2  # noqa: E731
    for k, row in enumerate(rows, start=1):
        pairs = [(i, j) for i in range(7) for j in range(7)]
        expected = dict(
            auroc=sum(half(u[i, k], u[j, 0]) for i, j in pairs) / 49,
            auroc_changed=sum(half(u[i, k], u[j, 0]) for i, j in pairs if changed[i, k]) / (7 * changed[:, k].sum()),
            auroc_uniform=sum(half(uniform[i, k], u[j, 0]) for i, j in pairs) / 49,
            paired=sum(half(u[i, k], u[i, 0]) for i in range(7)) / 7,
            above_k1=sum(half(u[i, k], u[i, 1]) for i in range(7)) / 7,
            changed=changed[:, k].sum() / 7,
        )
        assert list(row) == list(expected)
        assert all(row[name] == pytest.approx(float(value)) for name, value in expected.items()), (row, expected)
    empty = uncertainty.detection(u, uniform, changed, logged_is_zero=True)
    assert [row["auroc"] + row["auroc_changed"] + row["auroc_uniform"] + row["paired"] for row in empty] == [""] * 3
    assert [row["above_k1"] for row in empty] == [row["above_k1"] for row in rows]


def check_decomposition(decompose, seed, members, batch, num_sizes):
    """Exact sums, and every column by loops over states."""
    q = normal(seed, members, batch, num_sizes + 1)
    q = q + 3 * normal(seed + 1, members, batch, 1)  # what members think of the state
    rows = decompose(q)
    assert len(rows) == num_sizes
    mean = lambda x: sum(x) / len(x)  # noqa: E731
    cov = lambda x, y: mean([(a - mean(x)) * (b - mean(y)) for a, b in zip(x, y, strict=True)])  # noqa: E731
    of = lambda b, k: q[:, b, k].tolist()  # noqa: E731
    u = [[math.sqrt(cov(of(b, k), of(b, k))) for k in range(1, num_sizes + 1)] for b in range(batch)]
    for k, row in enumerate(rows, start=1):
        assert row["u2"] == pytest.approx(row["common"] + row["change"] + row["twice_cov"], rel=1e-9)
        change = [[x - y for x, y in zip(of(b, k), of(b, 0), strict=True)] for b in range(batch)]
        ours, first = ([values[j] for values in u] for j in (k - 1, 0))
        every = [v for values in u for v in values]
        averages = [mean(values) for values in u]
        expected = dict(
            u=mean(ours),
            u2=mean([v**2 for v in ours]),
            common=mean([cov(of(b, 0), of(b, 0)) for b in range(batch)]),
            change=mean([cov(x, x) for x in change]),
            twice_cov=mean([2 * cov(of(b, 0), x) for b, x in enumerate(change)]),
            corr_u1=cov(ours, first) / math.sqrt(cov(ours, ours) * cov(first, first)),
            rel_range=mean([(max(v) - min(v)) / mean(v) for v in u]),
            state_share=cov(averages, averages) / cov(every, every),
        )
        assert list(row) == list(expected)
        assert all(row[name] == pytest.approx(value, rel=1e-6) for name, value in expected.items()), (row, expected)


MISTAKES["decomposition"] = {
    "members divided by E - 1": lambda q: uncertainty.decomposition(q * math.sqrt(len(q) / (len(q) - 1))),
    "the first size for the logged one": lambda q: uncertainty.decomposition(q[..., [1, 1, 2, 3]]),
    "sizes in another order": lambda q: uncertainty.decomposition(q[..., [0, 2, 1, 3]]),
    "no covariance": lambda q: [row | dict(twice_cov=0.0) for row in uncertainty.decomposition(q)],
    "covariance once": lambda q: [row | dict(twice_cov=row["twice_cov"] / 2) for row in uncertainty.decomposition(q)],
}


@settings(repeatable, max_examples=10)
@given(SEEDS, st.integers(2, 5), st.integers(3, 6), SMALL)
def test_decomposition_adds_up(seed, members, batch, num_sizes):
    check_decomposition(uncertainty.decomposition, seed, members, batch, num_sizes)


@mistakes("decomposition")
def test_a_wrong_decomposition_is_noticed(wrong):
    rejects(check_decomposition, wrong, 0, 4, 5, 3)


@both_scripts
def test_fresh_data_are_on_the_scale_of_the_runs(actions, data_dir):
    """A script's own scaling where both are the same, and linear."""
    script = SCRIPTS[actions]
    trained = load_dataset("simple_tag", "medium", 2500, 0, data_dir, actions)
    own = script.to_device(trained, "cpu")[0]["state"]
    scaled = uncertainty.scaled_like(trained.observations, trained.observations).flatten(2).flatten(0, 1)
    assert torch.allclose(scaled, own, atol=1e-5)
    further = uncertainty.scaled_like(trained.observations, trained.observations + trained.observations.std((0, 1)))
    assert torch.allclose(further.mean((0, 1)), torch.ones(()), atol=1e-2)


@both_scripts
def test_joint_actions_are_those_of_the_backup(actions, data_dir):
    """k = 0 is what was logged at that state; of a'^(k) at most k agents differ, who act as the actor does."""
    script = SCRIPTS[actions]
    data = script.to_device(load_dataset("simple_spread", "medium", 2500, 0, data_dir, actions), "cpu")[0]
    widths = (18, 8, 8, NUM_ACTIONS if actions == "discrete" else DIM)
    actor = init_networks([generator(0)], NUM, widths)
    actor[5][..., 0] = 50.0  # always action 0, or a first number of 1
    state, logged, joint, uniform = uncertainty.replaced(script, actor, data, 300, generator(1))
    assert state.shape == (1, 300, 54) and joint.shape == uniform.shape == (1, 300, 4, NUM * widths[-1])
    rows = {tuple(row.tolist()): i for i, row in enumerate(data["state"])}
    places = torch.tensor([rows[tuple(row.tolist())] for row in state[0]])
    steps = places - places // 26
    assert (places % 26 > 0).all() and torch.equal(data["actions"][steps], logged[0]), "a next step, and what was done"
    assert torch.equal(joint[0, :, 0], slow_rows(logged[0])) and torch.equal(uniform[0, :, 0], joint[0, :, 0])
    for rows, acts in ((joint, True), (uniform, False)):
        apart = (rows != rows[:, :, :1]).unflatten(-1, (NUM, -1)).any(-1)  # [1, B, K + 1, N]
        assert (apart.sum(-1) <= torch.arange(4)).all() and (apart.sum(-1).amax(1) == torch.arange(4)).all()
        first = rows.unflatten(-1, (NUM, -1))[..., 0][apart]
        assert (first > 0.75).all() == acts and len(first) > 100


def tables(folder):
    """Both tables of a folder."""
    return [list(csv.DictReader((folder / name).open())) for name in ("uncertainty.csv", "decomposition.csv")]


@both_scripts
def test_runs_are_judged_once(actions, train, data_dir, tmp_path):
    train(actions, "--num-seeds 2 --seed 5 --uncertainty relative --rounds 2 --name one")
    train(actions, "--rounds 2 --env-id simple_tag --dataset random --name two")
    train(actions, "--num-critics 1 --rounds 2 --name bc")
    flags = f"--states 40 --transitions 500 --data-dir {data_dir} --out tables".split()
    uncertainty.main([*flags, "runs/one"])
    first = tables(tmp_path / "tables")
    uncertainty.main([*flags, "runs/one", "runs/two", "runs/bc"])
    both = tables(tmp_path / "tables")
    assert [rows[: len(old)] for rows, old in zip(both, first, strict=True)] == first
    keys = [("one", "5"), ("one", "6"), ("two", "0")]
    for rows, by in zip(both, ([3, 5], [3]), strict=True):
        assert [(r["run"], r["seed"]) for r in rows] == [key for key in keys for _ in range(math.prod(by))]
    assert [r["detector"] for r in both[0][:15]] == [kind for kind in estimators.KINDS for _ in range(3)]
    assert {(r["env_id"], r["uncertainty"], r["rounds"]) for r in both[1]} == {
        ("simple_spread", "relative", "2"),
        ("simple_tag", "std", "2"),
    }
    for row in both[1]:
        parts = [float(row[name]) for name in ("common", "change", "twice_cov")]
        assert sum(parts) == pytest.approx(float(row["u2"]), rel=1e-4)
    for rows in (both[1][:3], both[1][3:6], both[1][6:]):
        weights = [name for name in rows[0] if name.startswith("w_")]
        assert len(weights) == 7 and len({row["common"] for row in rows}) == 1
        assert all(sum(float(row[name]) for row in rows) == pytest.approx(1, abs=1e-4) for name in weights)
    before = tree("tables")
    uncertainty.main([*flags, "runs/one", "runs/two"])
    assert tree("tables") == before, "nothing is left to do"
    SCRIPTS[actions].main("--resume --checkpoint runs/two --rounds 4".split())
    uncertainty.main([*flags, "runs/one", "runs/two"])
    later = tables(tmp_path / "tables")
    assert [len(rows) for rows in later] == [len(rows) for rows in both], "instead of the old rows"
    assert [rows[-1]["rounds"] for rows in later] == ["4", "4"] and later[1][0] == both[1][0]


def test_an_interrupted_judgement_goes_on(train, data_dir, tmp_path, monkeypatch):
    """It died between the two tables: the seed is judged anew, and is in both once."""
    train("discrete", "--num-seeds 2 --rounds 2 --name run")
    flags = f"--states 40 --transitions 500 --data-dir {data_dir} runs/run".split()
    uncertainty.main([*flags, "--out", "whole"])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        die_at(patch, uncertainty, "write", 4)
        uncertainty.main([*flags, "--out", "parts"])
    uncertainty.main([*flags, "--out", "parts"])
    assert tables(tmp_path / "parts") == tables(tmp_path / "whole")
    assert not list(tmp_path.rglob("*.partial*"))


def test_half_cheetah_is_judged(train, data_dir, tmp_path, monkeypatch):
    """Critics there see the simulator's state, and there are two agents. Episodes are short here."""
    monkeypatch.setattr(HalfCheetah, "horizon", 25)
    monkeypatch.setitem(datasets.HORIZONS, "HalfCheetah-2x3", 25)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    flags = f"--dataset-size 500 --eval-episodes 2 --final-episodes 2 --data-dir {tmp_path / 'short'}"
    train("continuous", f"--env-id HalfCheetah-2x3 --rounds 2 {flags} --name cheetah")
    flags = ["--states", "40", "--transitions", "500", "--data-dir", str(tmp_path / "short"), "--out", "tables"]
    uncertainty.main([*flags, "runs/cheetah"])
    assert [len(rows) for rows in tables(tmp_path / "tables")] == [2 * 5, 2]


def test_what_cannot_be_judged_is_refused(train, data_dir, tmp_path):
    Path("empty").mkdir()
    assert "empty is no run folder" in one_line(lambda: uncertainty.main(["empty"]))
    train("discrete", "--rounds 1 --name run")
    (path,) = data_dir.glob("simple_spread-discrete-medium-2500-seed0-*.h5")
    shutil.copy(path, "mine.h5")
    train("discrete", "--rounds 1 --dataset mine.h5 --name file")
    flags = ["--out", "tables", "--data-dir", str(data_dir), "--transitions", "500"]
    message = one_line(lambda: uncertainty.main([*flags, "runs/file"]))
    assert message == "there are no fresh data like mine.h5: only datasets with a name can be simulated anew"
    (Path("runs/run") / "checkpoint.pt").unlink()
    assert "no checkpoint runs/run/checkpoint.pt" in one_line(lambda: uncertainty.main([*flags, "runs/run"]))
    assert not Path("tables").exists()
