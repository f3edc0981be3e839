"""The functions of both training scripts, each against loops or what torch and numpy have for it.

A check takes the script and the function under test: it must accept the right one on inputs that Hypothesis
draws, and reject the mistakes that mutants_scripts.py lists under its name.

Array letters as in the scripts: S seeds, E critics, B batch, K sizes, N agents, A numbers of an action, O of
an observation, M agents in the penalty, C candidates of each.
"""

import itertools
import math
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from common import (
    SCRIPTS,
    SEEDS,
    SIGMAS,
    SMALL,
    close,
    double_networks,
    evenly,
    generator,
    gradients,
    indices,
    normal,
    rejects,
    repeatable,
    separate_network,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from mutants_scripts import MUTANTS
from torch import nn

CHECKS = {}  # by name: (check, the script's function that it is about, strategies, kinds of action)


def check_of(function, *draws, kinds=("discrete", "continuous")):
    """Register a check(script, function, *draws)."""

    def register(check):
        CHECKS[check.__name__.replace("_", " ")] = (check, function, draws, kinds)
        return check

    return register


def holds(name, script, function):
    """Run a check of that function, on drawn inputs if it takes any; the first failure ends it."""
    check, _, draws, _ = CHECKS[name]

    @settings(repeatable, phases=[Phase.generate])
    @given(st.tuples(*draws))
    def on(drawn):
        check(script, function, *drawn)

    on() if draws else check(script, function)


# ------ (1) partial action replacement


@check_of("partial_replacement", st.integers(1, 5), SEEDS)
def exactly_k_agents_are_replaced(script, replace, num, seed):
    """The k agents first in order play their policy's whole action, the others the logged one."""
    g = generator(seed)
    sizes, order = torch.randint(1, num + 1, (3,), generator=g), torch.rand((2, 4, 3, num), generator=g)
    logged, policy = script.actions(seed, 2, 4, num), 10 + script.actions(seed + 1, 2, 4, 3, num)
    mixed = replace(logged, policy, order, sizes)
    assert mixed.shape == policy.shape
    for s, b, j in indices(2, 4, 3):
        first = sorted(range(num), key=order[s, b, j].tolist().__getitem__)[: int(sizes[j])]
        for i in range(num):
            assert torch.equal(mixed[s, b, j, i], policy[s, b, j, i] if i in first else logged[s, b, i])
    replaced = (replace(logged, policy, 0 * order, sizes) >= 9).all(-1).sum(-1)
    assert torch.equal(replaced, sizes.expand_as(replaced)), "where all tie, too"


@check_of("partial_replacement")
def every_set_of_agents_is_equally_likely(script, replace, num=4, batch=6000):
    """At each size, and independently of the set at any other size."""
    logged, policy = script.actions(0, 2, batch, num), 10 + script.actions(1, 2, batch, num, num)
    order = torch.rand((2, batch, num, num), generator=generator(2))
    replaced = (replace(logged, policy, order, torch.arange(1, num + 1)) >= 9).all(-1)  # [S, B, K, N]
    sets = (replaced * 2 ** torch.arange(num)).sum(-1)  # [S, B, K], a set as a binary number
    for j, k in itertools.combinations(range(num), 2):
        evenly(sets[..., j], math.comb(num, j + 1))
        evenly(2**num * sets[..., j] + sets[..., k], math.comb(num, j + 1) * math.comb(num, k + 1))


# ------ (3) uncertainty and its weights


@check_of("uncertainty", SEEDS, SMALL, st.integers(1, 5), SMALL, SMALL)
def uncertainty_is_the_spread_of_the_members(script, measure, seed, *shape):
    """Divided by E, not E - 1."""
    q = normal(seed, *shape)
    close(measure(q), np.std(q.numpy(), 1))
    assert (measure(q[:, :1]) == 0).all()


@check_of("replacement_weights", st.lists(st.just(0.0) | st.floats(1e-4, 1e4), min_size=1, max_size=6))
def weights_are_inverse_uncertainties(script, weigh, u):
    """On the simplex, (1 / u_k) / sum_m 1 / u_m, blind to the unit of u. Sizes without any spread share all
    of the weight, as with one critic."""
    expected = [float(v == 0) / u.count(0) if 0 in u else (1 / v) / sum(1 / x for x in u) for v in u]
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-3)):
        for factor in (1, 0.01, 100):
            close(weigh(factor * torch.tensor(u, dtype=dtype)), expected, tolerance)


# ------ (2) and (4) the TD target


@check_of("spacql_target", SEEDS, st.floats(0, 1), SMALL, SMALL, SMALL, SMALL)
def target_mixes_the_smallest_member_of_each_size(script, target, seed, gamma, *shape):
    num_seeds, _, batch, num_sizes = shape
    rewards, q = normal(seed, num_seeds, batch), normal(seed + 1, *shape)
    weights = normal(seed + 2, num_seeds, batch, num_sizes).softmax(-1)
    expected = torch.zeros(num_seeds, batch, dtype=torch.float64)
    for s, b in indices(num_seeds, batch):
        smallest = [min(q[s, :, b, k].tolist()) for k in range(num_sizes)]
        mixed = sum(w * low for w, low in zip(weights[s, b].tolist(), smallest, strict=True))
        expected[s, b] = rewards[s, b] + gamma * mixed
    close(target(rewards, q, weights, gamma), expected)


# ------ (5) penalty and critics' loss


@check_of("cql_penalty", SEEDS, SMALL, SMALL, SMALL, SMALL, SMALL)
def penalty_is_a_mean_of_logs_of_weighted_sums(script, penalty, seed, *shape):
    """Its gradient shares one unit out over an agent's candidates, and takes one from the data."""
    *outer, some, count = shape
    q, q_data = (3 * normal(seed, *shape)).requires_grad_(), normal(seed + 1, *outer).requires_grad_()
    log_weights = normal(seed + 2, outer[0], outer[2], some, count)
    actual, parts = penalty(q, log_weights, q_data), (q + log_weights.unsqueeze(1)).detach().exp()
    close(actual, (parts.sum(-1).log().mean(-1) - q_data).detach())
    down, up = torch.autograd.grad(actual.sum(), (q, q_data))
    close(down, parts / parts.sum(-1, keepdim=True) / some)
    close(up, -torch.ones_like(q_data))


@check_of("critic_loss", SEEDS, st.floats(0, 5), SMALL, SMALL, SMALL)
def critic_loss_is_each_members_own(script, loss, seed, alpha, *shape):
    q, penalty, target = normal(seed, *shape), normal(seed + 1, *shape), normal(seed + 2, shape[0], shape[2])
    expected = torch.zeros(shape[:2], dtype=torch.float64)
    for s, e, b in indices(*shape):
        expected[s, e] += ((q[s, e, b] - target[s, b]) ** 2 + alpha * penalty[s, e, b]) / shape[2]
    close(loss(q, target, penalty, alpha), expected)


# ------ (6) actors' loss


def separate_actor_loss(script, outputs, q, logged, clone_weight, extra, s, i):
    """The loss of one agent of one seed, by torch's own distribution and losses."""
    out, taken, value = outputs[s, :, i], logged[s, :, i], q[s, :, i]
    if script.kind == "discrete":
        policy = torch.distributions.Categorical(logits=out)
        imitation = policy.log_prob(taken.argmax(-1))
        return -((policy.probs * value).sum(-1) + extra * policy.entropy() + clone_weight * imitation).mean()
    small = script.module.ACTION_L2 * out.tanh().square() + extra * out.square()
    return clone_weight * nn.functional.mse_loss(out.tanh(), taken) + small.mean() - value.mean()


@check_of("actor_loss", SEEDS, st.floats(0, 3), st.floats(0, 3), SMALL, SMALL, SMALL)
def actors_ascend_their_own_value(script, loss, seed, clone_weight, extra, *shape):
    """Every agent's loss, and its gradients in its outputs and in Q."""
    outputs, logged = normal(seed, *shape, script.dim), script.actions(seed + 2, *shape)
    q = normal(seed + 1, *shape) if script.kind == "continuous" else normal(seed + 1, *shape, script.dim)
    outputs.requires_grad_()
    q.requires_grad_(script.kind == "continuous")  # the actors' own actions are in it
    actual = loss(outputs, q, logged, clone_weight, extra)
    single = partial(separate_actor_loss, script, outputs, q, logged, clone_weight, extra)
    expected = torch.stack([single(s, i) for s, i in indices(shape[0], shape[2])]).view(actual.shape)
    close(actual, expected.detach())
    inputs = [outputs, q] if q.requires_grad else [outputs]
    slopes = [torch.autograd.grad(x.sum(), inputs, retain_graph=True) for x in (actual, expected)]
    for mine, theirs in zip(*slopes, strict=True):
        close(mine, theirs)


# ------ actions


@check_of("sample_policy")
def samples_follow_the_policy(script, sample, count=20_000):
    """By their frequencies; a seed's are the same with other seeds beside it."""
    actor = double_networks(script, 0, 2, 2, (4, 8, 8, script.dim))
    actor[4].data.mul_(4), actor[5].data.mul_(4)
    obs, seeds = 2 * normal(1, 2, 2, 2, 4), (3, 4)
    drawn = sample(actor, obs, count, [generator(seed) for seed in seeds])
    assert drawn.shape == (2, 2, count, 2, script.dim)
    alone = sample([p[1:] for p in actor], obs[1:], count, [generator(seeds[1])])
    assert torch.equal(alone[0], drawn[1]) and not torch.equal(drawn[0], drawn[1])
    for s, b, i in indices(2, 2, 2):
        out, x = separate_network(actor, s, i)(obs[s, b, i]).detach(), drawn[s, b, :, i]
        if script.kind == "discrete":
            assert torch.equal(x.sort(-1).values, torch.eye(5)[4].expand_as(x)), "one-hot"
            pi = out.softmax(-1)
            assert ((x.mean(0) - pi).abs() <= SIGMAS * (pi * (1 - pi) / count).sqrt() + 1e-4).all()
        else:
            policy, noise = out.tanh(), script.module.TARGET_NOISE
            free = policy.abs() < 0.8
            assert free.any() and ((x.std(0) / noise - 1).abs()[free] < SIGMAS / (2 * count) ** 0.5).all()
            assert (x.median(0).values - policy).abs().max() < 6 * noise / count**0.5
            assert x.abs().max() <= 1


def test_samples_stay_actions_where_probabilities_vanish():
    """Softmax sums to a little under 1 where it is rounded; the last action takes the rest."""
    module = SCRIPTS[0].module
    actor = [1e4 * p for p in module.init_networks([generator(0)], 3, (4, 8, 8, 5))]
    obs = torch.randn((1, 500, 3, 4), generator=generator(1))
    drawn = module.sample_policy(actor, obs, 200, [generator(2)])
    greedy = module.one_hot(module.actor_outputs(actor, obs).argmax(-1)).unsqueeze(2)
    assert (drawn.sum(-1) == 1).all() and (drawn == greedy).float().mean() > 0.99


# ------ what the penalty holds against the data


def proposals(script, propose, penalty, batch=600, num=3, some=2):
    """Candidates for logged actions and, with forces, two policies: all that went in and came out."""
    logged = script.actions(0, 2, batch, num)
    policies = [script.actions(seed, 2, batch, num) for seed in (1, 2)]
    args, generators = SimpleNamespace(penalty=penalty, penalty_agents=some), [generator(3), generator(4)]
    places = [logged, policies] if script.kind == "continuous" else [logged]
    return logged, policies, *propose(args, *places, generators)


@check_of("penalty_candidates")
def candidates_change_random_agents(script, propose):
    """Each row changes one agent; which are drawn, every pair in order equally often."""
    logged, _, joint, log_weights = proposals(script, propose, "cfcql")
    assert joint.shape == (2, 600, 2, 5 if script.kind == "discrete" else 30, 3, script.dim)
    assert log_weights.shape == joint.shape[:4]
    own, agents = own_candidates(logged, joint)
    evenly(3 * agents[..., 0] + agents[..., 1], 6)
    assert not torch.equal(agents[0], agents[1])
    if script.kind == "discrete":
        assert torch.equal(own, torch.eye(5).double().expand_as(own)) and (log_weights == 0).all()


def own_candidates(logged, joint):
    """The candidates [S, B, M, C, A] in rows that change one agent each, and whose they are [S, B, M]."""
    changed = (joint != logged[:, :, None, None]).any(-1).any(3)  # [S, B, M, N]
    assert (changed.sum(-1) == 1).all(), "all candidates of a row are one agent's"
    agents = changed.long().argmax(-1)
    return joint.take_along_dim(agents[..., None, None, None], 4).squeeze(4), agents


@check_of("penalty_candidates", kinds=("discrete",))
def joint_candidates_take_the_team_as_one_agent(script, propose):
    """macql: uniform joint actions."""
    _, _, joint, log_weights = proposals(script, propose, "macql", batch=2000)
    assert joint.shape == (2, 2000, 1, 3 * 5, 3, 5) and torch.equal(log_weights, 0 * joint[..., 0, 0])
    assert not torch.equal(joint[0], joint[1]), "each seed draws its own"
    assert ((joint == 0) | (joint == 1)).all() and (joint.sum(-1) == 1).all()
    evenly((joint.argmax(-1) * 5 ** torch.arange(3)).sum(-1), 5**3)


@check_of("penalty_candidates", st.sampled_from(["cfcql", "macql"]), kinds=("continuous",))
def candidates_are_weighed_by_their_densities(script, propose, penalty):
    """Ten uniform ones, ten around each policy, by torch's own densities where they were drawn: of one agent,
    or (macql) of the team as one agent."""
    logged, policies, joint, log_weights = proposals(script, propose, penalty)
    own, means = joint.flatten(4), [policy.flatten(2)[:, :, None, None] for policy in policies]
    if penalty == "cfcql":
        own, agents = own_candidates(logged, joint)
        means = [policy.take_along_dim(agents.unsqueeze(-1), 2).unsqueeze(3) for policy in policies]
    assert not torch.equal(own[0, :, :, :10], own[1, :, :, :10]), "each seed draws its own"
    assert own.abs().max() <= 1 and own.shape[2:4] == (2 if penalty == "cfcql" else 1, 30)
    uniform, *near = own.split(10, dim=3)  # [S, B, M, 10, A or N * A]
    uniform_weights, *near_weights = (log_weights + math.log(30)).split(10, dim=3)
    close(uniform_weights, (0 * uniform + math.log(2)).sum(-1), 1e-5)
    assert abs(float(uniform.mean())) < SIGMAS * math.sqrt(1 / 3 / uniform.numel())
    assert abs(float(uniform.square().mean()) - 1 / 3) < SIGMAS * math.sqrt(4 / 45 / uniform.numel())
    for mean, actions, weights in zip(means, near, near_weights, strict=True):
        deviation = script.module.CANDIDATE_NOISE
        expected = -torch.distributions.Normal(mean, deviation).log_prob(actions).sum(-1)
        kept = (actions.abs() < 1).all(-1)
        close(weights[kept], expected[kept], 1e-3)
        assert kept.float().mean() > 0.1
        assert (weights[~kept] > expected[~kept]).all(), "what is clipped was drawn further out"
        noise = ((actions - mean) / deviation)[mean.expand_as(actions).abs() < 0.2]
        assert abs(float(noise.mean())) < SIGMAS / noise.numel() ** 0.5
        assert abs(float(noise.square().mean()) - 1) < SIGMAS * (2 / noise.numel()) ** 0.5


# ------ networks


@check_of(
    "critic_values", SEEDS, SMALL, SMALL, st.integers(1, 6), SMALL, st.sampled_from([1, 50, 100, 10**9])
)
def critics_are_separate_networks(script, values, seed, num_seeds, members, batch, rows, cache):
    """Q and its gradients in weights and actions, of every member by itself on concat(state, joint action),
    into however many parts a batch is cut."""
    critic = double_networks(script, seed, num_seeds, members, (4 + 2 * script.dim, 7, 6, 1))
    state = normal(seed, num_seeds, batch, 4)
    joint = script.actions(seed, num_seeds, batch, rows, 2).requires_grad_()
    alone, slopes = joint.detach().clone().requires_grad_(), normal(seed + 1, num_seeds, members, batch, rows)
    with patch.object(script.module, "CACHE_NUMBERS", cache):
        q = values(critic, state, joint)
    assert q.shape == slopes.shape
    (q * slopes).sum().backward()
    for s, e in indices(num_seeds, members):
        network = separate_network(critic, s, e)
        for b, r in indices(batch, rows):
            out = network(torch.cat([state[s, b], alone[s, b, r].flatten()]))[0]
            close(q[s, e, b, r], out)
            (out * slopes[s, e, b, r]).backward()
        for stacked, single in zip(critic, gradients(network), strict=True):
            close(stacked.grad[s, e], single)
    close(joint.grad, alone.grad)


@check_of("init_networks")
def networks_start_as_linear_layers_do(script, init, count=4, sizes=(20, 150, 60, 3)):
    """Uniform within 1 / sqrt(fan_in); no two alike; a seed's are the same without the others."""
    params = init([generator(0), generator(1)], count, sizes)
    alone = init([generator(1)], count, sizes)
    assert all(torch.equal(p[1], q[0]) for p, q in zip(params, alone, strict=True))
    for j, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        for p, shape in zip(params[2 * j : 2 * j + 2], ((fan_in, fan_out), (1, fan_out)), strict=True):
            assert p.shape == (2, count, *shape)
            x = p.double() * math.sqrt(fan_in)  # uniform in [-1, 1]: variance 1/3, of the square 4/45
            assert (0.99 if x.numel() > 1000 else 0.7) < x.abs().max() <= 1 + 1e-6
            assert x.mean().abs() < SIGMAS * math.sqrt(1 / 3 / x.numel())
            assert (x.square().mean() - 1 / 3).abs() < SIGMAS * math.sqrt(4 / 45 / x.numel())
            assert len(p.flatten(0, 1).flatten(1).unique(dim=0)) == 2 * count


# ------ data and scores


def standardised(values):
    """A column minus its mean over its deviation, 0 where it is constant."""
    values = values.double()
    width = float(values.std(correction=0))
    return (values - values.mean()) / (width if width > 1e-6 else 1.0)


@check_of("prepare", SEEDS, st.booleans())
def transitions_stay_inside_their_episode(script, prepare, seed, states):
    """All steps but an episode's last, once each, with the same episode's next step behind them; inputs have
    mean 0 and deviation 1; rewards are the agents' means up to one constant."""
    states = states and script.kind == "continuous"  # HalfCheetah's; elsewhere observations are the state
    raw = script.dataset(seed, states)
    data, (mean, std) = prepare(raw, torch.device("cpu"))
    obs = torch.zeros(4, 4, 2, 5, dtype=torch.float64)
    for i, o in indices(2, 5):
        obs[:, :, i, o] = standardised(raw.observations[:, :, i, o])
    state = obs.flatten(2)
    if states:
        state = torch.stack([standardised(raw.states[..., d]) for d in range(7)], -1)
    actions = raw.actions if script.kind == "continuous" else torch.eye(5)[raw.actions]
    assert [len(x) for x in data] == [4 * 2] * 7 and mean.shape == std.shape == (2, 5)
    offsets = []
    for row, (e, t) in enumerate(indices(4, 2)):
        s1, o1, a1, reward, s2, o2, a2 = (x[row] for x in data)
        for now, later, expected in ((s1, s2, state), (o1, o2, obs), (a1, a2, actions)):
            close(now, expected[e, t], 1e-3)
            close(later, expected[e, t + 1], 1e-3)
        offsets.append(float(reward) - float(raw.rewards[e, t].mean()))
    assert max(offsets) - min(offsets) < 1e-5 and abs(offsets[0] + float(raw.rewards.mean())) < 1e-5
    close(((raw.observations - mean) / std)[0, 0], obs[0, 0], 1e-3)


@check_of("play", SEEDS)
def actors_see_in_play_what_they_saw_in_training(script, play, seed):
    raw = script.dataset(seed, False)
    data, scale = script.module.prepare(raw, torch.device("cpu"))
    actor = script.module.init_networks([generator(0), generator(1)], 2, (5, 8, 8, script.dim))
    outputs = script.module.actor_outputs(actor, data[1].expand(2, -1, -1, -1))
    expected = outputs.argmax(-1) if script.kind == "discrete" else outputs.tanh()
    played = play(actor, raw.observations[:, :2].flatten(0, 1).expand(2, -1, -1, -1), scale)
    close(played.double(), expected.double(), 1e-5)


class Counting:
    """Worlds of two agents that reward the first by its action and the second by 100 times the step."""

    horizon = 3

    def reset(self, seed, copies):
        self.time, starts = 0, torch.arange(2.0) + seed
        self.obs = starts.repeat(copies)[:, None, None].expand(-1, 2, 1)  # [S * B, N, O]
        return self.obs

    def step(self, actions):
        self.time += 1
        return self.obs, torch.stack([actions[:, 0], torch.full((len(actions),), 100.0 * self.time)], dim=1)


@check_of("evaluate")
def returns_are_summed_over_time_and_averaged_over_agents(script, evaluate):
    """Seed s plays s + the observation: its return in world b is (3 (s + 40 + b) + 100 + 200 + 300) / 2."""
    policy = lambda obs: torch.arange(3.0)[:, None, None] + obs[..., 0]  # noqa: E731
    returns = evaluate(policy, Counting(), 3, 40)
    assert returns.tolist() == [[(3 * (s + 40 + b) + 600) / 2 for b in range(2)] for s in range(3)]


# ------ the checks and their mutants


CASES = [(script, name) for script in SCRIPTS for name in CHECKS if script.kind in CHECKS[name][3]]
WRONG = [(*case, mutant) for case in CASES for mutant in MUTANTS[case[1]]]


@pytest.mark.parametrize(("script", "name"), CASES, ids=str)
def test_equation(script, name):
    holds(name, script, getattr(script.module, CHECKS[name][1]))


@pytest.mark.parametrize(("script", "name", "mutant"), WRONG, ids=str)
def test_mutant_is_rejected(script, name, mutant):
    right = getattr(script.module, CHECKS[name][1])
    rejects(holds, name, script, partial(MUTANTS[name][mutant], right))
