"""Contraction: each T^(k), and T^SP with weights that do not depend on Q, with min over members too, brings
any two critics closer by gamma in the sup norm. Beside it, the weights of equation (3), which depend on Q:
they can drive two critics apart, and lead two starts to different ends.

Operators and claims are those of theory_checks.py, which run spacql.py's own target and weights.
"""

import math

import pytest
import torch
from common import SEEDS, SMALL, close, generator, repeatable
from hypothesis import given
from hypothesis import strategies as st

import theory_checks
from theory import dec_mdps
from theory.dec_mdps import distributions, one_size, random_worlds, uniform


@repeatable
@given(SEEDS, st.integers(1, 4), st.integers(2, 3), st.integers(1, 5), st.floats(0.01, 0.99), SMALL)
def test_each_T_k_and_any_mixture_of_them_contract(seed, agents, actions, states, gamma, members):
    """Critics that are far apart, near, and a constant shift of each other, which keeps just gamma of its
    distance; any behaviour."""
    g = generator(seed)
    world = random_worlds(g, 3, states, agents, actions, gamma, correlation=True)
    q, noise = (uniform(g, 3, members, states, actions**agents) - 0.5 for _ in range(2))
    for weights in (*(one_size(k, world) for k in range(1, agents + 1)), distributions(g, 3, states, agents)):
        for other in (q + noise, q + 1e-4 * noise, q + 1):
            value, bound = theory_checks.contraction(world, weights, q, other)
            assert (value <= bound + 1e-11).all()
        close(value, bound)


# ------ the counterexample for adaptive weights, in plain numbers


def target(q):
    """sum_k w_k min_j q_jk with w_k ~ 1 / std_j q_jk, for two members' values [member][k]."""
    spreads = [abs(a - b) / 2 for a, b in zip(*q, strict=True)]
    least = [min(a, b) for a, b in zip(*q, strict=True)]
    total = sum(1 / u for u in spreads)
    return sum(v / u / total for v, u in zip(least, spreads, strict=True))


def test_adaptive_weights_expand():
    """One state, two agents, two members, g = 0.95: Q and Q' differ by 1, their targets by 7/6, so TQ and TQ'
    by 0.95 * 7/6 = 1.108."""
    q, other = [[0, 1], [1, 3]], [[1, 2], [2, 3]]
    assert target(q) == pytest.approx(1 / 3) and target(other) == pytest.approx(3 / 2)
    value, bound = theory_checks.adaptive_contraction(*dec_mdps.two_queries(q, other))
    assert float(value) == pytest.approx(0.95 * 7 / 6) and float(bound) == pytest.approx(0.95)


def test_after_one_step_the_expansion_is_over():
    """With one target members agree after a step, weights are 1/2, and every start ends at 0, the reward."""
    for world, *starts in dec_mdps.EXPANDING:
        for q in starts:
            for _ in range(400):
                q = theory_checks.adaptive_backup(world, q)[:, None].expand_as(q)
            close(theory_checks.adaptive_weights(world, q), torch.full((1, 1, 16, 2), 0.5), 1e-6)
            assert float(q.abs().max()) < 1e-6


def own_step(rewards, chances, values):
    """One backup of two states' values in plain Python, by members with models of their own, g = 0.9."""
    found = []
    for s in (0, 1):
        ahead = [[(1 - p) * values[0] + p * values[1] for p in member[s]] for member in chances]
        found.append(target([[rewards[j][s][k] + 0.9 * ahead[j][k] for k in (0, 1)] for j in (0, 1)]))
    return found


@pytest.mark.parametrize("example, lower_attracts", [(0, True), (1, False)])
def test_two_starts_end_apart_and_which_end_drives_away(example, lower_attracts):
    """Both ends are fixed points. Undamped, the operator returns to the upper one in both examples; in the
    second it is driven away from the lower one, first by -1.44 a step."""
    ((rewards, chances),) = dec_mdps.OWN_MODELS
    rewards, chances = rewards[example].tolist(), chances[example].tolist()
    ends = []
    for start in ([10.0, -10.0], [-10.0, 10.0]):
        values = start
        for _ in range(1000):
            values = [(v + t) / 2 for v, t in zip(values, own_step(rewards, chances, values), strict=True)]
        assert own_step(rewards, chances, values) == pytest.approx(values, abs=1e-9)
        ends.append(values)
    numbers = theory_checks.ENDS[2 * example : 2 * example + 2]
    assert list(zip(*ends, strict=True)) == [pytest.approx(pair, abs=1e-5) for pair in numbers]
    for end, attracts in zip(ends, (True, lower_attracts), strict=True):
        values, gap = [end[0] + 1e-4, end[1] - 1e-4], []
        for _ in range(600):
            values = own_step(rewards, chances, values)
            gap.append(math.dist(values, end))
        assert (max(gap[-10:]) < 1e-6) == attracts
        assert attracts or min(gap[-10:]) > 0.01
