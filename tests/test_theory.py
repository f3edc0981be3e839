"""The theory checks: exact tools against slow references, every claim as a property, and mistakes that must be noticed.

A `check_...` helper takes the function under test as an argument. It must accept the project's function, and it must
reject every deliberate mistake listed under the same property (`MISTAKES[...]`), so no check passes by being blind. The
claims of theory_checks.py are mutated too: a bound with half its constant must get the verdict "fails".

Array letters as in theory/dec_mdps.py: I Dec-MDPs, S states (T: the next one), N agents, A actions, J joint actions, K
replacement sizes, E ensemble members, X state-action pairs.
"""

import ast
import contextlib
import functools
import inspect
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spacql
import theory_checks
from theory import dec_mdps, tabular
from theory import report as verdicts
from theory.dec_mdps import Sweep, exact, make_sweep, random_worlds, rare_trigger, trap_worlds
from theory.report import CONDITION, FAILS, MEASURED, check
from utils.errors import InputError
from utils.files import run_script

ROOT = Path(__file__).parents[1]
repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=15)
few = settings(repeatable, max_examples=8)
SEEDS, STATES, ACTIONS, AGENTS = st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 3), st.integers(1, 4)
GAMMA = st.none() | st.floats(0.01, 0.99)  # None: each Dec-MDP its own
SIGMAS = 5  # tolerance of every statistical comparison; all of them have fixed seeds
MISTAKES = {}  # property -> {what is wrong: a function that must be rejected}


def mistakes(name):
    """Parametrise a test over the deliberate mistakes of a property."""
    return pytest.mark.parametrize("wrong", MISTAKES[name].values(), ids=MISTAKES[name].keys())


def rejects(check_it, *args):
    """The check must fail on these arguments, by an assertion and not by a crash."""
    with pytest.raises(AssertionError):
        check_it(*args)


def generator(seed):
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def soft(seed, *shape):
    """Random distributions over the last axis, none of them nearly one-hot."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).softmax(-1)


def a_world(seed, agents=3, actions=2, states=3, gamma=None, instances=2):
    """Random Dec-MDPs with correlated behaviours, from soft to nearly deterministic."""
    return random_worlds(generator(seed), instances, states, agents, actions, gamma, correlation=True)


def soft_world(seed, agents=2, states=3, gamma=0.9, instances=2):
    """Dec-MDPs whose distributions are all soft: data soon cover them, and mistakes show."""
    world, joint = a_world(seed, agents, 2, states, gamma, instances), 2**agents
    return replace(
        world,
        transitions=soft(seed, instances, states, joint, states),
        start=soft(seed + 1, instances, states),
        behaviour=soft(seed + 2, instances, states, joint),
        policies=soft(seed + 3, instances, agents, states, 2),
    )


def close(actual, expected, tolerance=1e-10):
    """Equal up to rounding, in shape too."""
    expected = exact(expected)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def indices(*shape):
    """All index tuples of an array of this shape."""
    return itertools.product(*(range(n) for n in shape))


def joint_actions(agents, actions):
    """All joint actions in order, the last agent's running fastest."""
    return list(itertools.product(range(actions), repeat=agents))


# ------------------------------------------------------------------------------ joint actions of a team


def check_product(product, seed, agents, actions, states):
    """The chance of a joint action is the product of the agents' chances."""
    policies = a_world(seed, agents, actions, states).policies
    expected = torch.zeros(2, states, actions**agents, dtype=torch.float64)
    for i, s in indices(2, states):
        for j, played in enumerate(joint_actions(agents, actions)):
            expected[i, s, j] = math.prod(float(policies[i, n, s, a]) for n, a in enumerate(played))
    close(product(policies), expected)


def check_coordinated(coordinated, seed, agents, actions, states):
    """A joint action's chance is the length of the numbers u in [0, 1] that make every agent play its part."""
    marginals = a_world(seed, agents, actions, states).policies
    joint = coordinated(marginals)
    expected, order = torch.zeros_like(joint), joint_actions(agents, actions)
    for i, s in indices(2, states):
        ends = [list(itertools.accumulate(map(float, marginals[i, n, s]))) for n in range(agents)]
        cuts = sorted({0.0, 1.0, *(min(end, 1.0) for row in ends for end in row)})
        for low, high in itertools.pairwise(cuts):
            middle = (low + high) / 2
            played = tuple(min(sum(middle > end for end in row), actions - 1) for row in ends)
            expected[i, s, order.index(played)] += high - low
    close(joint, expected)
    close(replace(a_world(seed, agents, actions, states), behaviour=joint).marginals(), marginals)


def check_marginals(marginals, seed, agents, actions, states):
    """mu_i(a) sums the behaviour over all joint actions in which agent i plays a."""
    world = a_world(seed, agents, actions, states)
    expected = torch.zeros_like(world.policies)
    for i, s in indices(2, states):
        for j, played in enumerate(joint_actions(agents, actions)):
            for n, a in enumerate(played):
                expected[i, n, s, a] += world.behaviour[i, s, j]
    close(marginals(world), expected)


def slow_replaced(world, subset):
    """(pi_S, mu_-S) by loops over two joint actions: what S would play, and what the others logged."""
    agents, actions = world.num_agents, world.policies.shape[-1]
    expected = torch.zeros_like(world.behaviour)
    order = joint_actions(agents, actions)
    for i, s in indices(*world.start.shape):
        for (j, played), (m, logged) in itertools.product(enumerate(order), enumerate(order)):
            if all(played[n] == logged[n] for n in range(agents) if n not in subset):
                chance = math.prod(float(world.policies[i, n, s, played[n]]) for n in subset)
                expected[i, s, j] += chance * world.behaviour[i, s, m]
    return expected


def check_replaced(replaced, seed, agents, actions, states):
    """For every set of agents (the empty one too) the joint actions are those of the loops."""
    world = a_world(seed, agents, actions, states)
    for subset in [[], *dec_mdps.subsets(agents)]:
        close(replaced(world, subset), slow_replaced(world, subset))


def check_kappa(kappa, seed, agents, actions, states):
    """The largest distance over states between mu and (the product of S's marginals) x (the others' marginal)."""
    world = a_world(seed, agents, actions, states)
    alone = replace(world, policies=world.marginals())
    for subset in [None, *dec_mdps.subsets(agents)]:
        split = slow_replaced(alone, range(agents) if subset is None else subset)
        for i in range(2):
            distances = [
                sum(abs(float(p - q)) for p, q in zip(split[i, s], world.behaviour[i, s], strict=True)) / 2
                for s in range(states)
            ]
            assert abs(float(kappa(world, subset)[i]) - max(distances)) < 1e-12


MISTAKES["product"] = {
    "first agent fastest": lambda policies: dec_mdps.product(policies.flip(1)),
    "coordinated": dec_mdps.coordinated,
}
MISTAKES["coordinated"] = {
    "independent": dec_mdps.product,
    "first agent fastest": lambda marginals: dec_mdps.coordinated(marginals.flip(1)),
    "actions in reverse": lambda marginals: dec_mdps.coordinated(marginals.flip(-1)),
}
MISTAKES["marginals"] = {
    "first agent fastest": lambda world: world.marginals().flip(1),
    "of the policies": lambda world: world.policies,
}
MISTAKES["replaced"] = {
    "the others": lambda world, subset: world.replaced([i for i in range(world.num_agents) if i not in subset]),
    "others independent": lambda world, subset: replace(world, behaviour=dec_mdps.product(world.marginals())).replaced(
        subset
    ),
    "one agent fewer": lambda world, subset: world.replaced(subset[1:]),
}
MISTAKES["kappa"] = {
    "mean over states": lambda world, subset: dec_mdps.tv(
        replace(world, policies=world.marginals()).replaced(range(world.num_agents) if subset is None else subset),
        world.behaviour,
    ).mean(-1),
    "of all agents": lambda world, subset: world.kappa(),
    "twice": lambda world, subset: 2 * world.kappa(subset),
}


@repeatable
@given(SEEDS, st.integers(1, 3), ACTIONS, st.integers(1, 3))
def test_joint_actions_equal_loops(seed, agents, actions, states):
    sizes = (seed, agents, actions, states)
    check_product(dec_mdps.product, *sizes)
    check_coordinated(dec_mdps.coordinated, *sizes)
    check_marginals(dec_mdps.DecMDPs.marginals, *sizes)


@few
@given(SEEDS, st.integers(1, 3), ACTIONS, st.integers(1, 2))
def test_replaced_and_kappa_equal_loops(seed, agents, actions, states):
    check_replaced(dec_mdps.DecMDPs.replaced, seed, agents, actions, states)
    check_kappa(dec_mdps.DecMDPs.kappa, seed, agents, actions, states)


JOINT_CHECKS = {
    "product": check_product,
    "coordinated": check_coordinated,
    "marginals": check_marginals,
    "replaced": check_replaced,
    "kappa": check_kappa,
}


@pytest.mark.parametrize("name, mistake", [(name, mistake) for name in JOINT_CHECKS for mistake in MISTAKES[name]])
def test_a_wrong_joint_distribution_is_noticed(name, mistake):
    rejects(JOINT_CHECKS[name], MISTAKES[name][mistake], 0, 3, 2, 2)


@repeatable
@given(SEEDS, AGENTS, ACTIONS, STATES, st.floats(0, 1))
def test_correlated_behaviour_is_a_mixture_that_keeps_every_marginal(seed, agents, actions, states, dial):
    world = a_world(seed, agents, actions, states)
    joint = dec_mdps.correlated(world.policies, dial)
    apart, together = dec_mdps.product(world.policies), dec_mdps.coordinated(world.policies)
    close(joint, torch.stack([(1 - dial) * a + dial * b for a, b in zip(apart, together, strict=True)]))
    close(joint.sum(-1), torch.ones(2, states))
    close(replace(world, behaviour=joint).marginals(), world.policies)
    both = dec_mdps.correlated(world.policies, exact([0.0, dial]))
    close(both, torch.stack([apart[0], joint[1]]))


# --------------------------------------------------------------------------------- occupancies and values


def rows_of_powers(world, actions, i):
    """g^t Pr(s_t = column | s_0 = row) for t = 0, 1, .. until it is below 1e-14, of instance i."""
    states, joint = actions.shape[1:]
    step = exact(
        [
            [sum(float(actions[i, s, j] * world.transitions[i, s, j, t]) for j in range(joint)) for t in range(states)]
            for s in range(states)
        ]
    )
    gamma, power, weight = float(world.gamma[i]), torch.eye(states, dtype=torch.float64), 1.0
    while weight > 1e-14:
        yield weight * power
        power, weight = power @ step, weight * gamma


def check_occupancy(occupancy, seed, states, gamma):
    """(1 - g) sum_t g^t Pr(s_t), from the start distribution, by summing a long way."""
    world = a_world(seed, 2, 2, states, gamma)
    found = occupancy(world, world.behaviour)
    for i in range(2):
        expected = (1 - world.gamma[i]) * sum(world.start[i] @ m for m in rows_of_powers(world, world.behaviour, i))
        close(found[i], expected, 1e-9)


def check_state_values(state_values, seed, states, gamma):
    """sum_t g^t E[r_t] from every state, by summing a long way."""
    world = a_world(seed, 2, 2, states, gamma)
    found = state_values(world, world.behaviour)
    for i in range(2):
        reward = [sum(map(float, world.behaviour[i, s] * world.rewards[i, s])) for s in range(states)]
        close(found[i], sum(m @ exact(reward) for m in rows_of_powers(world, world.behaviour, i)), 1e-9)


MISTAKES["occupancy"] = {
    "not normalised": lambda world, actions: world.occupancy(actions) / (1 - world.gamma)[:, None],
    "one step late": lambda world, actions: (
        world.occupancy(actions).unsqueeze(1) @ world.state_kernel(actions)
    ).squeeze(1),
    "undiscounted start": lambda world, actions: (world.start + world.occupancy(actions)) / 2,
    "uniform policy": lambda world, actions: world.occupancy(torch.full_like(actions, 1 / actions.shape[-1])),
}
MISTAKES["state values"] = {
    "one step late": lambda world, actions: world.gamma[:, None] * world.state_values(actions),
    "normalised": lambda world, actions: (1 - world.gamma)[:, None] * world.state_values(actions),
    "of the policies": lambda world, actions: world.state_values(dec_mdps.product(world.policies)),
}


@repeatable
@given(SEEDS, STATES, st.none() | st.floats(0.01, 0.97))
def test_occupancies_and_values_equal_long_sums(seed, states, gamma):
    gamma = 0.95 if gamma is None else gamma
    check_occupancy(dec_mdps.DecMDPs.occupancy, seed, states, gamma)
    check_state_values(dec_mdps.DecMDPs.state_values, seed, states, gamma)


@mistakes("occupancy")
def test_a_wrong_occupancy_is_noticed(wrong):
    rejects(check_occupancy, wrong, 0, 3, 0.9)


@mistakes("state values")
def test_wrong_state_values_are_noticed(wrong):
    rejects(check_state_values, wrong, 0, 3, 0.9)


@repeatable
@given(SEEDS, STATES, GAMMA)
def test_the_bellman_equation_links_values_of_states_and_actions(seed, states, gamma):
    """action_values by loops; averaged over the behaviour they give the state values back, from the start the value."""
    world = a_world(seed, 2, 2, states, gamma)
    values = world.state_values(world.behaviour)
    q = world.action_values(values)
    for i, s, j in indices(2, states, 4):
        ahead = sum(float(world.transitions[i, s, j, t] * values[i, t]) for t in range(states))
        assert abs(float(q[i, s, j]) - float(world.rewards[i, s, j]) - float(world.gamma[i]) * ahead) < 1e-9
    close((world.behaviour * q).sum(-1), values, 1e-9)
    close(world.value(world.behaviour), (world.start * values).sum(-1))


@few
@given(SEEDS, st.integers(1, 3), st.floats(0.01, 0.95))
def test_extreme_values_equal_the_best_and_worst_choice_of_sizes(seed, states, gamma):
    """Brute force: a size for every state, all K^S choices."""
    world = a_world(seed, 2, 2, states, gamma)
    mixtures = world.mixtures()
    plans = []
    for choice in itertools.product(range(2), repeat=states):
        plans.append(world.state_values(torch.stack([mixtures[:, k, s] for s, k in enumerate(choice)], 1)))
    close(world.extreme_values(mixtures, torch.amax), torch.stack(plans).amax(0), 1e-9)
    close(world.extreme_values(mixtures, torch.amin), torch.stack(plans).amin(0), 1e-9)


@few
@given(SEEDS, st.integers(1, 3), GAMMA)
def test_fit_errors_equal_loops(seed, states, gamma):
    """V - Vhat from the start, and the Bellman residual of the logged actions, next ones by `actions`."""
    world = a_world(seed, 2, 2, states, gamma)
    actions, reach = dec_mdps.product(world.policies), 1 / (1 - float(world.gamma.max()))
    q = torch.randn(world.rewards.shape, generator=generator(seed), dtype=torch.float64)
    for logged in (actions, world.behaviour):
        error, eps = world.fit_errors(actions, q, logged)
        here, value = world.occupancy(world.behaviour), world.value(actions)
        for i in range(2):
            v_hat = [sum(map(float, actions[i, s] * q[i, s])) for s in range(states)]
            residual, gamma_i = 0.0, float(world.gamma[i])
            for s, j in indices(states, 4):
                ahead = sum(float(world.transitions[i, s, j, t]) * v_hat[t] for t in range(states))
                gap = float(world.rewards[i, s, j]) + gamma_i * ahead - float(q[i, s, j])
                residual += float(here[i, s] * logged[i, s, j]) * gap
            assert abs(float(eps[i]) - residual / (1 - gamma_i)) < 1e-10 * reach
            guess = sum(float(world.start[i, s]) * v_hat[s] for s in range(states))
            assert abs(float(error[i]) - (float(value[i]) - guess)) < 1e-10 * reach


def check_worst_critic(worst_critic, seed, states, gamma):
    """Its range is within 2/(1-g), its eps_FQI is 0, and no critic that is -1/(1-g) or 1/(1-g) at every pair, nor a
    random one within them, has a larger |V - Vhat| - |eps_FQI|, with either kind of logged actions."""
    world = a_world(seed, 2, 2, states, gamma)
    actions, reach = dec_mdps.product(world.policies), 1 / (1 - gamma)
    for logged in (actions, world.behaviour):
        worst = worst_critic(world, actions, logged)
        assert ((worst.amax((1, 2)) - worst.amin((1, 2))) <= 2 * reach * (1 + 1e-12)).all()
        error, eps = world.fit_errors(actions, worst, logged)
        close(eps, torch.zeros(2), 1e-9 * reach**2)
        signs = exact(list(itertools.product((-reach, reach), repeat=4 * states)))
        drawn = reach * (2 * torch.rand((20, 4 * states), generator=generator(seed), dtype=torch.float64) - 1)
        for row in torch.cat([signs, drawn]):
            found, residual = world.fit_errors(actions, row.view(1, states, 4).expand(2, -1, -1), logged)
            assert (found.abs() - residual.abs() <= error.abs() + 1e-9 * reach**2).all()


MISTAKES["worst critic"] = {
    "too small": lambda world, actions, logged: world.worst_critic(actions, logged) / 2,
    "too large": lambda world, actions, logged: 2 * world.worst_critic(actions, logged),
    "does not fit": lambda world, actions, logged: world.worst_critic(actions, logged) + 1,
    "one kind of logged actions": lambda world, actions, logged: world.worst_critic(actions, actions),
}


@few
@given(SEEDS, st.integers(1, 2), st.floats(0.01, 0.95))
def test_the_worst_critic_is_lipschitz_fits_and_beats_every_other(seed, states, gamma):
    check_worst_critic(dec_mdps.DecMDPs.worst_critic, seed, states, gamma)


@mistakes("worst critic")
def test_a_critic_that_is_not_the_worst_is_noticed(wrong):
    rejects(check_worst_critic, wrong, 0, 2, 0.9)


# ------------------------------------------------------------------------------------ who is replaced


def enumerated_kernel(policies):
    """Pr(a'^(k) = j | logged a') for k = 0..N by spacql.partial_replacement, on every logged joint action, every joint
    action of the policies and every order of the agents; [I, 1 + K, S, J, J]."""
    num, actions = policies.shape[1], policies.shape[-1]
    played = torch.tensor(joint_actions(num, actions))
    orders = exact(list(itertools.permutations(range(num))))
    joint = len(played)
    logged, policy, order = torch.cartesian_prod(torch.arange(joint), torch.arange(joint), torch.arange(len(orders))).T
    chance = torch.stack([policies[:, n][..., played[policy, n]] for n in range(num)]).prod(0) / len(orders)
    kernels = []
    for k in range(num + 1):
        query = spacql.partial_replacement(
            played[logged][None], played[policy][None, :, None], orders[order][None, :, None], torch.tensor([k])
        )[0, :, 0]
        column = (query * actions ** torch.arange(num - 1, -1, -1)).sum(-1)
        flat = torch.zeros(*chance.shape[:2], joint**2, dtype=torch.float64)
        kernels.append(flat.index_add_(2, logged * joint + column, chance).unflatten(-1, (joint, joint)))
    return torch.stack(kernels, 1)


def check_query_kernel(query_kernel, seed, agents, actions, states):
    """The kernel of partial replacement is what spacql.py does, over all that it can draw."""
    policies = a_world(seed, agents, actions, states).policies
    close(query_kernel(policies), enumerated_kernel(policies))


def check_mixtures(mixtures, seed, agents, actions, states):
    """m_k is what becomes of logged joint actions drawn from the behaviour."""
    world = a_world(seed, agents, actions, states)
    kernel = enumerated_kernel(world.policies)
    expected = torch.zeros_like(kernel[:, 1:, :, 0])
    for k, a in indices(agents, actions**agents):
        expected[:, k] += world.behaviour[..., a, None] * kernel[:, k + 1, :, a]
    close(mixtures(world), expected)


def set_kernel(policies, subset):
    """The kernel when exactly the agents of `subset` are replaced."""
    num, order = policies.shape[1], joint_actions(policies.shape[1], policies.shape[-1])
    kernel = exact(torch.zeros(len(policies), policies.shape[2], len(order), len(order)))
    for (a, logged), (b, query) in itertools.product(enumerate(order), enumerate(order)):
        if all(logged[n] == query[n] for n in range(num) if n not in subset):
            chances = [policies[:, n, :, query[n]] for n in subset]
            kernel[:, :, a, b] = torch.stack(chances).prod(0) if chances else 1.0
    return kernel


def one_more(policies):
    """A mistake: k + 1 agents act by their policies (all of them at k = N)."""
    kernel = REAL_KERNEL(policies)
    return torch.cat([kernel[:, 1:], kernel[:, -1:]], 1)


def first_agents(policies):
    """A mistake: always the agents with the lowest numbers."""
    return torch.stack([set_kernel(policies, range(k)) for k in range(policies.shape[1] + 1)], 1)


def each_with_chance(policies):
    """A mistake: every agent is replaced with chance k / N, so only the mean number is k."""
    num = policies.shape[1]
    kernels = torch.zeros_like(REAL_KERNEL(policies))
    for subset, k in itertools.product([[], *dec_mdps.subsets(num)], range(num + 1)):
        chance = (k / num) ** len(subset) * (1 - k / num) ** (num - len(subset))
        kernels[:, k] += chance * set_kernel(policies, subset)
    return kernels


REAL_KERNEL = dec_mdps.query_kernel
MISTAKES["query kernel"] = {
    "k + 1 agents": one_more,
    "first agents": first_agents,
    "k on average": each_with_chance,
    "query and logged swapped": lambda policies: REAL_KERNEL(policies).mT,
    "n - k agents": lambda policies: REAL_KERNEL(policies).flip(1),
}


@few
@given(SEEDS, st.sampled_from([(1, 2), (1, 3), (2, 2), (2, 3), (3, 2), (3, 3), (4, 2)]), st.integers(1, 3))
def test_kernel_and_mixtures_equal_partial_replacement_over_all_its_draws(seed, team, states):
    check_query_kernel(dec_mdps.query_kernel, seed, *team, states)
    check_mixtures(dec_mdps.DecMDPs.mixtures, seed, *team, states)


@mistakes("query kernel")
def test_a_wrong_choice_of_agents_is_noticed(wrong, monkeypatch):
    """In the kernel itself, and in the mixtures that are made from it."""
    rejects(check_query_kernel, wrong, 0, 3, 2, 2)
    monkeypatch.setattr(dec_mdps, "query_kernel", wrong)
    rejects(check_mixtures, dec_mdps.DecMDPs.mixtures, 0, 3, 2, 2)


# ---------------------------------------------------------------------------- operators of theory_checks.py


def check_backup(backup, seed, agents, states, members):
    """r + g sum over next states, sizes and joint actions of P, w_k(s'), m_k and the least member's value."""
    world = a_world(seed, agents, 2, states, 0.9)
    mixtures, joint = world.mixtures(), 2**agents
    q = torch.randn((2, members, states, joint), generator=generator(seed), dtype=torch.float64)
    weights = soft(seed, 2, states, agents)
    expected = world.rewards.clone()
    for i, s, a, t, k, j in indices(2, states, joint, states, agents, joint):
        least = min(float(q[i, e, t, j]) for e in range(members))
        chance = float(world.transitions[i, s, a, t] * weights[i, t, k] * mixtures[i, k, t, j])
        expected[i, s, a] += float(world.gamma[i]) * chance * least
    close(backup(world, mixtures, weights, q), expected)


def mean_of_members(world, mixtures, weights, q):
    """A mistake: the mean over members in place of their minimum."""
    return REAL_BACKUP(world, mixtures, weights, q.mean(1, keepdim=True))


def heavy_weights(world, mixtures, weights, q):
    """A mistake: weights that sum to more than 1."""
    return REAL_BACKUP(world, mixtures, 1.01 * weights, q)


REAL_BACKUP = theory_checks.backup
MISTAKES["backup"] = {
    "mean over members": mean_of_members,
    "heavy weights": heavy_weights,
    "least member of the averages": lambda world, mixtures, weights, q: torch.stack(
        [REAL_BACKUP(world, mixtures, weights, q[:, [e]]) for e in range(q.shape[1])]
    ).amin(0),
    "no discount": lambda world, mixtures, weights, q: REAL_BACKUP(
        replace(world, gamma=torch.ones_like(world.gamma)), mixtures, weights, q
    ),
    "sizes in reverse": lambda world, mixtures, weights, q: REAL_BACKUP(world, mixtures.flip(1), weights, q),
}


@few
@given(SEEDS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_the_backup_equals_loops(seed, agents, states, members):
    check_backup(theory_checks.backup, seed, agents, states, members)


@mistakes("backup")
def test_a_wrong_backup_is_noticed(wrong):
    rejects(check_backup, wrong, 0, 2, 3, 3)


@few
@given(SEEDS, st.integers(1, 3), st.sampled_from([0.0, 0.5]))
def test_adaptive_weights_are_inverse_spreads_averaged_over_queries(seed, states, floor):
    world = a_world(seed, 3, 2, states)
    mixtures, members = world.mixtures(), 3
    q = torch.randn((2, members, states, 8), generator=generator(seed), dtype=torch.float64)
    found = theory_checks.adaptive_weights(mixtures, q, floor)
    for i, s in indices(2, states):
        spread = [float(q[i, :, s, j].var(correction=0)) ** 0.5 for j in range(8)]
        u = [max(sum(float(m) * d for m, d in zip(mixtures[i, k, s], spread, strict=True)), floor) for k in range(3)]
        close(found[i, s], [1 / x / sum(1 / y for y in u) for x in u])


# ------------------------------------------------------------------------------------ claims as properties


def property_sweep(seed, agents, actions, states, gamma, instances=4):
    """Drawn Dec-MDPs, and the sharp ones that the published wordings need to fail."""
    g = generator(seed)
    worlds, correlated = (
        [random_worlds(g, instances, states, agents, actions, gamma, correlation=on)] for on in (False, True)
    )
    sharp = 0.9 if gamma is None else gamma
    worlds += [trap_worlds(4, [sharp, sharp], [1e-3 * (1 - sharp), 0.5])]
    return Sweep(worlds, [*correlated, rare_trigger(sharp)], g, instances, max(agents, 3))


def surprises(rows):
    """Rows whose verdict is not the expected one."""
    return [(row.statement, row.verdict, row.note) for row in rows if row.verdict != row.expected]


PROPERTIES = ["contraction", "proposition1", "lemma1", "theorem1", "lemma2", "theorem2", "theorem3", "correlation"]


@pytest.mark.parametrize("name", PROPERTIES)
@repeatable
@given(SEEDS, AGENTS, ACTIONS, STATES, GAMMA)
def test_a_claim_has_its_expected_verdicts_whatever_the_sizes(name, seed, agents, actions, states, gamma):
    rows, _ = theory_checks.CLAIMS[name](property_sweep(seed, agents, actions, states, gamma))
    assert rows and surprises(rows) == []


@few
@given(SEEDS, AGENTS, ACTIONS, STATES, GAMMA)
def test_what_holds_for_adaptive_weights_holds_whatever_the_sizes(seed, agents, actions, states, gamma):
    rows, _ = theory_checks.adaptive(property_sweep(seed, agents, actions, states, gamma, instances=2))
    assert [row.expected for row in rows] == [FAILS, FAILS, CONDITION, "holds", CONDITION]
    assert surprises(rows[2:]) == []


@repeatable
@given(SEEDS, AGENTS, ACTIONS, STATES, GAMMA, st.integers(1, 50))
def test_missing_queries_are_bounded_whatever_the_sizes(seed, agents, actions, states, gamma, samples):
    """coverage's bound, for any behaviour: missing(k) <= missing(0) + (k/n) sum TV_i (no kappa for a factorised mu)."""
    world = random_worlds(generator(seed), 4, states, agents, actions, gamma)
    logged, fresh = tabular.missing_shares(world, samples)
    shifted = world.agent_tv().sum(-1, keepdim=True) * exact(torch.arange(agents + 1)) / agents
    assert check("", [(fresh, fresh[:, :1] + shifted)]).verdict == "holds"
    assert ((logged >= -1e-12) & (logged <= 1 + 1e-12)).all() and logged[:, 0].abs().max() < 1e-12


def without_learning(sizes, dials, *_):
    """In place of tabular.backup_curves: no difference anywhere, so that tradeoff's exact rows need no training."""
    return {"none": {"joint - icql-qs": [[[0.0, 0.1] for _ in dials] for _ in sizes]}}


@few
@given(SEEDS, AGENTS, ACTIONS, STATES, GAMMA)
def test_tradeoffs_exact_rows_hold_whatever_the_sizes(seed, agents, actions, states, gamma):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tabular, "backup_curves", without_learning)
        rows, _ = theory_checks.tradeoff(property_sweep(seed, agents, actions, states, gamma))
    assert surprises([row for row in rows if row.expected == "holds"]) == []
    assert [row.expected for row in rows] == ["holds", FAILS, "holds", FAILS, MEASURED]


@functools.cache
def small_tradeoff():
    """The claim with its learning, on little data: rows and data."""
    return theory_checks.tradeoff(make_sweep(0, 8, 4), sizes=(20,), dials=(0.0, 1.0))


def test_tradeoff_as_a_whole_learns_and_reports():
    rows, data = small_tradeoff()
    assert [row.verdict for row in rows if row.expected in ("holds", MEASURED)] == ["holds", "holds", MEASURED]
    assert len(data["panels"]) == 6
    for methods in data["panels"].values():
        assert set(methods) == {"icql-qs", "joint", "uniform", "spacql", "joint - icql-qs"}
        for name, ((first, second),) in methods.items():
            assert all(math.isfinite(x) for x in (*first, *second))
            assert "-" in name or max(first[0], second[0]) <= 1 + 1e-9  # 1 is the optimum


def test_coverage_as_a_whole_reports_shares_and_errors():
    rows, data = theory_checks.coverage(make_sweep(0, 8, 4), sizes=(10, 1000))
    assert [row.verdict for row in rows] == ["holds", MEASURED]
    assert len(data) == 4
    for few_samples, many in zip(list(data.values())[:2], list(data.values())[2:], strict=True):
        assert len(many["missing"]) == 4 and len(many["error"]) == 3
        assert all(a >= b for a, b in zip(few_samples["error"], many["error"], strict=True))


# ------------------------------------------------------------------- bounds with half their constant must fail


def default_rows(claim):
    """The claim's rows on the default sweep of 30 instances; adaptive, which iterates for long, on a smaller one."""
    small = claim.__name__ == "adaptive"
    return claim(property_sweep(0, 3, 2, 3, 0.9, 2) if small else make_sweep(0, instances=30, agents=4))[0]


@functools.cache
def unmutated(name):
    """default_rows of a claim as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tabular, "backup_curves", without_learning)
        return default_rows(theory_checks.CLAIMS[name])


def named(rows, start):
    """The one row whose statement starts like this."""
    (row,) = [row for row in rows if row.statement.startswith(start)]
    return row


def altered(claim, old, new):
    """The claim with a piece of its source replaced."""
    source, scope = inspect.getsource(claim), dict(vars(theory_checks))
    assert source.count(old) == 1, f"{claim.__name__} has no single {old!r}: write the mutation anew"
    exec(source.replace(old, new), scope)
    return scope[claim.__name__]


HALVED_FUNCTIONS = {
    "lemma1, linear": ("occupancy_bound", "lemma1", "W1(d^S, d^mu) <= g/(1-g)"),
    "lemma1, coupling": ("coupling_bound", "lemma1", "sharper"),
    "lemma2, kappa_S": ("occupancy_bound", "lemma2", "W1 <= g/(1-g) (sum_S TV_i + kappa_S)"),
    "lemma2, 2 kappa": ("occupancy_bound", "lemma2", "the same with 2 kappa"),
    "theorem1, two or more": ("value_bound", "theorem1", "|V - Vhat| <= eps"),
    "theorem1, one": ("value_bound", "theorem1", "one deviating agent"),
    "theorem1, own actions": ("logged_bound", "theorem1", "eps_FQI on the data's own actions"),
    "theorem2": ("value_bound", "theorem2", "|V - Vhat| <= eps"),
    "theorem3, mixture": ("value_bound", "theorem3", "|V_w - Vhat| <= eps"),
    "theorem3, bias": ("bias_bound", "theorem3", "|V^pi - V_w| <="),
    "theorem3, team: estimation": ("value_bound", "theorem3", "|V^pi - Vhat| <="),
    "tradeoff, bias": ("bias_bound", "tradeoff", "|V^pi - V(m_k)| <="),
    "correlation, value": ("bias_bound", "correlation", "|V(mu) - V("),
    "adaptive, floor": ("floor_factor", "adaptive", "u floored at c"),
}
HALVED_SOURCES = {
    "contraction, T^(k)": (
        "contraction",
        "sup(difference), world.gamma)",
        "sup(difference), world.gamma / 2)",
        "T^(k)",
    ),
    "contraction, T^SP": ("contraction", "sup(difference), world.gamma)", "sup(difference), world.gamma / 2)", "T^SP:"),
    "contraction, min": ("contraction", "sup(difference), world.gamma)", "sup(difference), world.gamma / 2)", "T^SP w"),
    "adaptive, box": ("adaptive", "world.gamma * outside[0]", "world.gamma / 2 * outside[0]", "any weights"),
    "lemma1, state-action": (
        "lemma1",
        "total / (1 - world.gamma)",
        "total / (2 - 2 * world.gamma)",
        "state-action occupancy: W1",
    ),
    "lemma2, factor 2": ("lemma2", "(world.kappa(subset), 2 * kappa)", "(world.kappa(subset), kappa)", "kappa_S <= 2"),
    "theorem3, shift": ("theorem3", "share * world.agent_tv()", "share / 2 * world.agent_tv()", "TV(m_w, mu)"),
    "coverage, shift": (
        "coverage",
        "share * case.agent_tv()",
        "share / 2 * case.agent_tv()",
        "missing(k) <= missing(0)",
    ),
}


@pytest.mark.parametrize("case", HALVED_FUNCTIONS.values(), ids=HALVED_FUNCTIONS.keys())
def test_half_a_bound_fails(case, monkeypatch):
    function, name, statement = case
    monkeypatch.setattr(tabular, "backup_curves", without_learning)
    claim, real = theory_checks.CLAIMS[name], getattr(theory_checks, function)
    before = named(unmutated(name), statement)
    monkeypatch.setattr(theory_checks, function, lambda *args: real(*args) / 2)
    after = named(default_rows(claim), statement)
    assert before.verdict == before.expected != FAILS
    assert after.verdict == FAILS and after.note.startswith("value ")


@pytest.mark.parametrize("case", HALVED_SOURCES.values(), ids=HALVED_SOURCES.keys())
def test_half_a_constant_within_a_claim_fails(case):
    name, old, new, statement = case
    before = named(unmutated(name), statement)
    after = named(default_rows(altered(theory_checks.CLAIMS[name], old, new)), statement)
    assert before.verdict == before.expected != FAILS
    assert after.verdict == FAILS


SHARP = {
    "contraction": ["T^(k)", "T^SP:", "T^SP w"],
    "lemma1": ["W1(d^S, d^mu) <= g/(1-g)", "sharper", "state-action occupancy: W1"],
    "theorem1": ["|V - Vhat| <= eps", "one deviating agent", "eps_FQI on the data's own actions"],
    "lemma2": ["W1 <= g/(1-g) (sum_S TV_i + kappa_S)", "kappa_S <= 2 kappa"],
    "theorem2": ["|V - Vhat| <= eps"],
    "theorem3": ["TV(m_w, mu)", "|V_w - Vhat| <= eps", "|V^pi - V_w| <=", "|V^pi - Vhat| <="],
    "correlation": ["|V(mu) - V("],
}


@pytest.mark.parametrize("name", SHARP)
def test_constants_called_sharp_are_attained(name):
    """To 3% on the default sweep."""
    for statement in SHARP[name]:
        assert 0.97 < named(unmutated(name), statement).tightness_max < 1 + 1e-9


def test_one_agent_more_breaks_theorem3(monkeypatch):
    """TV(m_w, mu) <= (k_eff / n) sum TV_i does not survive an operator that replaces k + 1 agents."""
    monkeypatch.setattr(dec_mdps, "query_kernel", one_more)
    row = named(default_rows(theory_checks.theorem3), "TV(m_w, mu)")
    assert row.verdict == FAILS and row.worst_slack < -0.1


def test_the_first_agents_always_break_theorem3(monkeypatch):
    """The first agents' TV_i may be more than their share of the sum."""
    monkeypatch.setattr(dec_mdps, "query_kernel", first_agents)
    assert named(default_rows(theory_checks.theorem3), "TV(m_w, mu)").verdict == FAILS


def test_heavy_weights_break_the_contraction(monkeypatch):
    """Every row, as a constant shift of Q attains the factor g."""
    monkeypatch.setattr(theory_checks, "backup", heavy_weights)
    assert [row.verdict for row in default_rows(theory_checks.contraction)] == [FAILS] * 3


def test_weights_of_no_simplex_in_spacql_break_the_contraction(monkeypatch):
    """The check runs spacql.py's own target: a mistake there shows here."""
    real = spacql.spacql_target
    monkeypatch.setattr(spacql, "spacql_target", lambda r, q, w, gamma: real(r, q, w + 0.01, gamma))
    assert [row.verdict for row in default_rows(theory_checks.contraction)] == [FAILS] * 3


def test_a_generator_that_moves_marginals_is_noticed(monkeypatch):
    real = dec_mdps.coordinated
    monkeypatch.setattr(dec_mdps, "coordinated", lambda marginals: real(marginals.flip(-1)))
    assert named(default_rows(theory_checks.correlation), "the generator keeps").verdict == FAILS


@pytest.mark.parametrize("seed", [0, 1])
def test_the_figures_numbers_obey_their_bounds(seed):
    """lemma1's curves: W1 within its bounds, nothing moved for no agents, and densities that grow with every agent;
    theorem3's: errors within bounds, k_eff from 1 to the team."""
    data = theory_checks.lemma1(make_sweep(seed, 2, 4))[1]
    curves = data["curves"]
    assert data["agents"] == 4 and all(len(curve) == 5 for curve in curves.values())
    for w1, coupling, linear in zip(curves["W1"], curves["coupling"], curves["linear"], strict=True):
        assert all(a <= b + 1e-9 and b <= c + 1e-9 for a, b, c in zip(w1, coupling, linear, strict=True))
    assert curves["W1"][0] == pytest.approx([0, 0, 0], abs=1e-12) and curves["ratio"][0] == pytest.approx([1, 1, 1])
    for name in ("ratio", "chi2", "support"):
        assert all(a[1] < b[1] for a, b in itertools.pairwise(curves[name]))
    for panel in theory_checks.theorem3(make_sweep(seed, 2, 4))[1]:
        shown = list(panel["curves"].values())
        pairs = [(shown[0], shown[-1])] if len(shown) == 3 else [(shown[0], shown[1]), (shown[2], shown[3])]
        assert all(a <= b + 1e-9 for found, bound in pairs for a, b in zip(found, bound, strict=True))


# ---------------------------------------------------------------------------------------- counterexamples


FAILING = {
    "adaptive": ["T^SP with w_k ~ 1/u_k contracts", "T^SP with w_k ~ 1/u_k has one fixed point"],
    "proposition1": ["the same after each gradient is clipped"],
    "lemma1": ["the same constant g/(1-g) for state-action"],
    "theorem1": ["the same where eps_FQI is on"],
    "lemma2": ["kappa against the product", "kappa is independent of n"],
    "theorem3": ["the same for V^pi"],
    "tradeoff": ["V(m_k) = mean over S", "the bias falls with k"],
}


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_published_wordings_fail_for_every_seed(name, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tabular, "backup_curves", without_learning)
        rows, _ = theory_checks.CLAIMS[name](property_sweep(seed, 3, 2, 3, 0.9, instances=10))
    assert [row.statement for row in rows if row.expected == FAILS] == [
        named(rows, start).statement for start in FAILING[name]
    ]
    for start in FAILING[name]:
        row = named(rows, start)
        assert row.verdict == FAILS and row.worst_slack < 0 and row.note


def adaptive_target(q):
    """sum_k w_k min_j q_jk with w_k ~ 1 / std_j q_jk, of two members' numbers [member][k]."""
    spreads = [max(abs(a - b) / 2, 1e-20) for a, b in zip(*q, strict=True)]
    total = sum(1 / u for u in spreads)
    return sum(min(a, b) / u / total for a, b, u in zip(*q, spreads, strict=True))


def apart(q, other):
    """The largest distance between two tables' entries."""
    return max(abs(a - b) for row, line in zip(q, other, strict=True) for a, b in zip(row, line, strict=True))


def test_the_integer_example_expands():
    """Targets 1/3 and 3/2 from values that differ by 1: factor 0.95 * 7/6, as the note of the row says."""
    q, other = [[0, 1], [1, 3]], [[1, 2], [2, 3]]
    assert apart(q, other) == 1
    assert adaptive_target(q) == pytest.approx(1 / 3) and adaptive_target(other) == pytest.approx(3 / 2)
    close(theory_checks.adaptive_value(exact([q, other])), [1 / 3, 3 / 2])
    note = theory_checks.adaptive(property_sweep(0, 2, 2, 1, 0.5, 2))[0][0].note
    assert f"Q = {q} and Q' = {other} differ by 1, their targets by {0.95 * 7 / 6:.4g}." in note


def largest_factor(top):
    """The largest |TQ - TQ'| / |Q - Q'| at gamma 0.95 over integers 0..top, two members and two sizes, no spread 0."""
    grids = [
        (values[:2], values[2:])
        for values in itertools.product(range(top + 1), repeat=4)
        if values[0] != values[2] and values[1] != values[3]
    ]
    targets = [adaptive_target(q) for q in grids]
    found = 0.0
    for (q, y), (other, z) in itertools.combinations(zip(grids, targets, strict=True), 2):
        found = max(found, 0.95 * abs(y - z) / apart(q, other))
    return found


def test_no_smaller_integers_expand():
    """By exhaustive search, for entries that move by 1 and by more: 0..2 has nothing above 1, 0..3 has the example."""
    assert largest_factor(2) < 1
    assert largest_factor(3) == pytest.approx(0.95 * 7 / 6)


def test_the_factor_grows_as_spreads_shrink():
    """The four other examples of the row, in plain Python: the factor is about 1 / spread."""
    _, data = theory_checks.adaptive(property_sweep(0, 2, 2, 1, 0.5, 2))
    for e, factor in zip(data["spreads"], data["factors"], strict=True):
        q, other = [[0, 10], [2 * e, 10 + 2 * e]], [[e / 2, 10 - e / 2], [1.5 * e, 10 + 2.5 * e]]
        assert apart(q, other) == pytest.approx(e / 2)
        assert factor == pytest.approx(0.95 * abs(adaptive_target(q) - adaptive_target(other)) / (e / 2))
    assert all(10 * a < 1.2 * b for a, b in itertools.pairwise(data["factors"][1:]))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_printed_example_has_two_fixed_points(seed):
    """Its numbers, read from the text and iterated in plain Python from both starts, end at different fixed points."""
    gap, text = theory_checks.two_fixed_points(generator(seed), 300)
    rewards, chances, *shown = map(ast.literal_eval, re.findall(r"\[[-\d., \[\]]*\]", text))
    assert text.startswith(f"{float((gap > 1e-6).double().mean()):.1%} of random instances")
    assert exact(rewards).abs().max() <= 1 and exact(chances).min() >= 0 and exact(chances).max() <= 1

    def backed_up(values):
        ahead = lambda p: (1 - p) * values[0] + p * values[1]  # noqa: E731
        q = [[[rewards[j][s][k] + 0.9 * ahead(chances[j][s][k]) for k in (0, 1)] for j in (0, 1)] for s in (0, 1)]
        return [adaptive_target(members) for members in q]

    ends = []
    for values, end in zip(([10.0, -10.0], [-10.0, 10.0]), shown, strict=True):
        for _ in range(1000):
            values = [(v + t) / 2 for v, t in zip(values, backed_up(values), strict=True)]
        assert max(abs(v - t) for v, t in zip(values, backed_up(values), strict=True)) < 1e-6
        assert values == pytest.approx(end, abs=1e-4)
        ends.append(values)
    assert max(abs(a - b) for a, b in zip(*ends, strict=True)) == pytest.approx(float(gap.max()), abs=1e-5)
    assert gap.max() > 0.1


def test_agents_drawn_afresh_arrive_where_fixed_ones_cannot():
    """relay_world at k = 1: each of two steps is made with chance 1/2, V = (g/2 / (1 - g/2))^2 / (1-g); no one agent's
    policy makes both."""
    world, g = dec_mdps.relay_world(0.9), 0.9
    close(world.value(world.mixtures()[:, 0]), [(g / 2 / (1 - g / 2)) ** 2 / (1 - g)])
    close(world.value(world.replaced([0])), [0.0])
    close(world.value(world.replaced([1])), [0.0])
    close(world.value(world.replaced([0, 1])), [g * g / (1 - g)])


def test_the_bias_can_be_largest_between_one_and_all_agents():
    """parity_game: one 1 and three 1s are worth 1 a step, two are worth -1."""
    world = dec_mdps.parity_game(0.9)
    close(torch.cat([world.value(m) for m in world.mixtures().unbind(1)]), [10.0, -10.0, 10.0])
    close(world.value(dec_mdps.product(world.policies)), [10.0])


def test_logged_pairs_can_depend_more_than_all_agents_do():
    """rare_trigger in fractions: kappa_S = 2 (1-p) kappa for S = {0}, though kappa covers all agents."""
    p, flip = Fraction(1, 1000), Fraction(1, 10_000)
    pair, together = [1 - flip, flip], [[1 - flip, 0], [0, flip]]
    mu = {(0, a, b): (1 - p) * pair[a] * pair[b] for a, b in indices(2, 2)}
    mu |= {(1, a, b): p * together[a][b] for a, b in indices(2, 2)}
    assert sum(mu.values()) == 1

    def marginal(agents, played):
        return sum(chance for key, chance in mu.items() if all(key[n] == played[n] for n in agents))

    def distance(groups):
        return sum(abs(mu[key] - math.prod(marginal(group, key) for group in groups)) for key in mu) / 2

    kappa, kappa_s = distance([[0], [1], [2]]), distance([[0], [1, 2]])
    assert kappa_s == 2 * (1 - p) * kappa > kappa > 0
    world = rare_trigger(0.9)
    close(world.behaviour[0, 0], [float(mu[key]) for key in joint_actions(3, 2)], 1e-14)
    close(world.kappa(), [float(kappa)], 1e-12)
    close(world.kappa([0]), [float(kappa_s)], 1e-12)
    moved = float(dec_mdps.tv(world.occupancy(world.replaced([0])), world.occupancy(world.behaviour)))
    assert moved > 1.4 * float(theory_checks.occupancy_bound(0.9, float(kappa)))


def test_state_action_occupancies_differ_where_states_cannot():
    """One state, one agent that plays the other action half of the time: 1/2 > g/(1-g) / 2 for g < 1/2."""
    world = dec_mdps.one_state([1, 0], [[0.5, 0.5]], [0, 0], 0.1)
    moved = float(dec_mdps.tv(world.replaced([0])[0, 0], world.behaviour[0, 0]))
    assert moved == 0.5 > theory_checks.occupancy_bound(0.1, 0.5)
    assert float(world.occupancy(world.behaviour)) == pytest.approx(1)


# ------------------------------------------------------------------------------------------ finite datasets


def expected_shares(world):
    """Chances [I, X, X] of a transition (s, a) -> (s', a'), by loops."""
    (count, states, joint), here = world.behaviour.shape, world.occupancy(world.behaviour)
    chances = torch.zeros(count, states * joint, states * joint, dtype=torch.float64)
    for i, s, a, t, b in indices(count, states, joint, states, joint):
        logged = here[i, s] * world.behaviour[i, s, a]
        chances[i, s * joint + a, t * joint + b] = logged * world.transitions[i, s, a, t] * world.behaviour[i, t, b]
    return chances


@few
@given(SEEDS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 200))
def test_drawn_transitions_are_possible_and_as_many_as_asked(seed, agents, states, samples):
    world = a_world(seed, agents, 2, states)
    counts = tabular.draw_transitions(world, samples, generator(seed))
    close(counts.sum((1, 2)), torch.full((2,), float(samples)))
    assert torch.equal(counts, counts.round()) and (counts >= 0).all()
    assert torch.equal(counts, tabular.draw_transitions(world, samples, generator(seed)))
    resampled = tabular.bootstrap(counts, 3, generator(seed))
    close(resampled.sum((2, 3)), torch.full((2, 3), float(samples)))
    assert (counts.unsqueeze(1).expand_as(resampled)[resampled > 0] > 0).all()


def test_impossible_transitions_are_never_drawn():
    """In trap_worlds the behaviour stays in the good state for good, so there is one transition only."""
    counts = tabular.draw_transitions(trap_worlds(2, [0.9, 0.5], [0.5, 0.1]), 1000, generator(0))
    expected = torch.zeros(2, 8, 8)
    expected[:, 0, 0] = 1000
    close(counts, expected)


def check_draws(draw):
    """Every transition comes up as often as chance says."""
    world, samples = soft_world(0), 20_000
    chances = expected_shares(world)
    spread = SIGMAS * (samples * chances * (1 - chances)).sqrt() + 1
    assert ((draw(world, samples, generator(1)) - samples * chances).abs() <= spread).all()


MISTAKES["draws"] = {
    "from the start": lambda world, samples, g: tabular.draw_transitions(
        replace(world, gamma=torch.full_like(world.gamma, 1e-9)), samples, g
    ),
    "next actions by the policies": lambda world, samples, g: tabular.draw_transitions(
        replace(world, behaviour=dec_mdps.product(world.policies)), samples, g
    ),
    "backwards": lambda world, samples, g: tabular.draw_transitions(world, samples, g).mT,
}


def test_transitions_come_up_as_often_as_chance_says():
    check_draws(tabular.draw_transitions)


@mistakes("draws")
def test_wrong_draws_are_noticed(wrong):
    rejects(check_draws, wrong)


def check_missing_shares(missing_shares, states, samples):
    """Over all datasets: the chance-weighted share of queries, from logged and from fresh pairs, that they lack."""
    world = soft_world(5, states=states, instances=1)
    kernel, here = enumerated_kernel(world.policies)[0], world.occupancy(world.behaviour)[0]
    pairs = list(indices(states, 4))
    chance = {(s, a): float(here[s] * world.behaviour[0, s, a]) for s, a in pairs}
    asked = {(k, s, a, q): float(kernel[k, s, a, q]) for k, s, a, q in indices(3, states, 4, 4)}
    logged, fresh = [0.0] * 3, [0.0] * 3
    for dataset in itertools.product(pairs, repeat=samples):
        likely = math.prod(chance[pair] for pair in dataset)
        for k, q in indices(3, 4):
            for s, a in dataset:
                logged[k] += likely * asked[k, s, a, q] * ((s, q) not in dataset) / samples
            for s, a in pairs:
                fresh[k] += likely * chance[s, a] * asked[k, s, a, q] * ((s, q) not in dataset)
    for found, expected in zip(missing_shares(world, samples), (logged, fresh), strict=True):
        close(found, [expected])


MISTAKES["missing shares"] = {
    "one sample more": lambda world, samples: tabular.missing_shares(world, samples + 1),
    "logged as fresh": lambda world, samples: (tabular.missing_shares(world, samples)[1],) * 2,
    "fresh from one sample fewer": lambda world, samples: (
        tabular.missing_shares(world, samples)[0],
        tabular.missing_shares(world, samples - 1)[1],
    ),
}


@pytest.mark.parametrize("states, samples", [(1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (2, 3)])
def test_missing_shares_equal_the_mean_over_all_datasets(states, samples):
    check_missing_shares(tabular.missing_shares, states, samples)


@mistakes("missing shares")
def test_wrong_missing_shares_are_noticed(wrong):
    rejects(check_missing_shares, wrong, 1, 2)


def check_fitted_backup(fitted, method, seed=0, states=2, agents=3, members=3, samples=12):
    """r + the mean over the member's transitions from (s, a) of g sum_k w_k(s', a') E min_j q; else the prior."""
    world, joint = soft_world(seed, agents, states), 2**agents
    counts = tabular.bootstrap(tabular.draw_transitions(world, samples, generator(seed)), members, generator(seed))
    prior, q = (
        torch.randn((2, members, states, joint), generator=generator(seed + n), dtype=torch.float64) for n in (1, 2)
    )
    kernel = enumerated_kernel(world.policies)
    sizes = {"icql-qs": [1], "joint": [agents]}.get(method, list(range(1, agents + 1)))
    expected = prior.clone()
    for i, e, s, a in indices(2, members, states, joint):
        total, seen = 0.0, 0
        for t, b in indices(states, joint):
            times = int(counts[i, e, s * joint + a, t * joint + b])
            chances = [[float(kernel[i, k, t, b, j]) for j in range(joint)] for k in sizes] if times else []
            columns = [[float(q[i, m, t, j]) for m in range(members)] for j in range(joint)]
            least = [sum(p * min(column) for p, column in zip(row, columns, strict=True)) for row in chances]
            spreads = [math.sqrt(sum((x - sum(c) / members) ** 2 for x in c) / members) for c in columns]
            u = [sum(p * d for p, d in zip(row, spreads, strict=True)) for row in chances]
            u = u if method == "spacql" else [1] * len(chances)
            for value, spread in zip(least, u, strict=True):
                total += times * 0.9 * value / spread / sum(1 / x for x in u)
            seen += times
        if seen:
            expected[i, e, s, a] = float(world.rewards[i, s, a]) + total / seen
    used = dec_mdps.query_kernel(world.policies)[:, sizes]
    found, weights = fitted(world, counts, prior, q, used, method == "spacql")
    close(found, expected)
    close(weights.sum(-1), torch.ones(2, states, joint))


def fit(*args):
    """tabular.fitted_backup, for the mistakes below."""
    return tabular.fitted_backup(*args)


MISTAKES["fitted backup"] = {
    "unseen pairs are 0": lambda world, counts, prior, *rest: fit(world, counts, 0 * prior, *rest),
    "mean over members": lambda world, counts, prior, q, *rest: fit(
        world, counts, prior, q.mean(1, keepdim=True).expand_as(q), *rest
    ),
    "k + 1 agents": lambda world, counts, prior, q, kernel, adaptive: fit(
        world, counts, prior, q, torch.cat([kernel[:, 1:], kernel[:, -1:]], 1), adaptive
    ),
    "equal weights": lambda world, counts, prior, q, kernel, adaptive: fit(world, counts, prior, q, kernel, False),
    "one dataset for all members": lambda world, counts, *rest: fit(world, counts[:, :1].expand_as(counts), *rest),
}


@pytest.mark.parametrize("method", ["icql-qs", "joint", "uniform", "spacql"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_fitted_backup_equals_a_loop_over_transitions(method, seed):
    check_fitted_backup(tabular.fitted_backup, method, seed)


@mistakes("fitted backup")
def test_a_wrong_fitted_backup_is_noticed(wrong):
    rejects(check_fitted_backup, wrong, "spacql")


@pytest.mark.parametrize("size", [1, 2])
def test_with_all_data_the_fitted_values_are_the_exact_ones(size):
    """Counts in proportion to the chances: the fixed point of T^(k) is Q of m_k."""
    world = soft_world(3, gamma=0.5)
    actions = world.mixtures()[:, size - 1]
    expected = world.action_values(world.state_values(actions))
    close(tabular.evaluate_offline(world, 1e9 * expected_shares(world), size), expected)


def test_more_data_bring_the_fitted_values_nearer():
    """Errors at the queries fall by far more than half when data grow a hundredfold, for every size."""
    world = soft_world(4, agents=3, instances=10)
    small, large, largest = (
        tabular.query_errors(world, tabular.draw_transitions(world, samples, generator(0))).mean(0)
        for samples in (200, 20_000, 1_000_000)
    )
    assert (large < small / 2).all() and (largest < large / 2).all() and (largest < 0.05).all()


def matrix_game(rewards):
    """A game of two agents in one state: rewards by joint action, independent uniform behaviour."""
    return dec_mdps.one_state([0.25] * 4, [[0.5, 0.5]] * 2, rewards, 0.5)


@pytest.mark.parametrize("others", ["logged", "policies"])
@pytest.mark.parametrize("method", ["icql-qs", "joint", "uniform", "spacql"])
def test_learning_finds_the_best_actions_of_an_easy_game(method, others):
    """Each agent gains by its own part of the best joint action, whatever the other does; with one member and a lot of
    data the last teams are that joint action, wherever it is."""
    for wanted in joint_actions(2, 2):
        world = matrix_game([sum(a == b for a, b in zip(played, wanted, strict=True)) - 1 for played in indices(2, 2)])
        counts = tabular.draw_transitions(world, 1000, generator(0))
        prior = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
        teams = tabular.learn_offline(world, counts, counts.unsqueeze(1), prior, method, others, sweeps=20, kept=3)
        close(teams[:, 0, :, 0], torch.eye(2)[list(wanted)].expand(3, -1, -1))


def check_learning(learn, others):
    """A few sweeps by loops: q by the fitted backup, rewards less their mean in the data, and agents that compare their
    actions by min_j q, averaged over the other agents' joint actions, in the data or by their policies."""
    world, sweeps, step = soft_world(6, agents=3, states=2, instances=4), 8, 0.3
    world = replace(world, behaviour=a_world(0, 3, 2, 2, 0.9, 4).behaviour, rewards=world.rewards - 0.7)
    counts = tabular.draw_transitions(world, 40, generator(0))
    members = tabular.bootstrap(counts, 2, generator(1))
    prior = torch.randn((4, 2, 2, 8), generator=generator(2), dtype=torch.float64)
    visits, order = counts.sum(-1).view(4, 2, 8), joint_actions(3, 2)
    means = [float((visits[i] * world.rewards[i]).sum()) / 40 for i in range(4)]
    centred = replace(world, rewards=world.rewards - exact(means).view(4, 1, 1))
    policies, q, expected = torch.full_like(world.policies, 0.5), prior, []
    for _ in range(sweeps):
        q, _ = tabular.fitted_backup(centred, members, prior, q, dec_mdps.query_kernel(policies)[:, 1:], True)
        least, gains = q.amin(1), torch.zeros_like(policies)
        for i, n, s, j in indices(4, 3, 2, 8):
            played = order[j]
            if others == "policies":
                chance = math.prod(float(policies[i, m, s, played[m]]) for m in range(3) if m != n)
            else:
                alike = [m for m, row in enumerate(order) if all(row[x] == played[x] for x in range(3) if x != n)]
                chance = float(sum(visits[i, s, m] for m in alike)) / max(float(visits[i, s].sum()), 1)
            gains[i, n, s, played[n]] += chance * float(least[i, s, j])
        expected.append(torch.eye(2, dtype=torch.float64)[gains.argmax(-1)])
        policies = (1 - step) * policies + step * expected[-1]
    for kept in (sweeps, 3):
        teams = learn(world, counts, members, prior, "spacql", others, sweeps=sweeps, kept=kept, step=step)
        close(teams, torch.stack(expected[-kept:]))


MISTAKES["learning"] = {
    "the other kind of others": lambda *args, **options: tabular.learn_offline(
        *args[:-1], "logged" if args[-1] == "policies" else "policies", **options
    ),
    "small steps": lambda *args, **options: tabular.learn_offline(*args, **(options | {"step": 0.01})),
    "another backup": lambda *args, **options: tabular.learn_offline(*args[:4], "joint", args[-1], **options),
    "one dataset for all members": lambda world, counts, members, *args, **options: tabular.learn_offline(
        world, counts, members[:, :1].expand_as(members), *args, **options
    ),
    "agents in reverse": lambda *args, **options: tabular.learn_offline(*args, **options).flip(2),
}


@pytest.mark.parametrize("others", ["logged", "policies"])
def test_learning_equals_a_loop_over_agents_and_actions(others):
    check_learning(tabular.learn_offline, others)


@pytest.mark.parametrize("others", ["logged", "policies"])
@mistakes("learning")
def test_wrong_learning_is_noticed(wrong, others):
    rejects(check_learning, wrong, others)


def test_agents_compare_actions_by_value_and_not_by_how_often_they_were_logged():
    """Equation (6) takes the others' actions from the data, not the agent's own: an action that was logged in one of
    ten cases wins if it pays more, whatever constant is added to all rewards."""
    for constant in (-1.0, 0.0):
        rewards = [0.0 + constant, 0.4 + constant, 0.4 + constant, 1.0 + constant]
        world = dec_mdps.one_state([0.81, 0.09, 0.09, 0.01], [[0.5, 0.5]] * 2, rewards, 0.5)
        counts = tabular.draw_transitions(world, 10_000, generator(0))
        prior = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
        team = tabular.learn_offline(world, counts, counts.unsqueeze(1), prior, "joint", "logged", 20, 1)
        close(team[0, 0, :, 0], [[0.0, 1.0], [0.0, 1.0]])


# ------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    "value, bound, expected, verdict",
    [
        (1.0, 1.0, "holds", "holds"),
        (1 + 1e-12, 1.0, "holds", "holds"),
        (1 + 1e-6, 1.0, "holds", FAILS),
        (1e6 + 1e-6, 1e6, "holds", "holds"),
        (1e6 + 1, 1e6, "holds", FAILS),
        (1e-6, 0.0, "holds", FAILS),
        (1e-10, 0.0, "holds", FAILS),
        (math.nan, 1.0, "holds", "not a number"),
        (1.0, math.nan, "holds", "not a number"),
        (math.inf, 1.0, "holds", "not a number"),
        (math.nan, 1.0, FAILS, "not a number"),
        (math.nan, 1.0, CONDITION, "not a number"),
        (math.nan, 1.0, MEASURED, "not a number"),
        (0.5, 1.0, CONDITION, CONDITION),
        (1.5, 1.0, CONDITION, FAILS),
        (1.5, 1.0, FAILS, FAILS),
        (0.5, 1.0, FAILS, "holds"),
        (1 + 1e-12, 1.0, FAILS, "holds"),
        (0.5, 1.0, MEASURED, MEASURED),
        (1.5, 1.0, MEASURED, MEASURED),
    ],
)
def test_verdicts(value, bound, expected, verdict):
    """Alone, and as one try among many that hold (an expected failure needs a single break too)."""
    assert check("a", [(exact([value]), exact([bound]))], expected).verdict == verdict
    many = check("a", [(exact([0.0, 0.0]), exact(1.0)), (exact([value]), exact(bound))], expected)
    assert (many.verdict, many.expected, many.tried) == (verdict, expected, 3)


def test_a_row_has_slack_tightness_and_the_break():
    row = check("a", [(exact([1.0, 2.0, 4.0]), exact(4.0)), (exact([0.0]), exact([0.0]))], note="why")
    assert (row.tried, row.worst_slack, row.tightness_median, row.tightness_max, row.note) == (4, 0.0, 0.5, 1.0, "why")
    broken = check("a", [(exact([1.0, 5.0]), exact(4.0))], note="why")
    assert broken.worst_slack == -1 and broken.note == "value 5 > bound 4 (try 1). why"
    measured = check("a", [(exact([1.0]), exact(4.0))], MEASURED)
    assert measured.tightness_median is None is measured.tightness_max


def test_save_writes_every_figure_and_a_report_that_loads_again(tmp_path):
    rows, data = [], {}
    for name in ("lemma1", "theorem3", "coverage"):
        options = dict(sizes=(10,)) if name == "coverage" else {}
        found, data[name] = theory_checks.CLAIMS[name](make_sweep(0, 2, 3), **options)
        rows += [replace(row, claim=name) for row in found]
    found, data["tradeoff"] = small_tradeoff()
    rows += [replace(row, claim="tradeoff") for row in found]
    verdicts.save(tmp_path / "new" / "folder", dict(seed=0), rows, data)
    folder = tmp_path / "new" / "folder"
    figures = ["linear_or_exponential", "bounds", "coverage", "tradeoff"]
    names = ["theory.json"] + [f"{name}.{suffix}" for name in figures for suffix in ("png", "pdf")]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    for path in folder.iterdir():
        assert path.read_bytes().startswith({".png": b"\x89PNG", ".pdf": b"%PDF", ".json": b"{"}[path.suffix])
    report = json.loads((folder / "theory.json").read_text())
    assert report["args"] == {"seed": 0}
    assert [verdicts.Row(**row) for row in report["rows"]] == rows
    assert report["data"] == json.loads(json.dumps(data))


def test_the_table_numbers_rows_and_marks_surprises():
    rows = [
        replace(check("first", [(exact([1.0]), exact(2.0))], note="a note"), claim="lemma1"),
        replace(check("second", [(exact([3.0]), exact(2.0))]), claim="lemma2"),
    ]
    lines = verdicts.table(rows).splitlines()
    assert lines[1].split()[:3] == ["1", "lemma1", "holds"] and lines[1].endswith("first")
    assert lines[2].split()[:4] == ["2", "lemma2", "fails", "(!)"] and lines[2].endswith("second")
    assert lines[4:] == ["1. a note", "2. value 3 > bound 2 (try 0)."]


@pytest.mark.parametrize("below", ["", "sub", "sub/sub"])
def test_a_folder_that_cannot_be_made_is_refused(below, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot write to .*file.* is not a writable folder"):
        verdicts.check_folder(tmp_path / "file" / below)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    verdicts.check_folder(tmp_path / "to" / "come")
    assert not (tmp_path / "to").exists()


def test_a_link_to_nowhere_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not a writable folder"):
        verdicts.check_folder(tmp_path / "link")


def test_a_folder_without_write_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="is not a writable folder"):
        verdicts.check_folder(tmp_path / "to" / "come")


# --------------------------------------------------------------------------------------------- command line


def contents(folder):
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_the_command_line_prints_rows_and_writes_files_the_same_each_time(tmp_path, capsys, monkeypatch):
    outputs = []
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / place).mkdir()
        if seed:
            monkeypatch.setattr(verdicts, "FIGURES", {})  # its numbers are enough
        monkeypatch.chdir(tmp_path / place)
        argv = f"--only lemma1,theorem3 --agents 4 --instances 8 --seed {seed} --out tmp"
        assert theory_checks.main(argv.split()) == 0
        outputs.append((capsys.readouterr().out, contents(".")))
    assert outputs[0] == outputs[1] and outputs[0][0] != outputs[2][0]
    said, files = outputs[0]
    assert sorted(files) == sorted(
        f"tmp/{name}"
        for name in (
            "bounds.pdf",
            "bounds.png",
            "linear_or_exponential.pdf",
            "linear_or_exponential.png",
            "theory.json",
        )
    )
    report = json.loads(files["tmp/theory.json"])
    assert report["args"] == dict(out="tmp", only="lemma1,theorem3", agents=4, instances=8, seed=0)
    assert [row["claim"] for row in report["rows"]] == ["lemma1"] * 5 + ["theorem3"] * 5
    for number, (row, line) in enumerate(zip(report["rows"], said.splitlines()[1:11], strict=True), 1):
        assert line.split()[:2] == [str(number), row["claim"]] and line.endswith(row["statement"])
        assert row["verdict"] == row["expected"] and row["verdict"] in line


def test_a_mutated_bound_ends_with_status_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(theory_checks, "value_bound", lambda gamma, distance: gamma / (1 - gamma) ** 2 * distance)
    assert theory_checks.main(f"--only theorem2 --agents 3 --instances 8 --out {tmp_path}".split()) == 1
    assert "(!)" in capsys.readouterr().out
    assert json.loads((tmp_path / "theory.json").read_text())["rows"][0]["verdict"] == FAILS


def refused(argv):
    """The complaint with which theory_checks.py must end: status 2, an empty stdout, one line on stderr, and nothing
    computed."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name in theory_checks.CLAIMS:
            patch.setitem(theory_checks.CLAIMS, name, None)  # a call would end with a TypeError
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
            run_script("theory_checks.py", functools.partial(theory_checks.main, argv))
    assert (stop.value.code, out.getvalue()) == (2, "")
    (line,) = err.getvalue().splitlines()
    assert line.isprintable() and line.startswith("theory_checks.py: error: ")
    return line.removeprefix("theory_checks.py: error: ")


BAD_FLAGS = {
    "--only lema1": "did you mean 'lemma1'?",
    "--only lemma1,theorem4": "unknown claim 'theorem4' (choose from contraction, adaptive, ",
    "--only lemma1,": "unknown claim ''",
    "--agents 1": "--agents must be between 2 and 12, not 1",
    "--agents 99": "--agents must be between 2 and 12, not 99",
    "--instances 0": "--instances must be between 2 and 100,000, not 0",
    "--instances many": "many",
    "--seed -1": "--seed must be between 0 and 2,147,483,648, not -1",
    "--seeds 1": "Unrecognized options: --seeds",
    "--out file": "cannot write to file: file is not a writable folder",
    "--out file/sub": "cannot write to file/sub: ",
    f"--out {'a' * 300}": "File name too long",
}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_smallest_flags_bring_no_surprise(seed):
    """Two agents and two instances: counterexamples are found all the same."""
    sweep = make_sweep(seed, instances=2, agents=2)
    for claim in (theory_checks.lemma2, theory_checks.adaptive):
        assert surprises(claim(sweep)[0]) == []


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags_end_in_one_line_with_nothing_written(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    argv = flags.split() + ([] if "--out" in flags else ["--out", "new"])
    assert BAD_FLAGS[flags] in refused(argv)
    assert contents(".") == {"file": b"mine"}


@pytest.mark.parametrize("flags, status", [("--only theorem2 --instances 8 --out new", 0), ("--only theorm2", 2)])
def test_the_script_ends_with_its_status(flags, status, tmp_path):
    """As a process: the exit status, and where lines go."""
    command = [sys.executable, str(ROOT / "theory_checks.py"), *flags.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == status
    if status:
        assert done.stdout == "" and len(done.stderr.splitlines()) == 1 and contents(tmp_path) == {}
    else:
        assert "theorem2" in done.stdout and list(contents(tmp_path)) == ["new/theory.json"]
