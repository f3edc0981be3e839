"""The equations of `spacql.py`, each against a slow and obvious reference written out as loops.

A `check_...` helper takes the function under test as an argument. It must accept the project's function, and it must
reject every deliberate mistake listed under the same property (`MISTAKES[...]`), so no check passes by being blind.

Array letters as in `spacql.py`: S seeds, E critics, B batch, K sizes, N agents, A actions, O observation numbers.
"""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from common import (
    PARTS,
    SEEDS,
    SIGMAS,
    SMALL,
    check_replaces_exactly_k,
    close,
    compare_gradients,
    double_networks,
    evenly,
    generator,
    in_parts_of,
    indices,
    mistakes_in,
    normal,
    rejects,
    repeatable,
    separate_network,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import spacql
import utils.stacked as stacked
from envs.particles import NUM_ACTIONS

MISTAKES = {}  # property -> {what is wrong: a function that must be rejected}
mistakes = mistakes_in(MISTAKES)


def simplex(seed, *shape):
    """Random weights that sum to 1 over the last axis."""
    return (2 * normal(seed, *shape)).softmax(-1)


# ------------------------------------------------------------------------ (1) partial action replacement


def replacement_inputs(seed, num_seeds, batch, sizes, num):
    """Logged actions 0..4, policy actions 10..14 (so they never coincide), and the numbers that order the agents."""
    g = generator(seed)
    logged = torch.randint(5, (num_seeds, batch, num), generator=g)
    policy = 10 + torch.randint(5, (num_seeds, batch, len(sizes), num), generator=g)
    order = torch.rand((num_seeds, batch, len(sizes), num), generator=g, dtype=torch.float64)
    return logged, policy, order, torch.tensor(sizes)


def check_every_set_equally_often(replace, num=4, batch=6000):
    """Sets of k agents, single agents, and pairs of sets at two sizes all come up as often as chance says."""
    sizes, total = list(range(1, num + 1)), 2 * batch
    chosen = replace(*replacement_inputs(0, 2, batch, sizes, num)) >= 10  # [S, B, K, N]
    sets = (chosen * 2 ** torch.arange(num)).sum(-1).flatten(0, 1)  # [S * B, K], a set as a binary number
    for j, k in enumerate(sizes):
        evenly(sets[:, j].unique(return_counts=True)[1], total, math.comb(num, k))
        spread = SIGMAS * math.sqrt(total * (k / num) * (1 - k / num))
        assert all(abs(chosen[:, :, j, i].sum() - total * k / num) <= spread for i in range(num))
    for j, m in itertools.combinations(range(num), 2):  # independent across k
        pairs = 2**num * sets[:, j] + sets[:, m]
        cells = math.comb(num, sizes[j]) * math.comb(num, sizes[m])
        evenly(pairs.unique(return_counts=True)[1], total, cells)


def first_agents(logged, policy, order, sizes):
    """A mistake: always the agents with the lowest numbers."""
    return torch.where(torch.arange(logged.shape[-1]) < sizes[:, None], policy, logged.unsqueeze(2))


def each_with_chance(logged, policy, order, sizes):
    """A mistake: every agent is replaced with probability k / N, so only the mean number is k."""
    return torch.where(order < sizes[:, None] / logged.shape[-1], policy, logged.unsqueeze(2))


def own_sizes(change):
    """A mistake: sizes [S, B, K], each transition's own, are changed; sizes [K] are not."""
    return lambda logged, policy, order, k: spacql.partial_replacement(
        logged, policy, order, change(k) if k.ndim > 1 else k
    )


MISTAKES["replaces exactly k"] = {
    "another transition's own sizes": own_sizes(lambda k: k.roll(1, 1)),
    "another seed's own sizes": own_sizes(lambda k: k.roll(1, 0)),
    "own sizes in order": own_sizes(lambda k: k.sort(-1).values),
    "own sizes by agent": lambda logged, policy, order, k: torch.where(
        order.argsort(-1).argsort(-1) < k.unsqueeze(-2 if k.ndim > 1 else -1), policy, logged.unsqueeze(2)
    ),
    "k + 1 agents": lambda logged, policy, order, k: spacql.partial_replacement(logged, policy, order, k + 1),
    "k - 1 agents": lambda logged, policy, order, k: spacql.partial_replacement(logged, policy, order, k - 1),
    "n - k agents": lambda logged, policy, order, k: spacql.partial_replacement(
        logged, policy, order, logged.shape[-1] - k
    ),
    "k on average": each_with_chance,
    "first agents": first_agents,
}
MISTAKES["every set equally often"] = {
    "first agents": first_agents,
    "one order for all k": lambda logged, policy, order, k: spacql.partial_replacement(
        logged, policy, order[:, :, :1].expand_as(order), k
    ),
    "agent 0 preferred": lambda logged, policy, order, k: spacql.partial_replacement(
        logged, policy, order * torch.tensor([0.9, 1, 1, 1]), k
    ),
    "k on average": each_with_chance,
}


@repeatable
@given(st.data(), st.integers(1, 5), SEEDS)
def test_exactly_k_agents_act_by_their_policy(data, num, seed):
    sizes = data.draw(st.lists(st.integers(1, num), min_size=1, max_size=num))
    check_replaces_exactly_k(spacql.partial_replacement, replacement_inputs, sizes, num, seed)


@pytest.mark.parametrize("num", [1, 2, 3, 6])
def test_sizes_1_and_n_alone_work(num):
    check_replaces_exactly_k(spacql.partial_replacement, replacement_inputs, [1], num, 0)
    check_replaces_exactly_k(spacql.partial_replacement, replacement_inputs, [num], num, 0)
    logged, policy, order, sizes = replacement_inputs(0, 2, 4, [num], num)
    assert torch.equal(spacql.partial_replacement(logged, policy, order, sizes), policy)


def test_every_set_of_agents_is_equally_likely_and_independent_across_k():
    check_every_set_equally_often(spacql.partial_replacement)


@mistakes("replaces exactly k")
def test_a_wrong_number_of_agents_is_noticed(wrong):
    rejects(check_replaces_exactly_k, wrong, replacement_inputs, [1, 2, 3, 4], 4, 0)


@mistakes("every set equally often")
def test_a_biased_choice_of_agents_is_noticed(wrong):
    rejects(check_every_set_equally_often, wrong)


# ----------------------------------------------------------------------- (3) uncertainty and its weights


def check_uncertainty(measure, seed, shape):
    """The members' standard deviation (divided by E, not E - 1), by loops; of one critic it is 0."""
    num_seeds, members, batch, num_sizes = shape
    q, expected = normal(seed, *shape), torch.zeros(num_seeds, batch, num_sizes, dtype=torch.float64)
    for s, b, k in indices(num_seeds, batch, num_sizes):
        values = [float(q[s, e, b, k]) for e in range(members)]
        mean = sum(values) / members
        expected[s, b, k] = math.sqrt(sum((v - mean) ** 2 for v in values) / members)
    close(measure(q), expected)
    assert (measure(q[:, :1]) == 0).all()


def check_weights(weigh, u, beta, factor):
    """w_k ~ u_k^-beta: on the simplex, falling in u, blind to its unit, uniform at 0, (1/u_k) / sum_m 1/u_m at 1."""
    powers = [v**-beta for v in u]
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-3)):
        row = torch.tensor(u, dtype=dtype)
        w = weigh(row, beta)
        assert w.isfinite().all() and (w >= 0).all() and abs(float(w.sum()) - 1) < 1e-5
        close(w, [p / sum(powers) for p in powers], tolerance)
        close(weigh(factor * row, beta), w, tolerance)
        close(weigh(row, 0.0), [1 / len(u)] * len(u), 1e-6)
        close(weigh(row), [(1 / v) / sum(1 / x for x in u) for v in u], tolerance)
        for (u1, w1), (u2, w2) in itertools.permutations(zip(u, w.tolist(), strict=True), 2):
            assert w1 >= w2 or u1 >= u2


def check_zero_uncertainty(weigh):
    """Sizes without any spread share all the weight; if no size has spread, the weights are uniform."""
    for dtype in (torch.float32, torch.float64):
        for u in itertools.product((0.0, 1e-3, 7.0), repeat=3):
            zeros = u.count(0.0)
            if zeros:
                close(weigh(torch.tensor(u, dtype=dtype)), [float(v == 0) / zeros for v in u], 1e-6)


def wrong_weights(score):
    """A mistake: weights proportional to exp(score(u)) for a wrong score."""
    return lambda u, temperature=1.0: (temperature * score(u.clamp(min=1e-20))).softmax(-1)


MISTAKES["uncertainty"] = {
    "divided by E - 1": lambda q: q.std(dim=1, correction=1),
    "variance": lambda q: q.var(dim=1, correction=0),
    "over the batch": lambda q: q.std(dim=2, correction=0),
    "one member": lambda q: q[:, 0].abs(),
}
MISTAKES["weights"] = {
    "rising in u": wrong_weights(torch.log),
    "softmax of -u": wrong_weights(torch.neg),
    "uniform": wrong_weights(torch.zeros_like),
    "not normalised": lambda u, temperature=1.0: u**-temperature,
    "sum to 1.3": lambda u, temperature=1.0: 1.3 * spacql.replacement_weights(u, temperature),
    "inverse temperature": lambda u, temperature=1.0: spacql.replacement_weights(u, 1 / max(temperature, 1e-6)),
    "added constant": lambda u, temperature=1.0: spacql.replacement_weights(u + 1e-3, temperature),
}
MISTAKES["zero uncertainty"] = {
    "plain inverse": lambda u, temperature=1.0: (1 / u) / (1 / u).sum(-1, keepdim=True),
    "zero gets no weight": lambda u, temperature=1.0: spacql.replacement_weights(u.where(u > 0, torch.inf)),
    "floor too high": lambda u, temperature=1.0: spacql.replacement_weights(u.clamp(min=1e-3)),
}


@repeatable
@given(SEEDS, st.tuples(SMALL, st.integers(1, 5), SMALL, SMALL))
def test_uncertainty_is_the_spread_of_the_members(seed, shape):
    check_uncertainty(spacql.uncertainty, seed, shape)


@repeatable
@given(st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=6), st.floats(0, 2), st.floats(1e-2, 1e2))
def test_weights_are_inverse_uncertainties_on_the_simplex(u, beta, factor):
    check_weights(spacql.replacement_weights, u, beta, factor)


def test_no_uncertainty_takes_all_the_weight():
    check_zero_uncertainty(spacql.replacement_weights)


def test_one_critic_weighs_all_sizes_equally():
    weights = spacql.replacement_weights(spacql.uncertainty(normal(0, 2, 1, 5, 3)))
    close(weights, torch.full((2, 5, 3), 1 / 3, dtype=torch.float64))


def test_backups_differ_in_sizes_and_weights():
    sizes = {backup: spacql.backup_sizes(backup, 4) for backup in spacql.CHOICES["backup"]}
    assert sizes == {"spacql": [1, 2, 3, 4], "icql-qs": [1], "joint": [4], "uniform": [1, 2, 3, 4]}
    u = normal(0, 2, 5, 4).abs()
    assert torch.equal(spacql.backup_weights("spacql", u, 0.5), spacql.replacement_weights(u, 0.5))
    close(spacql.backup_weights("uniform", u, 0.5), torch.full((2, 5, 4), 0.25))
    for backup in ("icql-qs", "joint"):
        close(spacql.backup_weights(backup, u[..., :1], 0.5), torch.ones(2, 5, 1))


@mistakes("uncertainty")
def test_a_wrong_uncertainty_is_noticed(wrong):
    rejects(check_uncertainty, wrong, 0, (2, 3, 3, 2))


@mistakes("weights")
def test_wrong_weights_are_noticed(wrong):
    rejects(check_weights, wrong, [0.01, 0.5, 3.0], 0.7, 5.0)


@mistakes("zero uncertainty")
def test_wrong_weights_without_uncertainty_are_noticed(wrong):
    rejects(check_zero_uncertainty, wrong)


# ------------------------------------------------------------------------------ (2) and (4) the TD target


def check_target(target, seed, shape, gamma):
    """Y by loops; one size alone is its own operator; never more than the best size's mean over members."""
    num_seeds, members, batch, num_sizes = shape
    rewards, q = normal(seed, num_seeds, batch), normal(seed + 1, *shape)
    weights = simplex(seed + 2, num_seeds, batch, num_sizes)
    actual, expected = target(rewards, q, weights, gamma), torch.zeros(num_seeds, batch, dtype=torch.float64)
    one = torch.zeros(num_sizes, num_seeds, batch, dtype=torch.float64)
    for s, b in indices(num_seeds, batch):
        mixed, best = 0.0, -math.inf
        for k in range(num_sizes):
            values = [float(q[s, e, b, k]) for e in range(members)]
            mixed += float(weights[s, b, k]) * min(values)
            best = max(best, sum(values) / members)
            one[k, s, b] = float(rewards[s, b]) + gamma * min(values)
        expected[s, b] = float(rewards[s, b]) + gamma * mixed
        assert actual[s, b] <= float(rewards[s, b]) + gamma * best + 1e-10
    close(actual, expected)
    for k in range(num_sizes):
        only_k = torch.eye(num_sizes, dtype=torch.float64)[k].expand_as(weights)
        close(target(rewards, q, only_k, gamma), one[k])


MISTAKES["target"] = {
    "max over members": lambda r, q, w, gamma: r + gamma * (w * q.amax(1)).sum(-1),
    "mean over members": lambda r, q, w, gamma: r + gamma * (w * q.mean(1)).sum(-1),
    "min after the mixture": lambda r, q, w, gamma: r + gamma * (w.unsqueeze(1) * q).sum(-1).amin(1),
    "best size": lambda r, q, w, gamma: r + gamma * q.amin(1).amax(-1),
    "weights ignored": lambda r, q, w, gamma: r + gamma * q.amin(1).mean(-1),
    "rewards discounted": lambda r, q, w, gamma: gamma * (r + (w * q.amin(1)).sum(-1)),
    "no discount": lambda r, q, w, gamma: r + (w * q.amin(1)).sum(-1),
}


@repeatable
@given(SEEDS, st.tuples(SMALL, SMALL, SMALL, SMALL), st.floats(0, 1))
def test_target_mixes_the_smallest_member_of_each_size(seed, shape, gamma):
    check_target(spacql.spacql_target, seed, shape, gamma)


@mistakes("target")
def test_a_wrong_target_is_noticed(wrong):
    rejects(check_target, wrong, 0, (2, 3, 2, 3), 0.9)


# ----------------------------------------------------------------------- (4) over some of the sizes only


def check_drawn_sizes(draw, sizes, count, batch=2000):
    """Each transition has `count` different ones of the sizes, rising and evenly spaced; each size comes up with the
    same chance; a seed's are those that it draws alone, and other ones each time."""
    generators, sizes = [generator(0), generator(1)], torch.tensor(sizes)
    drawn = draw(sizes, count, batch, generators)
    assert drawn.shape == (2, batch, count)
    place = (drawn.unsqueeze(-1) == sizes).long().argmax(-1)  # in the list of sizes
    assert torch.equal(sizes[place], drawn)
    gap = place.diff(dim=-1)
    assert (gap >= len(sizes) // count).all() and (gap <= math.ceil(len(sizes) / count)).all()
    chance, total = count / len(sizes), 2 * batch
    spread = SIGMAS * math.sqrt(total * chance * (1 - chance))
    assert all(abs(int((drawn == k).sum()) - total * chance) <= spread for k in sizes)
    assert torch.equal(draw(sizes, count, batch, [generator(1)])[0], drawn[1]) and not torch.equal(*drawn)
    assert not torch.equal(draw(sizes, count, batch, generators), drawn), "the generators have moved on"


def check_all_sizes(draw, sizes):
    """All sizes are the list as it is, and nothing is drawn for that."""
    g, sizes = generator(0), torch.tensor(sizes)
    before = g.get_state()
    assert draw(sizes, len(sizes), 5, [g]) is sizes
    assert torch.equal(g.get_state(), before)


def draw_from(monkeypatch, starts):
    """Random starts are these, in `draw_sizes` and in its wrong versions here."""
    for module in (stacked, spacql):
        monkeypatch.setattr(module, "per_seed", lambda *_: starts)


def check_last_start(draw, most=30):
    """The largest number below 1 that can be drawn, which rounds to 1 when added to: the sizes are in order still."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_from(monkeypatch, torch.full((1, 1, 1), 1 - 2.0**-24))
        for num in range(2, most + 1):
            for count in range(1, num):
                drawn = draw(torch.arange(1, num + 1), count, 1, [])[0, 0]
                assert (drawn.diff() > 0).all() and drawn[-1] == num


def average_targets(draw, backup, q, online, count):
    """The target (4) with `count` sizes, averaged over evenly spaced starts, for transitions [S] without a reward; q
    and online [S, E, K] are the target networks' and the online networks' Q at all sizes."""
    num_sizes, members = q.shape[-1], q.shape[1]
    starts = (torch.arange(20 * num_sizes) + 0.5) / (20 * num_sizes)  # none where the choice of sizes changes
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_from(monkeypatch, starts.view(1, -1, 1))
        used = draw(torch.arange(num_sizes), count, len(starts), [])  # the "sizes" are places in q
    used = used.expand(len(q), members, len(starts), -1)
    q, online = (x.unsqueeze(2).expand(-1, -1, len(starts), -1).gather(-1, used) for x in (q, online))
    weights = spacql.backup_weights(backup, spacql.uncertainty(online), 1.0)
    return spacql.spacql_target(torch.zeros(len(q), len(starts)), q, weights, 0.9).mean(-1)


def biases(draw, backup, seed, shape):
    """The average target minus the one over all sizes, [m = 1..K, S], for random Q of this shape [S, E, K]."""
    q, online = normal(seed, *shape), normal(seed + 1, *shape)
    whole = average_targets(spacql.draw_sizes, backup, q, online, shape[-1])
    return torch.stack([average_targets(draw, backup, q, online, m) - whole for m in range(1, shape[-1] + 1)])


def check_unbiased(draw, seed, members, num_sizes):
    """With equal weights the average target is the one over all sizes, whatever Q and however many sizes."""
    away = biases(draw, "uniform", seed, (4, members, num_sizes))
    close(away, torch.zeros_like(away))


def check_bias_of_weights(draw, backup="spacql"):
    """With weights by uncertainty it is not in general, but the more sizes, the nearer it is in the mean over cases."""
    for num_sizes in (3, 6):
        away = biases(draw, backup, num_sizes, (500, 4, num_sizes)).abs().mean(1).tolist()
        assert away[0] > 0.05 and away[-1] < 1e-10
        assert away == sorted(away, reverse=True) and away[-2] < away[0] / 2


def drawing(place):
    """A mistake: the sizes are at place(start, i, m, n) of the list, for start [S, B, 1], i = 0..m - 1, m of n."""

    def draw(sizes, count, batch, generators):
        if count == len(sizes):
            return sizes
        start = spacql.per_seed(torch.rand, generators, (batch, 1))
        return sizes[place(start, torch.arange(count), count, len(sizes)).long().clamp(0, len(sizes) - 1)]

    return draw


def with_replacement(sizes, count, batch, generators):
    """A mistake: a size may come up twice."""
    return sizes[spacql.per_seed(torch.randint, generators, len(sizes), (batch, count)).sort(-1).values]


def any_set(sizes, count, batch, generators):
    """A mistake: all sets of sizes are equally likely, so they are not evenly spaced."""
    order = spacql.per_seed(torch.rand, generators, (batch, len(sizes))).argsort(-1)
    return sizes[order[..., :count].sort(-1).values]


MISTAKES["biased sizes"] = {
    "the first sizes": drawing(lambda start, i, m, n: 0 * start + i),
    "start always 0": drawing(lambda start, i, m, n: (0 * start + i) * n / m),
    "to the nearest": drawing(lambda start, i, m, n: ((start + i) * n / m).round()),
    "start up to a half": drawing(lambda start, i, m, n: (start / 2 + i) * n / m),
    "start not stretched": drawing(lambda start, i, m, n: start + i * n / m),
}
MISTAKES["bias of weights"] = {
    "one size, m times": drawing(lambda start, i, m, n: 0 * i + start * n),
    "never all": lambda sizes, count, *rest: spacql.draw_sizes(sizes, min(count, len(sizes) - 1), *rest),
    "always all": lambda sizes, count, *rest: sizes,
}
MISTAKES["drawn sizes"] = {
    **MISTAKES["biased sizes"],
    "with replacement": with_replacement,
    "any set": any_set,
    "neighbours": drawing(lambda start, i, m, n: ((start * n).long() + i) % n),
    "falling": drawing(lambda start, i, m, n: (start + m - 1 - i) * n / m),
    "one start for all transitions": drawing(lambda start, i, m, n: (start[:, :1].expand_as(start) + i) * n / m),
    "the first seed's start": drawing(lambda start, i, m, n: (start[:1].expand_as(start) + i) * n / m),
    "seeds swapped": drawing(lambda start, i, m, n: (start.flip(0) + i) * n / m),
    "places for sizes": lambda sizes, *args: spacql.draw_sizes(torch.arange(len(sizes)), *args),
    "the same each time": lambda sizes, count, batch, g: spacql.draw_sizes(
        sizes, count, batch, [generator(each.initial_seed()) for each in g]
    ),
}
MISTAKES["all sizes"] = {
    "for each transition": lambda sizes, count, batch, g: sizes.expand(len(g), batch, -1),
    "drawn all the same": lambda sizes, count, batch, g: (spacql.per_seed(torch.rand, g, (batch, 1)), sizes)[1],
}
MISTAKES["last start"] = {
    "round to the first": drawing(lambda start, i, m, n: ((start + i) * n / m).long() % n),
    "never the last": drawing(lambda start, i, m, n: ((start + i) * n / m).clamp(max=n - 2)),
    "never below": drawing(lambda start, i, m, n: ((start + i) * n / m).ceil()),
}


@pytest.mark.parametrize("num", range(1, 11))
def test_every_size_is_drawn_with_the_same_chance(num):
    others = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29][-num:]
    for sizes in (list(range(1, num + 1)), others):
        for count in range(1, num):
            check_drawn_sizes(spacql.draw_sizes, sizes, count)
        check_all_sizes(spacql.draw_sizes, sizes)


def test_one_size_is_all_sizes():
    check_all_sizes(spacql.draw_sizes, [3])


def test_a_start_that_rounds_to_1_leaves_the_sizes_in_order():
    check_last_start(spacql.draw_sizes)


@repeatable
@given(SEEDS, SMALL, st.integers(1, 10))
def test_target_over_drawn_sizes_is_unbiased_with_equal_weights(seed, members, num_sizes):
    check_unbiased(spacql.draw_sizes, seed, members, num_sizes)


def test_target_over_drawn_sizes_is_biased_with_weights_by_uncertainty():
    check_bias_of_weights(spacql.draw_sizes)


def test_a_certain_size_is_worth_more_than_its_share_of_draws():
    """By hand: Q is 0 at k = 1, where the members agree, and 1 at k = 2, where they do not. Over both sizes all the
    weight is on k = 1; of one size drawn it is on that one, on k = 2 half of the time."""
    q = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]], dtype=torch.float64)
    online = torch.tensor([[[0.0, 1.0], [0.0, 3.0]]], dtype=torch.float64)
    for backup, one, both in (("spacql", 0.45, 0.0), ("uniform", 0.45, 0.45)):
        averages = [average_targets(spacql.draw_sizes, backup, q, online, count) for count in (1, 2)]
        close(torch.cat(averages), [one, both], 1e-6)


@mistakes("drawn sizes")
def test_wrongly_drawn_sizes_are_noticed(wrong):
    rejects(check_drawn_sizes, wrong, [1, 2, 3, 4, 5], 2)


@mistakes("all sizes")
def test_sizes_drawn_for_nothing_are_noticed(wrong):
    rejects(check_all_sizes, wrong, [1, 2, 3])


@mistakes("last start")
def test_sizes_out_of_order_are_noticed(wrong):
    rejects(check_last_start, wrong)


@mistakes("biased sizes")
def test_a_biased_draw_of_sizes_is_noticed(wrong):
    rejects(check_unbiased, wrong, 0, 2, 5)


@mistakes("bias of weights")
def test_a_bias_that_does_not_fall_is_noticed(wrong):
    rejects(check_bias_of_weights, wrong)


def test_weights_without_a_bias_are_noticed():
    rejects(check_bias_of_weights, spacql.draw_sizes, "uniform")


# ------------------------------------------------------------------ the operator on a tabular Dec-MDP


class Tabular:
    """A small random Dec-MDP with exact expectations: X states, N agents with A actions, everything a table.

    Joint actions are numbered; logged actions are correlated (mu is a table over joint actions). The rows enumerate
    (state, logged joint action, order of the agents, policy joint action) with their probabilities, so that a sum over
    rows of the project's functions is their exact expectation.
    """

    states, agents, actions, gamma = 3, 3, 2, 0.9

    def __init__(self, seed=0):
        self.joint = torch.tensor(list(itertools.product(range(self.actions), repeat=self.agents)))  # [J, N]
        self.number = self.actions ** torch.arange(self.agents - 1, -1, -1)
        count = len(self.joint)
        self.reward, self.move = normal(seed, self.states, count), simplex(seed + 1, self.states, count, self.states)
        self.mu = simplex(seed + 2, self.states, count)
        self.logits = 3 * normal(seed + 3, self.states, self.agents, self.actions)
        self.pi = self.logits.softmax(-1)
        self.weights = simplex(seed + 4, self.states, self.agents)  # [X, K], whatever Q is
        self.sizes = torch.arange(1, self.agents + 1)
        orders = list(itertools.permutations(range(self.agents)))
        rows = list(itertools.product(range(self.states), range(count), orders, range(count)))
        self.state, logged, policy = (torch.tensor([row[i] for row in rows]) for i in (0, 1, 3))
        self.logged, self.policy = self.joint[logged], self.joint[policy]
        self.order = torch.tensor([row[2] for row in rows])
        by_pi = self.pi[self.state].gather(-1, self.policy.unsqueeze(-1)).squeeze(-1).prod(-1)
        self.chance = self.mu[self.state, logged] * by_pi / len(orders)

    def ours(self, q, replace=spacql.partial_replacement, target=spacql.spacql_target, gain=1.0):
        """The operator on q [E, X, J], by the project's functions: its value [X, J], the same for every member."""
        num = self.agents
        policy, order = (x[None, :, None].expand(1, -1, num, -1) for x in (self.policy, self.order))
        mixed = (replace(self.logged[None], policy, order, self.sizes) * self.number).sum(-1)[0]  # [rows, K]
        q_next = q[:, self.state.unsqueeze(1), mixed]  # [E, rows, K]
        zeros = torch.zeros(1, len(self.state), dtype=q.dtype)
        y = target(zeros, q_next[None], gain * self.weights[self.state][None], self.gamma)[0]
        value = torch.zeros(self.states, dtype=q.dtype).index_add(0, self.state, self.chance * y)
        return self.reward + self.move @ value

    def loops(self, q):
        """The same operator by loops over sets of agents and actions."""
        everyone, value = range(self.agents), [0.0] * self.states
        for x, (a, logged), k in itertools.product(range(self.states), enumerate(self.joint.tolist()), self.sizes):
            sets = list(itertools.combinations(everyone, int(k)))
            for chosen, policy in itertools.product(sets, self.joint.tolist()):
                mixed = [policy[i] if i in chosen else logged[i] for i in everyone]
                chance = float(self.mu[x, a]) / len(sets)
                for i in everyone:
                    chance *= float(self.pi[x, i, policy[i]])
                row = self.joint.tolist().index(mixed)
                lowest = min(float(member[x, row]) for member in q)
                value[x] += chance * float(self.weights[x, int(k) - 1]) * lowest
        return self.reward + self.gamma * self.move @ torch.tensor(value, dtype=q.dtype)


def check_contracts(operator, mdp, seed, members, scale):
    """sup |T Q1 - T Q2| <= gamma sup |Q1 - Q2| (over members too), met exactly when Q2 = Q1 + a constant."""
    q1 = normal(seed, members, *mdp.reward.shape)
    q2 = q1 + scale * normal(seed + 1, *q1.shape)
    for other in (q2, q1 + scale, q1.where(q1 > 0, q2)):
        gap, before = (operator(q1) - operator(other)).abs().max(), (q1 - other).abs().max()
        assert gap <= mdp.gamma * before * (1 + 1e-9)
    close(operator(q1 + scale) - operator(q1), torch.full_like(mdp.reward, mdp.gamma * scale))


def check_monte_carlo(mdp, replace, sample, target, members=2, batch=8000):
    """Targets from sampled next states, logged actions, agents and policy actions average to the exact operator.

    The (state, joint action) pairs lie along the seed axis, so each is averaged by itself.
    """
    g, num, pairs, scale = generator(5), mdp.agents, mdp.reward.numel(), 10.0
    q = scale * normal(6, members, *mdp.reward.shape)
    state = torch.multinomial(mdp.move.flatten(0, 1), batch, replacement=True, generator=g)  # [S, B]
    logged = torch.multinomial(mdp.mu[state].flatten(0, 1), 1, generator=g).view(pairs, batch)
    uniform, order = torch.rand((2, pairs, batch, num, num), generator=g, dtype=torch.float64)
    policy = sample(mdp.logits[state], uniform)
    mixed = (replace(mdp.joint[logged], policy, order, mdp.sizes) * mdp.number).sum(-1)  # [S, B, K]
    q_next = q[:, state.unsqueeze(-1), mixed].transpose(0, 1)  # [S, E, B, K]
    rewards = mdp.reward.flatten().unsqueeze(1).expand(-1, batch)
    y = target(rewards, q_next, mdp.weights[state], mdp.gamma)
    error = (y.mean(1) - mdp.ours(q).flatten()) / (y.std(1) / math.sqrt(batch))
    assert error.abs().max() < SIGMAS


@pytest.fixture(scope="module")
def mdp():
    """One tabular Dec-MDP for the tests below."""
    return Tabular()


@pytest.mark.parametrize("members", [1, 3])
def test_the_exact_operator_is_the_one_of_the_loops(mdp, members):
    q = normal(9, members, *mdp.reward.shape)
    close(mdp.ours(q), mdp.loops(q))
    assert abs(float(mdp.chance.sum()) - mdp.states) < 1e-12


@settings(repeatable, max_examples=10)
@given(seed=SEEDS, members=SMALL, scale=st.floats(1e-3, 1e3))
def test_the_operator_contracts_by_gamma(mdp, seed, members, scale):
    check_contracts(mdp.ours, mdp, seed, members, scale)


def test_the_average_target_is_the_exact_operator(mdp):
    check_monte_carlo(mdp, spacql.partial_replacement, spacql.sample_actions, spacql.spacql_target)


@pytest.mark.parametrize("members", [1, 3])
def test_an_operator_that_does_not_contract_is_noticed(mdp, members):
    larger = lambda r, q, w, gamma: spacql.spacql_target(r, q, w, 1.2 * gamma)  # noqa: E731
    rejects(check_contracts, lambda q: mdp.ours(q, target=larger), mdp, 0, members, 1.0)
    rejects(check_contracts, lambda q: mdp.ours(q, gain=1.3), mdp, 0, members, 1.0)
    rejects(check_contracts, lambda q: mdp.ours(q.square()), mdp, 0, members, 1.0)


BIASES = {
    "first agents": dict(replace=first_agents),
    "k + 1 agents": dict(replace=MISTAKES["replaces exactly k"]["k + 1 agents"]),
    "greedy policy": dict(sample=lambda logits, u: logits.argmax(-1).unsqueeze(2).expand(u.shape)),
    "uniform policy": dict(sample=lambda logits, u: (logits.shape[-1] * u).long()),
    "max over members": dict(target=MISTAKES["target"]["max over members"]),
    "mean over members": dict(target=MISTAKES["target"]["mean over members"]),
}


@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES.keys())
def test_a_biased_sample_of_the_target_is_noticed(mdp, bias):
    ours = dict(replace=spacql.partial_replacement, sample=spacql.sample_actions, target=spacql.spacql_target)
    rejects(lambda: check_monte_carlo(mdp, **ours | bias))


def test_weights_that_depend_on_q_need_not_contract():
    """A tiny change of the members' spreads swaps the weights of two sizes whose values are far apart."""
    values, spread = torch.tensor([0.0, 10.0], dtype=torch.float64), torch.tensor([1e-6, 1e-3], dtype=torch.float64)
    q1, q2 = (torch.stack([values - s, values + s])[None, :, None] for s in (spread, spread.flip(0)))
    adaptive = lambda q: spacql.spacql_target(  # noqa: E731
        torch.zeros(1, 1), q, spacql.replacement_weights(spacql.uncertainty(q)), 0.9
    )
    assert (adaptive(q1) - adaptive(q2)).abs().max() > 1000 * (q1 - q2).abs().max()


# ------------------------------------------------------------------------ (5) penalty and critic's loss


def check_penalty(penalty, seed, shape):
    """The sum over agents and actions by loops; a constant added to all Q cancels; its gradient is softmax / N, -1."""
    *outer, num, _ = shape
    q, q_data = (3 * normal(seed, *shape)).requires_grad_(), normal(seed + 1, *outer).requires_grad_()
    actual, expected = penalty(q, q_data), torch.zeros(outer, dtype=torch.float64)
    slopes = torch.zeros(shape, dtype=torch.float64)
    for place in indices(*outer):
        total = 0.0
        for i in range(num):
            powers = [math.exp(v) for v in q.detach()[place][i].tolist()]
            total += math.log(sum(powers)) / num
            slopes[place][i] = torch.tensor([p / sum(powers) / num for p in powers], dtype=torch.float64)
        expected[place] = total - float(q_data.detach()[place])
    close(actual, expected)
    close(penalty(q + 5.0, q_data + 5.0), expected)
    close(penalty(q + 5.0, q_data), expected + 5.0)
    down, up = torch.autograd.grad(actual.sum(), (q, q_data))
    close(down, slopes)  # a step against the gradient pushes all candidates down ...
    close(up, torch.full(outer, -1.0))  # ... and the data up, by as much in sum


def check_critic_loss(loss, seed, shape, alpha):
    """Each member's own mean over the batch of (Q - Y)^2 + alpha * penalty, by loops."""
    num_seeds, members, batch = shape
    q, penalty, target = normal(seed, *shape), normal(seed + 1, *shape), normal(seed + 2, num_seeds, batch)
    expected = torch.zeros(num_seeds, members, dtype=torch.float64)
    for s, e, b in indices(*shape):
        expected[s, e] += ((q[s, e, b] - target[s, b]) ** 2 + alpha * penalty[s, e, b]) / batch
    close(loss(q, target, penalty, alpha), expected)


MISTAKES["penalty"] = {
    "one agent missing": lambda q, q_data: q[..., 1:, :].logsumexp(-1).sum(-1) / q.shape[-2] - q_data,
    "one action missing": lambda q, q_data: q[..., 1:].logsumexp(-1).mean(-1) - q_data,
    "sum over agents": lambda q, q_data: q.logsumexp(-1).sum(-1) - q_data,
    "agents and actions in one": lambda q, q_data: q.flatten(-2).logsumexp(-1) - q_data,
    "wrong axis": lambda q, q_data: q.logsumexp(-2).mean(-1) - q_data,
    "largest instead": lambda q, q_data: q.amax(-1).mean(-1) - q_data,
    "average instead": lambda q, q_data: q.mean((-2, -1)) - q_data,
    "data pushed down": lambda q, q_data: q.logsumexp(-1).mean(-1) + q_data,
    "data held fixed": lambda q, q_data: q.logsumexp(-1).mean(-1) - q_data.detach() + 0 * q_data,
}
MISTAKES["critic loss"] = {
    "no penalty": lambda q, y, penalty, alpha: ((q - y.unsqueeze(1)) ** 2).mean(-1),
    "penalty times alpha twice": lambda q, y, penalty, alpha: spacql.critic_loss(q, y, alpha * penalty, alpha),
    "sum over the batch": lambda q, y, penalty, alpha: ((q - y.unsqueeze(1)) ** 2 + alpha * penalty).sum(-1),
    "half": lambda q, y, penalty, alpha: (0.5 * (q - y.unsqueeze(1)) ** 2 + alpha * penalty).mean(-1),
    "mean of the members": lambda q, y, penalty, alpha: spacql.critic_loss(
        q.mean(1, keepdim=True).expand_as(q), y, penalty, alpha
    ),
}


@repeatable
@given(SEEDS, st.tuples(SMALL, SMALL, SMALL, SMALL, SMALL))
def test_penalty_is_the_mean_log_sum_exp_over_agents(seed, shape):
    check_penalty(spacql.cql_penalty, seed, shape)


@repeatable
@given(SEEDS, st.tuples(SMALL, SMALL, SMALL, st.just(1), st.integers(1, 15)))
def test_penalty_takes_the_team_as_one_agent(seed, shape):
    check_penalty(spacql.cql_penalty, seed, shape)


@repeatable
@given(SEEDS, st.tuples(SMALL, SMALL, SMALL), st.floats(0, 5))
def test_critic_loss_is_each_members_own(seed, shape, alpha):
    check_critic_loss(spacql.critic_loss, seed, shape, alpha)


def test_penalty_lifts_the_logged_action_above_the_others():
    """In a table, where the logged actions are among the candidates: one step down the penalty, and the gap grew."""
    q = normal(0, 1, 1, 3, NUM_ACTIONS).requires_grad_()  # Q of one agent's actions in three states
    logged = torch.tensor([0, 2, 4])
    take = lambda table: table.gather(-1, logged.view(1, 1, 3, 1)).squeeze(-1)  # noqa: E731
    (slope,) = torch.autograd.grad(spacql.cql_penalty(q.unsqueeze(-2), take(q)).sum(), q)
    assert (take(slope) < 0).all()
    assert ((slope < 0).sum(-1) == 1).all()  # all others fall
    close(slope.sum(-1), torch.zeros(1, 1, 3))


@mistakes("penalty")
def test_a_wrong_penalty_is_noticed(wrong):
    rejects(check_penalty, wrong, 0, (2, 2, 2, 3, 3))


@mistakes("critic loss")
def test_a_wrong_critic_loss_is_noticed(wrong):
    rejects(check_critic_loss, wrong, 0, (2, 2, 3), 0.7)


# ------------------------------------------------------------------------------------ (6) actor's loss


def check_actor_loss(loss, kind, seed, shape, clone_weight, coef):
    """Every agent's loss by loops, and its exact gradient in the logits.

    With V = sum_a pi(a) Q(a) and H the entropy, the slope of -V - coef H in the logit of a is
    -pi(a) (Q(a) - V - coef (log pi(a) + H)); that of -log pi(logged) is pi(a) - [a = logged].
    """
    num_seeds, batch, num, count = shape
    logits, q = normal(seed, *shape).requires_grad_(), normal(seed + 1, *shape)
    logged = torch.randint(count, shape[:-1], generator=generator(seed + 2))
    expected, slopes = torch.zeros(num_seeds, num, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    pi = logits.detach().exp() / logits.detach().exp().sum(-1, keepdim=True)
    for s, i in indices(num_seeds, num):
        values = [sum(float(pi[s, b, i, a] * q[s, b, i, a]) for a in range(count)) for b in range(batch)]
        size = sum(map(abs, values)) / batch
        pull = dict(spacql=1.0, bc=0.0, td3bc=2.5 / size)[kind]  # weight of Q; td3bc's is held fixed
        clone, bonus = dict(spacql=(clone_weight, coef), bc=(1.0, 0.0), td3bc=(1.0, 0.0))[kind]
        for b, value in enumerate(values):
            p, action = pi[s, b, i].tolist(), int(logged[s, b, i])
            entropy = -sum(x * math.log(x) for x in p)
            expected[s, i] -= (pull * value + bonus * entropy + clone * math.log(p[action])) / batch
            for a in range(count):
                slope = -p[a] * (pull * (float(q[s, b, i, a]) - value) - bonus * (math.log(p[a]) + entropy))
                slopes[s, b, i, a] = (slope + clone * (p[a] - (a == action))) / batch
    actual = loss(kind, logits, q, logged, clone_weight, coef)
    close(actual, expected)
    close(torch.autograd.grad(actual.sum(), logits)[0], slopes)


def ascend(logits, q, coef, rate, steps=1):
    """Action probabilities after some gradient steps on the logits themselves."""
    logged = torch.zeros(q.shape[:-1], dtype=torch.long)
    for _ in range(steps):
        logits = logits.detach().requires_grad_()
        (slope,) = torch.autograd.grad(spacql.actor_loss("spacql", logits, q, logged, 0.0, coef).sum(), logits)
        logits = logits - rate * slope
    return logits.detach().softmax(-1)


def losing(change):
    """A mistake: `actor_loss` of changed arguments."""
    return lambda *args: spacql.actor_loss(*change(*args))


def td3bc_scaled_by(scale):
    """A mistake: TD3+BC with another scale of Q."""

    def loss(kind, logits, q, logged, *weights):
        value = (logits.softmax(-1) * q).sum(-1)
        return spacql.actor_loss("bc", logits, q, logged, *weights) - 2.5 * (value / scale(value)).mean(1)

    return loss


MISTAKES["actor loss"] = {  # (kind, wrong function)
    "sign": ("spacql", losing(lambda kind, x, q, *rest: (kind, x, -q, *rest))),
    "no bonus": ("spacql", losing(lambda kind, x, q, a, clone, coef: (kind, x, q, a, clone, 0.0))),
    "entropy punished": ("spacql", losing(lambda kind, x, q, a, clone, coef: (kind, x, q, a, clone, -coef))),
    "weights swapped": ("spacql", losing(lambda kind, x, q, a, clone, coef: (kind, x, q, a, coef, clone))),
    "no cloning": ("spacql", losing(lambda kind, x, q, a, clone, coef: (kind, x, q, a, 0.0, coef))),
    "best action only": ("spacql", lambda kind, x, q, *rest: -q.amax(-1).mean(1) + 0 * x.sum((1, 3))),
    "all actions alike": ("spacql", losing(lambda kind, x, *rest: (kind, 0 * x, *rest))),
    "another agent's Q": ("spacql", losing(lambda kind, x, q, *rest: (kind, x, q.roll(1, 2), *rest))),
    "sum over the batch": ("spacql", lambda *args: args[1].shape[1] * spacql.actor_loss(*args)),
    "mean over agents": ("spacql", lambda *args: spacql.actor_loss(*args).mean(-1, True).expand(-1, 3)),
    "clones another row": ("spacql", losing(lambda kind, x, q, a, *rest: (kind, x, q, a.roll(1, 1), *rest))),
    "not the cloning": ("bc", losing(lambda kind, *rest: ("spacql", *rest))),
    "clones another agent": ("bc", losing(lambda kind, x, q, a, *rest: (kind, x, q, a.roll(1, 2), *rest))),
    "only clones": ("td3bc", losing(lambda kind, *rest: ("bc", *rest))),
    "scale of the team": ("td3bc", td3bc_scaled_by(lambda v: v.detach().abs().mean((1, 2), keepdim=True))),
    "scale has a gradient": ("td3bc", td3bc_scaled_by(lambda v: v.abs().mean(1, keepdim=True))),
    "scale of the mean": ("td3bc", td3bc_scaled_by(lambda v: v.detach().mean(1, keepdim=True).abs())),
}


@repeatable
@given(
    st.sampled_from(spacql.CHOICES["actor_loss"]),
    SEEDS,
    st.tuples(SMALL, SMALL, SMALL, st.integers(1, 5)),
    st.floats(0, 3),
    st.floats(0, 3),
)
def test_actor_loss_has_the_exact_policy_gradient(kind, seed, shape, clone_weight, coef):
    check_actor_loss(spacql.actor_loss, kind, seed, shape, clone_weight, coef)


@repeatable
@given(SEEDS, st.integers(2, 5))
def test_actors_move_towards_the_best_action(seed, count):
    """From a uniform policy the best action gains; from any policy the value does (the best action itself may lose
    probability at first when it is unlikely and a better-than-average one is likely)."""
    q, even = normal(seed, 1, 1, 2, count), torch.zeros(1, 1, 2, count, dtype=torch.float64)
    gain = ascend(even, q, 0.0, rate=1e-3) - 1 / count
    assert (gain.gather(-1, q.argmax(-1, keepdim=True)) > 0).all()
    logits = normal(seed + 1, *q.shape)
    assert (((ascend(logits, q, 0.0, rate=1e-3) - logits.softmax(-1)) * q).sum(-1) > 0).all()


@repeatable
@given(SEEDS, st.floats(0.1, 1e3))
def test_the_bonus_leads_to_a_softmax_of_q_and_in_the_limit_to_uniform(seed, coef):
    q = normal(seed, 1, 1, 2, NUM_ACTIONS)
    best = q / coef  # here the loss is flat
    close(ascend(best, q, coef, rate=1.0), best.softmax(-1))
    large = ascend(normal(seed + 1, *q.shape), q, 1e4, rate=1e-4, steps=200)
    close(large, torch.full_like(large, 1 / NUM_ACTIONS), 1e-3)


@mistakes("actor loss")
def test_a_wrong_actor_loss_is_noticed(wrong):
    kind, function = wrong
    check_actor_loss(spacql.actor_loss, kind, 0, (2, 4, 3, 4), 0.7, 0.3)
    rejects(check_actor_loss, function, kind, 0, (2, 4, 3, 4), 0.7, 0.3)


# --------------------------------------------------------------------------------------- joint actions


def everyone(actions):
    """The agents to change when all are: their numbers, for each row of actions [S, B, N]."""
    return torch.arange(actions.shape[-1]).expand_as(actions)


def check_counterfactuals(change, seed, num, some):
    """Row (m, a) is the joint action with the action of the m-th chosen agent replaced by a, as zeros and ones."""
    g = generator(seed)
    actions = torch.randint(NUM_ACTIONS, (2, 3, num), generator=g)
    agents = torch.rand((2, 3, num), generator=g).argsort(-1)[..., :some]
    rows = change(actions, agents)
    assert rows.shape == (2, 3, some * NUM_ACTIONS, num * NUM_ACTIONS)
    for s, b, m, a in indices(2, 3, some, NUM_ACTIONS):
        played = actions[s, b].tolist()
        played[int(agents[s, b, m])] = a
        expected = [float(played[j] == c) for j in range(num) for c in range(NUM_ACTIONS)]
        assert rows[s, b, m * NUM_ACTIONS + a].tolist() == expected


def check_uniform_joint_actions(draw, num=2, batch=2000):
    """Every row is a joint action, every joint action is equally likely, and other seeds have other draws."""
    actions = torch.zeros(2, batch, num, dtype=torch.long)
    rows = draw("macql", actions, everyone(actions), [generator(0), generator(1)])
    assert rows.shape == (2, batch, num * NUM_ACTIONS, num * NUM_ACTIONS)
    played = rows.unflatten(-1, (num, NUM_ACTIONS))
    assert ((played == 0) | (played == 1)).all() and (played.sum(-1) == 1).all()
    numbers = (played.argmax(-1) * NUM_ACTIONS ** torch.arange(num)).sum(-1)
    evenly(numbers.unique(return_counts=True)[1], numbers.numel(), NUM_ACTIONS**num)
    for i in range(num):
        evenly(played[..., i, :].sum((0, 1, 2)).tolist(), numbers.numel(), NUM_ACTIONS)
    assert not torch.equal(rows[0], rows[1])


def check_sampling(sample, seed, count=3, draws=400):
    """Evenly spaced uniform numbers give each action its softmax share, to within rounding; draws invert the cdf."""
    logits = 2 * normal(seed, 2, 3, 2, count)
    grid = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    chosen = sample(logits, grid[None, None, :, None].expand(2, 3, -1, 2))
    assert chosen.shape == (2, 3, draws, 2)
    for s, b, i in indices(2, 3, 2):
        pi = logits[s, b, i].softmax(-1).tolist()
        for a in range(count):
            assert abs(int((chosen[s, b, :, i] == a).sum()) - draws * pi[a]) <= 1.001
    uniform = torch.rand((2, 3, 4, 2), generator=generator(seed), dtype=torch.float64)
    chosen = sample(logits, uniform)
    for s, b, k, i in indices(2, 3, 4, 2):
        pi, action = logits[s, b, i].softmax(-1).tolist(), 0
        while float(uniform[s, b, k, i]) > sum(pi[: action + 1]):
            action += 1
        assert int(chosen[s, b, k, i]) == action


def check_in_range(sample, count=NUM_ACTIONS):
    """Actions stay in 0..A - 1 at the ends of [0, 1), also for logits so peaked that probabilities vanish."""
    logits = torch.randn((1, 500, 1, count), generator=generator(0))  # single precision, as in training
    peaked = 1e4 * torch.stack([torch.arange(count).float().roll(i % count) for i in range(500)])[None, :, None]
    uniform = torch.tensor([0.0, 2.0**-24, 0.5, 1 - 2.0**-24]).view(1, 1, -1, 1).expand(1, 500, -1, 1)
    for each in (logits, 20 * logits, peaked, torch.zeros_like(logits)):
        chosen = sample(each, uniform)
        assert (chosen >= 0).all() and (chosen < count).all()
    inside = sample(peaked, uniform)[:, :, 1:]  # 0 itself may take action 0
    assert (inside == peaked.argmax(-1).unsqueeze(2)).all()


def sampling_mistake(steps_of):
    """A mistake: inverts a wrong distribution."""
    return lambda logits, u: (u.unsqueeze(-1) > steps_of(logits.softmax(-1)).unsqueeze(2)).sum(-1)


MISTAKES["counterfactuals"] = {
    "others shifted": lambda actions, agents: spacql.counterfactuals(actions.roll(1, -1), agents),
    "wrong agent": lambda actions, agents: spacql.counterfactuals(actions, (agents + 1) % actions.shape[-1]),
    "first agents": lambda actions, agents: spacql.counterfactuals(actions, agents.sort(-1).values),
    "another row's agents": lambda actions, agents: spacql.counterfactuals(actions, agents.roll(1, 1)),
    "actions before agents": lambda actions, agents: (
        spacql.counterfactuals(actions, agents).unflatten(-2, (-1, NUM_ACTIONS)).transpose(-3, -2).flatten(-3, -2)
    ),
    "nothing changed": lambda actions, agents: (
        spacql.one_hot(actions).unsqueeze(-2).repeat(1, 1, agents.shape[-1] * NUM_ACTIONS, 1)
    ),
    "others idle": lambda actions, agents: spacql.counterfactuals(torch.zeros_like(actions), agents),
}
MISTAKES["uniform joint actions"] = {
    "single changes": lambda name, actions, agents, g: spacql.counterfactuals(actions, agents),
    "agents in step": lambda name, actions, agents, g: spacql.one_hot(
        spacql.per_seed(torch.randint, g, NUM_ACTIONS, (actions.shape[1], 10, 1)).expand(-1, -1, -1, 2)
    ),
    "last action never": lambda name, actions, agents, g: spacql.one_hot(
        spacql.per_seed(torch.randint, g, NUM_ACTIONS - 1, (actions.shape[1], 10, 2))
    ),
    "same for all seeds": lambda name, actions, agents, g: spacql.candidates(
        name, actions, agents, [generator(0), generator(0)]
    ),
}
MISTAKES["sample"] = {
    "greedy": lambda logits, u: logits.argmax(-1).unsqueeze(2).expand(u.shape),
    "uniform": sampling_mistake(lambda pi: torch.full_like(pi, 1 / pi.shape[-1]).cumsum(-1)[..., :-1]),
    "probabilities not summed": sampling_mistake(lambda pi: pi[..., :-1]),
    "wrong direction": sampling_mistake(lambda pi: pi.flip(-1).cumsum(-1)[..., :-1]),
    "next agent": lambda logits, u: spacql.sample_actions(logits.roll(1, 2), u),
    "next row": lambda logits, u: spacql.sample_actions(logits.roll(1, 1), u),
}
MISTAKES["in range"] = {
    "last step kept": sampling_mistake(lambda pi: pi.cumsum(-1) - 1e-7),
    "from 1": lambda logits, u: spacql.sample_actions(logits, u) + 1,
    "floor of probability": sampling_mistake(lambda pi: (0.01 + 0.95 * pi).cumsum(-1)[..., :-1]),
}


@repeatable
@given(st.lists(st.integers(0, NUM_ACTIONS - 1), min_size=1, max_size=6))
def test_one_hot_marks_each_agents_action(actions):
    expected = [float(a == c) for a in actions for c in range(NUM_ACTIONS)]
    assert spacql.one_hot(torch.tensor(actions)).tolist() == expected
    assert spacql.one_hot(torch.tensor([[actions]] * 2)).tolist() == [[expected]] * 2


@repeatable
@given(st.data(), SEEDS, st.integers(1, 4))
def test_counterfactuals_change_one_agent_at_a_time(data, seed, num):
    some = data.draw(st.integers(1, num))
    check_counterfactuals(spacql.counterfactuals, seed, num, some)
    check_counterfactuals(lambda *args: spacql.candidates("cfcql", *args, []), seed, num, some)


def test_macql_draws_joint_actions_uniformly():
    check_uniform_joint_actions(spacql.candidates)


def test_no_penalty_has_no_candidates_and_draws_nothing():
    g = generator(0)
    before = g.get_state()
    actions = torch.zeros(1, 4, 3, dtype=torch.long)
    rows = spacql.candidates("none", actions, everyone(actions), [g])
    assert rows.shape == (1, 4, 0, 3 * NUM_ACTIONS)
    assert torch.equal(g.get_state(), before)


@repeatable
@given(SEEDS, st.integers(1, 5))
def test_actions_are_drawn_from_the_softmax(seed, count):
    check_sampling(spacql.sample_actions, seed, count)


def test_actions_never_leave_their_range():
    check_in_range(spacql.sample_actions)


@mistakes("counterfactuals")
def test_wrong_counterfactuals_are_noticed(wrong):
    rejects(check_counterfactuals, wrong, 0, 3, 2)


@mistakes("uniform joint actions")
def test_wrong_joint_candidates_are_noticed(wrong):
    rejects(check_uniform_joint_actions, wrong)


@mistakes("sample")
def test_wrong_sampling_is_noticed(wrong):
    rejects(check_sampling, wrong, 0)


@mistakes("in range")
def test_actions_out_of_range_are_noticed(wrong):
    rejects(check_in_range, wrong)


# -------------------------------------------------------------------------------------------- networks


def check_critics(values, seed, num_seeds, members, batch, rows):
    """Q and its gradient, of every member by itself on concat(state, joint action)."""
    num, obs_dim = 2, 3
    critic = double_networks(seed, num_seeds, members, (num * (obs_dim + NUM_ACTIONS), 7, 6, 1))
    state = normal(seed, num_seeds, batch, num * obs_dim)
    actions = torch.randint(NUM_ACTIONS, (num_seeds, batch, rows, num), generator=generator(seed))
    joint, slopes = spacql.one_hot(actions).double(), normal(seed + 1, num_seeds, members, batch, rows)
    q = values(critic, state, joint)
    assert q.shape == (num_seeds, members, batch, rows)
    (q * slopes).sum().backward()
    for s, e in indices(num_seeds, members):
        network = separate_network(critic, s, e)
        for b, r in indices(batch, rows):
            out = network(torch.cat([state[s, b], joint[s, b, r]]))
            close(q[s, e, b, r], out[0])
            (out[0] * slopes[s, e, b, r]).backward()
        compare_gradients(critic, s, e, network)


def check_cut(cut, num_seeds=2):
    """Tensors are cut at the same places of their second axis into as many parts as `numbers` has PART_NUMBERS, at most
    one each; sizes differ by one at most, and parts joined are the tensors."""
    for numbers, batch, most in itertools.product((1, 6, 7, 13, 100, 10**10), (1, 2, 5, 8), (1, 3, 6, 50)):
        tensors = [normal(i, num_seeds, batch, *more) for i, more in enumerate(((), (3,), (2, 2)))]
        with in_parts_of(most):
            parts = list(cut(numbers, *tensors))
        count = 0
        while count < batch and count * most < numbers:
            count += 1
        assert len(parts) == count
        lengths = [part[0].shape[1] for part in parts]
        assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1
        for i, tensor in enumerate(tensors):
            assert [part[i].shape[1] for part in parts] == lengths
            joined = torch.cat([part[i] for part in parts], dim=1)
            assert torch.equal(joined, tensor)


def check_parts(values, part, seed, num_seeds, members, batch, rows):
    """In parts Q is the one of the whole batch, and so are its gradients in the weights and in the joint actions."""
    critic = double_networks(seed, num_seeds, members, (5 + 3, 7, 6, 1))
    state, joint = normal(seed, num_seeds, batch, 5), normal(seed + 1, num_seeds, batch, rows, 3).requires_grad_()
    slopes, ends = normal(seed + 2, num_seeds, members, batch, rows), []
    for each, numbers in ((spacql.critic_values, 10**9), (values, part)):
        with in_parts_of(numbers):
            q = each(critic, state, joint)
        assert q.shape == slopes.shape
        ends.append([q, *torch.autograd.grad((q * slopes).sum(), [*critic, joint])])
    for whole, joined in zip(*ends, strict=True):
        close(joined, whole)


def check_actors(act, seed, num_seeds, batch, num):
    """Logits and their gradient, of every agent by itself on its own observation."""
    actor = double_networks(seed, num_seeds, num, (4, 7, 6, NUM_ACTIONS))
    obs, slopes = normal(seed, num_seeds, batch, num, 4), normal(seed + 1, num_seeds, batch, num, NUM_ACTIONS)
    logits = act(actor, obs)
    assert logits.shape == slopes.shape
    (logits * slopes).sum().backward()
    for s, i in indices(num_seeds, num):
        network = separate_network(actor, s, i)
        for b in range(batch):
            out = network(obs[s, b, i])
            close(logits[s, b, i], out)
            (out * slopes[s, b, i]).sum().backward()
        compare_gradients(actor, s, i, network)


def check_init(init, count=4, sizes=(20, 150, 60, 3)):
    """Weights and biases are uniform within 1 / sqrt(fan_in): range, mean, variance; no two networks alike."""
    params = init([generator(0), generator(1)], count, sizes)
    for j, fan_in in enumerate(sizes[:-1]):
        for p, shape in zip(params[2 * j : 2 * j + 2], ((fan_in, sizes[j + 1]), (1, sizes[j + 1])), strict=True):
            assert p.shape == (2, count, *shape)
            x = p.double() * math.sqrt(fan_in)  # uniform in [-1, 1]: variance 1/3, variance of the square 4/45
            assert x.abs().max() <= 1 + 1e-6
            assert x.abs().max() > (0.99 if x.numel() > 1000 else 0.7)
            assert x.mean().abs() < SIGMAS * math.sqrt(1 / 3 / x.numel())
            assert (x.square().mean() - 1 / 3).abs() < SIGMAS * math.sqrt(4 / 45 / x.numel())
            assert len(p.flatten(0, 1).flatten(1).unique(dim=0)) == 2 * count


def check_seeds_start_alone(init):
    """A seed's networks are the same whichever seeds are stacked beside it."""
    beside, alone = init([generator(s) for s in (7, 3, 5)], 2, (4, 6, 1)), init([generator(3)], 2, (4, 6, 1))
    assert all(torch.equal(p[1], q[0]) for p, q in zip(beside, alone, strict=True))


def linear_layers(generators, count, sizes):
    """What `init_networks` promises, from torch's own layers: the check of the distribution must accept it."""
    params = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
            layers = [nn.Linear(fan_in, fan_out) for _ in range(len(generators) * count)]
            for stacked in ([x.weight.data.T for x in layers], [x.bias.data[None] for x in layers]):
                params.append(torch.stack(stacked).unflatten(0, (len(generators), count)))
    return params


def check_clip(clip, limit, seed):
    """Every stacked network's gradient is clipped as torch's `clip_grad_norm_` clips it alone."""
    params = double_networks(seed, 2, 3, (3, 4, 1))
    for j, p in enumerate(params):  # networks of very different gradients, so that some are clipped and some not
        p.grad = normal(seed + j, *p.shape) * torch.tensor([0.01, 1, 100.0]).double().view(1, 3, 1, 1)
    before = [p.grad.clone() for p in params]
    clip(params, limit)
    for s, m in indices(2, 3):
        alone = [nn.Parameter(p.detach()[s, m].clone()) for p in params]
        for p, grad in zip(alone, before, strict=True):
            p.grad = grad[s, m].clone()
        nn.utils.clip_grad_norm_(alone, limit)
        for p, q in zip(params, alone, strict=True):
            close(p.grad[s, m], q.grad)


def with_first_layer(change):
    """A mistake: the critic's first layer is permuted."""
    return lambda critic, state, joint: spacql.critic_values([change(critic[0]), *critic[1:]], state, joint)


def cut_into(count, dim=1):
    """A mistake: cuts into count(numbers, PART_NUMBERS, batch) parts."""
    return lambda numbers, *tensors: zip(
        *(x.tensor_split(count(numbers, stacked.PART_NUMBERS, x.shape[1]), dim) for x in tensors), strict=True
    )


def in_parts(change):
    """A mistake: the parts of the batch are changed."""

    def values(*args):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(spacql, "cache_parts", lambda *whole: change(list(stacked.cache_parts(*whole))))
            return spacql.critic_values(*args)

    return values


def first_held(q):
    """A mistake: the first transition has no gradient."""
    return torch.cat([q[:, :, :1].detach(), q[:, :, 1:]], dim=2)


def all_axes_clip(axes):
    """A mistake: clips by a norm over these axes."""

    def clip(params, limit):
        norm = sum(p.grad.square().sum(axes, keepdim=True) for p in params).sqrt()
        for p in params:
            p.grad.mul_((limit / (norm + 1e-6)).clamp(max=1.0))

    return clip


def always_to_the_limit(params, limit):
    """A mistake: gradients below the limit grow to it."""
    for p in params:
        p.grad.mul_(1e6)
    spacql.clip_each(params, limit)


def clip_parameters(params, limit):
    """A mistake: every matrix and bias is clipped by its own norm."""
    for p in params:
        spacql.clip_each([p], limit)


MISTAKES["critics"] = {
    "actions before state": with_first_layer(lambda w: w.roll(2 * NUM_ACTIONS, 2)),
    "another member": lambda critic, state, joint: spacql.critic_values([p.roll(1, 1) for p in critic], state, joint),
    "another seed": lambda critic, state, joint: spacql.critic_values([p.roll(1, 0) for p in critic], state, joint),
    "another row": lambda critic, state, joint: spacql.critic_values(critic, state, joint.roll(1, 2)),
    "another state": lambda critic, state, joint: spacql.critic_values(critic, state.roll(1, 1), joint),
    "no last bias": lambda critic, state, joint: spacql.critic_values([*critic[:5], 0 * critic[5]], state, joint),
}
MISTAKES["cut"] = {
    "not at all": cut_into(lambda numbers, most, batch: 1),
    "one part too many": cut_into(lambda numbers, most, batch: min(batch, numbers // most + 1)),
    "one part too few": cut_into(lambda numbers, most, batch: max(1, min(batch, numbers // most))),
    "empty parts": cut_into(lambda numbers, most, batch: min(99, math.ceil(numbers / most))),
    "along the seeds": cut_into(lambda numbers, most, batch: min(batch, math.ceil(numbers / most)), dim=0),
    "a smaller rest": lambda numbers, *tensors: zip(
        *(x.split(math.ceil(x.shape[1] / len(list(stacked.cache_parts(numbers, x)))), dim=1) for x in tensors),
        strict=True,
    ),
    "the first part only": lambda *args: list(stacked.cache_parts(*args))[:1],
    "in another order": lambda *args: list(stacked.cache_parts(*args))[::-1],
    "another place for each": lambda numbers, first, *others: stacked.cache_parts(
        numbers, first, *(x.roll(1, 1) for x in others)
    ),
}
MISTAKES["parts"] = {
    "in another order": in_parts(lambda parts: parts[::-1]),
    "the last one left out": in_parts(lambda parts: parts[:-1]),
    "the first one each time": in_parts(lambda parts: parts[:1] * len(parts)),
    "another part's states": in_parts(
        lambda parts: [(parts[i - 1][0], joint) for i, (_, joint) in enumerate(parts)],
    ),
    "the actions of a part held": in_parts(lambda parts: [(parts[0][0], parts[0][1].detach()), *parts[1:]]),
    "a part without a gradient": lambda *args: first_held(spacql.critic_values(*args)),
}
MISTAKES["actors"] = {
    "another agent": lambda actor, obs: spacql.actor_logits([p.roll(1, 1) for p in actor], obs),
    "another observation": lambda actor, obs: spacql.actor_logits(actor, obs.roll(1, 2)),
    "shared": lambda actor, obs: spacql.actor_logits([p[:, :1].expand_as(p) for p in actor], obs),
}
MISTAKES["init"] = {
    "fan-out for fan-in": lambda g, count, sizes: [
        p * math.sqrt(p.shape[2] / p.shape[3]) for p in spacql.init_networks(g, count, sizes)
    ],
    "positive only": lambda g, count, sizes: [p.abs() for p in spacql.init_networks(g, count, sizes)],
    "biases zero": lambda g, count, sizes: [
        p if j % 2 == 0 else 0 * p for j, p in enumerate(spacql.init_networks(g, count, sizes))
    ],
    "members alike": lambda g, count, sizes: [
        p[:, :1].expand(-1, count, -1, -1) for p in spacql.init_networks(g, count, sizes)
    ],
    "two thirds as wide": lambda g, count, sizes: [p * 2 / 3 for p in spacql.init_networks(g, count, sizes)],
}
MISTAKES["clip"] = {
    "one norm for all": all_axes_clip((0, 1, 2, 3)),
    "one norm per seed": all_axes_clip((1, 2, 3)),
    "by parameter": clip_parameters,
    "not at all": lambda params, limit: None,
    "always to the limit": always_to_the_limit,
}


@settings(repeatable, max_examples=15)
@given(SEEDS, SMALL, SMALL, SMALL, SMALL, PARTS)
def test_stacked_critics_are_separate_networks(seed, num_seeds, members, batch, rows, part):
    with in_parts_of(part):
        check_critics(spacql.critic_values, seed, num_seeds, members, batch, rows)


def test_a_batch_is_cut_into_parts_and_joined_again():
    check_cut(stacked.cache_parts)


def test_a_batch_on_a_gpu_is_one_part():
    class OnGpu(torch.Tensor):
        """A tensor that says so."""

        is_cuda = True

    (part,) = stacked.cache_parts(10**10, *(torch.zeros(2, 5).as_subclass(OnGpu) for _ in range(2)))
    assert [x.shape for x in part] == [(2, 5)] * 2


@repeatable
@given(SEEDS, SMALL, SMALL, st.integers(1, 7), SMALL, st.sampled_from([1, 50, 100, 200]))
def test_critics_in_parts_are_the_critics(seed, num_seeds, members, batch, rows, part):
    check_parts(spacql.critic_values, part, seed, num_seeds, members, batch, rows)


def test_parts_go_by_the_numbers_that_a_hidden_layer_puts_out(monkeypatch):
    """For all seeds, members, transitions and rows: 2 * 3 * 5 * 4 times 6 units."""
    told = []
    monkeypatch.setattr(spacql, "cache_parts", lambda n, *x: told.append(n) or stacked.cache_parts(n, *x))
    critic = double_networks(0, 2, 3, (5 + 3, 6, 6, 1))
    spacql.critic_values(critic, normal(0, 2, 5, 5), normal(1, 2, 5, 4, 3))
    assert told == [2 * 3 * 5 * 4 * 6]


@settings(repeatable, max_examples=10)
@given(SEEDS, SMALL, SMALL, SMALL)
def test_stacked_actors_are_separate_networks(seed, num_seeds, batch, num):
    check_actors(spacql.actor_logits, seed, num_seeds, batch, num)


def test_networks_start_as_linear_layers_do():
    check_init(spacql.init_networks)
    check_init(linear_layers)


def test_networks_of_a_seed_do_not_depend_on_the_others():
    check_seeds_start_alone(spacql.init_networks)
    rejects(check_seeds_start_alone, lambda g, *args: spacql.init_networks([g[0]] * len(g), *args))
    rejects(check_seeds_start_alone, lambda g, *args: [p.roll(1, 0) for p in spacql.init_networks(g, *args)])


@repeatable
@given(st.floats(1e-3, 1e3), SEEDS)
def test_each_network_is_clipped_by_itself(limit, seed):
    check_clip(spacql.clip_each, limit, seed)


@mistakes("critics")
def test_wrong_critics_are_noticed(wrong):
    rejects(check_critics, wrong, 0, 2, 3, 2, 3)


@mistakes("cut")
def test_wrong_parts_are_noticed(wrong):
    rejects(check_cut, wrong)


@mistakes("parts")
def test_wrong_critics_in_parts_are_noticed(wrong):
    rejects(check_parts, wrong, 50, 0, 2, 3, 6, 2)


@mistakes("actors")
def test_wrong_actors_are_noticed(wrong):
    rejects(check_actors, wrong, 0, 2, 3, 3)


@mistakes("init")
def test_a_wrong_start_is_noticed(wrong):
    rejects(check_init, wrong)


@mistakes("clip")
def test_wrong_clipping_is_noticed(wrong):
    rejects(check_clip, wrong, 0.5, 0)


# ------------------------------------------------------------------------------------- data and seeds


def labelled_data(episodes, horizon):
    """Rows whose values tell (episode, step): 100 * episode + step, in states, actions and rewards."""
    label = lambda steps: (100 * torch.arange(episodes)[:, None] + torch.arange(steps)).flatten()  # noqa: E731
    states, actions = label(horizon + 1), label(horizon)
    return dict(state=states[:, None].expand(-1, 2), actions=actions[:, None], rewards=actions + 0.5, horizon=horizon)


def check_transitions(sample, episodes, horizon):
    """All steps but an episode's last are drawn, once each, with the same episode's next step behind them."""
    data, count = labelled_data(episodes, horizon), episodes * (horizon - 1)
    index = torch.arange(count).flip(0).expand(2, -1)
    state, actions, rewards, next_state, next_actions = sample(data, index)
    assert state.shape == next_state.shape == (2, count, 2) and rewards.shape == (2, count)
    assert actions.shape == next_actions.shape == (2, count, 1)
    label = actions[..., 0]
    assert (label % 100 < horizon - 1).all()
    assert torch.equal(state, label[..., None].expand(-1, -1, 2)) and torch.equal(rewards, label + 0.5)
    assert torch.equal(next_state, state + 1) and torch.equal(next_actions, actions + 1)
    expected = sorted(100 * e + t for e, t in indices(episodes, horizon - 1))
    assert sorted(label[0].tolist()) == sorted(label[1].tolist()) == expected


def raw_dataset(seed):
    """Four episodes of three steps: observations [4, 4, 2, 5] of different scales, some of them constant."""
    observations = normal(seed, 4, 4, 2, 5).float() * torch.tensor([1, 30, 0.01, 1, 1]) + torch.tensor([0, 7, 1, 0, 0])
    observations[:, :, 0, 3], observations[:, :, 1, 4] = 1e4 / 3, 0.0
    actions = torch.randint(NUM_ACTIONS, (4, 3, 2), generator=generator(seed))
    return SimpleNamespace(observations=observations, actions=actions, rewards=normal(seed, 4, 3, 2).float())


def check_standardised(load, seed):
    """Each agent's each number has mean 0 and deviation 1, constants become 0; rows are in order.

    Rewards are the agents' means up to one constant: episodes only time out, so a constant shifts all Q alike.
    """
    raw = raw_dataset(seed)
    data, (mean, std) = load(raw, "cpu")
    assert data["horizon"] == 3 and data["state"].shape == (4 * 4, 2 * 5) and mean.shape == std.shape == (2, 5)
    for i, o in indices(2, 5):
        column, values = data["state"][:, 5 * i + o], raw.observations[:, :, i, o].double().flatten()
        constant = bool((values == values[0]).all())
        centre = float(values.mean())
        width = 1.0 if constant else math.sqrt(sum((float(v) - centre) ** 2 for v in values) / len(values))
        close(column, (values - centre) / width, 1e-3)
        assert abs(float(column.mean())) < 1e-3
        assert abs(float(column.std(correction=0)) - (0 if constant else 1)) < 1e-3
    offsets = []
    for e, t in indices(4, 3):
        assert torch.equal(data["actions"][3 * e + t], raw.actions[e, t])
        offsets.append(float(data["rewards"][3 * e + t]) - sum(raw.rewards[e, t].tolist()) / 2)
    assert max(offsets) - min(offsets) < 1e-5


def check_seeds_draw_alone(stack):
    """A seed's numbers are those its generator gives alone, call after call."""
    together, alone = [generator(s) for s in (4, 2, 8)], generator(2)
    for draw, args in ((torch.rand, ((3, 2),)), (torch.randint, (9, (5,))), (torch.rand, ((1, 4),))):
        drawn = stack(draw, together, *args)
        assert len(drawn) == 3 and not torch.equal(drawn[0], drawn[1])
        assert torch.equal(drawn[1], stack(draw, [alone], *args)[0])
        assert not torch.equal(drawn, stack(draw, together, *args))  # the generators have moved on
        stack(draw, [alone], *args)


def wrapping(data, index):
    """A mistake: all steps are drawn, so that an episode's last one is followed by the next episode's first."""
    horizon = data["horizon"]
    row = index + index // horizon
    state, actions = data["state"], data["actions"]
    return state[row], actions[index], data["rewards"][index], state[row + 1], actions[index + 1]


def states_by_action_row(data, index):
    """A mistake: states are found by the actions' rows, though an episode has one state more."""
    horizon, state = data["horizon"], data["state"]
    row = index // (horizon - 1) * horizon + index % (horizon - 1)
    _, actions, rewards, _, next_actions = spacql.sample_transitions(data, index)
    return state[row], actions, rewards, state[row + 1], next_actions


def repeated_action(data, index):
    """A mistake: the next action is the present one."""
    state, actions, rewards, next_state, _ = spacql.sample_transitions(data, index)
    return state, actions, rewards, next_state, actions


def scale_by(change):
    """A mistake: standardises by a changed mean and deviation."""

    def load(raw, device):
        data, (mean, std) = spacql.to_device(raw, device)
        new_mean, new_std = change(mean, std, raw.observations)
        state = ((raw.observations - new_mean) / new_std).flatten(2).flatten(0, 1)
        return data | dict(state=state), (new_mean.expand(2, 5), new_std.expand(2, 5))

    return load


MISTAKES["transitions"] = {
    "wraps at the end": wrapping,
    "next action repeated": repeated_action,
    "first step never": lambda data, index: spacql.sample_transitions(data, index.clamp(min=1)),
    "one episode off": lambda data, index: spacql.sample_transitions(
        data | dict(state=data["state"].roll(1, 0)), index
    ),
    "states by action row": states_by_action_row,
}
MISTAKES["standardised"] = {
    "constants divided by 0": scale_by(lambda mean, std, x: (mean, x.std((0, 1), correction=0))),
    "one scale for all agents": scale_by(lambda mean, std, x: (x.mean((0, 1, 2)), x.std((0, 1, 2)))),
    "no mean": scale_by(lambda mean, std, x: (0 * mean, std)),
    "variance": scale_by(lambda mean, std, x: (mean, std**2)),
    "rewards summed": lambda raw, device: spacql.to_device(
        SimpleNamespace(**vars(raw) | dict(rewards=2 * raw.rewards)), device
    ),
}
MISTAKES["seeds alone"] = {
    "one generator": lambda draw, g, *args: spacql.per_seed(draw, [g[0]] * len(g), *args),
    "seeds swapped": lambda draw, g, *args: spacql.per_seed(draw, g, *args).roll(1, 0),
    "global generator": lambda draw, g, *args: torch.stack([draw(*args) for _ in g]),
}


@repeatable
@given(st.integers(1, 5), st.integers(2, 6))
def test_transitions_stay_inside_their_episode(episodes, horizon):
    check_transitions(spacql.sample_transitions, episodes, horizon)


@repeatable
@given(SEEDS)
def test_states_are_standardised_and_rows_in_order(seed):
    check_standardised(spacql.to_device, seed)


def test_actors_see_in_play_what_they_saw_in_training():
    raw = raw_dataset(0)
    data, scale = spacql.to_device(raw, "cpu")
    actor = spacql.init_networks([generator(0)], 2, (5, 8, 8, NUM_ACTIONS))
    trained = spacql.actor_logits(actor, data["state"].unflatten(-1, (2, 5))[None]).argmax(-1)
    assert torch.equal(spacql.greedy_actions(actor, raw.observations.flatten(0, 1)[None], scale), trained)


def test_a_seed_draws_the_same_numbers_alone_and_beside_others():
    check_seeds_draw_alone(spacql.per_seed)


@mistakes("transitions")
def test_wrong_transitions_are_noticed(wrong):
    rejects(check_transitions, wrong, 3, 4)


@mistakes("standardised")
def test_wrong_standardisation_is_noticed(wrong):
    rejects(check_standardised, wrong, 0)


@mistakes("seeds alone")
def test_shared_random_numbers_are_noticed(wrong):
    rejects(check_seeds_draw_alone, wrong)
