"""Finite datasets of Dec-MDPs, and tabular fitted Q iteration on them with partial action replacement.

SPaCQL with tables in place of networks: members are bootstrap resamples of the dataset; rewards are centred; what a
member has not seen keeps a random prior value (an untrained network's), and the minimum over members is the only
pessimism, a stand-in for the penalty: unlike CQL it is bounded by the prior's range. Agents improve against the others'
logged actions, equation (6), or their policies. Everything but the dataset itself is exact. Here u_k is a mean over the
queries of a logged (s', a'), where spacql.py has the one query that it drew.

Array letters as in dec_mdps.py, and E members, K replacement sizes, X = S * J state-action pairs.
"""

import itertools
import sys
from dataclasses import replace

import torch
from tqdm import tqdm

import spacql
from theory.dec_mdps import as_grid, correlated, exact, product, query_kernel, random_worlds, uniform


def draw_transitions(world, samples, generator):
    """Counts [I, X, X] of `samples` transitions (s, a) -> (s', a'), drawn i.i.d. from mu's discounted occupancy."""
    mu = world.behaviour
    here = world.occupancy(mu).unsqueeze(-1) * mu  # [I, S, J]
    chances = here[..., None, None] * world.transitions.unsqueeze(-1) * mu[:, None, None]
    pairs = here[0].numel()
    return draw_counts(chances.reshape(len(mu), -1), samples, generator).view(-1, pairs, pairs)


def draw_counts(weights, samples, generator):
    """Multinomial counts of `samples` draws from the rows of weights [I, cells]."""
    index = torch.multinomial(weights.clamp(min=0), samples, replacement=True, generator=generator)
    return torch.zeros_like(weights).scatter_add_(1, index, exact(torch.ones(index.shape)))


def bootstrap(counts, members, generator):
    """Resampled counts [I, E, X, X] of counts [I, X, X]."""
    rows = counts.flatten(1).repeat_interleave(members, 0)
    return draw_counts(rows, int(counts[0].sum()), generator).view(-1, members, *counts.shape[1:])


def fitted_backup(world, counts, prior, q, kernel, adaptive):
    """One backup of every member: q and prior [I, E, S, J], counts [I, E, X, X], kernel [I, K, S, J, J] of the sizes in
    use, weighted by equation (3) where `adaptive`, else equally.

    Returns the new q and the weights [I, S, J, K] of each (s', a'). The logged a' of a transition is used as logged;
    u_k and min_j are averaged over its k-replaced queries.
    """
    values, u = (torch.einsum("iksab,isb->isak", kernel, x) for x in (q.amin(1), spacql.uncertainty(q)))
    weights = spacql.replacement_weights(u) if adaptive else torch.full_like(u, 1 / kernel.shape[1])
    rewards = exact(torch.zeros(values.shape[:3]))
    targets = spacql.spacql_target(rewards, values.unsqueeze(1), weights, world.gamma[:, None, None])  # [I, S, J]
    visits = counts.sum(-1)
    mean = (counts @ targets.flatten(1)[:, None, :, None]).squeeze(-1) / visits.clamp(min=1)
    fitted = world.rewards.unsqueeze(1) + mean.view_as(q)
    return torch.where(visits.view_as(q) > 0, fitted, prior), weights


def evaluate_offline(world, counts, size, sweeps=150):
    """Fixed point Q [I, S, J] of T^(size) for the world's policies on counts [I, X, X] of data; unseen pairs are 0."""
    kernel = query_kernel(world.policies)[:, [size]]
    prior = q = torch.zeros_like(world.rewards).unsqueeze(1)
    for _ in range(sweeps):
        q, _ = fitted_backup(world, counts.unsqueeze(1), prior, q, kernel, adaptive=False)
    return q.squeeze(1)


def query_errors(world, counts):
    """Mean |Q - Q^(m_k)| at the queries (s', a'^(k)), k = 1..N, of the fixed point of T^(k) fitted to data; [I, K]."""
    errors = []
    for k, actions in enumerate(world.mixtures().unbind(1), 1):
        gap = evaluate_offline(world, counts, k) - world.action_values(world.state_values(actions))
        errors.append((world.occupancy(world.behaviour).unsqueeze(-1) * actions * gap.abs()).sum((1, 2)))
    return torch.stack(errors, 1)


def learn_offline(world, counts, members, prior, method, others="logged", sweeps=60, kept=20, step=0.1):
    """Train a team on a dataset by one of spacql.py's backups: the greedy policies [kept, I, N, S, A] after each of the
    last `kept` sweeps (they need not settle).

    counts [I, X, X] and members [I, E, X, X]; others: agent i improves against the other agents' "logged" actions
    (equation 6) or their current "policies". Policies move by `step` towards the greedy ones after every backup.
    """
    count, num, states, actions = world.policies.shape
    visits = counts.sum(-1).view(count, states, -1)
    mean = (visits * world.rewards).sum((1, 2), keepdim=True) / visits.sum((1, 2), keepdim=True)
    world = replace(world, rewards=world.rewards - mean)
    logged = as_grid(visits / visits.sum(-1, keepdim=True).clamp(min=1), num)
    sizes = spacql.backup_sizes(method, num)
    policies, q, teams = torch.full_like(world.policies, 1 / actions), prior, []
    for _ in range(sweeps):
        q, _ = fitted_backup(world, members, prior, q, query_kernel(policies)[:, sizes], method == "spacql")
        advantage = []
        for i in range(num):
            if others == "logged":
                chance = logged.sum(2 + i, keepdim=True).expand_as(logged).flatten(2)  # of the others' actions alone
            else:
                anything = policies.clone()
                anything[:, i] = 1.0
                chance = product(anything)
            advantage.append((chance * q.amin(1)).unflatten(-1, (actions**i, actions, -1)).sum((2, 4)))
        teams.append(exact(torch.nn.functional.one_hot(torch.stack(advantage, 1).argmax(-1), actions)))
        policies = torch.lerp(policies, teams[-1], step)
    return torch.stack(teams[-kept:])


def missing_shares(world, samples):
    """Expected shares [I, 1 + K] of queries (s', a'^(k)), k = 0..N, that a dataset of `samples` pairs lacks, exactly:
    made from a logged pair of the dataset itself, and from a fresh one (s' by mu's occupancy, a' by mu)."""
    kernel, mu = query_kernel(world.policies), world.behaviour
    here = world.occupancy(mu)[:, None, :, None]
    asked = torch.einsum("isa,iksaq->iksq", mu, kernel)
    as_logged = mu.unsqueeze(1) * kernel.diagonal(dim1=-2, dim2=-1)  # the query is the logged a' again
    unseen = 1 - here * mu.unsqueeze(1)  # chance that one sample is not this pair
    logged = (here * (asked - as_logged) * unseen ** (samples - 1)).sum((2, 3))
    return logged, (here * asked * unseen**samples).sum((2, 3))


def trade_worlds(instances, coordination, generator):
    """Dec-MDPs of 3 agents, 2 actions and 4 states, g = 0.9, with nearly uniform marginals as policies. Rewards are
    uniform in [-1, 1]; with `coordination` 70% pay for acting alike, by a state's stakes, and fine acting otherwise."""
    world = random_worlds(generator, instances, gamma=0.9)
    normal = torch.randn(instances, 4, 8, 4, generator=generator, dtype=torch.float64)
    marginals = torch.randn(instances, 3, 4, 2, generator=generator, dtype=torch.float64).mul(0.5).softmax(-1)
    rewards = 2 * uniform(generator, instances, 4, 8) - 1
    if coordination:
        alike = 2 * exact([1, 0, 0, 0, 0, 0, 0, 1]) - 1
        rewards = 0.7 * alike * uniform(generator, instances, 4, 1) + 0.3 * rewards
    start = torch.full_like(world.start, 1 / 4)
    return replace(world, transitions=(3 * normal).softmax(-1), rewards=rewards, start=start, policies=marginals)


def compare_backups(world, dial, samples, others, prior_scale, generator, members=10):
    """Mean value over the last sweeps of the greedy teams that each backup learns from `samples` transitions, {method:
    [I]}, scaled so that independent behaviour is 0 and the optimal joint policy 1. mu has the world's policies as
    marginals; priors of what a member has not seen are uniform within +-prior_scale."""
    world = replace(world, behaviour=correlated(world.policies, dial))
    counts = draw_transitions(world, samples, generator)
    resampled = bootstrap(counts, members, generator)
    prior = prior_scale * (2 * uniform(generator, len(counts), members, *world.rewards.shape[1:]) - 1)
    best = torch.zeros_like(world.start)
    for _ in range(300):
        best = world.action_values(best).amax(-1)
    low, high = world.value(product(world.policies)), (world.start * best).sum(-1)
    found = {}
    for method in ("icql-qs", "joint", "uniform", "spacql"):
        teams = learn_offline(world, counts, resampled, prior, method, others)
        value = torch.stack([world.value(product(team)) for team in teams]).mean(0)
        found[method] = (value - low) / (high - low)
    return found


def backup_curves(sizes, dials, instances, seed):
    """compare_backups in the same Dec-MDPs for both kinds of rewards, both actors (and two scales of priors with the
    paper's), dataset sizes and dials. By panel and method (and "joint - icql-qs", paired): for each size a list over
    dials of mean and half-width of its 95% interval."""
    panels, generator = {}, torch.Generator().manual_seed(seed)
    actors = (("logged", 1.0), ("logged", 10.0), ("policies", 1.0))
    plan = list(itertools.product(("random rewards", "coordination"), actors, range(len(sizes)), dials))
    for reward, (others, scale), j, dial in tqdm(plan, desc="learning offline", leave=False, file=sys.stderr):
        world = trade_worlds(instances, reward == "coordination", torch.Generator().manual_seed(seed))
        found = compare_backups(world, dial, sizes[j], others, scale, generator)
        found["joint - icql-qs"] = found["joint"] - found["icql-qs"]
        for name, value in found.items():
            point = [float(value.mean()), float(1.96 * value.std() / instances**0.5)]
            panel = panels.setdefault(f"{reward}, others {others}, prior {scale:g}", {})
            panel.setdefault(name, [[] for _ in sizes])[j].append(point)
    return panels


def dial_effects(instances, seed, value_bound):
    """What correlation does in coordination worlds, by dial 0, 0.25, .., 1 (means over Dec-MDPs): kappa, the worst
    error of Theorem 2 for imitation of the marginals, its bound value_bound(gamma, kappa), and the value so lost."""
    columns = {"kappa": [], "worst error": [], "its bound": [], "value lost": []}
    for dial in (0.0, 0.25, 0.5, 0.75, 1.0):
        world = trade_worlds(instances, True, torch.Generator().manual_seed(seed))
        world = replace(world, behaviour=correlated(world.policies, dial))
        actions, kappa = product(world.policies), world.kappa()
        error, _ = world.fit_errors(actions, world.worst_critic(actions, actions), actions)
        loss = world.value(world.behaviour) - world.value(actions)
        for column, x in zip(
            columns.values(), (kappa, error.abs(), value_bound(world.gamma, kappa), loss), strict=True
        ):
            column.append(float(x.mean()))
    return columns
