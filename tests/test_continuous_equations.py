"""The equations of `spacql_continuous.py`, each against a slow and obvious reference written out as loops.

Only what differs from `spacql.py` is checked here: a test pins which functions are the same code, and those have their
tests in test_equations.py. As there, a `check_...` helper must accept the project's function and reject every
deliberate mistake listed under the same property (`MISTAKES[...]`).

Array letters as in `spacql_continuous.py`: S seeds, E critics, B batch, K sizes, N agents, A numbers of an action,
O observation numbers, D state numbers, M agents in the penalty, C candidates of each, G groups.
"""

import ast
import inspect
import itertools
import math
from functools import partial
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
import spacql_continuous
from spacql_continuous import CANDIDATE_NOISE

MISTAKES = {}  # property -> {what is wrong: a function that must be rejected}
mistakes = mistakes_in(MISTAKES)
DIM = 2  # numbers of an action


# ------------------------------------------------------------------------------------ the two scripts

SAME = """backup_sizes backup_weights critic_loss critic_values replacement_weights spacql_target uncertainty""".split()


def code(source):
    """The program text of a function without comments, layout and docstring."""
    function = ast.parse(source).body[0]
    if isinstance(function.body[0], ast.Expr) and isinstance(function.body[0].value, ast.Constant):
        function.body = function.body[1:]
    return ast.unparse(function)


def functions(module):
    """{name: source} of the functions that a module defines itself."""
    members = inspect.getmembers(module, inspect.isfunction)
    return {name: inspect.getsource(f) for name, f in members if f.__module__ == module.__name__}


def stacked_functions(module):
    """{name: function} of what a module takes from utils/stacked.py."""
    return dict(inspect.getmembers(module, lambda f: getattr(f, "__module__", "") == "utils.stacked"))


def test_the_scripts_share_these_functions_and_no_others():
    ours, sisters = functions(spacql_continuous), functions(spacql)
    assert [name for name in sorted(ours.keys() & sisters.keys()) if code(ours[name]) == code(sisters[name])] == SAME
    assert stacked_functions(spacql_continuous) == stacked_functions(spacql)
    assert list(stacked_functions(spacql)) == "cache_parts clip_each draw_sizes init_networks per_seed".split()


def test_a_difference_of_code_is_told_from_one_of_text():
    source = inspect.getsource(spacql.uncertainty)
    assert code(source.replace("standard deviation", "spread").replace("    return", "    # text\n    return")) == code(
        source
    )
    assert code(source.replace("correction=0", "correction=1")) != code(source)


def test_the_scripts_have_the_same_flags_in_the_same_order():
    """But for what only one of them has; a default differs only where it goes by task here."""
    own = set("prey candidates action_norm action_l2 output_l2 actor_learning_rate".split())
    ours, sisters = (vars(module.Args()) for module in (spacql_continuous, spacql))
    assert [name for name in ours if name not in own] == [name for name in sisters if name != "entropy_coef"]
    assert own < ours.keys() and not own & sisters.keys()
    by_task = spacql_continuous.PARTICLES.keys() | {"rounds"}
    assert all(ours[name] == sisters[name] or (ours[name] is None and name in by_task) for name in ours.keys() - own)


# ------------------------------------------------------------------------ (1) partial action replacement


def replacement_inputs(seed, num_seeds, batch, sizes, num):
    """Logged actions in [-1, 1], policy actions above 10 (so they never coincide), and what orders the agents."""
    logged = normal(seed, num_seeds, batch, num, DIM).tanh()
    policy = 12 + normal(seed + 1, num_seeds, batch, len(sizes), num, DIM).tanh()
    order = torch.rand((num_seeds, batch, len(sizes), num), generator=generator(seed), dtype=torch.float64)
    return logged, policy, order, torch.tensor(sizes)


def check_every_set_equally_often(replace, num=4, batch=6000):
    """Whole actions are replaced; sets of k agents come up as often as chance says, independently at two sizes."""
    sizes, total = list(range(1, num + 1)), 2 * batch
    numbers = replace(*replacement_inputs(0, 2, batch, sizes, num)) >= 10  # [S, B, K, N, A]
    assert torch.equal(numbers.any(-1), numbers.all(-1)), "whole vectors"
    sets = (numbers.all(-1) * 2 ** torch.arange(num)).sum(-1).flatten(0, 1)  # [S * B, K], a set as a binary number
    for j, k in enumerate(sizes):
        evenly(sets[:, j].unique(return_counts=True)[1], total, math.comb(num, k))
    for j, m in itertools.combinations(range(num), 2):
        cells = math.comb(num, sizes[j]) * math.comb(num, sizes[m])
        evenly((2**num * sets[:, j] + sets[:, m]).unique(return_counts=True)[1], total, cells)


def first_agents(logged, policy, order, sizes):
    """A mistake: always the agents with the lowest numbers."""
    return torch.where((torch.arange(order.shape[-1]) < sizes[:, None])[..., None], policy, logged.unsqueeze(2))


def each_with_chance(logged, policy, order, sizes):
    """A mistake: every agent is replaced with probability k / N, so only the mean number is k."""
    return torch.where((order < sizes[:, None] / order.shape[-1])[..., None], policy, logged.unsqueeze(2))


def single_numbers(logged, policy, order, sizes):
    """A mistake: of the replaced agents only the first number of the action is."""
    replaced = spacql_continuous.partial_replacement(logged, policy, order, sizes)
    return torch.cat([replaced[..., :1], logged[..., 1:].unsqueeze(2).expand_as(replaced[..., 1:])], dim=-1)


def numbers_apart(logged, policy, order, sizes):
    """A mistake: each number of the actions is replaced by a choice of agents of its own."""
    parts = zip(logged.split(1, -1), policy.split(1, -1), (order, order.roll(1, 1)), strict=True)
    return torch.cat([spacql_continuous.partial_replacement(*part, sizes) for part in parts], dim=-1)


def replacing(change):
    """A mistake: `partial_replacement` of changed arguments."""
    return lambda *args: spacql_continuous.partial_replacement(*change(*args))


def own_sizes(change):
    """A mistake: sizes [S, B, K], each transition's own, are changed; sizes [K] are not."""
    return replacing(lambda logged, policy, order, k: (logged, policy, order, change(k) if k.ndim > 1 else k))


MISTAKES["replaces exactly k"] = {
    "another transition's own sizes": own_sizes(lambda k: k.roll(1, 1)),
    "another seed's own sizes": own_sizes(lambda k: k.roll(1, 0)),
    "own sizes in order": own_sizes(lambda k: k.sort(-1).values),
    "k + 1 agents": replacing(lambda logged, policy, order, k: (logged, policy, order, k + 1)),
    "k - 1 agents": replacing(lambda logged, policy, order, k: (logged, policy, order, k - 1)),
    "n - k agents": replacing(lambda logged, policy, order, k: (logged, policy, order, order.shape[-1] - k)),
    "last in order": replacing(lambda logged, policy, order, k: (logged, policy, -order, k)),
    "another size's actions": replacing(lambda logged, policy, order, k: (logged, policy.roll(1, 2), order, k)),
    "another agent's actions": replacing(lambda logged, policy, order, k: (logged, policy.roll(1, 3), order, k)),
    "numbers swapped": replacing(lambda logged, policy, order, k: (logged, policy.flip(-1), order, k)),
    "k on average": each_with_chance,
    "first agents": first_agents,
    "single numbers": single_numbers,
    "numbers apart": numbers_apart,
}
MISTAKES["every set equally often"] = {
    "first agents": first_agents,
    "k on average": each_with_chance,
    "numbers apart": numbers_apart,
    "one order for all k": replacing(
        lambda logged, policy, order, k: (logged, policy, order[:, :, :1].expand_as(order), k)
    ),
    "agent 0 preferred": replacing(
        lambda logged, policy, order, k: (logged, policy, order * torch.tensor([0.9, 1, 1, 1]), k)
    ),
}


@repeatable
@given(st.data(), st.integers(1, 5), SEEDS)
def test_exactly_k_agents_act_by_their_policy(data, num, seed):
    sizes = data.draw(st.lists(st.integers(1, num), min_size=1, max_size=num))
    check_replaces_exactly_k(spacql_continuous.partial_replacement, replacement_inputs, sizes, num, seed)


def test_one_policy_action_serves_all_sizes():
    """As in the diagnosis, where no noise is added: policy [S, B, 1, N, A]."""
    logged, policy, order, sizes = replacement_inputs(0, 2, 4, [1, 2, 3], 3)
    policy = policy[:, :, :1]
    expected = spacql_continuous.partial_replacement(logged, policy.expand(-1, -1, 3, -1, -1), order, sizes)
    assert torch.equal(spacql_continuous.partial_replacement(logged, policy, order, sizes), expected)


def test_every_set_of_agents_is_equally_likely_and_independent_across_k():
    check_every_set_equally_often(spacql_continuous.partial_replacement)


@mistakes("replaces exactly k")
def test_a_wrong_replacement_is_noticed(wrong):
    rejects(check_replaces_exactly_k, wrong, replacement_inputs, [1, 2, 3, 4], 4, 0)


@mistakes("every set equally often")
def test_a_biased_choice_of_agents_is_noticed(wrong):
    rejects(check_every_set_equally_often, wrong)


# -------------------------------------------------------------------- (5) the penalty and its candidates


def check_penalty(penalty, seed, shape):
    """The mean over agents of the log of the mean over candidates of exp Q / density, by loops; a constant added to
    all Q cancels; its gradient shares one unit out over an agent's candidates, and takes one from the data."""
    num_seeds, members, batch, some, count = shape
    q, log_density = (3 * normal(seed, *shape)).requires_grad_(), 2 * normal(seed + 1, num_seeds, batch, some, count)
    q_data = normal(seed + 2, *shape[:3]).requires_grad_()
    actual, expected, slopes = penalty(q, log_density, q_data), torch.zeros_like(q_data), torch.zeros_like(q)
    with torch.no_grad():
        for s, e, b in indices(num_seeds, members, batch):
            total = 0.0
            for m in range(some):
                ratios = [math.exp(q[s, e, b, m, c]) / math.exp(log_density[s, b, m, c]) for c in range(count)]
                total += math.log(sum(ratios) / count) / some
                slopes[s, e, b, m] = torch.tensor(ratios, dtype=q.dtype) / sum(ratios) / some
            expected[s, e, b] = total - float(q_data[s, e, b])
    close(actual, expected)
    close(penalty(q + 5.0, log_density, q_data + 5.0), expected)
    close(penalty(q, log_density + 5.0, q_data), expected - 5.0)
    down, up = torch.autograd.grad(actual.sum(), (q, q_data))
    close(down, slopes)
    close(up, -torch.ones_like(q_data))


def proposals_around(propose, means, count, dim, num=2, batch=1):
    """Candidates and densities of all agents in order 1, 0 for policies with these means (at s, at s') everywhere."""
    policies = means and [torch.full((2, batch, num, dim), mean) for mean in means]
    agents = torch.tensor([1, 0]).expand(2, batch, -1)
    return propose(agents, [generator(0), generator(1)], count, dim, policies)


def check_integral_over_uniforms(propose, penalty, dim, count=20_000):
    """Of a Q that is linear in the action: the penalty tends to the log of the known integral of exp Q."""
    slope = torch.tensor([0.7, -1.5, 2.0])[:dim]
    actions, log_density = proposals_around(propose, None, count, dim)
    exact = sum(math.log(2 * math.sinh(w) / w) for w in slope.tolist())
    compare_with_integral(penalty, actions @ slope, log_density, exact)


def check_integral_over_all(propose, penalty, dim, count=20_000):
    """Of a Q that is a narrow hill near two policies: each of the three lists by itself estimates the integral of
    exp Q without a bias, and so do they all."""
    width, means = 0.12, (0.05, -0.1)
    actions, log_density = proposals_around(propose, means, count, dim)
    q = -actions.square().sum(-1) / (2 * width**2)
    exact = dim * math.log(width * math.sqrt(2 * math.pi))  # what lies outside of [-1, 1] is far below the tolerance
    compare_with_integral(penalty, q, log_density, exact)
    assert actions.shape[3] == log_density.shape[3] == 3 * count
    for part in (slice(0, count), slice(count, 2 * count), slice(2 * count, None)):
        compare_with_integral(penalty, q[..., part], log_density[..., part], exact)


def compare_with_integral(penalty, q, log_density, exact):
    """Q [S, B, M, C] of one critic whose data are worth 7: each agent's and seed's penalty is near exact - 7."""
    ratios = (q - log_density).double().exp()
    for m in range(q.shape[2]):
        value = penalty(q[:, None, :, m : m + 1], log_density[:, :, m : m + 1], torch.full((2, 1, 1), 7.0)).squeeze(1)
        error = ratios[:, :, m].std(-1) / ratios[:, :, m].mean(-1) / math.sqrt(q.shape[-1])  # of a log of a mean
        assert (value + 7 - exact).abs().max() < SIGMAS * float(error.max()) + 1e-4
        assert error.max() < 0.1


def check_candidates(propose, dim, near, count=3000):
    """`count` candidates from each distribution, uniform ones first, each with torch's density where it was drawn."""
    means = torch.linspace(-0.9, 0.9, 2 * 2 * 3 * dim).view(2, 2, 1, 3, dim)  # [which, S, B, N, A], all different
    agents = torch.tensor([[[2, 0]], [[0, 1]]])  # [S, B, M]
    policies = list(means) if near else None
    actions, log_density = propose(agents, [generator(4), generator(5)], count, dim, policies)
    assert actions.shape == (2, 1, 2, count * (3 if near else 1), dim) and log_density.shape == actions.shape[:-1]
    assert actions.abs().max() <= 1
    uniform = torch.distributions.Uniform(-1, 1)
    for s, m in indices(2, 2):
        blocks, densities = actions[s, 0, m].split(count), log_density[s, 0, m].split(count)
        close(densities[0], uniform.log_prob(blocks[0]).sum(-1), 1e-5)
        assert blocks[0].mean(0).abs().max() < SIGMAS * math.sqrt(1 / 3 / count)
        assert (blocks[0].square().mean(0) - 1 / 3).abs().max() < SIGMAS * math.sqrt(4 / 45 / count)
        for which, (block, density) in enumerate(zip(blocks[1:], densities[1:], strict=True)):
            mean = means[which, s, 0, agents[s, 0, m]]
            gauss = torch.distributions.Normal(mean, CANDIDATE_NOISE)
            kept = (block.abs() < 1).all(-1)
            close(density[kept], gauss.log_prob(block[kept]).sum(-1), 1e-3)
            assert (density[~kept] < gauss.log_prob(block[~kept]).sum(-1)).all(), (
                "what is clipped was drawn further out"
            )
            assert (block.median(0).values - mean).abs().max() < SIGMAS * 1.26 * CANDIDATE_NOISE / math.sqrt(count)
            below = (block < mean - CANDIDATE_NOISE).float().mean(0)[mean > CANDIDATE_NOISE - 1]
            assert ((below - 0.1587).abs() < SIGMAS * math.sqrt(0.1587 * 0.8413 / count)).all()
    inside = actions[(actions.abs() < 1).all(-1)]
    assert len(inside.unique(dim=0)) > 0.99 * len(inside), "all drawn apart, but for what single precision rounds"


def proposed(change):
    """A mistake: what `propose` returns, changed: change(actions, log_density, count, dim)."""
    return lambda agents, g, count, dim, policies: change(
        *spacql_continuous.propose(agents, g, count, dim, policies), count, dim
    )


def redensity(change):
    """A mistake: the densities of the Gaussian candidates are changed."""
    return proposed(
        lambda actions, density, count, dim: (
            actions,
            torch.cat([density[..., :count], change(density[..., count:], dim)], dim=-1),
        )
    )


def uniform_density(change):
    """A mistake: the densities of the uniform candidates are changed."""
    return proposed(
        lambda actions, density, count, dim: (
            actions,
            torch.cat([change(density[..., :count], dim), density[..., count:]], dim=-1),
        )
    )


MISTAKES["penalty"] = {
    "density ignored": lambda q, p, data: spacql_continuous.cql_penalty(q, 0 * p, data),
    "density multiplied": lambda q, p, data: spacql_continuous.cql_penalty(q, -p, data),
    "density of another candidate": lambda q, p, data: spacql_continuous.cql_penalty(q, p.roll(1, -1), data),
    "density of another agent": lambda q, p, data: spacql_continuous.cql_penalty(q, p.roll(1, 2), data),
    "sum over candidates": lambda q, p, data: (q - p.unsqueeze(1)).logsumexp(-1).mean(-1) - data,
    "sum over agents": lambda q, p, data: spacql_continuous.cql_penalty(q, p, 0 * data) * q.shape[3] - data,
    "agents and candidates in one": lambda q, p, data: (
        (q - p.unsqueeze(1)).flatten(-2).logsumexp(-1) - math.log(q.shape[3] * q.shape[4]) - data
    ),
    "wrong axis": lambda q, p, data: spacql_continuous.cql_penalty(q.mT, p.mT, data),
    "largest instead": lambda q, p, data: (q - p.unsqueeze(1)).amax(-1).mean(-1) - data,
    "average instead": lambda q, p, data: (q - p.unsqueeze(1)).mean((-2, -1)) - data,
    "data pushed down": lambda q, p, data: spacql_continuous.cql_penalty(q, p, -data),
    "data held fixed": lambda q, p, data: spacql_continuous.cql_penalty(q, p, data.detach()) + 0 * data,
}
MISTAKES["densities"] = {
    "out of step": proposed(lambda actions, density, count, dim: (actions, density.roll(count, -1))),
    "lists in another order": proposed(lambda actions, density, count, dim: (actions.roll(count, 3), density)),
    "of the next candidate": redensity(lambda density, dim: density.roll(1, -1)),
    "deviation forgotten": redensity(lambda density, dim: density + dim * math.log(CANDIDATE_NOISE)),
    "root of 2 pi forgotten": redensity(lambda density, dim: density + dim * math.log(2 * math.pi) / 2),
    "constants of one number": redensity(
        lambda density, dim: density + (dim - 1) * math.log(CANDIDATE_NOISE * math.sqrt(2 * math.pi))
    ),
    "uniform of one number": uniform_density(lambda density, dim: density / dim),
    "uniform on [0, 1]": uniform_density(lambda density, dim: 0 * density),
    "uniform twice as dense": uniform_density(lambda density, dim: density + math.log(2)),
}
MISTAKES["candidates"] = {
    **{name: wrong for name, wrong in MISTAKES["densities"].items() if name != "lists in another order"},
    "lists in another order": proposed(
        lambda actions, density, count, dim: (actions.roll(count, 3), density.roll(count, -1))
    ),
    "policies swapped": lambda agents, g, count, dim, policies: spacql_continuous.propose(
        agents, g, count, dim, policies[::-1]
    ),
    "first agents": lambda agents, g, count, dim, policies: spacql_continuous.propose(
        agents.sort(-1).values, g, count, dim, policies
    ),
    "other agents": lambda agents, g, count, dim, policies: spacql_continuous.propose(
        agents.roll(1, -1), g, count, dim, policies
    ),
    "one draw for all seeds": lambda agents, g, count, dim, policies: spacql_continuous.propose(
        agents, [generator(4), generator(4)], count, dim, policies
    ),
    "uniform on half": proposed(
        lambda actions, density, count, dim: (
            torch.cat([actions[..., :count, :].abs(), actions[..., count:, :]], 3),
            density,
        )
    ),
    "not clipped": proposed(lambda actions, density, count, dim: (1.5 * actions, density)),
}


@repeatable
@given(SEEDS, st.tuples(SMALL, SMALL, SMALL, SMALL, SMALL))
def test_penalty_is_the_mean_over_agents_of_a_log_of_a_mean(seed, shape):
    check_penalty(spacql_continuous.cql_penalty, seed, shape)


@repeatable
@given(SEEDS, st.tuples(SMALL, SMALL, SMALL, st.just(1), st.integers(1, 15)))
def test_penalty_takes_the_team_as_one_agent(seed, shape):
    check_penalty(spacql_continuous.cql_penalty, seed, shape)


def test_penalty_of_equal_densities_is_that_of_the_sister_but_for_a_constant():
    """Counting the candidates instead of weighing them is what spacql.py does, where all actions are candidates."""
    q, q_data = normal(0, 2, 3, 4, 2, 5), normal(1, 2, 3, 4)
    actual = spacql_continuous.cql_penalty(q, torch.zeros(2, 4, 2, 5, dtype=torch.float64), q_data)
    close(actual, spacql.cql_penalty(q, q_data) - math.log(5))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_penalty_estimates_the_integral_over_all_actions(dim):
    check_integral_over_uniforms(spacql_continuous.propose, spacql_continuous.cql_penalty, dim)
    check_integral_over_all(spacql_continuous.propose, spacql_continuous.cql_penalty, dim)


def test_penalty_of_macql_estimates_the_integral_over_joint_actions():
    """Q is a sum of linear terms in each agent's action: the integral is a product."""
    slopes, count = torch.tensor([[0.7, -1.5], [2.0, 0.4], [-0.3, -1.0]]), 40_000
    agents = torch.arange(3).expand(2, 1, 3)
    proposals = spacql_continuous.propose(agents, [generator(0), generator(1)], count, DIM, None)
    joint, log_density = spacql_continuous.candidates("macql", torch.zeros(2, 1, 3, DIM), agents, *proposals)
    exact = sum(math.log(2 * math.sinh(w) / w) for w in slopes.flatten().tolist())
    compare_with_integral(spacql_continuous.cql_penalty, joint @ slopes.flatten(), log_density, exact)


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_candidates_and_densities_are_in_one_order(dim, near):
    check_candidates(spacql_continuous.propose, dim, near)


def test_a_seed_draws_the_same_candidates_alone_and_beside_others():
    policies = [normal(i, 3, 4, 3, DIM).tanh() for i in (0, 1)]
    agents = torch.arange(3).expand(3, 4, 3)
    together = spacql_continuous.propose(agents, [generator(s) for s in (4, 2, 8)], 5, DIM, policies)
    alone = spacql_continuous.propose(agents[1:2], [generator(2)], 5, DIM, [p[1:2] for p in policies])
    assert all(torch.equal(a[1], b[0]) and not torch.equal(a[0], a[1]) for a, b in zip(together, alone, strict=True))


@mistakes("penalty")
def test_a_wrong_penalty_is_noticed(wrong):
    rejects(check_penalty, wrong, 0, (2, 2, 2, 3, 3))


@mistakes("densities")
def test_a_wrong_density_biases_the_integral(wrong):
    rejects(check_integral_over_all, wrong, spacql_continuous.cql_penalty, DIM)


@mistakes("candidates")
def test_wrong_candidates_are_noticed(wrong):
    rejects(check_candidates, wrong, DIM, True)


# ----------------------------------------------------------------------------------------- joint actions


def joint_inputs(seed, num, some, count):
    """Logged actions [S, B, N, A], agents [S, B, M] in random order, their candidates and densities."""
    actions = normal(seed, 2, 3, num, DIM)
    agents = torch.rand((2, 3, num), generator=generator(seed)).argsort(-1)[..., :some]
    return actions, agents, normal(seed + 1, 2, 3, some, count, DIM), normal(seed + 2, 2, 3, some, count)


def check_counterfactuals(change, seed, num, some, count):
    """Row (m, c) is the joint action with the action of the m-th chosen agent replaced by its candidate c."""
    actions, agents, to, _ = joint_inputs(seed, num, some, count)
    rows = change(actions, agents, to)
    assert rows.shape == (2, 3, some, count, num * DIM)
    for s, b, m, c in indices(2, 3, some, count):
        played = actions[s, b].tolist()
        played[int(agents[s, b, m])] = to[s, b, m, c].tolist()
        assert rows[s, b, m, c].tolist() == [x for action in played for x in action]


def check_joined(join, seed, num, count):
    """macql: row c joins the agents' candidates c; drawn apart, their densities multiply."""
    actions, _, to, log_density = joint_inputs(seed, num, num, count)
    everyone = torch.arange(num).expand(2, 3, num)
    rows, joined = join("macql", actions, everyone, to, log_density)
    assert rows.shape == (2, 3, 1, count, num * DIM) and joined.shape == (2, 3, 1, count)
    for s, b, c in indices(2, 3, count):
        assert rows[s, b, 0, c].tolist() == [float(x) for i in range(num) for x in to[s, b, i, c]]
        assert float(joined[s, b, 0, c]) == pytest.approx(sum(float(log_density[s, b, i, c]) for i in range(num)))


def changing(change):
    """A mistake: `counterfactuals` of changed arguments."""
    return lambda *args: spacql_continuous.counterfactuals(*change(*args))


def joining(change):
    """A mistake: what `candidates` returns, changed."""
    return lambda *args: change(*spacql_continuous.candidates(*args))


MISTAKES["counterfactuals"] = {
    "others shifted": changing(lambda actions, agents, to: (actions.roll(1, 2), agents, to)),
    "wrong agent": changing(lambda actions, agents, to: (actions, (agents + 1) % actions.shape[2], to)),
    "first agents": changing(lambda actions, agents, to: (actions, agents.sort(-1).values, to)),
    "another row's agents": changing(lambda actions, agents, to: (actions, agents.roll(1, 1), to)),
    "another agent's candidates": changing(lambda actions, agents, to: (actions, agents, to.roll(1, 2))),
    "another candidate": changing(lambda actions, agents, to: (actions, agents, to.roll(1, 3))),
    "others idle": changing(lambda actions, agents, to: (0 * actions, agents, to)),
    "all change": lambda actions, agents, to: to.repeat(1, 1, 1, 1, actions.shape[2]),
    "nothing changed": lambda actions, agents, to: actions.flatten(2)[:, :, None, None].expand(
        -1, -1, *to.shape[2:4], -1
    ),
}
MISTAKES["joined"] = {
    "agents in another order": joining(lambda rows, density: (rows.roll(DIM, -1), density)),
    "agents out of step": lambda name, actions, agents, to, density: spacql_continuous.candidates(
        name, actions, agents, torch.cat([to[:, :, :1].roll(1, 3), to[:, :, 1:]], dim=2), density
    ),
    "one agent's density": lambda name, actions, agents, to, density: (
        spacql_continuous.candidates(name, actions, agents, to, density)[0],
        density[:, :, :1],
    ),
    "mean density": joining(lambda rows, density: (rows, density / 3)),
    "numbers before agents": joining(lambda rows, density: (rows.unflatten(-1, (-1, DIM)).mT.flatten(-2), density)),
}


@repeatable
@given(st.data(), SEEDS, st.integers(1, 4), SMALL)
def test_counterfactuals_change_one_agent_at_a_time(data, seed, num, count):
    some = data.draw(st.integers(1, num))
    check_counterfactuals(spacql_continuous.counterfactuals, seed, num, some, count)
    actions, agents, to, log_density = joint_inputs(seed, num, some, count)
    rows, densities = spacql_continuous.candidates("cfcql", actions, agents, to, log_density)
    assert torch.equal(rows, spacql_continuous.counterfactuals(actions, agents, to)) and densities is log_density


@repeatable
@given(SEEDS, st.integers(1, 4), SMALL)
def test_macql_joins_the_agents_candidates(seed, num, count):
    check_joined(spacql_continuous.candidates, seed, num, count)


@pytest.mark.parametrize("near", [False, True])
def test_no_penalty_has_no_candidates_and_draws_nothing(near):
    g = generator(0)
    before, actions = g.get_state(), normal(0, 1, 4, 3, DIM)
    nobody = torch.arange(3).expand(1, 4, 3)[..., :0]
    proposals = spacql_continuous.propose(nobody, [g], 5, DIM, [actions, actions] if near else None)
    rows, log_density = spacql_continuous.candidates("none", actions, nobody, *proposals)
    assert rows.shape == (1, 4, 0, 15 if near else 5, 3 * DIM) and log_density.shape == rows.shape[:-1]
    assert spacql_continuous.batch_norm(rows).shape == (1, 4, 0, 3 * DIM)
    assert torch.equal(g.get_state(), before)


@mistakes("counterfactuals")
def test_wrong_counterfactuals_are_noticed(wrong):
    rejects(check_counterfactuals, wrong, 0, 3, 2, 3)


@mistakes("joined")
def test_wrongly_joined_candidates_are_noticed(wrong):
    rejects(check_joined, wrong, 0, 3, 4)


# ------------------------------------------------------------------------------------ (6) actor's loss


def check_actor_loss(loss, kind, seed, shape, clone_weight=0.6, action_l2=0.3, output_l2=0.07):
    """Every agent's loss by loops, and its slopes in Q and in the outputs, whose tanh is the action."""
    num_seeds, batch, num, dim = shape
    q, outputs = normal(seed, num_seeds, batch, num).requires_grad_(), normal(seed + 1, *shape).requires_grad_()
    logged = normal(seed + 2, *shape).tanh()
    expected = torch.zeros(num_seeds, num, dtype=torch.float64)
    slopes, steps = torch.zeros_like(q), torch.zeros_like(outputs)  # of the loss in q, and in the outputs
    with torch.no_grad():
        for s, i in indices(num_seeds, num):
            size = sum(abs(float(q[s, b, i])) for b in range(batch)) / batch
            pull = dict(spacql=1.0, bc=0.0, td3bc=2.5 / size)[kind]  # weight of Q; td3bc's is held fixed
            for b in range(batch):
                expected[s, i] -= pull * q[s, b, i] / batch
                slopes[s, b, i] = -pull / batch
                for a in range(dim):
                    output = float(outputs[s, b, i, a])
                    action = math.tanh(output)
                    clone = clone_weight if kind == "spacql" else 1.0
                    value = clone * (action - float(logged[s, b, i, a])) ** 2
                    slope = 2 * clone * (action - float(logged[s, b, i, a])) * (1 - action**2)
                    if kind == "spacql":
                        value += action_l2 * action**2 + output_l2 * output**2
                        slope += 2 * action_l2 * action * (1 - action**2) + 2 * output_l2 * output
                    expected[s, i] += value / (batch * dim)
                    steps[s, b, i, a] = slope / (batch * dim)
    actual = loss(kind, outputs, q, logged, clone_weight, action_l2, output_l2)
    close(actual, expected)
    in_q, in_outputs = torch.autograd.grad(actual.sum(), (q, outputs), allow_unused=True)
    close(torch.zeros_like(q) if in_q is None else in_q, slopes)
    close(torch.zeros_like(outputs) if in_outputs is None else in_outputs, steps)


def losing(change):
    """A mistake: `actor_loss` of changed arguments."""
    return lambda *args: spacql_continuous.actor_loss(*change(*args))


def td3bc_scaled_by(scale):
    """A mistake: TD3+BC with another scale of Q."""
    return lambda kind, outputs, q, logged, *weights: (
        (outputs.tanh() - logged).square().mean((1, 3)) - 2.5 * (q / scale(q)).mean(1)
    )


MISTAKES["actor loss"] = {  # (kind, wrong function)
    "sign": ("spacql", losing(lambda kind, x, q, *rest: (kind, x, -q, *rest))),
    "no L2 on actions": (
        "spacql",
        losing(lambda kind, x, q, logged, clone, l2, out: (kind, x, q, logged, clone, 0, out)),
    ),
    "no L2 on outputs": (
        "spacql",
        losing(lambda kind, x, q, logged, clone, l2, out: (kind, x, q, logged, clone, l2, 0)),
    ),
    "weights of L2 swapped": (
        "spacql",
        losing(lambda kind, x, q, logged, clone, l2, out: (kind, x, q, logged, clone, out, l2)),
    ),
    "no tanh": ("spacql", losing(lambda kind, x, q, logged, clone, l2, out: (kind, x, q, logged, clone, 0, out + l2))),
    "Q scaled": ("spacql", losing(lambda kind, x, q, *rest: (kind, x, 2 * q, *rest))),
    "another agent's Q": ("spacql", losing(lambda kind, x, q, logged, *l2: (kind, x, q.roll(1, 2), logged, *l2))),
    "another agent's outputs": ("spacql", losing(lambda kind, x, q, logged, *l2: (kind, x.roll(1, 2), q, logged, *l2))),
    "no cloning": ("spacql", losing(lambda kind, x, q, logged, _, *l2: (kind, x, q, logged, 0, *l2))),
    "sum over the batch": ("spacql", lambda *args: args[1].shape[1] * spacql_continuous.actor_loss(*args)),
    "mean over agents": ("spacql", lambda *args: spacql_continuous.actor_loss(*args).mean(1, True).expand(-1, 3)),
    "not the cloning": ("bc", losing(lambda kind, *args: ("spacql", *args))),
    "clones another row": ("bc", losing(lambda kind, x, q, logged, *l2: (kind, x, q, logged.roll(1, 1), *l2))),
    "clones another agent": ("bc", losing(lambda kind, x, q, logged, *l2: (kind, x, q, logged.roll(1, 2), *l2))),
    "only clones": ("td3bc", losing(lambda kind, *args: ("bc", *args))),
    "scale of the team": ("td3bc", td3bc_scaled_by(lambda q: q.detach().abs().mean((1, 2), keepdim=True))),
    "scale of all seeds": ("td3bc", td3bc_scaled_by(lambda q: q.detach().abs().mean((0, 1), keepdim=True))),
    "scale has a gradient": ("td3bc", td3bc_scaled_by(lambda q: q.abs().mean(1, keepdim=True))),
    "scale of the mean": ("td3bc", td3bc_scaled_by(lambda q: q.detach().mean(1, keepdim=True).abs())),
}


@repeatable
@given(st.sampled_from(spacql_continuous.CHOICES["actor_loss"]), SEEDS, st.tuples(SMALL, SMALL, SMALL, SMALL))
def test_actor_loss_and_its_gradient(kind, seed, shape):
    check_actor_loss(spacql_continuous.actor_loss, kind, seed, shape)


@mistakes("actor loss")
def test_a_wrong_actor_loss_is_noticed(wrong):
    kind, function = wrong
    check_actor_loss(spacql_continuous.actor_loss, kind, 0, (2, 4, 3, 2))
    rejects(check_actor_loss, function, kind, 0, (2, 4, 3, 2))


# -------------------------------------------------------------------------------------------- networks


def check_critics(values, seed, num_seeds, members, batch, rows):
    """Q and its gradient in weights and actions, of every member by itself on concat(state, joint action)."""
    dim, width = 5, 2 * DIM  # the state need not be the observations
    critic = double_networks(seed, num_seeds, members, (dim + width, 7, 6, 1))
    state, joint = normal(seed, num_seeds, batch, dim), normal(seed + 1, num_seeds, batch, rows, width).requires_grad_()
    slopes, alone = normal(seed + 2, num_seeds, members, batch, rows), joint.detach().clone().requires_grad_()
    q = values(critic, state, joint)
    assert q.shape == (num_seeds, members, batch, rows)
    (q * slopes).sum().backward()
    for s, e in indices(num_seeds, members):
        network = separate_network(critic, s, e)
        for b, r in indices(batch, rows):
            out = network(torch.cat([state[s, b], alone[s, b, r]]))
            close(q[s, e, b, r], out[0])
            (out[0] * slopes[s, e, b, r]).backward()
        compare_gradients(critic, s, e, network)
    close(joint.grad, alone.grad)


def check_actors(act, seed, num_seeds, batch, num):
    """Outputs and their gradient, of every agent by itself on its own observation."""
    actor = double_networks(seed, num_seeds, num, (4, 7, 6, DIM))
    obs, slopes = 2 * normal(seed, num_seeds, batch, num, 4), normal(seed + 1, num_seeds, batch, num, DIM)
    outputs = act(actor, obs)
    assert outputs.shape == slopes.shape
    (outputs * slopes).sum().backward()
    for s, i in indices(num_seeds, num):
        network = separate_network(actor, s, i)
        for b in range(batch):
            out = network(obs[s, b, i])
            close(outputs[s, b, i], out)
            (out * slopes[s, b, i]).sum().backward()
        compare_gradients(actor, s, i, network)


def check_batch_norm(norm, kind, seed, num_seeds, batch, groups, count):
    """Every seed's every group as torch's batch-norm in training standardises it alone, or only minus its mean, or as
    it is; constants become 0 but for the last kind."""
    width = 3 * DIM
    joint = normal(seed, num_seeds, batch, groups, count, width) * torch.logspace(-3, 1, width) + 0.5
    joint = joint * torch.arange(1, groups + 1).view(-1, 1, 1) + torch.arange(num_seeds).view(-1, 1, 1, 1, 1)
    joint[..., 0] = 0.25
    rows = norm(joint, kind)
    assert rows.shape == (num_seeds, batch, groups * count, width)
    slow = {
        "call": nn.BatchNorm1d(width, affine=False).double().train(),
        "centre": lambda alone: alone - sum(alone) / len(alone),
        "none": lambda alone: alone,
    }
    for s, g in indices(num_seeds, groups):
        alone = slow[kind](joint[s, :, g].flatten(0, 1)).unflatten(0, (batch, count))
        close(rows[s, :, g * count : (g + 1) * count], alone)
    assert kind == "none" or (rows[..., 0].abs() < 1e-9).all()


def normalise_over(*axes, correction=0, eps=1e-5):
    """A mistake: mean and variance over these axes of [S, B, G, C, N * A]."""

    def norm(joint, kind):
        var, mean = torch.var_mean(joint, dim=axes, keepdim=True, correction=correction)
        return ((joint - mean) / ((var + eps).sqrt() if kind == "call" else 1)).flatten(2, 3)

    return norm


MISTAKES["critics"] = {
    "actions before state": lambda critic, state, joint: spacql_continuous.critic_values(
        [critic[0].roll(2 * DIM, 2), *critic[1:]], state, joint
    ),
    "another row": lambda critic, state, joint: spacql_continuous.critic_values(critic, state, joint.roll(1, 2)),
    "another state": lambda critic, state, joint: spacql_continuous.critic_values(critic, state.roll(1, 1), joint),
    "another member": lambda critic, state, joint: spacql_continuous.critic_values(critic, state, joint).roll(1, 1),
}
MISTAKES["actors"] = {
    "another agent": lambda actor, obs: spacql_continuous.actor_outputs([p.roll(1, 1) for p in actor], obs),
    "another observation": lambda actor, obs: spacql_continuous.actor_outputs(actor, obs.roll(1, 2)),
    "another row": lambda actor, obs: spacql_continuous.actor_outputs(actor, obs.roll(1, 1)),
    "shared": lambda actor, obs: spacql_continuous.actor_outputs([p[:, :1].expand_as(p) for p in actor], obs),
    "tanh taken": lambda actor, obs: spacql_continuous.actor_outputs(actor, obs).tanh(),
    "held": lambda actor, obs: spacql_continuous.actor_outputs(actor, obs).detach() + 0 * sum(p.sum() for p in actor),
}
MISTAKES["batch-norm"] = {
    "unbiased variance": normalise_over(1, 3, correction=1),
    "all groups together": normalise_over(1, 2, 3),
    "all seeds together": normalise_over(0, 1, 3),
    "each candidate apart": normalise_over(1),
    "each state apart": normalise_over(3),
    "all numbers alike": normalise_over(1, 3, 4),
    "larger eps": normalise_over(1, 3, eps=1e-3),
    "not at all": lambda joint, kind: joint.flatten(2, 3),
    "not scaled": lambda joint, kind: spacql_continuous.batch_norm(joint, "centre"),
    "candidates before groups": lambda joint, kind: (
        spacql_continuous.batch_norm(joint, kind).unflatten(2, joint.shape[2:4]).transpose(2, 3).flatten(2, 3)
    ),
}


@settings(repeatable, max_examples=15)
@given(SEEDS, SMALL, SMALL, SMALL, SMALL, PARTS)
def test_stacked_critics_are_separate_networks(seed, num_seeds, members, batch, rows, part):
    with in_parts_of(part):
        check_critics(spacql_continuous.critic_values, seed, num_seeds, members, batch, rows)


@settings(repeatable, max_examples=10)
@given(SEEDS, SMALL, SMALL, SMALL)
def test_stacked_actors_are_separate_networks(seed, num_seeds, batch, num):
    check_actors(spacql_continuous.actor_outputs, seed, num_seeds, batch, num)


@repeatable
@given(st.sampled_from(spacql_continuous.CHOICES["action_norm"]), SEEDS, SMALL, st.integers(2, 5), SMALL, SMALL)
def test_actions_are_standardised_as_batch_norm_does_in_training(kind, seed, num_seeds, batch, groups, count):
    check_batch_norm(spacql_continuous.batch_norm, kind, seed, num_seeds, batch, groups, count)


@mistakes("critics")
def test_wrong_critics_are_noticed(wrong):
    rejects(check_critics, wrong, 0, 2, 3, 2, 3)


@mistakes("actors")
def test_wrong_actors_are_noticed(wrong):
    rejects(check_actors, wrong, 0, 2, 3, 3)


@mistakes("batch-norm")
def test_wrong_standardisation_of_actions_is_noticed(wrong):
    rejects(check_batch_norm, wrong, "call", 0, 2, 4, 3, 2)


# --------------------------------------------------------------------------------- the actors' gradient


CLONING, L2 = 0.2, (0.3, 0.07)  # weights of cloning, and of squared actions and outputs


def ascend(actor, critic, state, obs, actions, kind, norm, change=lambda alternatives: alternatives):
    """The actors' step of the script up to its gradient: what follows (6) in `train`, by the project's functions."""
    everyone = torch.arange(actions.shape[2]).expand(actions.shape[:3])
    outputs = spacql_continuous.actor_outputs(actor, obs)
    alternatives = change(spacql_continuous.counterfactuals(actions, everyone, outputs.tanh().unsqueeze(3)))
    norms = {k: partial(spacql_continuous.batch_norm, kind=k) for k in spacql_continuous.CHOICES["action_norm"]}
    alternatives = norms[norm](alternatives)
    q = spacql_continuous.critic_values([p.detach() for p in critic], state, alternatives).mean(1)
    spacql_continuous.actor_loss(kind, outputs, q, actions, CLONING, *L2).sum().backward()


def check_actors_gradient(step, kind, norm, seed=0, num_seeds=2, batch=5, num=3, members=2):
    """Agent i's gradient is the one of its own network alone, which acts among the logged actions of the others, in the
    mean of separate critics behind a batch-norm; the critics get none."""
    actor = double_networks(seed, num_seeds, num, (4, 7, 6, DIM))
    critic = double_networks(seed + 9, num_seeds, members, (5 + num * DIM, 7, 6, 1))
    state, obs = normal(seed, num_seeds, batch, 5), normal(seed + 1, num_seeds, batch, num, 4)
    actions = normal(seed + 2, num_seeds, batch, num, DIM).tanh()
    step(actor, critic, state, obs, actions, kind, norm)
    assert all(p.grad is None for p in critic)
    for s, i in indices(num_seeds, num):
        network = separate_network(actor, s, i)
        outputs = network(obs[s, :, i])
        own = outputs.tanh()
        played = torch.cat([own if j == i else actions[s, :, j] for j in range(num)], dim=1)
        norms = dict(call=nn.BatchNorm1d(num * DIM, affine=False).double(), none=nn.Identity())
        played = played - played.mean(0) if norm == "centre" else norms[norm](played)
        q = torch.stack([separate_network(critic, s, e)(torch.cat([state[s], played], 1)) for e in range(members)])
        size = float(q.detach().mean(0).abs().mean())
        clone = (own - actions[s, :, i]).square().mean()
        small = L2[0] * own.square().mean() + L2[1] * outputs.square().mean()
        losses = dict(spacql=small - q.mean() + CLONING * clone, bc=clone, td3bc=clone - 2.5 / size * q.mean())
        losses[kind].backward()
        compare_gradients(actor, s, i, network)


def everyone_acts(alternatives):
    """A mistake: in the row of agent i all agents act by their policies, not i alone."""
    num = alternatives.shape[2]
    own = [alternatives[:, :, i, :, i * DIM : (i + 1) * DIM] for i in range(num)]
    return torch.cat(own, dim=-1).unsqueeze(2).expand_as(alternatives)


def critics_learn_too(actor, critic, *rest):
    """A mistake: the critics are not detached."""
    for p in critic:
        p.detach = lambda p=p: p
    ascend(actor, critic, *rest)


MISTAKES["actors' gradient"] = {
    "all act at once": lambda *args: ascend(*args, change=everyone_acts),
    "own action held": lambda *args: ascend(
        *args, change=lambda alternatives: alternatives.detach() + 0 * alternatives
    ),
    "one row for all": lambda *args: ascend(
        *args, change=lambda alternatives: alternatives[:, :, :1].expand_as(alternatives)
    ),
    "another norm": lambda *args: ascend(*args[:-1], "centre"),
    "critics learn too": critics_learn_too,
}


@pytest.mark.parametrize("norm", spacql_continuous.CHOICES["action_norm"])
@pytest.mark.parametrize("kind", spacql_continuous.CHOICES["actor_loss"])
def test_each_agent_learns_through_its_own_action_alone(kind, norm):
    for part in (10**9, 50):  # of the 2 * 2 * 5 * 3 * 6 = 360 numbers that a layer puts out
        with in_parts_of(part):
            check_actors_gradient(ascend, kind, norm)


@mistakes("actors' gradient")
def test_a_wrong_gradient_is_noticed(wrong):
    rejects(check_actors_gradient, wrong, "spacql", "call")


# ------------------------------------------------------------------------------------- data and seeds


def labelled_data(episodes, horizon):
    """Rows whose values tell (episode, step), 100 * episode + step, and by their fraction what they are."""
    label = lambda steps: (100 * torch.arange(episodes)[:, None] + torch.arange(steps)).flatten()  # noqa: E731
    long, short = label(horizon + 1), label(horizon)
    return dict(
        state=(long + 0.25)[:, None].expand(-1, 4),
        obs=long[:, None, None].expand(-1, 3, 2),
        actions=(short + 0.5)[:, None, None].expand(-1, 3, DIM),
        rewards=short + 0.75,
        horizon=horizon,
    )


def check_transitions(sample, episodes, horizon):
    """All steps but an episode's last are drawn, once each, with the same episode's next step behind them."""
    data, count = labelled_data(episodes, horizon), episodes * (horizon - 1)
    index = torch.arange(count).flip(0).expand(2, -1)
    state, obs, actions, rewards, next_state, next_obs, next_actions = sample(data, index)
    assert state.shape == next_state.shape == (2, count, 4) and obs.shape == next_obs.shape == (2, count, 3, 2)
    assert actions.shape == next_actions.shape == (2, count, 3, DIM) and rewards.shape == (2, count)
    label = obs[..., 0, 0]
    assert (label % 100 < horizon - 1).all()
    for row, fraction in ((state, 0.25), (obs, 0.0), (actions, 0.5), (rewards, 0.75)):
        assert torch.equal(row, (label + fraction).view(2, count, *[1] * (row.ndim - 2)).expand_as(row))
    for row, later in ((state, next_state), (obs, next_obs), (actions, next_actions)):
        assert torch.equal(later, row + 1)
    expected = sorted(100 * e + t for e, t in indices(episodes, horizon - 1))
    assert sorted(label[0].tolist()) == sorted(label[1].tolist()) == expected


def raw_dataset(seed, states):
    """Four episodes of three steps: observations [4, 4, 2, 5] and states [4, 4, 7] of different scales, some numbers
    constant; or states None."""
    observations = normal(seed, 4, 4, 2, 5).float() * torch.tensor([1, 30, 0.01, 1, 1]) + torch.tensor([0, 7, 1, 0, 0])
    observations[:, :, 0, 3], observations[:, :, 1, 4] = 1e4 / 3, 0.0
    state = normal(seed + 1, 4, 4, 7).float() * torch.logspace(-2, 2, 7) + 3
    state[..., 2] = 1e4 / 3
    actions, rewards = normal(seed + 2, 4, 3, 2, DIM).tanh().float(), normal(seed + 3, 4, 3, 2).float()
    return SimpleNamespace(
        observations=observations, actions=actions, rewards=rewards, states=state if states else None
    )


def check_standardised(load, seed, states):
    """Each agent's each number has mean 0 and deviation 1, or is 0 where it is constant, and so have the simulator's
    states (else the observations are the state); rows are in order; rewards are the agents' means up to a constant."""
    raw = raw_dataset(seed, states)
    data, (mean, std) = load(raw, "cpu")
    assert data["horizon"] == 3 and data["obs"].shape == (4 * 4, 2, 5) and mean.shape == std.shape == (2, 5)
    columns = [(data["obs"][:, i, o], raw.observations[:, :, i, o]) for i, o in indices(2, 5)]
    if states:
        assert data["state"].shape == (4 * 4, 7)
        columns += [(data["state"][:, d], raw.states[:, :, d]) for d in range(7)]
    else:
        assert torch.equal(data["state"], data["obs"].flatten(1))
    for column, values in columns:
        values = values.double().flatten()
        centre, constant = float(values.mean()), bool((values == values[0]).all())
        width = 1.0 if constant else math.sqrt(sum((float(v) - centre) ** 2 for v in values) / len(values))
        close(column, (values - centre) / width, 1e-3)
        assert abs(float(column.std(correction=0)) - (not constant)) < 1e-3
    close(data["obs"].flatten(0, 1), ((raw.observations.flatten(0, 1) - mean) / std).flatten(0, 1), 1e-6)
    offsets = []
    for e, t in indices(4, 3):
        assert torch.equal(data["actions"][3 * e + t], raw.actions[e, t])
        offsets.append(float(data["rewards"][3 * e + t]) - sum(raw.rewards[e, t].tolist()) / 2)
    assert max(offsets) - min(offsets) < 1e-5


def sampled(*order):
    """A mistake: the seven rows of a transition in another order."""
    return lambda data, index: [spacql_continuous.sample_transitions(data, index)[i] for i in order]


def wrapping(data, index):
    """A mistake: all steps are drawn, so that an episode's last one is followed by the next episode's first."""
    row, state, obs, actions = index + index // data["horizon"], data["state"], data["obs"], data["actions"]
    now, later = (state[row], obs[row], actions[index]), (state[row + 1], obs[row + 1], actions[index + 1])
    return *now, data["rewards"][index], *later


def loaded(change):
    """A mistake: what `to_device` returns, changed: change(data, raw)."""

    def load(raw, device):
        data, scale = spacql_continuous.to_device(raw, device)
        return data | change(data, raw), scale

    return load


MISTAKES["transitions"] = {
    "wraps at the end": wrapping,
    "next action repeated": sampled(0, 1, 2, 3, 4, 5, 2),
    "next observation repeated": sampled(0, 1, 2, 3, 4, 1, 6),
    "next state repeated": sampled(0, 1, 2, 3, 0, 5, 6),
    "first step never": lambda data, index: spacql_continuous.sample_transitions(data, index.clamp(min=1)),
    "states by the step before": lambda data, index: spacql_continuous.sample_transitions(
        data | dict(state=data["state"].roll(1, 0)), index
    ),
    "rewards by the step before": lambda data, index: spacql_continuous.sample_transitions(
        data | dict(rewards=data["rewards"].roll(1, 0)), index
    ),
    "observations for the state": lambda data, index: spacql_continuous.sample_transitions(
        data | dict(state=data["obs"].flatten(1)[:, :4]), index
    ),
}
MISTAKES["standardised"] = {
    "state not standardised": loaded(lambda data, raw: dict(state=raw.states.flatten(0, 1))),
    "observations for the state": loaded(lambda data, raw: dict(state=data["obs"].flatten(1))),
    "state by one scale": loaded(
        lambda data, raw: dict(state=((raw.states - raw.states.mean()) / raw.states.std()).flatten(0, 1))
    ),
    "observations not standardised": loaded(lambda data, raw: dict(obs=raw.observations.flatten(0, 1))),
    "rewards of one agent": loaded(lambda data, raw: dict(rewards=raw.rewards[..., 0].flatten())),
    "steps before episodes": loaded(lambda data, raw: dict(actions=raw.actions.transpose(0, 1).flatten(0, 1))),
}


@repeatable
@given(st.integers(1, 5), st.integers(2, 6))
def test_transitions_stay_inside_their_episode(episodes, horizon):
    check_transitions(spacql_continuous.sample_transitions, episodes, horizon)


@pytest.mark.parametrize("states", [False, True])
@settings(repeatable, max_examples=8)
@given(seed=SEEDS)
def test_observations_and_states_are_standardised_and_rows_in_order(states, seed):
    check_standardised(spacql_continuous.to_device, seed, states)


@pytest.mark.parametrize("states", [False, True])
def test_actors_see_in_play_what_they_saw_in_training(states):
    raw = raw_dataset(0, states)
    data, scale = spacql_continuous.to_device(raw, "cpu")
    actor = spacql_continuous.init_networks([generator(0)], 2, (5, 8, 8, DIM))
    trained = spacql_continuous.actor_outputs(actor, data["obs"][None]).tanh()
    assert torch.equal(spacql_continuous.policy_actions(actor, raw.observations.flatten(0, 1)[None], scale), trained)


@mistakes("transitions")
def test_wrong_transitions_are_noticed(wrong):
    rejects(check_transitions, wrong, 3, 4)


@mistakes("standardised")
def test_wrong_standardisation_is_noticed(wrong):
    rejects(check_standardised, wrong, 0, True)
