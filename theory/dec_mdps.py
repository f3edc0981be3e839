"""Random Dec-MDPs small enough for exact arithmetic, and the behaviours that fill their datasets.

Everything is float64 and batched: I Dec-MDPs with the same sizes side by side. Values and occupancies are linear
solves, bounds and notation those of theory_checks.py.

A method's `actions` is a distribution over joint actions at every state.

Array letters: I Dec-MDPs, S states (T: the next one), N agents, A actions of an agent, J = A^N joint actions (the last
agent's action runs fastest).
"""

import itertools
import math
from dataclasses import dataclass, replace

import torch

GAMMAS = (0.1, 0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class DecMDPs:
    """I Dec-MDPs with the same sizes, each with a behaviour (joint, maybe correlated) and one policy per agent."""

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
        actions = self.policies.shape[-1]
        split = [self.behaviour.unflatten(-1, (actions**i, actions, -1)) for i in range(self.num_agents)]
        return torch.stack([joint.sum((2, 4)) for joint in split], 1)

    def agent_tv(self):
        """TV_i, [I, N]."""
        return tv(self.policies, self.marginals()).amax(-1)

    def replaced(self, subset):
        """(pi_S, mu_-S), [I, S, J]: the agents in `subset` act by their policies."""
        grid = as_grid(self.behaviour, self.num_agents)
        for i in subset:
            shape = [*self.rewards.shape[:2], *[1] * self.num_agents]
            shape[2 + i] = -1
            grid = grid.sum(2 + i, keepdim=True) * self.policies[:, i].reshape(shape)
        return grid.flatten(2)

    def kappa(self, subset=None):
        """Dependence, [I]: max_s TV(mu, (product of mu_i over `subset`) x mu_-S); by default of all agents."""
        alone = replace(self, policies=self.marginals())
        return tv(alone.replaced(range(self.num_agents) if subset is None else subset), self.behaviour).amax(-1)

    def mixtures(self):
        """m_k for k = 1..N, [I, K, S, J]: k agents, drawn afresh, act by their policies, the others by mu."""
        return torch.einsum("isa,iksaj->iksj", self.behaviour, query_kernel(self.policies)[:, 1:])

    def state_kernel(self, actions):
        """Pr(t | s) under joint actions [I, S, J]; [I, S, T]."""
        return torch.einsum("isj,isjt->ist", actions, self.transitions)

    def flow(self, actions):
        """Identity - gamma * Pr(t | s) under joint actions [I, S, J]; [I, S, T]."""
        return exact(torch.eye(len(self.start[0]))) - self.gamma[:, None, None] * self.state_kernel(actions)

    def occupancy(self, actions):
        """Normalised discounted state occupancy d, [I, S], of joint actions [I, S, J], by a linear solve."""
        return (1 - self.gamma)[:, None] * torch.linalg.solve(self.flow(actions).mT, self.start)

    def state_values(self, actions):
        """V(s) [I, S] of joint actions [I, S, J], by a linear solve."""
        return torch.linalg.solve(self.flow(actions), (actions * self.rewards).sum(-1))

    def value(self, actions):
        """V [I], from the start, of joint actions [I, S, J]."""
        return (self.start * self.state_values(actions)).sum(-1)

    def action_values(self, values):
        """r + g P values, [I, S, J], of state values [I, S]."""
        return self.rewards + self.gamma[:, None, None] * torch.einsum("isjt,it->isj", self.transitions, values)

    def fit_errors(self, actions, q, logged):
        """(V - Vhat, eps_FQI), signed, [I] each, of a critic q [I, S, J] for joint actions [I, S, J]: Vhat = E q from
        the start, eps_FQI = E (T q - q) / (1 - gamma), states by the behaviour's occupancy, actions by `logged`."""
        v_hat = (actions * q).sum(-1)
        residual = (logged * (self.action_values(v_hat) - q)).sum(-1)
        eps = (self.occupancy(self.behaviour) * residual).sum(-1) / (1 - self.gamma)
        return self.value(actions) - (self.start * v_hat).sum(-1), eps

    def worst_critic(self, actions, logged):
        """The 2/(1-gamma)-Lipschitz critic [I, S, J] with the largest |V - Vhat| - eps_FQI of fit_errors.

        V - Vhat - eps_FQI is linear in the error Q - q, with weights as below: signs of the weights maximise it, and a
        constant shift, which moves V - Vhat and eps_FQI alike, makes eps_FQI zero.
        """
        gamma = self.gamma[:, None, None]
        data = self.occupancy(self.behaviour).unsqueeze(-1) * logged
        inflow = torch.einsum("isj,isjt->it", data, self.transitions).unsqueeze(-1)
        weights = (self.start.unsqueeze(-1) + gamma / (1 - gamma) * inflow) * actions - data / (1 - gamma)
        weights = torch.where(weights.abs() > 1e-15, weights, 0.0)  # what is 0 but for rounding
        value = (weights * self.action_values(self.state_values(actions))).sum((1, 2), keepdim=True)
        q = torch.where(value < 0, 1.0, -1.0) * weights.sign() / (1 - gamma)
        return q + self.fit_errors(actions, q, logged)[1][:, None, None]

    def extreme_values(self, mixtures, pick):
        """V(s) [I, S] where the best (pick = torch.amax) or worst (torch.amin) of mixtures [I, K, S, J] acts."""
        values = torch.zeros_like(self.start)
        for _ in range(math.ceil(math.log(1e-13) / math.log(float(self.gamma.max())))):
            values = pick(torch.einsum("iksj,isj->iks", mixtures, self.action_values(values)), dim=1)
        return values


def exact(x):
    """A float64 tensor."""
    return torch.as_tensor(x, dtype=torch.float64)


def as_grid(joint, num):
    """[I, S, J] with one axis per agent, [I, S, A, .., A]; the last agent's action runs fastest."""
    return joint.unflatten(-1, (round(joint.shape[-1] ** (1 / num)),) * num)


def tv(p, q):
    """Total variation over the last axis."""
    return (p - q).abs().sum(-1) / 2


def sup(x):
    """Sup norm per instance, [I]."""
    return x.abs().flatten(1).amax(1)


def one_hot_weights(index, count, states, num):
    """Weights [I, S, K] that are 1 on one size."""
    return exact(torch.arange(num) == index).expand(count, states, num)


def product(policies):
    """Independent agents: policies [I, N, S, A] to joint actions [I, S, J]."""
    joint = policies[:, 0]
    for i in range(1, policies.shape[1]):
        joint = (joint.unsqueeze(-1) * policies[:, i].unsqueeze(-2)).flatten(-2)
    return joint


def coordinated(marginals):
    """One uniform number per step drives all agents: the comonotone joint [I, S, J] of marginals [I, N, S, A]."""
    high = marginals.cumsum(-1)
    low, high = (high - marginals).unbind(1), high.unbind(1)
    left, right = low[0], high[0]
    for i in range(1, len(low)):  # an action's numbers form an interval: joint ones are intersections
        left = torch.maximum(left.unsqueeze(-1), low[i].unsqueeze(-2)).flatten(-2)
        right = torch.minimum(right.unsqueeze(-1), high[i].unsqueeze(-2)).flatten(-2)
    joint = (right - left).clamp(min=0)
    return joint / joint.sum(-1, keepdim=True)


def correlated(marginals, dial):
    """Behaviour [I, S, J] with these marginals: independent at dial 0, fully coordinated at 1; dial a number or [I]."""
    dial = exact(dial).reshape(-1, 1, 1)
    return (1 - dial) * product(marginals) + dial * coordinated(marginals)


def query_kernel(policies):
    """Pr(a'^(k) = j | logged a'), exact equation (1): [I, 1 + K, S, J (logged), J (query)] for k = 0..N.

    Agent by agent, either keeping (identity) or replacing (its policy, whatever was logged): the coefficient of x^k in
    the Kronecker product of (identity + x * policy) sums over all sets of k agents.
    """
    num, count = policies.shape[1], policies.shape[-1]
    terms = [exact(torch.ones(*policies[:, 0, :, :1].shape, 1))]  # by k, [I, S, J, J] of the agents so far
    for i in range(num):
        act = policies[:, i].unsqueeze(-2).expand(-1, -1, count, -1)
        keep = exact(torch.eye(count)).expand_as(act)
        kron = lambda a, b: torch.einsum("isab,iscd->isacbd", a, b).flatten(4, 5).flatten(2, 3)  # noqa: E731
        kept, acted = [kron(t, keep) for t in terms], [kron(t, act) for t in terms]
        terms = [kept[0], *(a + b for a, b in zip(kept[1:], acted, strict=False)), acted[-1]]
    return torch.stack([term / math.comb(num, k) for k, term in enumerate(terms)], 1)


def uniform(generator, *shape):
    """Uniform numbers in [0, 1)."""
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def distributions(generator, *shape):
    """Random distributions over the last axis; a scale per instance (first axis) makes them from flat to one-hot."""
    scale = exact([0.3, 1, 3, 30])[torch.randint(4, shape[:1], generator=generator)]
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (normal * scale.view(-1, *[1] * (len(shape) - 1))).softmax(-1)


def random_worlds(generator, instances, states=4, agents=3, actions=2, gamma=None, correlation=False):
    """Random Dec-MDPs from soft to deterministic. Policies lie between behaviour and something else, at any distance;
    half the rewards are -1 and 1. With `correlation` behaviours have random dials, else agents are independent."""
    joint = actions**agents
    rewards = 2 * uniform(generator, instances, states, joint) - 1
    rewards[::2] = rewards[::2].sign()
    marginals, others = (distributions(generator, instances, agents, states, actions) for _ in range(2))
    step = uniform(generator, instances, 1, 1, 1) ** 3
    dial = uniform(generator, instances) if correlation else 0.0
    drawn = exact(GAMMAS)[torch.randint(len(GAMMAS), (instances,), generator=generator)]
    return DecMDPs(
        transitions=distributions(generator, instances, states, joint, states),
        rewards=rewards,
        start=distributions(generator, instances, states),
        gamma=drawn if gamma is None else torch.full((instances,), gamma, dtype=torch.float64),
        behaviour=correlated(marginals, dial),
        policies=(1 - step) * marginals + step * others,
    )


def trap_worlds(agents, gamma, leave):
    """The sharp case, one per entry of gamma and leave (lists of equal length): mu always plays action 0 in the good
    state; each agent's policy plays 1 with chance `leave` (its TV_i), and any 1 leads to the bad state, for good.
    Rewards are 1 in the good state while nobody deviates, else -1."""
    gamma, leave, joint = exact(gamma), exact(leave), 2**agents
    stays = exact([[True] + [False] * (joint - 1), [False] * joint]).expand(len(gamma), -1, -1)
    logged = exact([1.0, 0.0]).expand(len(gamma), agents, 2, -1)
    return DecMDPs(
        transitions=torch.stack([stays, 1 - stays], -1),
        rewards=2 * stays - 1,
        start=exact([1.0, 0.0]).expand(len(gamma), -1),
        gamma=gamma,
        behaviour=product(logged),
        policies=torch.stack([1 - leave, leave], -1)[:, None, None].expand_as(logged),
    )


def rare_trigger(gamma):
    """Three agents, sharp for correlated data: agent 0 acts rarely (chance p); if it does, the other two flip together,
    else independently, rarely for this gamma. From the start, rare joint actions that are likelier under (mu_0, mu_12)
    lead to one absorbing state (reward 1), other rare ones to another, and (0, 0, 0) stays (rewards -1). pi = mu_i."""
    p, flip = 0.01 * (1 - gamma), 0.001 * (1 - gamma)  # so small that second orders vanish in the bounds
    pair, together = exact([1 - flip, flip]), exact([[1 - flip, 0], [0, flip]])
    behaviour = torch.stack([(1 - p) * torch.outer(pair, pair), p * together]).flatten().expand(1, 3, 8)
    more, less = exact([0, 0, 0, 1, 0, 1, 1, 0]), exact([0, 1, 1, 0, 1, 0, 0, 1])
    transitions = torch.cat(
        [torch.stack([1 - more - less, more, less], -1)[None], exact(torch.eye(3))[1:, None].expand(2, 8, 3)]
    )
    rewards = exact([-1.0, 1.0, -1.0]).view(1, 3, 1).expand(1, 3, 8)
    unset = exact(torch.zeros(1, 3, 3, 2))
    world = DecMDPs(transitions[None], rewards, exact([[1.0, 0, 0]]), exact([gamma]), behaviour, unset)
    return replace(world, policies=world.marginals())


def one_state(behaviour, policies, rewards, gamma):
    """One Dec-MDP with a single state: behaviour and rewards [J], policies [N, A]."""
    behaviour, policies, rewards = (exact(x) for x in (behaviour, policies, rewards))
    mu, stay = behaviour.view(1, 1, -1), exact(torch.ones(1, 1, len(behaviour), 1))
    return DecMDPs(stay, rewards.view_as(mu), stay[:, 0, :1, 0], exact([gamma]), mu, policies[None, :, None])


def parity_game(gamma=0.9):
    """Three agents, one state: mu plays 0, pi plays 1, the reward is 1 for an odd number of 1s, else -1."""
    ones = torch.cartesian_prod(*[torch.arange(2)] * 3).sum(-1)  # [J]
    return one_state(ones == 0, [[0, 1]] * 3, 2 * (ones % 2) - 1, gamma)


def relay_world(gamma=0.9):
    """Two agents, three states in a row: the first agent's 1 leads on from the first, the second's from the second, the
    last has the only reward. mu plays 0, pi plays 1."""
    first, second = exact([0, 0, 1, 1]), exact([0, 1, 0, 1])  # [J]: does the agent play 1?
    none = exact(torch.zeros(4))
    rows = [[1 - first, first, none], [none, 1 - second, second], [none, none, none + 1]]
    transitions = torch.stack([torch.stack(row, -1) for row in rows])[None]  # [1, S, J, T]
    rewards = exact([0, 0, 1]).view(1, 3, 1).expand(1, 3, 4)
    behaviour = exact([1, 0, 0, 0]).expand(1, 3, 4)
    return DecMDPs(
        transitions, rewards, exact([[1, 0, 0]]), exact([gamma]), behaviour, exact([0, 1]).expand(1, 2, 3, 2)
    )


def subsets(num):
    """All non-empty subsets of the agents 0..num - 1, as lists."""
    return [list(s) for size in range(1, num + 1) for s in itertools.combinations(range(num), size)]


@dataclass
class Sweep:
    """What a claim is tried on: Dec-MDPs whose behaviours are independent across agents, others whose are not, a
    generator for what else is drawn, the number of instances, the largest team, and a seed."""

    factorised: list
    correlated: list
    generator: torch.Generator
    instances: int = 200
    agents: int = 4
    seed: int = 0


def make_sweep(seed, instances, agents):
    """The default sweep: random Dec-MDPs of 2 to 4 agents with 2 actions, of 2 agents with 3, and the sharp ones."""
    generator = torch.Generator().manual_seed(seed)
    teams = [(n, 2) for n in range(2, min(4, agents) + 1)] + [(2, 3)]
    each = math.ceil(instances / len(teams))
    factorised, correlated = (
        [random_worlds(generator, each, agents=n, actions=a, correlation=on) for n, a in teams] for on in (False, True)
    )
    grid = [(g, leave) for g in GAMMAS for leave in (1e-3 * (1 - g), 0.1 * (1 - g), 0.5, 1.0)]
    factorised += [trap_worlds(n, *zip(*grid, strict=True)) for n in (1, 2, 4)]
    correlated = [*[rare_trigger(g) for g in GAMMAS], *correlated]
    return Sweep(factorised, correlated, generator, instances, agents, seed)


def subset_curves(agents, samples, generator, linear, coupling):
    """What happens as |S| agents of `agents` are replaced, exactly, in 4 random Dec-MDPs with gamma 0.95, independent
    behaviours and TV_i = 0.3: for |S| = 0..N the lowest, mean and highest of each quantity over all subsets and worlds.

    linear(gamma, sum of TV_i) and coupling(gamma, joint TV) are the bounds on W1; support is 1 / the chance that a
    joint action of (pi_S, mu_-S) is among `samples` logged ones at the same state.
    """
    world = random_worlds(generator, 4, states=3, agents=agents, gamma=0.95)
    rare = 0.02 + 0.04 * uniform(generator, 4, agents, 3, 1)
    logged, others = torch.cat([1 - rare, rare], -1), torch.cat([0.7 - rare, 0.3 + rare], -1)
    world = replace(world, behaviour=product(logged), policies=others)
    mu, distance = world.behaviour, world.agent_tv()
    before, unseen = world.occupancy(mu), (1 - mu) ** samples
    by_size = []
    for subset in [[], *subsets(agents)]:
        actions = world.replaced(subset)
        found = dict(
            W1=tv(world.occupancy(actions), before),
            coupling=coupling(world.gamma, tv(actions, mu).amax(-1)),
            linear=linear(world.gamma, distance[:, subset].sum(-1)),
            ratio=(actions / mu).amax((1, 2)),
            chi2=(actions**2 / mu).sum(-1).amax(-1),
            support=1 / (actions * (1 - unseen)).sum(-1).amin(-1),
        )
        if len(subset) == len(by_size):  # subsets come by size
            by_size.append({name: [] for name in found})
        for name, values in found.items():
            by_size[-1][name].append(values)
    curves = {name: [] for name in by_size[0]}
    for row in by_size:
        for name, values in row.items():
            values = torch.stack(values)
            curves[name].append([float(values.min()), float(values.mean()), float(values.max())])
    return dict(agents=agents, samples=samples, curves=curves)


def bound_curves(value_bound, bias_bound, gamma=0.95):
    """Panels of errors and bounds, exactly, in the sharp case: Theorem 1 against sum TV, and Theorem 3 against k_eff.
    value_bound(gamma, distance) and bias_bound(gamma, distance) are theory_checks.py's."""
    top = 1 / (1 - gamma)
    leave = torch.logspace(-4, 0, 17, dtype=torch.float64)
    world = trap_worlds(3, [gamma] * len(leave), leave)
    actions = world.replaced([0, 1, 2])
    stay = actions[:, 0, 0]
    # The bounded critic: the bad state is worth 1/(1-g), the good one fits its Bellman equation.
    good = (2 * stay - 1 + gamma * (1 - stay) * top) / (1 - gamma * stay)
    flattered = torch.stack([good, torch.full_like(good, top)], -1).unsqueeze(-1).expand_as(world.rewards)
    total = world.agent_tv().sum(-1)
    theorem1 = {
        "worst Lipschitz Qhat": world.fit_errors(actions, world.worst_critic(actions, actions), actions)[0].abs(),
        "a Qhat within 1/(1-g), eps = 0": world.fit_errors(actions, flattered, actions)[0].abs(),
        "bound": value_bound(gamma, total),
    }
    one = trap_worlds(5, [gamma], [1e-5])
    ks, team = exact(torch.arange(1, 6)), one.value(product(one.policies))
    errors = torch.cat([one.fit_errors(m, one.worst_critic(m, m), m)[0].abs() for m in one.mixtures().unbind(1)])
    biases = torch.cat([(team - one.value(m)).abs() for m in one.mixtures().unbind(1)])
    theorem3 = {
        "worst |V_w - Vhat|": errors,
        "its bound, by k_eff / n": value_bound(gamma, ks * 1e-5),
        "bias |V_pi - V_w|": biases,
        "bias bound": bias_bound(gamma, (5 - ks) * 1e-5),
    }
    panels = (
        ("Theorem 1: three agents, g = 0.95", "sum of TV_i", "log", total, theorem1),
        ("Theorem 3: five agents, TV_i = 1e-5, g = 0.95", "k_eff", "linear", ks, theorem3),
    )
    return [
        dict(
            title=title,
            xlabel=xlabel,
            scale=scale,
            largest=2 * top,
            x=x.tolist(),
            curves={name: values.tolist() for name, values in curves.items()},
        )
        for title, xlabel, scale, x, curves in panels
    ]
