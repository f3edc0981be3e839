"""The theory checks: exact tools against slow references, every claim as a property, half of any constant,
pinned counterexamples in plain numbers, coverage by brute force, and the commands.

A `check_...` helper must accept the project's function and reject every mistake under its property in
mutants_theory.py. Array letters as in theory/dec_mdps.py, and E members.
"""

import functools
import itertools
import json
import math
import runpy
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pandas
import pytest
import torch
from common import ROOT, SEEDS, SMALL, close, generator, indices, normal, rejects
from hypothesis import given, settings
from hypothesis import strategies as st
from mutants_theory import MISTAKES

import spacql
import theory_checks
from theory import dec_mdps, headline, report, tabular
from theory.dec_mdps import DecMDPs, Sweep, exact, make_sweep, one_size, product, random_worlds, subsets
from theory.report import CLAIMS, CONDITION, FAILS, HOLDS
from utils.figures import save_figure
from utils.files import run_script

few = settings(deadline=None, derandomize=True, database=None, max_examples=5)


def a_world(seed, agents=3, actions=2, states=3, gamma=None, instances=2):
    """Random Dec-MDPs with any behaviour, from soft to nearly deterministic."""
    return random_worlds(generator(seed), instances, states, agents, actions, gamma, correlation=True)


def soft_world(seed, agents=2, states=3, gamma=0.9, instances=2):
    """Dec-MDPs whose distributions are all soft: data soon cover them, and mistakes show."""
    world, joint = a_world(seed, agents, 2, states, gamma, instances), 2**agents
    shapes = dict(transitions=(states, joint, states), start=(states,), behaviour=(states, joint))
    shapes |= dict(policies=(agents, states, 2))
    drawn = (normal(seed + i, instances, *shape).softmax(-1) for i, shape in enumerate(shapes.values()))
    return replace(world, **dict(zip(shapes, drawn, strict=True)))


def joint_actions(agents, actions):
    return list(itertools.product(range(actions), repeat=agents))


# ------ exact tools against loops


def check_replaced(replaced, world):
    """(pi_S, mu_-S) by loops over two joint actions: what S would play, and what the others logged."""
    order = joint_actions(world.num_agents, world.policies.shape[-1])
    for subset in [[], *subsets(world.num_agents)]:
        expected = torch.zeros_like(world.behaviour)
        for i, s in indices(*world.start.shape):
            for (j, played), (m, logged) in itertools.product(enumerate(order), repeat=2):
                if all(played[n] == logged[n] for n in range(world.num_agents) if n not in subset):
                    chance = math.prod(float(world.policies[i, n, s, played[n]]) for n in subset)
                    expected[i, s, j] += chance * world.behaviour[i, s, m]
        close(replaced(world, subset), expected)
    close(product(world.policies), expected)


def check_kappa(kappa, world):
    """max_s TV(mu, (product of S's marginals) x the others'), marginals by sums over the other axes."""
    num, (count, states) = world.num_agents, world.start.shape
    grid = world.behaviour.view(count, states, *[world.policies.shape[-1]] * num).unsqueeze(2)
    marginals = [grid.sum([3 + d for d in range(num) if d != n] + [2]) for n in range(num)]
    alone = replace(world, policies=torch.stack(marginals, 1))
    for subset in [None, *subsets(num)]:
        split = alone.replaced(range(num) if subset is None else subset)
        close(kappa(world, subset), ((split - world.behaviour).abs().sum(-1) / 2).amax(-1))


def check_occupancy(occupancy, world):
    """d(t) = (1-g) rho(t) + g sum d(s) m(j|s) P(t|s, j), which has one solution."""
    d, g = occupancy(world, world.behaviour), world.gamma.unsqueeze(-1)
    inflow = torch.einsum("is,isj,isjt->it", d, world.behaviour, world.transitions)
    close(d, (1 - g) * world.start + g * inflow)


def check_state_values(state_values, world):
    """V(s) = sum m(j|s) (r(s, j) + g sum P(t|s, j) V(t))."""
    v, g = state_values(world, world.behaviour), world.gamma[:, None, None]
    ahead = world.rewards + g * torch.einsum("isjt,it->isj", world.transitions, v)
    close(v, (world.behaviour * ahead).sum(-1), 1e-9)


def check_extreme_critic(extreme_critic, world):
    """Backed up by the best or worst query of each draw, by loops over draws, it stays as it is."""
    for pick, best in ((torch.max, torch.amax), (torch.min, torch.amin)):
        q = extreme_critic(world, pick)
        values = sum(chance * best(q[:, 0, :, list(queries)], -1) for queries, chance in drawn(world))
        close(q, world.action_values(values).unsqueeze(1), 1e-9)


def drawn(world):
    """Each draw of spacql.py, the joint actions that it asks by size, and its chance [I, S]."""
    kernel = enumerated_kernel(world.policies)
    for queries in itertools.product(range(kernel.shape[-1]), repeat=world.num_agents):
        of_each = [kernel[:, k, :, :, query] for k, query in enumerate(queries, 1)]  # by the logged action
        yield queries, (world.behaviour * math.prod(of_each)).sum(-1)


def check_worst_error(worst_error, world):
    """No critic that is -1/(1-g) or 1/(1-g) at every pair, nor a random one between, has a larger error; one
    of them, shifted until eps_FQI is 0, attains it. All three kinds of actions differ."""
    shape, reach = world.rewards.shape[1:], 1 / (1 - world.gamma)[:, None, None]
    actor, actions = product(world.policies), world.mixtures[:, 0]
    signs = exact(list(itertools.product((-1, 1), repeat=math.prod(shape))))
    drawn = 2 * torch.rand((20, math.prod(shape)), generator=generator(0), dtype=torch.float64) - 1
    for logged in (actions, world.behaviour):
        worst = worst_error(world, world.value(actor), actor, actions, logged)
        largest = torch.zeros_like(worst)
        for row in torch.cat([signs, drawn]):
            critic = reach * row.view(shape)
            for _ in range(2):  # as it is, then shifted
                gap = world.action_values((actions * critic).sum(-1)) - critic
                eps = (world.occupancy(world.behaviour) * (logged * gap).sum(-1)).sum(-1) / (1 - world.gamma)
                error = world.value(actor) - (world.start * (actor * critic).sum(-1)).sum(-1)
                largest = torch.maximum(largest, error.abs() - eps.abs())
                critic = critic + eps[:, None, None]
        close(largest, worst, 1e-9)


def enumerated_kernel(policies):
    """The kernel [I, 1 + K, S, J, J] by spacql.partial_replacement, on every logged joint action, every joint
    action of the policies and every order of the agents."""
    num, actions = policies.shape[1], policies.shape[-1]
    played = torch.tensor(joint_actions(num, actions))
    orders, count = exact(list(itertools.permutations(range(num)))), torch.arange(len(played))
    logged, policy, order = torch.cartesian_prod(count, count, torch.arange(len(orders))).T
    chance = torch.stack([policies[:, n][..., played[policy, n]] for n in range(num)]).prod(0) / len(orders)
    kernels = []
    for k in range(num + 1):
        numbers = [played[x].unsqueeze(-1) for x in (logged, policy)]  # an action of one number, its index
        args = (numbers[0][None], numbers[1][None, :, None], orders[order][None, :, None], torch.tensor([k]))
        query = spacql.partial_replacement(*args)[0, :, 0, :, 0]
        column = (query * actions ** torch.arange(num - 1, -1, -1)).sum(-1)
        flat = torch.zeros(*chance.shape[:2], len(played) ** 2, dtype=torch.float64)
        flat.index_add_(2, logged * len(played) + column, chance)
        kernels.append(flat.unflatten(-1, (len(played), -1)))
    return torch.stack(kernels, 1)


def check_query_kernel(query_kernel, world):
    """The kernel is what spacql.py does, over all that it can draw; the mixtures are what becomes of mu."""
    kernel = enumerated_kernel(world.policies)
    close(query_kernel(world.policies), kernel)
    close(world.mixtures, torch.einsum("isa,iksaj->iksj", world.behaviour, kernel[:, 1:]))


TOOLS = {
    "replaced": (check_replaced, DecMDPs.replaced),
    "kappa": (check_kappa, DecMDPs.kappa),
    "occupancy": (check_occupancy, DecMDPs.occupancy),
    "state values": (check_state_values, DecMDPs.state_values),
    "extreme critic": (check_extreme_critic, DecMDPs.extreme_critic),
    "worst error": (check_worst_error, DecMDPs.worst_error),
    "query kernel": (check_query_kernel, dec_mdps.query_kernel),
}


@pytest.mark.parametrize("name", TOOLS)
@few
@given(SEEDS, st.sampled_from([(1, 2), (2, 2), (1, 3), (3, 2)]), st.integers(1, 2), st.floats(0.01, 0.95))
def test_tools_equal_loops(name, seed, team, states, gamma):
    check, right = TOOLS[name]
    check(right, a_world(seed, *team, 1 if team == (3, 2) else states, gamma))


@few
@given(SEEDS, SMALL, SMALL, SMALL)
def test_the_backup_and_its_adaptive_weights_equal_loops(seed, agents, states, members):
    """r + g sum of P, w_k, m_k and the least member's value: w of the state, or from members' deviations at a
    draw's queries, floored."""
    world, joint = a_world(seed, agents, 2, states, 0.9), 2**agents
    q = normal(seed, 2, members, states, joint)
    weights, expected = normal(seed, 2, states, agents).softmax(-1), world.rewards.clone()
    for i, s, a, t, k, j in indices(2, states, joint, states, agents, joint):
        least = min(float(q[i, e, t, j]) for e in range(members))
        chance = float(world.transitions[i, s, a, t] * weights[i, t, k] * world.mixtures[i, k, t, j])
        expected[i, s, a] += 0.9 * chance * least
    close(theory_checks.backup(world, weights, q), expected)
    values = 0
    for queries, chance in drawn(world):
        asked = q[..., list(queries)]  # [I, E, S, K]
        inverse = 1 / asked.std(1, correction=0).clamp(min=0.5)
        values = values + chance * (inverse * asked.amin(1)).sum(-1) / inverse.sum(-1)
    close(theory_checks.adaptive_backup(world, q, 0.5), world.action_values(values))


# ------ claims as properties


TRUE = [c for c in CLAIMS if c.expected in (HOLDS, CONDITION)]
FALSE = [c for c in CLAIMS if c.expected == FAILS]
by_name = functools.partial(pytest.mark.parametrize, ids=lambda x: f"{x.name}: {x.statement}")


def drawn_sweep(seed, agents, actions, states, gamma):
    """Random Dec-MDPs of drawn sizes, and the sharp ones."""
    g = generator(seed)
    both = [random_worlds(g, 3, states, agents, actions, gamma, correlation=on) for on in (False, True)]
    traps, sharp = dec_mdps.sharp_worlds([0.9 if gamma is None else gamma])
    return Sweep([both[0], *traps], [both[1], *sharp], g, 8)


@by_name("claim", TRUE)
@few
@given(SEEDS, st.integers(1, 4), st.integers(2, 3), st.integers(1, 5), st.none() | st.floats(0.01, 0.99))
def test_a_claim_that_holds_does_so_whatever_the_sizes(claim, seed, agents, actions, states, gamma):
    """Without a gamma each Dec-MDP has its own."""
    row = report.judge(claim, drawn_sweep(seed, agents, actions, states, gamma))
    assert row["verdict"] == claim.expected and row["tried"] > 0, row["note"]


def terms(claim):
    """The terms of the claim's bound that are not always 0."""
    found = set()
    for case in claim.cases(make_sweep(0, 8, 3)):
        _, bound = claim.function(*case)
        bound = bound if isinstance(bound, tuple) else (bound,)
        found |= {i for i, term in enumerate(bound) if (exact(term) > 1e-6).any()}
    return sorted(found)


HALVES = [(c, term) for c in TRUE for term in terms(c)]


def halved(claim, term, *case):
    """The claim's function with one term of its bound, or of its right side, halved."""
    value, bound = claim.function(*case)
    bound = list(bound) if isinstance(bound, tuple) else [bound]
    bound[term] = bound[term] / 2
    return value, tuple(bound)


@pytest.mark.parametrize("claim, term", HALVES, ids=lambda x: getattr(x, "statement", x))
def test_half_of_any_constant_is_rejected(claim, term):
    half = claim._replace(function=functools.partial(halved, claim, term))
    row = report.judge(half, make_sweep(0, 60, 4))
    assert row["verdict"] == FAILS and row["note"].endswith(".")


@by_name("claim", FALSE)
def test_a_claim_that_fails_pins_its_numbers(claim):
    """Any other failure, or none, is a surprise."""
    fine = claim._replace(function=lambda *_: (exact(0.0), exact(0.0)))
    off = claim._replace(numbers=[(v, b + 0.01) for v, b in claim.numbers])
    found = [report.judge(c, make_sweep(0, 8, 3))["verdict"] for c in (claim, fine, off)]
    assert found == [FAILS, HOLDS, "fails in another way"]


@pytest.mark.parametrize("mistake", MISTAKES["partial_replacement"])
def test_proposition1_notices_wrong_targets(mistake, monkeypatch):
    """Its first row is affine in Y and notices none; the others do."""
    monkeypatch.setattr(spacql, "partial_replacement", MISTAKES["partial_replacement"][mistake])
    rows = [report.judge(c, make_sweep(0, 8, 3)) for c in TRUE if c.name == "proposition1"]
    assert rows[0]["verdict"] == HOLDS and FAILS in [row["verdict"] for row in rows[1:]]


@pytest.mark.parametrize("gamma", [0.05, 0.3, 0.5, 0.7, 0.95])
def test_theorem3_unrepaired_fails_for_the_team_from_where_the_docs_say(gamma):
    """k = 1. For the worst critic from two agents on, at every g. With Qhat the exact Q of m_1: against E_mw
    from three (two below g = 1/2), against E_pi from four; it holds for fewer, as n - 1 <= 2g or 2."""
    for by, first in (("m_w", 2 if gamma < 0.5 else 3), ("pi", 4)):
        for agents in (2, 3, 4, 5):
            for critic, least in ((False, 2), (True, first)):
                world = dec_mdps.trap_worlds(agents, [gamma], [1e-7])
                value, bound = theory_checks.theorem3(world, one_size(1, world), "pi", by, critic)
                assert (float(value / bound) > 1 + 1e-4) == (agents >= least), (by, agents, critic)


@pytest.mark.parametrize("gamma", [0.3, 0.6, 0.95])
def test_small_k_gains_at_most_2g_and_can_hurt(gamma):
    """The repaired bounds at k = n over those at k = 1 tend to 2g (E_mw) and 2g/(2-g) (E_pi) for large teams;
    below 1, for g < 1/2 and 2/3, small k has the larger bound. Both are attained to 99.9%."""
    for by, factor, limit in (("m_w", 1, 2 * gamma), ("pi", 2 - gamma, 2 * gamma / (2 - gamma))):
        bounds, world = [], dec_mdps.trap_worlds(7, [gamma], [1e-7])
        for k in (1, 7):
            args = (world, one_size(k, world), lambda _, f=factor: f)
            value, terms = theory_checks.theorem3_repaired(*args, value="pi", by=by)
            bounds.append(float(sum(terms)))
            assert float(value) > 0.999 * bounds[-1]
        gain = bounds[1] / bounds[0]
        assert (gain > 1) == (limit > 1) and abs(gain - 1) <= abs(limit - 1)


# ------ coverage: what queries ask of the data


def check_samples_needed(needed, rare, act, num, k):
    """The least M, in fractions, by counting up; the share unlogged by loops over sets, joint actions of the
    policies and of the data."""
    mu = {q: math.prod(rare if a else 1 - rare for a in q) for q in joint_actions(num, 2)}
    pi = {q: math.prod(act if a else 1 - act for a in q) for q in joint_actions(num, 2)}
    sets, asked = list(itertools.combinations(range(num), k)), dict.fromkeys(mu, Fraction(0))
    for s, logged, played in itertools.product(sets, mu, pi):
        query = tuple(played[i] if i in s else logged[i] for i in range(num))
        asked[query] += mu[logged] * pi[played] / len(sets)
    missing = lambda m: sum(asked[q] * (1 - mu[q]) ** m for q in mu)  # noqa: E731
    found = next(m for m in itertools.count(1) if missing(m) <= Fraction(1, 10))
    assert needed(float(rare), float(act), num, k) == found


@pytest.mark.parametrize("num, k", [(1, 0), (2, 1), (3, 1), (3, 2), (3, 3)])
@pytest.mark.parametrize("rare, act", [(2, 5), (5, 1), (4, 0)])
def test_samples_needed_by_brute_force(num, k, rare, act):
    check_samples_needed(headline.samples_needed, Fraction(rare, 10), Fraction(act, 10), num, k)


def test_the_figures_numbers(tmp_path):
    """533 samples for k = 1 and 8e7 for k = n at n = 12; curves within their bounds."""
    assert headline.samples_needed(*headline.PAIR, 12, 1) == 533
    assert headline.samples_needed(*headline.PAIR, 12, 12) == 79_747_983
    data = headline.curves(4, 0)
    for w1, worst, line in zip(data["moved"], data["worst"], data["lemma1"], strict=True):
        assert w1[0] <= w1[1] <= w1[2] <= worst <= line
    assert all(3 * a[1] < b[1] for a, b in itertools.pairwise(data["ratio"]))
    assert data["uniform"][-1] == 9431 and data["pair"]["k = 1"][-1] == 533
    save_figure(headline.draw, tmp_path / "figure.png", (13, 4.2), data)
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize("states, samples", [(1, 1), (1, 3), (2, 2)])
def test_missing_shares_equal_the_mean_over_all_datasets(states, samples):
    world = soft_world(5, states=states, instances=1)
    here, kernel = world.occupancy(world.behaviour)[0], enumerated_kernel(world.policies)[0]
    pairs, expected = list(indices(states, 4)), torch.zeros(1, 3, dtype=torch.float64)
    chance = {(s, a): float(here[s] * world.behaviour[0, s, a]) for s, a in pairs}
    for dataset in itertools.product(pairs, repeat=samples):
        likely = math.prod(chance[pair] for pair in dataset)
        for (s, a), k, q in itertools.product(pairs, range(3), range(4)):
            expected[0, k] += likely * chance[s, a] * float(kernel[k, s, a, q]) * ((s, q) not in dataset)
    close(theory_checks.missing(world, samples), expected)


# ------ finite datasets


def transition_chances(world):
    """Chances [I, X, X] of (s, a) -> (s', a')."""
    here = world.occupancy(world.behaviour).unsqueeze(-1) * world.behaviour
    chances = torch.einsum("isa,isat,itb->isatb", here, world.transitions, world.behaviour)
    return chances.flatten(3, 4).flatten(1, 2)


def check_draws(draw):
    """As many as asked, each as often as chance says."""
    world, samples = soft_world(0), 20_000
    chances, counts = transition_chances(world), draw(world, samples, generator(1))
    close(counts.sum((1, 2)), torch.full((2,), float(samples)))
    assert ((counts - samples * chances).abs() <= 5 * (samples * chances).sqrt() + 1).all()


def check_fitted_backup(fitted, method, seed=0, states=2, agents=2, members=3):
    """r + the mean over the member's transitions from (s, a) of g sum_k w_k E mean_j q; else the prior."""
    world, joint = soft_world(seed, agents, states), 2**agents
    counts = tabular.draw_transitions(world, 10, generator(seed)).unsqueeze(1).expand(-1, members, -1, -1)
    counts = torch.poisson(counts, generator(seed))
    shape = (2, members, states, joint)
    prior, q = (normal(n, *shape) for n in (1, 2))
    kernel, sizes = enumerated_kernel(world.policies), {"k = 1": [1], "spacql": [1, 2]}[method]
    expected = prior.clone()
    for i, e, s, a in indices(*shape):
        total, seen = 0.0, 0
        for t, b in indices(states, joint):
            times = int(counts[i, e, s * joint + a, t * joint + b])
            chances = kernel[i, sizes, t, b]
            values = (chances * q[i, :, t].mean(0)).sum(-1)
            u = (chances * q[i, :, t].std(0, correction=0)).sum(-1)
            total += times * 0.9 * float((values / u).sum() / (1 / u).sum())
            seen += times
        if seen:
            expected[i, e, s, a] = float(world.rewards[i, s, a]) + total / seen
    used = dec_mdps.query_kernel(world.policies)[:, sizes]
    found, weights = fitted(world, counts, prior, q, used, method == "spacql")
    close(found, expected)
    close(weights.sum(-1), torch.ones(2, states, joint))


def test_finite_datasets_equal_loops_over_transitions():
    check_draws(tabular.draw_transitions)
    for method in ("k = 1", "spacql"):
        check_fitted_backup(tabular.fitted_backup, method)


CHECKS = {name: (check, soft_world(0, 3, 2)) for name, (check, _) in TOOLS.items()}
CHECKS |= {
    "worst error": (check_worst_error, soft_world(0, 2, 2)),
    "samples needed": (check_samples_needed, Fraction(2, 10), Fraction(6, 10), 3, 1),
    "draws": (check_draws,),
    "fitted backup": (check_fitted_backup, "spacql"),
}


@pytest.mark.parametrize("name, mistake", [(name, mistake) for name in CHECKS for mistake in MISTAKES[name]])
def test_mistakes_are_noticed(name, mistake):
    check, *args = CHECKS[name]
    rejects(check, MISTAKES[name][mistake], *args)


@pytest.mark.parametrize("sizes", [[1], [2], [1, 2]])
def test_with_all_data_only_the_bias_is_left(sizes):
    """Counts in proportion to the chances: the error is that of the mixture's exact Q, 0 for all agents."""
    world = soft_world(3, gamma=0.5)
    counts = 1e9 * transition_chances(world)
    members, prior = counts.unsqueeze(1), torch.zeros_like(world.rewards).unsqueeze(1)
    error, bias = tabular.evaluate(world, counts, members, prior, sizes, False)
    weights = exact([[float(k in sizes) / len(sizes) for k in (1, 2)]]).expand(2, 3, 2)
    team, exact_q = product(world.policies), world.exact_critic(world.mixture(weights))
    close(error, world.guess(team, exact_q) - world.value(team), 1e-8)
    close(bias, error, 1e-8)
    assert (bias.abs().max() < 1e-8) == (sizes == [2])


def test_experts_play_their_part_of_the_best_joint_action():
    world, one = tabular.expert_worlds(3, 2, 0.96, generator(0)), torch.eye(4, dtype=torch.float64)
    plans = itertools.product(range(4), repeat=4)
    best = torch.stack([world.state_values(one[list(c)].expand(3, -1, -1)) for c in plans]).amax(0)
    for modes in (world.behaviour, product(world.policies)):
        close(world.state_values(one[modes.argmax(-1)]), best, 1e-9)
    close(world.marginals().amax(-1), exact(0.96).expand(3, 2, 4))
    close(world.policies.amax(-1), exact(0.7).expand(3, 2, 4))


def test_the_tabular_command_writes_a_table_and_a_figure(tmp_path, monkeypatch):
    small = dict(TEAMS=(2, 3), SAMPLES=(30, 3000), INSTANCES=3, OUT=tmp_path / "a")
    for name, value in small.items():
        monkeypatch.setattr(tabular, name, value)
    tabular.main()
    assert (tmp_path / "a/evaluation.png").stat().st_size > 10_000
    monkeypatch.setattr(tabular, "draw", draw_little)
    monkeypatch.setattr(tabular, "OUT", tmp_path / "b")
    tabular.main()
    assert (tmp_path / "a/evaluation.csv").read_bytes() == (tmp_path / "b/evaluation.csv").read_bytes()
    table = pandas.read_csv(tmp_path / "a/evaluation.csv")
    assert len(table) == 2 * 2 * 2 * 3 and table.notna().all(axis=None)
    joint = table[table.backup == "k = n"]
    assert (joint.bias < 1e-9).all() and (joint.lead == 0).all()
    assert joint[joint.samples == 30].error.mean() > joint[joint.samples == 3000].error.mean()


# ------ verdicts and the command line


LIMITS = [  # value, bound, relation, expected, verdict
    (1 + 1e-12, 1.0, "<=", HOLDS, HOLDS),
    (1 + 1e-6, 1.0, "<=", HOLDS, FAILS),
    (1e6 + 1e-6, 1e6, "<=", HOLDS, HOLDS),
    (0.5, 1.0, "=", HOLDS, FAILS),
    (1 + 1e-10, 1.0, "=", CONDITION, CONDITION),
    (1.5, 1.0, "<=", FAILS, "fails in another way"),
    (0.5, 1.0, "<=", FAILS, HOLDS),
    *((math.nan, 1.0, "<=", expected, "not a number") for expected in (HOLDS, FAILS)),
]


@pytest.mark.parametrize("value, bound, relation, expected, verdict", LIMITS)
def test_verdicts(value, bound, relation, expected, verdict):
    cases = [(exact([0.5, 0.5]), exact(0.5)), (exact([value]), (exact(bound) / 2, exact(bound) / 2))]
    claim = CLAIMS[0]._replace(expected=expected, relation=relation, numbers=[(1.5, 2.0)] * 3)
    claim = claim._replace(cases=lambda _: cases, function=lambda *case: case)
    row = report.judge(claim, None)
    assert (row["verdict"], row["expected"], row["tried"]) == (verdict, expected, 3)
    line = report.table([row]).splitlines()[2]
    assert verdict in line and ("(!)" in line) == (verdict != expected)


def contents(folder):
    """Every file below a folder with its bytes."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def draw_little(figure, data):
    """In the place of a figure that takes seconds."""
    figure.subplots().plot([1, 2], label="a")


def test_the_command_does_the_same_each_time(tmp_path, capsys, monkeypatch):
    outputs = []
    monkeypatch.setattr(report, "current_commit", lambda: "here")
    monkeypatch.setattr(headline, "draw", draw_little)
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        argv = f"--only lemma1,theorem3 --agents 4 --instances 8 --seed {seed} --out tmp"
        assert theory_checks.main(argv.split()) == 0
        outputs.append((capsys.readouterr().out, contents(".")))
    assert outputs[0] == outputs[1] and outputs[0][0] != outputs[2][0]
    files = {"tmp/theory.json", "tmp/linear_or_exponential.png"}
    assert set(outputs[0][1]) == files


@pytest.mark.parametrize("surprise", [False, True])
def test_the_script_ends_with_its_status(surprise, tmp_path, capsys, monkeypatch):
    """1 if a verdict surprises; the smallest flags find every counterexample all the same."""
    monkeypatch.setattr(headline, "draw", draw_little)
    monkeypatch.setattr(report, "CLAIMS", [])  # the script registers them anew
    monkeypatch.setattr("sys.argv", f"theory_checks.py --agents 2 --instances 2 --out {tmp_path}".split())
    if surprise:
        monkeypatch.setattr(DecMDPs, "total_tv", lambda world, *_: 0 * world.gamma)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "theory_checks.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert stop.value.code == surprise == ("(!)" in said)
    saved = json.loads((tmp_path / "theory.json").read_text())
    assert saved["args"] == dict(out=str(tmp_path), only="all", agents=2, instances=2, seed=0)
    assert saved["command"].endswith(f" --out {tmp_path}") and len(saved["rows"]) == len(CLAIMS)
    assert surprise == any(row["verdict"] != row["expected"] for row in saved["rows"])
    for number, (line, row) in enumerate(zip(said.splitlines()[2:], saved["rows"], strict=False), 1):
        assert line.split()[:2] == [str(number), row["claim"]] and row["statement"] in line


BAD_FLAGS = {
    "--only lema1": "did you mean 'lemma1'?",
    "--agents 1": "--agents must be at least 2, not 1",
    "--seed -1": "--seed must be at least 0, not -1",
    "--out file": "file: File exists",
    "--out file/sub": "Not a directory",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags_end_in_one_line_with_nothing_written(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    argv = flags.split() + ([] if "--out" in flags else ["--out", "new"])
    with pytest.raises(SystemExit) as stop:
        run_script("theory_checks.py", functools.partial(theory_checks.main, argv))
    said, told = capsys.readouterr()
    assert (stop.value.code, said) == (2, "") and told.count("\n") == 1 and BAD_FLAGS[flags] in told
    assert contents(".") == {"file": b"mine"}
