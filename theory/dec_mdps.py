"""Dec-MDPs small enough for exact arithmetic in float64: values and occupancies are linear solves.

A method's `actions` is a distribution over joint actions at every state, [I, S, J]. Array letters: I Dec-MDPs
side by side, S states (T: the next one), N agents, A actions of an agent, J = A^N joint actions (the last
agent's action runs fastest), K replacement sizes.
"""

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch.nn.functional import one_hot

GAMMAS = (0.1, 0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class DecMDPs:
    """I Dec-MDPs, each with a behaviour (joint, maybe correlated) and one policy per agent."""

    transitions: torch.Tensor  # [I, S, J, T]
    rewards: torch.Tensor  # [I, S, J], within [-1, 1]
    start: torch.Tensor  # [I, S]
    gamma: torch.Tensor  # [I]
    behaviour: torch.Tensor  # mu, [I, S, J]
    policies: torch.Tensor  # pi, [I, N, S, A]

    @property
    def num_agents(self):
        return self.policies.shape[1]

    def marginals(self):
        """mu_i, [I, N, S, A]."""
        num, actions = self.num_agents, self.policies.shape[-1]
        split = (self.behaviour.unflatten(-1, (actions**i, actions, -1)) for i in range(num))
        return torch.stack([joint.sum((2, 4)) for joint in split], 1)

    def replaced(self, subset):
        """(pi_S, mu_-S), [I, S, J]: the agents in `subset` act by their policies."""
        actions, joint = self.policies.shape[-1], self.behaviour
        for i in subset:
            split = joint.unflatten(-1, (actions**i, actions, -1))
            policy = self.policies[:, i].unsqueeze(2).unsqueeze(-1)  # [I, S, 1, A, 1]
            joint = (split.sum(3, keepdim=True) * policy).flatten(2)
        return joint

    @cached_property
    def mixtures(self):
        """m_k for k = 1..N, [I, K, S, J]: k agents, drawn afresh, act by their policies, the others by mu."""
        return torch.einsum("isa,iksaj->iksj", self.behaviour, query_kernel(self.policies)[:, 1:])

    @cached_property
    def draws(self):
        """What a draw of spacql.py may ask, a query of each size: joint actions [D, K] and their chances
        [I, S, D]. Given the logged action, sizes are drawn apart. D = J^K: for small teams."""
        chances = self.behaviour.unsqueeze(-1)  # [I, S, J (logged), D so far]
        for kernel in query_kernel(self.policies)[:, 1:].unbind(1):  # [I, S, J (logged), J (query)]
            chances = (chances.unsqueeze(-1) * kernel.unsqueeze(-2)).flatten(-2)
        several = [torch.arange(self.rewards.shape[-1])] * self.num_agents
        return torch.cartesian_prod(*several).view(-1, self.num_agents), chances.sum(2)

    def mixture(self, weights):
        """m_w = sum_k w_k(s) m_k, [I, S, J], for weights [I, S, K]."""
        return torch.einsum("isk,iksj->isj", weights, self.mixtures)

    def share(self, weights):
        """k_eff / n at every state, [I, S], for weights [I, S, K]."""
        return (weights * exact(torch.arange(1, self.num_agents + 1))).sum(-1) / self.num_agents

    def total_tv(self, subset=None):
        """sum of TV_i over `subset`, [I]; by default over all agents."""
        distance = tv(self.policies, self.marginals()).amax(-1)
        return distance.sum(-1) if subset is None else distance[:, subset].sum(-1)

    def kappa(self, subset=None):
        """max_s TV(mu, (product of mu_i over `subset`) x mu_-S), [I]; by default of all agents."""
        alone = replace(self, policies=self.marginals())
        everyone = range(self.num_agents)
        return tv(alone.replaced(everyone if subset is None else subset), self.behaviour).amax(-1)

    def flow(self, actions):
        """Identity - gamma * Pr(t | s) under joint actions [I, S, J]; [I, S, T]."""
        kernel = torch.einsum("isj,isjt->ist", actions, self.transitions)
        return exact(torch.eye(kernel.shape[-1])) - self.gamma[:, None, None] * kernel

    def occupancy(self, actions):
        """Normalised discounted state occupancy d, [I, S], of joint actions [I, S, J]."""
        return (1 - self.gamma)[:, None] * torch.linalg.solve(self.flow(actions).mT, self.start)

    def moved(self, subset):
        """W1(d^S, d^mu), [I]."""
        return tv(self.occupancy(self.replaced(subset)), self.occupancy(self.behaviour))

    def state_values(self, actions):
        """V(s) [I, S] of joint actions [I, S, J]."""
        return torch.linalg.solve(self.flow(actions), (actions * self.rewards).sum(-1))

    def value(self, actions):
        """V [I], from the start, of joint actions [I, S, J]."""
        return (self.start * self.state_values(actions)).sum(-1)

    def action_values(self, values):
        """r + g P values, [I, S, J], of state values [I, S]."""
        ahead = torch.einsum("isjt,it->isj", self.transitions, values)
        return self.rewards + self.gamma[:, None, None] * ahead

    def exact_critic(self, actions):
        """Q [I, S, J] of joint actions [I, S, J]."""
        return self.action_values(self.state_values(actions))

    def extreme_critic(self, pick):
        """Q [I, 1, S, J] where the best (pick = torch.max) or worst (torch.min) of a draw's queries acts."""
        queries, chances = self.draws
        values = torch.zeros_like(self.start)
        for _ in range(50):  # policy iteration
            sizes = pick(self.action_values(values)[..., queries], dim=-1).indices  # [I, S, D]
            chosen = queries[torch.arange(len(queries)), sizes]
            values = self.state_values(torch.zeros_like(self.behaviour).scatter_add(-1, chosen, chances))
        return self.action_values(values).unsqueeze(1)

    def guess(self, actor, critic):
        """Vhat = E critic [I] from the start, actions by actor [I, S, J]."""
        return (self.start * (actor * critic).sum(-1)).sum(-1)

    def worst_error(self, value, actor, actions, logged):
        """The largest |value - Vhat| - |eps_FQI|, [I], of any 2/(1-gamma)-Lipschitz critic.

        eps_FQI is E (T critic - critic) / (1 - gamma), T that of `actions`, states by mu's occupancy,
        actions by `logged`. value - Vhat - eps_FQI is constant + sum of weights * critic, largest where the
        critic has their signs; a shift of the critic, which changes nothing here, makes eps_FQI zero.
        """
        gamma = self.gamma[:, None, None]
        data = self.occupancy(self.behaviour).unsqueeze(-1) * logged
        inflow = torch.einsum("isj,isjt->it", data, self.transitions).unsqueeze(-1)
        weights = (data - gamma * inflow * actions) / (1 - gamma) - self.start.unsqueeze(-1) * actor
        constant = value - (data * self.rewards).sum((1, 2)) / (1 - self.gamma)
        return constant.abs() + weights.abs().sum((1, 2)) / (1 - self.gamma)


def exact(x):
    """A float64 tensor."""
    return torch.as_tensor(x, dtype=torch.float64)


def tv(p, q):
    """Total variation over the last axis."""
    return (p - q).abs().sum(-1) / 2


def sup(x):
    """Sup norm per instance, [I]."""
    return x.abs().flatten(1).amax(1)


def subsets(num):
    """All non-empty subsets of the agents 0..num - 1 as lists, by size."""
    return [list(s) for size in range(1, num + 1) for s in itertools.combinations(range(num), size)]


def largest_kappa(world, subset):
    """max_S kappa_S, [I], whatever the subset."""
    return torch.stack([world.kappa(s) for s in subsets(world.num_agents)]).amax(0)


def one_size(k, world):
    """Weights [I, S, K] that are 1 on size k."""
    sizes = exact(torch.arange(1, world.num_agents + 1) == k)
    return sizes.expand(*world.start.shape, -1)


def product(policies):
    """Independent agents: policies [I, N, S, A] to joint actions [I, S, J]."""
    joint = policies[:, 0]
    for i in range(1, policies.shape[1]):
        joint = (joint.unsqueeze(-1) * policies[:, i].unsqueeze(-2)).flatten(-2)
    return joint


def query_kernel(policies):
    """Pr(a'^(k) = j | logged a'), exact equation (1): [I, 1 + K, S, J (logged), J (query)] for k = 0..N.

    Each agent keeps (identity) or replaces (its policy, whatever was logged): the coefficient of x^k in the
    Kronecker product of (identity + x * policy) sums over all sets of k agents.
    """
    num, count = policies.shape[1], policies.shape[-1]
    terms = exact(torch.ones_like(policies[:, :1, :, :1, None]))  # [I, 1 + k, S, J, J] of the agents so far
    for i in range(num):
        act = policies[:, i].unsqueeze(-2).expand(-1, -1, count, -1)
        kept, acted = (
            torch.einsum("iksab,iscd->iksacbd", terms, x).flatten(5, 6).flatten(3, 4)
            for x in (exact(torch.eye(count)).expand_as(act), act)
        )
        nothing = torch.zeros_like(kept[:, :1])
        terms = torch.cat([kept, nothing], 1) + torch.cat([nothing, acted], 1)
    return terms / exact([math.comb(num, k) for k in range(num + 1)]).view(-1, 1, 1, 1)


def uniform(generator, *shape):
    """Uniform numbers in [0, 1)."""
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def distributions(generator, *shape):
    """Random distributions over the last axis; a scale per instance makes them from flat to one-hot."""
    scale = exact([0.3, 1, 3, 30])[torch.randint(4, shape[:1], generator=generator)]
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (normal * scale.view(-1, *[1] * (len(shape) - 1))).softmax(-1)


def random_worlds(generator, instances, states=4, agents=3, actions=2, gamma=None, correlation=False):
    """Random Dec-MDPs from soft to deterministic. Policies lie between independent behaviour and anything,
    at any distance; half the rewards are -1 and 1. With `correlation`, mu is mixed with a joint one."""
    joint = actions**agents
    rewards = 2 * uniform(generator, instances, states, joint) - 1
    rewards[::2] = rewards[::2].sign()
    marginals, others = (distributions(generator, instances, agents, states, actions) for _ in range(2))
    step = uniform(generator, instances, 1, 1, 1) ** 3
    behaviour = product(marginals)
    if correlation:
        anything = distributions(generator, *behaviour.shape)
        behaviour = torch.lerp(behaviour, anything, uniform(generator, instances, 1, 1))
    drawn = exact(GAMMAS)[torch.randint(len(GAMMAS), (instances,), generator=generator)]
    return DecMDPs(
        transitions=distributions(generator, instances, states, joint, states),
        rewards=rewards,
        start=distributions(generator, instances, states),
        gamma=drawn if gamma is None else torch.full((instances,), gamma, dtype=torch.float64),
        behaviour=behaviour,
        policies=(1 - step) * marginals + step * others,
    )


# ---------------- hand-made Dec-MDPs: sharp cases and counterexamples


def by_hand(targets, rewards, behaviour, policies, gamma):
    """Dec-MDPs that start in the first state, one per entry of gamma: next states [S, J], rewards [S, J] or
    [S, 1], behaviour [J], policies [N, S or 1, A], or [I, N, S, A]."""
    targets, gamma = torch.as_tensor(targets).long(), exact(gamma)
    shape = (len(gamma), *targets.shape)
    start = exact(one_hot(torch.zeros(shape[:1], dtype=torch.long), shape[1]))
    transitions = exact(one_hot(targets, shape[1])).expand(*shape, -1)
    behaviour, policies = exact(behaviour).expand(shape), exact(policies)
    policies = policies.expand(shape[0], policies.shape[-3], shape[1], -1)
    return DecMDPs(transitions, exact(rewards).expand(shape), start, gamma, behaviour, policies)


def one_state(behaviour, policies, rewards, gamma):
    """One state: behaviour and rewards [J], policies [N, A]."""
    return by_hand([[0] * len(rewards)], rewards, behaviour, exact(policies).unsqueeze(1), [gamma])


def trap_worlds(agents, gamma, leave):
    """The sharp case, one per entry of gamma and leave: mu plays 0; each agent's policy plays 1 with chance
    `leave` (its TV_i), and any 1 leads from the good to the bad state, for good. The reward is 1 in the good
    state while nobody deviates, else -1."""
    deviate, leave = 2**agents - 1, exact(leave)
    targets = exact([[0] + [1] * deviate, [1] * (1 + deviate)])
    policies = torch.stack([1 - leave, leave], -1)[:, None, None].expand(-1, agents, 2, -1)
    return by_hand(targets, 1 - 2 * targets, [1] + [0] * deviate, policies, gamma)


def rare_trigger(gamma, p, flip):
    """Three agents, sharp for correlated data: agent 0 acts with chance p; if it does, the other two flip
    together (chance `flip`), else independently. From the start, joint actions that are likelier under
    (mu_0, mu_12) lead to one absorbing state, other rare ones to another, of reward -1, not 1. pi = mu_i."""
    pair, together = exact([1 - flip, flip]), exact([[1 - flip, 0], [0, flip]])
    behaviour = torch.stack([(1 - p) * torch.outer(pair, pair), p * together]).flatten()
    targets = [[0, 2, 2, 1, 2, 1, 1, 2], [1] * 8, [2] * 8]
    world = by_hand(targets, [[1], [1], [-1]], behaviour, torch.zeros(3, 1, 2), [gamma])
    return replace(world, policies=world.marginals())


def relay_world(gamma):
    """Two agents, three states in a row: the first agent's 1 leads on from the first, the second's from the
    second; the last has the only reward. mu plays 0, pi plays 1."""
    targets = [[0, 0, 1, 1], [1, 2, 1, 2], [2, 2, 2, 2]]
    return by_hand(targets, [[0], [0], [1]], [1, 0, 0, 0], [[[0, 1]]] * 2, [gamma])


def parity_game(gamma):
    """Three agents, one state: mu plays 0, pi plays 1, the reward is 1 for an odd number of 1s, else -1."""
    rewards = [2 * (bin(joint).count("1") % 2) - 1 for joint in range(8)]
    return one_state([1] + [0] * 7, [[0, 1]] * 3, rewards, gamma)


def two_queries(*tables):
    """Two agents, one state, g = 0.95: mu plays 0, pi plays 1, so m_1 asks (0, 1) or (1, 0) and m_2 (1, 1).
    Critics [1, E, 1, J] with these values by member and size."""
    values = [exact(table)[:, [0, 0, 0, 1]] * exact([0, 1, 1, 1]) for table in tables]
    return one_state([1, 0, 0, 0], [[0, 1]] * 2, [0] * 4, 0.95), *(v[None, :, None] for v in values)


# Q and Q' at which T^SP with w_k ~ 1/u_k expands: on integers, then with spreads e around 0 and 10.
EXPANDING = [two_queries([[0, 1], [1, 3]], [[1, 2], [2, 3]])]
for e in (1, 0.1, 0.01, 0.001):
    q = [[0, 10], [2 * e, 10 + 2 * e]]
    EXPANDING.append(two_queries(q, [[e / 2, 10 - e / 2], [1.5 * e, 10 + 2.5 * e]]))

# Rewards, and chances to go to the second state, by example, member, state and size.
REWARDS = exact([[[[-8, 7], [4, -9]], [[-9, 5], [0, 1]]], [[[-10, 6], [-5, -7]], [[-8, 9], [7, 9]]]]) / 10
CHANCES = exact([[[[0, 1], [10, 3]], [[0, 0], [0, 10]]], [[[8, 0], [10, 0]], [[0, 3], [0, 6]]]]) / 10
OWN_MODELS = [(REWARDS, CHANCES)]


@dataclass
class Sweep:
    """Dec-MDPs whose behaviours are independent across agents, others of any, and a generator for what else
    is drawn. Methods yield cases."""

    factorised: list
    correlated: list
    generator: torch.Generator
    instances: int = 200

    def splits(self):
        """Every set S of agents."""
        return ((world, s) for world in self.factorised for s in subsets(world.num_agents))

    def any_splits(self):
        """Every S, for policies of their own and for the data's marginals."""
        for world in self.correlated:
            both = (world, replace(world, policies=world.marginals()))
            yield from itertools.product(both, subsets(world.num_agents))

    def mixtures(self, worlds=None):
        """Weights w(s) of one size, and random ones."""
        for world in worlds or self.factorised:
            yield from ((world, one_size(k, world)) for k in range(1, world.num_agents + 1))
            yield world, distributions(self.generator, *world.start.shape, world.num_agents)

    def any_mixtures(self):
        return self.mixtures(self.factorised + self.correlated)

    def critic(self, world, members):
        """Random within 1/(1-gamma), [I, E, S, J]."""
        q = 2 * uniform(self.generator, len(world.gamma), members, *world.rewards.shape[1:]) - 1
        return q / (1 - world.gamma)[:, None, None, None]

    def critics(self):
        """Critics where the draws are few enough."""
        for world in self.factorised + self.correlated:
            if world.rewards.shape[-1] ** world.num_agents < 1000:
                yield world, self.critic(world, 3)

    def floors(self):
        """A sharp example, spreads at the floor around the values 0 and 15, and random critics."""
        c, d = 0.05, 1e-6
        q = [[0, 15], [2 * (c + d), 15 + 2 * (c + d)]]
        yield *two_queries(q, [[d, 15 - d], [2 * c + d, 15 + 2 * c + 3 * d]]), c
        for world, q in self.critics():
            yield world, q, q + 0.01 * self.critic(world, 3), 0.01
            yield world, q, q + 1, 1.0

    def datasets(self):
        return itertools.product(self.factorised, (30, 300, 3000))


def sharp_worlds(gammas):
    """The sharp cases: factorised ones, and any."""
    grid = [(g, leave) for g in gammas for leave in (1e-4 * (1 - g), 0.1 * (1 - g), 0.5, 1.0)]
    traps = [trap_worlds(n, *zip(*grid, strict=True)) for n in (1, 2, 3)]
    return traps, [traps[1], *(rare_trigger(g, 0.01 * (1 - g), 0.001 * (1 - g)) for g in gammas)]


def make_sweep(seed, instances, agents):
    """The default: random Dec-MDPs of 2 to 4 agents with 2 actions, of 2 with 3, and the sharp ones."""
    generator = torch.Generator().manual_seed(seed)
    teams = [(n, 2) for n in range(2, min(4, agents) + 1)] + [(2, 3)]
    each = math.ceil(instances / len(teams))
    factorised, correlated = sharp_worlds(GAMMAS)
    for n, a in teams:
        factorised.append(random_worlds(generator, each, agents=n, actions=a))
        correlated.append(random_worlds(generator, each, agents=n, actions=a, correlation=True))
    return Sweep(factorised, correlated, generator, instances)
