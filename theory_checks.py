"""Every claim of the paper's theory, checked by numbers that can fail.

Jin and Montana, "Partial Action Replacement: Tackling Distribution Shift in Offline MARL", AAAI 2026,
arXiv 2511.07629. The method's maths comes from spacql.py, the functions that train.

    python theory_checks.py --only contraction,lemma1       # by default all claims, in seconds

A claim is a pure function of a case to (value, bound). Its decorator holds name, equation, cases and what is
expected: it holds, perhaps with a condition, or fails, with these numbers. Proofs are in docs/theory.md.

g is gamma; d^S the occupancy where agents in S act by policy, the others as logged; m_k replaces k random
agents at every step, m_w = sum_k w_k m_k. Array letters: as in theory/dec_mdps.py, and E members.
"""

import itertools
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import spacql
from theory import dec_mdps, headline, report
from theory.dec_mdps import DecMDPs, Sweep, exact, one_size, product, sup, trap_worlds, tv, uniform
from theory.report import CLAIMS, CONDITION, PAPER, claim, fails
from utils.errors import check_choice, check_numbers
from utils.figures import save_figure
from utils.files import parse, run_script


@dataclass(frozen=True)
class Args:
    """Check the claims: a table on stdout, the same as JSON and a figure under --out."""

    out: str = "runs/theory"
    """folder for theory.json and the figure"""
    only: str = "all"
    """claims to check, separated by commas"""
    agents: int = 10
    """the largest team; 2 to 12"""
    instances: int = 200
    """random Dec-MDPs per claim"""
    seed: int = 0
    """seed of everything that is random"""


# ---- contraction: the weights w do not depend on Q


def backup(world, w, q):
    """T^SP, equations (2) and (4), exactly: q [I, E, S, J], w [I, S, K] -> [I, S, J]."""
    values = torch.einsum("iksj,isj->isk", world.mixtures, q.amin(1))
    target = spacql.spacql_target(0, values.unsqueeze(1), w, 1)
    return world.action_values(target)


def operators(sweep, members):
    """w of one size, or random; critics at three kinds of distances."""
    for world, w in sweep.any_mixtures():
        q, noise = sweep.critic(world, members), sweep.critic(world, members)
        for change in (noise, noise.sign(), torch.ones_like(q)):
            yield world, w, q, q + change


@claim("contraction", "T^(k), T^SP, w free of Q: |TQ - TQ'| <= g |Q - Q'|", partial(operators, members=1))
@claim("contraction", "with min over members: the same", partial(operators, members=3))
def contraction(world, w, q, other):
    change = backup(world, w, q) - backup(world, w, other)
    return sup(change), world.gamma * sup(q - other)


# ---- adaptive: the weights of equation (3) depend on Q


def adaptive_weights(world, q, floor=0.0):
    """w [I, S, D, K] of every draw from the spread of q [I, E, S, J] at its queries."""
    u = spacql.uncertainty(q[..., world.draws[0]])
    return spacql.replacement_weights(u.clamp(min=floor))


def adaptive_backup(world, q, floor=0.0):
    """T^SP as spacql.py draws it; floor is c in u_k >= c."""
    queries, chances = world.draws
    targets = spacql.spacql_target(0, q[..., queries], adaptive_weights(world, q, floor), 1)  # [I, S, D]
    return world.action_values((chances * targets).sum(-1))


EXPANDED = [(0.95 * 7 / 6, 0.95), *((2.375 * (1 - e / 10), 0.475 * e) for e in (1, 0.1, 0.01, 0.001))]
ONE_STEP = "By up to 4750, once: then members agree, w is 1/n, and no fixed point drives away."


@fails("adaptive", "T^SP, w_k ~ 1/u_k: the same", dec_mdps.EXPANDING, EXPANDED, note=ONE_STEP)
def adaptive_contraction(world, q, other):
    change = adaptive_backup(world, q) - adaptive_backup(world, other)
    return sup(change), world.gamma * sup(q - other)


def own_backup(rewards, chances, values):
    """V(s) [I, S] backed up by T^SP at g = 0.9, members with models [I, E, S, K] of their own."""
    values = values[:, None, None]
    q = rewards + 0.9 * torch.lerp(values[..., :1], values[..., 1:], chances)
    w = spacql.replacement_weights(spacql.uncertainty(q))
    return spacql.spacql_target(0, q, w, 1)


ENDS = [(3.944704, -4.561674), (1.638396, -4.390182), (3.944252, -6.977818), (2.580223, -6.657768)]
AWAY = "V of two examples. Undamped, (-6.98, -6.66) drives it away by -1.44 a step, the others do not."


@fails("adaptive", "... and models of their own: one fixed point", dec_mdps.OWN_MODELS, ENDS, "=", note=AWAY)
def one_fixed_point(rewards, chances):
    ends = []
    for start in ((10, -10), (-10, 10)):
        values = exact(start).expand(len(rewards), -1)
        for _ in range(500):
            values = (values + own_backup(rewards, chances, values)) / 2
        ends.append(values)
    return ends


@claim("adaptive", "u >= c: factor <= g + g H/2c, below 1 for c > g H/(2-2g)", Sweep.floors, CONDITION)
def floored_weights(world, q, other, floor):
    change = adaptive_backup(world, q, floor) - adaptive_backup(world, other, floor)
    values = other.amin(1)[..., world.draws[0]]  # [I, S, D, K]
    reach = (values.amax(-1) - values.amin(-1)).amax((1, 2))  # H
    distance = world.gamma * sup(q - other)
    return sup(change), (distance, reach / (2 * floor) * distance)


@claim("adaptive", "any weights: distance to the box [Q_low, Q_high] shrinks by g", Sweep.critics)
def box(world, q):
    low, high = world.extreme_critic(torch.min), world.extreme_critic(torch.max)
    image = adaptive_backup(world, q)[:, None]
    before, after = (sup(torch.maximum(low - x, x - high).clamp(min=0)) for x in (q, image))
    return after, world.gamma * before


@claim("adaptive", "one target, all (s, a) at once: w stays", Sweep.critics, CONDITION, "=")
def frozen_weights(world, q):
    first = adaptive_weights(world, q)
    for _ in range(20):
        q = torch.lerp(q, adaptive_backup(world, q)[:, None], 0.3)
    return adaptive_weights(world, q), first


# ---- Proposition 1, on spacql.py's networks, targets and losses


def problems(sweep):
    """2 to 5 agents, in spacql.py's shapes: one seed, 8 transitions."""
    gen, actions = sweep.generator, spacql.NUM_ACTIONS
    for trial in range(max(4, sweep.instances // 10)):
        num = 2 + trial % 4
        drawn = torch.randint(actions, (3, 1, 8, 1, num), generator=gen)
        played, logged, policy = exact(spacql.one_hot(drawn))  # [1, 8, 1, N, A] each
        state, next_state = uniform(gen, 2, 1, 8, 4 * num)
        sizes = (num * (4 + actions), 32, 32, 1)
        critic, later = ([exact(p) for p in spacql.init_networks([gen], 3, sizes)] for _ in range(2))
        target = partial(td_target, uniform(gen, 1, 8), later, next_state)
        yield partial(semi_gradient, critic, state, played), target, logged, policy


def td_target(rewards, later, next_state, query):
    q_target = spacql.critic_values(later, next_state, query)
    return spacql.spacql_target(rewards, q_target, torch.ones_like(q_target[:, 0]), 0.95)


def semi_gradient(critic, state, played, y):
    q = spacql.critic_values([p.requires_grad_() for p in critic], state, played).squeeze(-1)
    loss = spacql.critic_loss(q, y, penalty=q, alpha=0.5).sum()  # any penalty that is free of Y
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, critic)])


def by_hand(target, logged, policy):
    """Y_i = r + g min_j Qtarget_j(s', pi_i, a'_-i) of every agent, [N, 1, 8]."""
    agents = torch.eye(logged.shape[3], dtype=torch.bool).unsqueeze(-1)
    return torch.stack([target(torch.where(agent, policy, logged)) for agent in agents])


def in_order(order, target, logged, policy):
    """The target of partial_replacement at k = 1, agents in this order."""
    order = exact(order).expand(policy.shape[:-1])
    return target(spacql.partial_replacement(logged[:, :, 0], policy, order, torch.tensor([1])))


@claim("proposition1", "mean_i of ICQL-QS's semi-gradients = that at mean_i Y_i", problems, relation="=")
def mean_semi_gradient(semi_gradient, *rest):
    targets = by_hand(*rest)
    mean = torch.stack([semi_gradient(y) for y in targets]).mean(0)
    return mean, semi_gradient(targets.mean(0))


@claim("proposition1", "partial_replacement with agent i first: its target = Y_i", problems, relation="=")
def first_agent(_, *rest):
    targets = by_hand(*rest)
    orders = 1 - torch.eye(len(targets))
    return torch.stack([in_order(order, *rest) for order in orders]), targets


@claim("proposition1", "mean over all orders of its targets = mean_i Y_i", problems, relation="=")
def mean_over_orders(_, *rest):
    targets = by_hand(*rest)
    orders = itertools.permutations(range(len(targets)))
    found = torch.stack([in_order(order, *rest) for order in orders])
    return found.mean(0), targets.mean(0)


@fails("proposition1", "the same for gradients -6 and 2 clipped at 0.5", [([3, -1],)], [(0, -0.5)], "=")
def clipped_semi_gradient(targets):
    found = []
    for y in [*targets, sum(targets) / 2]:
        q = exact(torch.zeros(1, 1, 1, 1)).requires_grad_()
        spacql.critic_loss(q[0], exact([[y]]), penalty=0 * q[0], alpha=0.0).sum().backward()
        spacql.clip_gradients([q])
        found.append(q.grad)
    return (found[0] + found[1]) / 2, found[2]


# ---- Lemmas 1 and 2: occupancies

LEMMA = "W1(d^S, d^mu) <= g/(1-g) (sum_S TV_i"
TRIGGER = [(dec_mdps.rare_trigger(0.5, 0.1, 0.1), [0])]  # sum TV = 0, kappa = 0.018, kappa_S = 0.0324
HALF = [(dec_mdps.one_state([1, 0], [[0.5, 0.5]], [0, 0], 0.1), [0])]  # one agent, TV = 1/2, g = 0.1


@claim("lemma1", LEMMA + ")", Sweep.splits)
@claim("lemma2", LEMMA + " + kappa_S)", Sweep.any_splits, kappa=DecMDPs.kappa)
@claim("lemma2", LEMMA + " + max_S kappa_S)", Sweep.any_splits, kappa=dec_mdps.largest_kappa)
@fails("lemma2", LEMMA + " + kappa)", TRIGGER, [(0.024333115, 0.018)], kappa=lambda w, _: w.kappa())
@claim("lemma2", LEMMA + " + 2 kappa)", Sweep.any_splits, kappa=lambda w, _: 2 * w.kappa())
def occupancies(world, subset, kappa=lambda *_: 0.0):
    constant = world.gamma / (1 - world.gamma)
    return world.moved(subset), (constant * world.total_tv(subset), constant * kappa(world, subset))


@claim("lemma1", "sharper: W1 <= g T / (1-g + g T), T the joint TV", Sweep.splits)
def coupled(world, subset):
    joint = world.gamma * tv(world.replaced(subset), world.behaviour).amax(-1)
    return world.moved(subset), joint / (1 - world.gamma + joint)


@fails("lemma1", "W1 of states and actions: g/(1-g)", HALF, [(1 / 2, 1 / 18)], constant=lambda g: g / (1 - g))
@claim("lemma1", "W1 of states and actions: 1/(1-g)", Sweep.splits, constant=lambda g: 1 / (1 - g))
def state_actions(world, subset, constant):
    pairs = [world.occupancy(m).unsqueeze(-1) * m for m in (world.replaced(subset), world.behaviour)]
    return tv(*(p.flatten(1) for p in pairs)), constant(world.gamma) * world.total_tv(subset)


@claim("lemma1", "log max density ratio, log (1 + chi^2) = sums over S", Sweep.splits, relation="=")
def densities_multiply(world, subset):
    mu = world.behaviour
    seen = (mu.flatten(1) > 1e-100).all(-1)
    several = [subset, *([i] for i in subset)]
    ratios = torch.stack([world.replaced(s)[seen] / mu[seen] for s in several])
    logs = torch.stack([ratios.amax(-1), (ratios.square() * mu[seen]).sum(-1)]).log()
    return logs[:, 0], logs[:, 1:].sum(1)


@claim("lemma2", "kappa_S <= 2 kappa", Sweep.any_splits)
def kappa_of_splits(world, subset):
    return world.kappa(subset), 2 * world.kappa()


@fails("lemma2", "kappa of two mixed teams, n = 10: that of n = 2", [(10, 2)], [(0.8204345, 0.32)])
def kappa_of_teams(*sizes):
    teams = [product(exact([0.9, 0.1]).expand(1, num, 1, 2)) for num in sizes]
    return [tv((team + team.flip(-1)) / 2, torch.full_like(team, 1 / team.numel())) for team in teams]


# ---- Theorems 1 to 3: values, with the worst Qhat

BOUND = "|V - Vhat| <= eps + C (sum_S TV_i"
TRAP = [(trap_worlds(4, [0.1], [0.01]), [0, 1, 2, 3])]
NOTHING = "C = 4g/(1-g)^2. Of Qhat within 1/(1-g) it says nothing from (1-g)/(2g) on, 0.026 at g = 0.95."


def theorem(gamma):
    return 4 * gamma / (1 - gamma) ** 2


@claim("theorem1", BOUND + ")", Sweep.splits, note=NOTHING)
@fails("theorem1", "the same, eps_FQI on logged actions", TRAP, [(0.194163488, 0.0197530864)], logged=True)
@claim("theorem1", "that, C = 4/(1-g)^2", Sweep.splits, constant=lambda g: 4 / (1 - g) ** 2, logged=True)
@claim("theorem2", BOUND + " + kappa_S)", Sweep.any_splits, note=NOTHING, kappa=DecMDPs.kappa)
def values(world, subset, kappa=lambda *_: 0.0, constant=theorem, logged=False):
    actions, c = world.replaced(subset), constant(world.gamma)
    data = world.behaviour if logged else actions
    error = world.worst_error(world.value(actions), actions, actions, data)
    return error, (c * world.total_tv(subset), c * kappa(world, subset))


@claim("theorem3", "TV(m_w, mu) <= (k_eff/n) sum TV_i", Sweep.mixtures)
def shift(world, w):
    bound = world.share(w) * world.total_tv()[:, None]
    return tv(world.mixture(w), world.behaviour), bound


def traps(*cases):
    """trap_worlds of n agents at g, TV_i = 1e-3, with k = 1."""
    worlds = [trap_worlds(n, [g], [1e-3]) for n, g in cases]
    return [(world, one_size(1, world)) for world in worlds]


OF_M, OF_PI = dict(value="pi", by="m_w"), dict(value="pi", by="pi")
SAID = dict(words=PAPER, **OF_PI)
PAIR, TRIO, FOUR = traps((2, 0.95)), traps((2, 0.3), (3, 0.5)), traps((4, 0.5))
TRIO_ERRORS = [(0.00407231544, 0.00244897959), (0.0159123586, 0.008)]


@claim("theorem3", "|V_w - E_mw Qhat| <= eps + B", Sweep.mixtures, CONDITION, value="m_w", by="m_w")
@fails("theorem3", "|V^pi - E_mw Qhat| <= eps + B, n = 2", PAIR, [(2.260683307, 1.52)], **OF_M)
@fails("theorem3", "... if Qhat = Q of m_w, n = 2, 3", TRIO, TRIO_ERRORS, exact_q=True, **OF_M)
@fails("theorem3", "|V^pi - E_pi Qhat| <= eps + B, n = 2", PAIR, [(2.29988331, 1.52)], **SAID)
@fails("theorem3", "... if Qhat = Q of m_w, n = 4", FOUR, [(0.0118688632, 0.008)], exact_q=True, **SAID)
def theorem3(world, w, value, by, exact_q=False):
    """V and Vhat are of m_w or of the team pi; B = 4g/(1-g)^2 (k_eff/n) sum TV_i."""
    actions = world.mixture(w)
    policies = dict(m_w=actions, pi=product(world.policies))
    value, actor = world.value(policies[value]), policies[by]
    if exact_q:  # of m_w, so eps_FQI is 0
        error = (value - world.guess(actor, world.exact_critic(actions))).abs()
    else:
        error = world.worst_error(value, actor, actions, actions)
    return error, theorem(world.gamma) * world.share(w).amax(-1) * world.total_tv()


@claim("theorem3", "|V^pi - V_w| <= R = 2/(1-g)^2 (1 - k_eff/n) sum TV_i", Sweep.mixtures)
@claim("tradeoff", "any mu: |V^pi - V_w| <= 2/(1-g)^2 ((1 - k_eff/n) sum TV_i + kappa)", Sweep.any_mixtures)
def bias(world, w):
    constant = 2 / (1 - world.gamma) ** 2
    left = 1 - world.share(w).amin(-1)
    error = world.value(product(world.policies)) - world.value(world.mixture(w))
    return error.abs(), constant * (left * world.total_tv() + world.kappa())


@claim("theorem3", "|V^pi - E_mw Qhat| <= eps + B + R", Sweep.mixtures, factor=lambda g: 1, **OF_M)
@claim("theorem3", "|V^pi - E_pi Qhat| <= eps + B + (2-g) R", Sweep.mixtures, factor=lambda g: 2 - g, **OF_PI)
def theorem3_repaired(world, w, factor, **which):
    error, bound = theorem3(world, w, **which)
    return error, (bound, factor(world.gamma) * bias(world, w)[1])


def missing(world, samples):
    """Expected share [I, 1 + K] of fresh queries (s', a'^(k)), k = 0..N, that `samples` logged pairs lack."""
    here, mu = world.occupancy(world.behaviour).unsqueeze(-1), world.behaviour
    queries = torch.cat([mu.unsqueeze(1), world.mixtures], 1)
    return ((1 - here * mu) ** samples * here).unsqueeze(1).mul(queries).sum((2, 3))


@claim("coverage", "missing(k) <= missing(0) + (k/n) sum TV_i", Sweep.datasets)
def missing_bound(world, samples):
    share = exact(torch.arange(world.num_agents + 1)) / world.num_agents
    found = missing(world, samples)
    return found, (found[:, :1], share * world.total_tv()[:, None])


@claim("tradeoff", "the fixed point of T^(k) is Q of m_k, of T^SP Q of m_w", Sweep.any_mixtures, relation="=")
def fixed_point(world, w):
    q = world.exact_critic(world.mixture(w))
    return backup(world, w, q[:, None]), q


@fails("tradeoff", "V(m_1) = mean_i of V(pi_i, mu_-i)", [(dec_mdps.relay_world(0.9),)], [(6.694215, 0)], "=")
def redrawn(world):
    held = [world.value(world.replaced([i])) for i in range(world.num_agents)]
    return world.value(world.mixtures[:, 0]), torch.stack(held).mean(0)


@fails("tradeoff", "|V^pi - V(m_2)| <= |V^pi - V(m_1)|", [(dec_mdps.parity_game(0.9),)], [(20, 0)])
def bias_falls(world):
    one, two = (bias(world, one_size(k, world))[0] for k in (1, 2))
    return two, one


@claim("correlation", "|V(mu) - V(prod mu_i)| <= 2/(1-g)^2 kappa", lambda sweep: zip(sweep.correlated))
def imitation(world):
    lost = world.value(world.behaviour) - world.value(product(world.marginals()))
    return lost.abs(), 2 / (1 - world.gamma) ** 2 * world.kappa()


def main(argv=None):
    """Print the table, write JSON and figure; the status is 1 if a verdict surprises."""
    args = parse(Args, argv, description=__doc__)
    torch.set_num_threads(1)  # the matrices are small
    known = list(dict.fromkeys(c.name for c in CLAIMS))
    names = known if args.only == "all" else args.only.split(",")
    for name in names:
        check_choice("claim", name, known)
    least, most = dict(agents=2, instances=2, seed=0), dict(agents=12, instances=100_000, seed=2**31)
    check_numbers(vars(args), least, most)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    chosen = sorted((c for c in CLAIMS if c.name in names), key=lambda c: known.index(c.name))
    make = partial(dec_mdps.make_sweep, args.seed, args.instances, args.agents)
    rows = [report.judge(c, make()) for c in tqdm(chosen, file=sys.stderr, unit="claim")]
    print(report.table(rows), flush=True)
    shown = headline.curves(args.agents, args.seed) if "lemma1" in names else None
    report.save(Path(args.out), asdict(args), rows, shown)
    if shown:
        save_figure(headline.draw, Path(args.out) / "linear_or_exponential.png", (13, 4.2), shown)
    return int(any(row["verdict"] != row["expected"] for row in rows))


if __name__ == "__main__":
    run_script("theory_checks.py", lambda: sys.exit(main()))
