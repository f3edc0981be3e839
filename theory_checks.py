"""Every claim of the paper's theory, checked by numbers that can fail.

Reference: Jin and Montana, "Partial Action Replacement: Tackling Distribution Shift in Offline MARL", AAAI 2026
(arXiv 2511.07629). The maths of the method comes from spacql.py, the very functions that train.

    python theory_checks.py                                     # all claims, a minute or two
    python theory_checks.py --only lemma1,theorem3 --agents 8 --instances 200 --seed 0 --out results/theory

A claim is one function: its docstring defines, states and proves it. It returns rows of a table: the number of tries,
the worst slack (bound - value), tightness (value / bound) and a verdict: "holds"; "holds with a condition", which the
row names; "fails", a published wording or a natural guess, with its counterexample (other rows have what does hold);
"measured", where finite datasets are drawn or no theorem is at stake. All else is exact in float64: linear solves and
sums over all joint actions. The exit status is 1 if a verdict is not the expected one.

    contraction, adaptive: T^(k), T^SP      proposition1: semi-gradients      lemma1, theorem1: factorised mu
    lemma2, theorem2: correlated mu         theorem3: k_eff      coverage, tradeoff, correlation: in practice

Conventions: rewards in [-1, 1], so values lie within 1/(1-g) (g is gamma); V is the unnormalised discounted value from
the start distribution rho, Vhat = E_rho Qhat; TV is half the L1 distance, TV_i = max_s TV(pi_i(.|s), mu_i(.|s)), mu_i a
marginal of mu; d^m and P_m are the normalised occupancy, (1-g) sum_t g^t Pr(s_t), and state kernel under a joint action
distribution m; the ground metric is 0-1, so W1 is TV. For a set S of agents, (pi_S, mu_-S) means pi_i for i in S and
the others' joint marginal of mu, d^S its occupancy; m_k replaces k random agents, drawn afresh at every step.

Array letters: I Dec-MDPs side by side, S states, N agents, A actions of an agent, J = A^N joint actions, K replacement
sizes, E members. Dec-MDPs: theory/dec_mdps.py; learning: theory/tabular.py; verdicts, figures: data/verdicts.py.
"""

import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

import spacql
from theory import dec_mdps, tabular
from theory import report as verdicts
from theory.dec_mdps import distributions, exact, one_hot_weights, product, subsets, sup, tv, uniform
from theory.report import CONDITION, FAILS, MEASURED, check, listed
from utils.errors import InputError, check_choice
from utils.files import parse, run_script


@dataclass(frozen=True)
class Args:
    """Check the theory's claims; a table on stdout, the same as JSON and figures under --out."""

    out: str = "runs/theory"
    """folder for theory.json and the figures (PNG and PDF)"""
    only: str = "all"
    """claims to check, separated by commas"""
    agents: int = 10
    """the largest team, in lemma1's figure and sweeps over n; 2 to 12"""
    instances: int = 200
    """random Dec-MDPs per claim"""
    seed: int = 0
    """seed of everything that is random"""


# ------------------------------------------------------------------------- operators, norms and bounds


def backup(world, mixtures, weights, q):
    """T^SP, equations (2) and (4), exactly: ensemble q [I, E, S, J], weights [I, S, K] -> [I, S, J]."""
    values = torch.einsum("iksj,isj->isk", mixtures, q.amin(1))
    zeros, unit = torch.zeros_like(world.start), torch.ones(())
    return world.action_values(spacql.spacql_target(zeros, values.unsqueeze(1), weights, unit))


def adaptive_weights(mixtures, q, floor=0.0):
    """Equation (3) at every state: w [I, S, K] from the mean spread of q [I, E, S, J] over the k-replaced queries."""
    u = torch.einsum("iksj,isj->isk", mixtures, spacql.uncertainty(q))
    return spacql.replacement_weights(u.clamp(min=floor))


def occupancy_bound(gamma, distance):
    """Lemma 1: the most that state occupancies can differ when the actions' TV is `distance` (summed over agents)."""
    return gamma / (1 - gamma) * distance


def value_bound(gamma, distance):
    """Theorems 1 to 3: the most that actions at TV `distance` from the data add to the error of Vhat."""
    return 4 * gamma / (1 - gamma) ** 2 * distance


def logged_bound(gamma, distance):
    """Theorem 1 with eps_FQI on the data's own actions: as value_bound."""
    return 4 / (1 - gamma) ** 2 * distance


def bias_bound(gamma, distance):
    """The most that the values of two policies at TV `distance` differ."""
    return 2 / (1 - gamma) ** 2 * distance


def vacuous_note(what, largest):
    """For which share of [0, largest] value_bound exceeds 2/(1-g), the largest error of a Qhat within 1/(1-g)."""
    shares = [1 - (1 - g) / (2 * g) / largest for g in (0.5, 0.9, 0.95, 0.99)]
    return f"above the largest possible error for {listed(shares, '.1%')} of {what}, at g = 0.5, 0.9, 0.95, 0.99."


# ---------------------------------------------------------------------------------------------- claims


def contraction(sweep):
    """|T Q - T Q'| <= g |Q - Q'| in the sup norm for each T^(k), for T^SP with any weights w(s') on the
    simplex that do not depend on Q, and for their ensemble version with min_j inside (sup norm over members too).

    Proof: |min_j Q_j - min_j Q'_j| <= max_j |Q_j - Q'_j|; averaging over a'^(k), over k by w and over s' by P are
    convex combinations, which do not enlarge a sup norm; g multiplies the result. A constant shift of Q attains g:
    nothing better holds. (tests/test_theory.py checks these operators against spacql.partial_replacement.)
    """
    factors = {"T^(k)": [], "T^SP": [], "T^SP with min": []}
    for world in sweep.factorised + sweep.correlated:
        mixtures = world.mixtures()
        (count, num), (states, joint) = mixtures.shape[:2], mixtures.shape[2:]
        for members in (1, 3):
            q = uniform(sweep.generator, count, members, states, joint)
            noise = uniform(sweep.generator, count, members, states, joint) - 0.5
            for difference in (noise, noise.sign(), torch.ones_like(noise)):
                for k in range(num + 1):  # T^(1) .. T^(N), then random weights
                    drawn = distributions(sweep.generator, count, states, num)
                    weights = one_hot_weights(k, count, states, num) if k < num else drawn
                    change = backup(world, mixtures, weights, q + difference) - backup(world, mixtures, weights, q)
                    name = "T^SP with min" if members > 1 else "T^(k)" if k < num else "T^SP"
                    factors[name].append((sup(change) / sup(difference), world.gamma))
    return [check(f"{name}: |TQ - TQ'| <= g |Q - Q'|", pairs) for name, pairs in factors.items()], {}


def adaptive(sweep):
    """T^SP with the weights of equation (3), w_k ~ 1/u_k, is a contraction. It is NOT.

    Counterexample: one state, two agents (K = 2), two members. The weights depend on ratios of the u_k only, so with
    spreads of order e, changes of order e move a weight from 1/2 to anything, and the target by a share of the distance
    between the two sizes' values, which is not small: the factor grows like 1/e, whatever g > 0. Fixed points need not
    be unique either: where members keep different models (each its own bootstrap; Q_j = r_j + g P_j V), two starts of
    one damped iteration end at different values from two states on (with one state u cannot depend on V).

    What holds instead:
    (a) Weights that do not depend on Q contract (`contraction`).
    (b) A floor c on u: factor <= g (1 + H / (2c)), H the range over k of v_k = E min_j Q_j(k-replaced), at most over
        states. Proof: |sum w v - sum w' v'| <= max |v - v'| + TV(w, w') H; the softmax w of -log max(u, c) has TV(w,
        w') <= max |log max(u, c) - log max(u', c)| / 2 <= |Q - Q'| / (2c), as a standard deviation changes by no more
        than its arguments. It proves a contraction where c > g H / (2 (1-g)). But if all members' values lie in a range
        of H, u <= H/2: for g >= 1/2 it proves one only where the floor makes the weights uniform.
    (c) A box: with Q_low, Q_high the fixed points of r + g P min_k E_(m_k) and max_k, all iterates under any weights,
        adaptive ones too, approach [Q_low, Q_high] at rate g. Proof: both operators are monotone contractions that
        sandwich T^SP; Q >= Q_low - e implies T^SP Q >= Q_low - g e. So the iteration cannot diverge.
    (d) One shared target Y, exact and for all (s, a) at once (Q_j <- Q_j + h (Y - Q_j), 0 < h < 1): members'
        differences all shrink by (1 - h), their ratios stay, so w never changes and the iteration contracts by 1 - h +
        h g. There SPaCQL is a fixed mixture with weights chosen by the *initialisation*; only updates that are unequal
        across (s, a) or members move w.
    """
    # The smallest on integers, [member][k] values of the k-replaced queries: 0..3 is the least range with all u_k > 0.
    q = exact([[[0, 1], [1, 3]], [[1, 2], [2, 3]]])
    factor = 0.95 * adaptive_value(q).diff().abs()  # no entry moves by more than 1
    note = f"""one state, two agents, two members, g = 0.95, [member][k]: Q = {q[0].int().tolist()} and Q' = \
{q[1].int().tolist()} differ by 1, their targets by {float(factor):.4g}. """
    spreads, factors = (1.0, 0.1, 0.01, 0.001), []
    for e in spreads:
        q = exact([[[0, 10], [2 * e, 10 + 2 * e]], [[e / 2, 10 - e / 2], [1.5 * e, 10 + 2.5 * e]]])
        factors.append(float(0.95 * adaptive_value(q).diff().abs() / (e / 2)))
    note += f"With spreads {listed(spreads, 'g')} around values 0 and 10 the factor is {listed(factors, '.4g')}."
    gap, example = two_fixed_points(sweep.generator, max(1000, 20 * sweep.instances))

    floors, boxes, frozen, gen = [], [], [], sweep.generator
    e, d = 0.05, 1e-6
    q = exact([[[0, 15], [2 * (e + d), 15 + 2 * (e + d)]], [[d, 15 - d], [2 * e + d, 15 + 2 * e + 3 * d]]])
    moved = adaptive_value(q, floor=e).diff().abs() / d  # sharp: (b) with u_k at the floor
    floors.append((0.95 * moved, 0.95 * floor_factor(exact([15.0]), e)))
    for world in sweep.factorised + sweep.correlated:
        mixtures = world.mixtures()
        count, _, states, joint = mixtures.shape
        q = (2 * uniform(gen, count, 3, states, joint) - 1) / (1 - world.gamma).view(-1, 1, 1, 1)
        for c in (0.01, 1.0):
            other = q + c * (uniform(gen, *q.shape) - 0.5)
            images = [backup(world, mixtures, adaptive_weights(mixtures, x, c), x) for x in (q, other)]
            sizes = torch.einsum("iksj,isj->isk", mixtures, other.amin(1))
            reach = (sizes.amax(-1) - sizes.amin(-1)).amax(-1)
            floors.append((sup(images[1] - images[0]) / sup(other - q), world.gamma * floor_factor(reach, c)))
        low, high = (world.extreme_values(mixtures, pick) for pick in (torch.amin, torch.amax))
        low, high = world.action_values(low).unsqueeze(1), world.action_values(high).unsqueeze(1)
        image = backup(world, mixtures, adaptive_weights(mixtures, q), q).unsqueeze(1)
        outside = [sup(torch.maximum(low - x, x - high).clamp(min=0)) for x in (q, image)]
        boxes.append((outside[1], world.gamma * outside[0]))
        first, step = adaptive_weights(mixtures, q), 0.3
        for _ in range(20):
            q = q + step * (backup(world, mixtures, adaptive_weights(mixtures, q), q).unsqueeze(1) - q)
        frozen.append((sup(adaptive_weights(mixtures, q) - first), exact(1e-6)))
    model = "T^SP with w_k ~ 1/u_k has one fixed point (members with models of their own)"
    return [
        check("T^SP with w_k ~ 1/u_k contracts", [(exact([float(factor), *factors]), exact(0.95))], FAILS, note),
        check(model, [(gap, exact(1e-6))], FAILS, example),
        check("u floored at c: factor <= g (1 + H / 2c); condition to contract: c > g H / (2 - 2g)", floors, CONDITION),
        check("any weights: distance to the box [Q_low, Q_high] shrinks by g", boxes),
        check("one shared target, all (s, a) at once: w stays as initialised, to 1e-6", frozen, CONDITION),
    ], dict(spreads=spreads, factors=factors)


def two_fixed_points(gen, count):
    """Distance [count] between the values that one damped iteration reaches from two starts, and the widest example:
    two states, two sizes with one query each, two members with models of their own in one-decimal numbers."""
    rewards = (2 * uniform(gen, count, 2, 2, 2) - 1).round(decimals=1)  # [count, E, S, K]
    to_second = (5 * uniform(gen, count, 2, 2, 2) - 2).clamp(0, 1).round(decimals=1)  # chance to go to the second state
    ends = []
    for start in ([10.0, -10.0], [-10.0, 10.0]):
        values = exact(start).expand(count, -1)
        for _ in range(400):
            q = rewards + 0.9 * torch.lerp(values[:, None, None, :1], values[:, None, None, 1:], to_second)
            values, last = (values + adaptive_value(q.transpose(1, 2).flatten(0, 1)).view(count, 2)) / 2, values
        ends.append((values, sup(values - last)))
    gap = sup(ends[0][0] - ends[1][0]) * (torch.maximum(ends[0][1], ends[1][1]) < 1e-9)  # 0 unless both have settled
    i = int(gap.argmax())
    shown = [torch.round(x[i], decimals=4).tolist() for x in (rewards, to_second, ends[0][0], ends[1][0])]
    return (
        gap,
        f"""{float((gap > 1e-6).double().mean()):.1%} of random instances; the widest, g = 0.9, damping 1/2: \
rewards by member, state, size {shown[0]}, chances to go to the second state {shown[1]}; V ends at {shown[2]} from \
(10, -10) and at {shown[3]} from (-10, 10).""",
    )


def adaptive_value(sizes, floor=0.0):
    """sum_k w_k min_j [B] where each size has one query: the members' values there, [B, E, K]."""
    weights = spacql.replacement_weights(spacql.uncertainty(sizes).clamp(min=floor))
    return (weights * sizes.amin(1)).sum(-1)


def floor_factor(reach, floor):
    """`adaptive` (b) without g: 1 + H / (2c)."""
    return 1 + reach / (2 * floor)


def proposition1(sweep):
    """Proposition 1: the mean of ICQL-QS's semi-gradients over agents is the semi-gradient of one centralised TD loss.

    Agent i's target is Y_i = r + g min_j Qtarget_j(s', pi_i, a'_-i); the centralised one is T^ai = (1/n) sum_i T_i^ind,
    i.e. mean_i Y_i. Proof: the semi-gradient of (Q - Y)^2 is 2 (Q - Y) grad Q, affine in Y; the penalty does not
    contain Y. (The losses themselves differ, by the variance of Y_i over i.) It is about gradients before they are
    clipped: clipping is not affine. Checked with spacql.py's networks, target and losses, in float64.
    """
    pairs, clipped, gen = [], [], sweep.generator
    draw_int = lambda *shape: torch.randint(spacql.NUM_ACTIONS, (1, *shape), generator=gen)  # noqa: E731
    for trial in range(max(3, sweep.instances // 10)):
        num, members, batch, obs = 2 + trial % 4, 3, 16, 4
        shape = (num * (obs + spacql.NUM_ACTIONS), 32, 32, 1)
        critic, target = ([exact(p) for p in spacql.init_networks([gen], members, shape)] for _ in range(2))
        critic = [p.requires_grad_() for p in critic]
        state, next_state = (uniform(gen, 1, batch, num * obs) for _ in range(2))
        actions, logged, policy = draw_int(batch, num), draw_int(batch, num), draw_int(batch, 1, num)
        rewards, one = uniform(gen, 1, batch), torch.tensor([1])
        targets = []
        for i in range(num):
            order = exact(torch.arange(num) != i).expand(1, batch, 1, num)  # agent i comes first
            query = exact(spacql.one_hot(spacql.partial_replacement(logged, policy, order, one)))
            q_target = spacql.critic_values(target, next_state, query)
            targets.append(spacql.spacql_target(rewards, q_target, exact(torch.ones(1, batch, 1)), 0.95))
        everyone = torch.arange(num).expand(1, batch, num)
        played = [spacql.one_hot(actions).unsqueeze(2), spacql.counterfactuals(actions, everyone)]
        q = spacql.critic_values(critic, state, exact(torch.cat(played, 2)))
        for limit, found in ((math.inf, pairs), (0.5, clipped)):
            average = torch.stack([semi_gradient(critic, q, y, limit) for y in targets]).mean(0)
            central = semi_gradient(critic, q, torch.stack(targets).mean(0), limit)
            found.append(((average - central).abs().amax() / central.abs().amax(), exact(1e-9)))
    note = "clipping is not affine: clipping n gradients and averaging is not clipping the average."
    return [
        check("mean of ICQL-QS's semi-gradients = semi-gradient with T^ai, to 1e-9", pairs),
        check("the same after each gradient is clipped to norm 0.5", clipped, FAILS, note),
    ], {}


def semi_gradient(critic, q, target, limit):
    """Gradient of spacql.py's critic loss, as one vector, each member's clipped to `limit`; q [1, E, B, 1 + N * A] has
    the data's value first and the penalty's candidates behind it."""
    penalty = spacql.cql_penalty(q[..., 1:].unflatten(-1, (-1, spacql.NUM_ACTIONS)), q[..., 0])
    loss = spacql.critic_loss(q[..., 0], target, penalty, alpha=0.5).sum()
    for param, gradient in zip(critic, torch.autograd.grad(loss, critic, retain_graph=True), strict=True):
        param.grad = gradient
    spacql.clip_each(critic, limit)
    return torch.cat([param.grad.flatten() for param in critic])


def lemma1(sweep):
    """Lemma 1, factorised mu: W1(d^S, d^mu) <= g/(1-g) sum_(i in S) TV_i for state occupancies, any set S of agents.

    Proof: d = (1-g) rho + g P^T d, so d^S - d^mu = g P_S^T (d^S - d^mu) + g (P_S - P_mu)^T d^mu; P_S^T does not enlarge
    L1 norms, hence W1 <= g/(1-g) max_s TV(joint), and the TV of a product is at most the sum of the factors' TVs.
    Sharper: couple the two processes until their actions first differ, with chance at most T = max_s TV(joint) a step;
    W1 <= 1 - (1-g)/(1-g(1-T)) = g T / (1-g+g T), which is below 1 always and attained (trap_worlds).
    State-action occupancy d(s) m(a|s): TV <= TV(d^S, d^mu) + E_d^mu TV(joint), so the constant is 1/(1-g); with g/(1-g)
    it fails, most plainly at g = 0. Exponential in |S|: the largest density ratio and 1 + chi^2 are *products* over S.
    """
    state, coupled, wrong, right, products = [], [], [], [], []
    stateless = [dec_mdps.one_state([1, 0], [[0.5, 0.5]], [0, 0], gamma) for gamma in (0.0, 0.1, 0.4)]
    for world in [*stateless, *sweep.factorised]:
        mu, distance = world.behaviour, world.agent_tv()
        before = world.occupancy(mu)
        for subset in subsets(world.num_agents):
            actions, total = world.replaced(subset), distance[:, subset].sum(-1)
            after, joint = world.occupancy(actions), tv(actions, mu).amax(-1)
            state.append((tv(after, before), occupancy_bound(world.gamma, total)))
            coupled.append((tv(after, before), coupling_bound(world.gamma, joint)))
            both = tv((after.unsqueeze(-1) * actions).flatten(1), (before.unsqueeze(-1) * mu).flatten(1))
            wrong.append((both, occupancy_bound(world.gamma, total)))
            right.append((both, total / (1 - world.gamma)))
            seen = (mu.flatten(1) > 1e-100).all(-1)
            single = [world.replaced([i])[seen] / mu[seen] for i in subset]
            whole = actions[seen] / mu[seen]
            parts = sum(r.amax(-1).log() for r in single)
            products.append((sup(whole.amax(-1).log() - parts), exact(1e-6)))
            parts = sum((r * r * mu[seen]).sum(-1).log() for r in single)
            products.append((sup((whole * whole * mu[seen]).sum(-1).log() - parts), exact(1e-6)))
    value, bound = (x.item() for x in wrong[1])
    note = f"one state, one agent, g = 0.1, TV = 0.5: W1 of state-action occupancies {value:.3g} > {bound:.3g}."
    return [
        check("W1(d^S, d^mu) <= g/(1-g) sum_S TV_i, every subset S", state),
        check("sharper: W1 <= g T / (1-g+g T), T the joint TV", coupled),
        check("the same constant g/(1-g) for state-action occupancy", wrong, FAILS, note),
        check("state-action occupancy: W1 <= sum_S TV_i / (1-g)", right),
        check("density ratio and 1 + chi^2 multiply over S (logs, to 1e-6)", products),
    ], dec_mdps.subset_curves(sweep.agents, 1000, sweep.generator, occupancy_bound, coupling_bound)


def coupling_bound(gamma, joint):
    """Lemma 1, sharper: 1 - (1-g)/(1-g(1-T)), the chance that the coupled processes have parted, discounted."""
    return gamma * joint / (1 - gamma + gamma * joint)


def theorem1(sweep):
    """Theorem 1: |V - Vhat| <= eps_subopt + eps_FQI + 4g/(1-g)^2 sum_(i in S) TV_i, factorised mu, any set S
    of deviating agents (all of them: the theorem; one agent k: only TV_k remains).

    V is the value of pi' = (pi_S, mu_-S); Vhat = E_(rho, actor) Qhat for any Qhat that is 2/(1-g)-Lipschitz in the 0-1
    metric; eps_subopt = |E_rho (E_actor - E_pi') Qhat|; eps_FQI = |E_(s ~ d^mu, a ~ pi') (T^pi' Qhat - Qhat)| / (1-g).
    Proof: let e(s) = E_pi' (Q^pi' - Qhat); E_pi' (T Qhat - Qhat) = e - g P_pi' e. Averaged over d^mu, which satisfies
    d^mu = (1-g) rho + g P_mu^T d^mu: E_rho e = [E_d^mu (T Qhat - Qhat)] / (1-g) + g/(1-g) E_d^mu (P_pi' - P_mu) e. The
    last term is at most g/(1-g) * range(e) * TV(joint), and range(e) <= 4/(1-g). The constant 4 is sharp (trap_worlds).
    With eps_FQI on the data's own actions, a ~ mu, as data can measure it, 4g/(1-g)^2 fails and 4/(1-g)^2 holds: the
    same with e(s, a), plus range(e) TV to exchange the first action. Above 2/(1-g), the largest error of a Qhat within
    1/(1-g), the bound says nothing: from sum TV = (1-g)/(2g) on.
    """
    several, single, logged_eps, own, gen = [], [], [], [], sweep.generator
    for world in sweep.factorised:
        for subset in subsets(world.num_agents):
            actions, total = world.replaced(subset), world.agent_tv()[:, subset].sum(-1)
            bound, found = value_bound(world.gamma, total), single if len(subset) == 1 else several
            actor = product(distributions(gen, *world.policies.shape))
            drawn = (2 * uniform(gen, *world.rewards.shape) - 1) / (1 - world.gamma)[:, None, None]
            for q in (world.worst_critic(actions, actions), drawn):
                error, eps = world.fit_errors(actions, q, actions)
                subopt = (world.start * ((actor - actions) * q).sum(-1)).sum(-1)
                found.append((error.abs() - eps.abs(), bound))
                found.append(((error - subopt).abs() - subopt.abs() - eps.abs(), bound))
            error, eps = world.fit_errors(actions, world.worst_critic(actions, world.behaviour), world.behaviour)
            logged_eps.append((error.abs() - eps.abs(), bound))
            own.append((error.abs() - eps.abs(), logged_bound(world.gamma, total)))
    note = vacuous_note("the range [0, 3] of sum TV, three agents", 3)
    value, bound, gamma = (x[0].item() for x in (*logged_eps[-1], world.gamma))
    trap = f"trap_worlds, four agents, g = {gamma}, TV_i = {1e-3 * (1 - gamma):.4g}: {value:.4g} > {bound:.4g}."
    return [
        check("|V - Vhat| <= eps + 4g/(1-g)^2 sum_S TV_i, two or more deviate", several, note=note),
        check("one deviating agent k: only TV_k remains", single),
        check("the same where eps_FQI is on the data's own actions", logged_eps, FAILS, trap),
        check("eps_FQI on the data's own actions: 4/(1-g)^2", own),
    ], {}


def lemma2(sweep):
    """Lemma 2, correlated mu: W1(d^S, d^mu) <= g/(1-g) (sum_S TV_i + kappa), one kappa, independent of n.

    Let kappa_S = max_s TV(mu, (x_(i in S) mu_i) x mu_-S). Proof with kappa_S (or its maximum over S): TV is a
    metric, so TV((pi_S, mu_-S), mu) <= TV(x_S pi_i, x_S mu_i) + kappa_S; then as Lemma 1. With kappa = max_s TV(mu,
    product of all marginals) it fails: kappa_S can be larger when two agents or more stay logged. Agent 0 acts rarely
    (chance p); if it does, the other two flip together, else independently: kappa_S = 2 (1-p) kappa. It holds with 2
    kappa, since kappa_S <= kappa + TV(x_S mu_i x mu_-S, x mu_i) and the last is a marginal of kappa's; 2 is sharp.
    Independent of n: the term is, kappa is not. Two teams with conventions of their own, mixed: kappa tends to 1.
    """
    exact_split, twice, once, factor = [], [], [], []
    for world in sweep.correlated:
        before, distance = world.occupancy(world.behaviour), world.agent_tv()
        kappa = world.kappa()
        for subset in subsets(world.num_agents):
            moved, total = tv(world.occupancy(world.replaced(subset)), before), distance[:, subset].sum(-1)
            for found, extra in ((exact_split, world.kappa(subset)), (twice, 2 * kappa), (once, kappa)):
                found.append((moved, occupancy_bound(world.gamma, total + extra)))
            factor.append((world.kappa(subset), 2 * kappa))
    world = dec_mdps.rare_trigger(0.9)
    moved = tv(world.occupancy(world.replaced([0])), world.occupancy(world.behaviour)).item()
    kappa = world.kappa().item()
    note = f"""rare_trigger at g = 0.9: three agents, S = {{0}}, pi_0 = mu_0 (sum TV = 0), kappa = {kappa:.3g}, \
kappa_S = {world.kappa([0]).item():.3g}; W1 {moved:.4g} > {float(occupancy_bound(0.9, kappa)):.4g}."""
    teams = []
    for num in range(2, max(3, sweep.agents) + 1):
        team = product(exact([0.9, 0.1]).expand(1, num, 1, 2))
        teams.append(tv((team + team.flip(-1)) / 2, exact(0.5**num)).item())
    grows = f"""two teams that prefer opposite actions (0.9), equally mixed, n = 2 to {num}: kappa = \
{listed(teams, ".3f")}, though each pair of agents is as dependent as for n = 2."""
    return [
        check("W1 <= g/(1-g) (sum_S TV_i + kappa_S); condition: kappa of this split (S, rest)", exact_split, CONDITION),
        check("kappa against the product of all marginals: W1 <= .. + kappa", once, FAILS, note),
        check("the same with 2 kappa", twice),
        check("kappa_S <= 2 kappa", factor),
        check("kappa is independent of n", [(exact(teams), exact(teams[0]))], FAILS, grows),
    ], dict(two_teams_kappa=teams)


def theorem2(sweep):
    """Theorem 2, correlated mu: |V - Vhat| <= eps_FQI + 4g/(1-g)^2 (sum_S TV_i + kappa_S), as in Theorem 1
    else; for all agents kappa_S is kappa = max_s TV(mu, product of all marginals), for others see Lemma 2. Proof: that
    of Theorem 1 with TV((pi_S, mu_-S), mu) <= TV(x_S pi_i, x_S mu_i) + kappa_S <= sum_S TV_i + kappa_S. For policies
    equal to the marginals it says nothing from kappa = (1-g)/(2g) on: 0.026 at g = 0.95.
    """
    pairs = []
    for world in sweep.correlated:
        for case in (world, replace(world, policies=world.marginals())):
            for subset in subsets(case.num_agents):
                actions, distance = case.replaced(subset), case.agent_tv()[:, subset].sum(-1) + case.kappa(subset)
                error, eps = case.fit_errors(actions, case.worst_critic(actions, actions), actions)
                pairs.append((error.abs() - eps.abs(), value_bound(case.gamma, distance)))
    note = vacuous_note("the range [0, 1] of kappa, even with pi_i = mu_i", 1)
    return [check("|V - Vhat| <= eps + 4g/(1-g)^2 (sum_S TV_i + kappa_S)", pairs, note=note)], {}


def theorem3(sweep):
    """Theorem 3, factorised mu: SPaCQL's bound scales with k_eff = sum_k w_k k, from ICQL-QS (1) to full joint (n).

    For weights w(s') of the state alone (spacql.py's also see the drawn a') T^SP evaluates the mixture m_w = sum_k w_k
    m_k; V_w is its value, sum = sum_i TV_i, k_eff at its worst state. (a) TV(m_w, mu) <= (k_eff/n) sum: each agent is
    replaced with chance k/n. (b) Hence, as in Theorem 1, |V_w - Vhat| <= eps_FQI + 4g/(1-g)^2 (k_eff/n) sum: the claim
    for the value of the *mixture*. (c) For V^pi, of the team that is deployed, it fails: with Qhat = Q of m_w (eps_FQI
    = 0), Vhat = E_pi Qhat and k = 1, the bound is that of one agent, while V^pi - Vhat grows with the other n-1: for
    n >= 4, as 2g (n-1) > 4g (trap_worlds; also with k_eff max_i TV_i, not with k_eff sum_i TV_i). (d) By the
    performance difference lemma, V^pi - V_w = E_d^pi (E_pi - E_mw) Q_w / (1-g), |V^pi - V_w| <= 2/(1-g)^2 (1 - k_eff/n)
    sum. (e) So the sum of (b) and (d) holds for V^pi: small k_eff gains at most a factor of about 2g, never n.
    """
    shift, mixture, deployed, bias, corrected = [], [], [], [], []
    five = dec_mdps.trap_worlds(5, [0.95], [1e-5])
    for world in [five, *sweep.factorised]:
        mixtures, total, team = world.mixtures(), world.agent_tv().sum(-1), product(world.policies)
        (count, num), states = mixtures.shape[:2], mixtures.shape[2]
        sharp = [one_hot_weights(k, count, states, num) for k in range(num)]
        for weights in [*sharp, distributions(sweep.generator, count, states, num)]:
            actions = torch.einsum("isk,iksj->isj", weights, mixtures)
            share = (weights * exact(torch.arange(1, num + 1))).sum(-1) / num  # k_eff / n, [I, S]
            shift.append((tv(actions, world.behaviour), share * world.agent_tv().sum(-1, keepdim=True)))
            bound = value_bound(world.gamma, share.amax(-1) * total)
            error, eps = world.fit_errors(actions, world.worst_critic(actions, actions), actions)
            mixture.append((error.abs() - eps.abs(), bound))
            q_mixture = world.action_values(world.state_values(actions))
            deployed.append(((world.value(team) - (world.start * (team * q_mixture).sum(-1)).sum(-1)).abs(), bound))
            gap, most = world.value(team) - world.value(actions), bias_bound(world.gamma, (1 - share.amin(-1)) * total)
            bias.append((gap.abs(), most))
            corrected.append(((error + gap).abs() - eps.abs(), bound + most))
    note = f"""trap_worlds, n = 5, g = 0.95, TV_i = 1e-05, k = 1, Qhat = Q of m_1: |V^pi - Vhat| = \
{deployed[0][0].item():.4g} > {deployed[0][1].item():.4g}."""
    condition = "|V_w - Vhat| <= eps + 4g/(1-g)^2 (k_eff/n) sum TV_i; condition: V_w, the mixture's value"
    return [
        check("TV(m_w, mu) <= (k_eff / n) sum TV_i", shift),
        check(condition, mixture, CONDITION),
        check("the same for V^pi, the value of the team", deployed, FAILS, note),
        check("|V^pi - V_w| <= 2/(1-g)^2 (1 - k_eff/n) sum TV_i", bias),
        check("|V^pi - Vhat| <= the sum of the two", corrected),
    ], dec_mdps.bound_curves(value_bound, bias_bound)


def coverage(sweep, sizes=(30, 300, 3000)):
    """Factorised mu: the more agents are replaced, the fewer queries (s', a'^(k)) the data contain.

    For M i.i.d. pairs of chances p(s, q) = d(s) mu(q|s), a query made from a logged pair is missing with chance
    sum d(s) Pr(a' != q = a'^(k)) (1-p)^(M-1); one made from a fresh pair with missing(k) = sum d(s) m_k(q|s) (1-p)^M,
    and missing(k) <= missing(0) + (k/n) sum TV_i, since it averages a function within [0, 1] over m_k and TV(m_k, mu)
    is at most (k/n) sum TV_i. That the share *rises* with k is no theorem: it does on average, for policies drawn
    without regard to the data. Errors: of the fixed point of T^(k) fitted to a drawn dataset, unseen pairs being 0.
    """
    bound, rises, report, gen = [], [], {}, sweep.generator
    world = dec_mdps.random_worlds(gen, min(sweep.instances, 100), gamma=0.9)
    modes = exact(torch.nn.functional.one_hot(world.marginals().argmax(-1), 2))
    cases = {"any policy": distributions(gen, *world.policies.shape), "the data's modes": modes}
    for samples in sizes:
        counts = tabular.draw_transitions(world, samples, gen)
        for name, policies in cases.items():
            case = replace(world, policies=policies)
            missing, fresh = tabular.missing_shares(case, samples)
            share = exact(torch.arange(1, 4)) / 3
            bound.append((fresh[:, 1:], fresh[:, :1] + share * case.agent_tv().sum(-1, keepdim=True)))
            rises.append((missing[:, 1:-1], missing[:, 2:]))
            errors = tabular.query_errors(case, counts).mean(0).tolist()
            report[f"{samples} transitions, {name}"] = dict(missing=missing.mean(0).tolist(), error=errors)
    falls = [float(torch.cat([low > high + 1e-12 for low, high in rises[j::2]]).double().mean()) for j in (0, 1)]
    note = (
        f"the share falls in {falls[0]:.1%} of these steps with any policy, in {falls[1]:.1%} with the data's modes. "
    )
    note += " ".join(
        f"{name}: missing at k = 0..3 {listed(r['missing'], '.3f')}, error at k = 1..3 {listed(r['error'], '.2f')}."
        for name, r in report.items()
    )
    return [
        check("missing(k) <= missing(0) + (k/n) sum TV_i, fresh queries", bound),
        check("missing(k) <= missing(k+1), k >= 1, queries from logged pairs", rises, MEASURED, note),
    ], report


def tradeoff(sweep, sizes=(100, 1000, 10_000), dials=(0.0, 0.5, 0.9, 1.0)):
    """Small k is biased, large k is hard to estimate; when does full joint overtake?

    The fixed point of T^(k) is Q of m_k, whose k agents are drawn afresh at every step: not of the team pi, nor the
    mean over S of the values of (pi_S, mu_-S), where S is drawn once. Bias: |V^pi - V(m_k)| <= 2/(1-g)^2 ((1 - k/n) sum
    TV_i + kappa), as theorem3 (d), 0 at k = n; that it falls with k holds on average only. Learning (theory/tabular.py):
    greedy teams by backup, dataset size and correlation, in worlds with random rewards and in worlds that pay for
    acting alike, agents improving against the others' logged actions (equation 6) or their policies.
    """
    fixed, redrawn, bias, falls = [], [], [], []
    for world in [dec_mdps.relay_world(), dec_mdps.parity_game(), *sweep.factorised, *sweep.correlated]:
        mixtures, num = world.mixtures(), world.num_agents
        (count, _, states, _), team = mixtures.shape, world.value(product(world.policies))
        values = torch.stack([world.value(m) for m in mixtures.unbind(1)], 1)
        left = world.agent_tv().sum(-1, keepdim=True) * (1 - exact(torch.arange(1, num + 1)) / num)
        kappa = world.kappa().unsqueeze(-1) * exact(torch.arange(1, num + 1) < num - 1)  # of those left logged
        gaps = (values - team.unsqueeze(-1)).abs()
        bias.append((gaps, bias_bound(world.gamma.unsqueeze(-1), left + kappa)))
        falls.append((gaps[:, 1:], gaps[:, :-1]))
        for k in range(1, num + 1):
            q = world.action_values(world.state_values(mixtures[:, k - 1])).unsqueeze(1)
            weights = one_hot_weights(k - 1, count, states, num)
            fixed.append((sup(backup(world, mixtures, weights, q) - q.squeeze(1)), exact(1e-9)))
            held = [world.value(world.replaced(s)) for s in subsets(num) if len(s) == k]
            redrawn.append(((values[:, k - 1] - torch.stack(held).mean(0)).abs(), exact(1e-9)))
    worlds = max(2, sweep.instances // 5)
    panels = tabular.backup_curves(sizes, dials, worlds, sweep.seed)
    gains, note = [], f"lowest dial where the 95% interval excludes 0, by transitions ({listed(sizes, ',')}). "
    for title, panel in panels.items():
        rows = [list(zip(dials, *zip(*row, strict=True), strict=True)) for row in panel["joint - icql-qs"]]
        gains += [mean for row in rows for _, mean, _ in row]
        ahead, behind = ([next((f"{d:g}" for d, m, h in r if sign * m > h), "none") for r in rows] for sign in (1, -1))
        note += f"{title}: full joint ahead from dial {', '.join(ahead)}, k = 1 from {', '.join(behind)}. "
    relay = f"relay_world, g = 0.9, k = 1: V = {redrawn[0][0].item():.4g}; no one agent arrives alone, V = 0."
    parity = f"parity_game, g = 0.9: bias {listed(bias[1][0][0], '.3g')} for k = 1, 2, 3. It falls on average only."
    return [
        check("the fixed point of T^(k) is Q of m_k, to 1e-9", fixed),
        check("V(m_k) = mean over S of V(pi_S, mu_-S), to 1e-9", redrawn, FAILS, relay),
        check("|V^pi - V(m_k)| <= 2/(1-g)^2 ((1 - k/n) sum TV_i + kappa)", bias),
        check("the bias falls with k", falls, FAILS, parity),
        check(f"learnt offline: full joint <= k = 1 ({worlds} a point)", [(exact(gains), exact(0.0))], MEASURED, note),
    ], dict(samples=sizes, dials=dials, panels=panels)


def correlation(sweep):
    """Behaviour with a chosen dependence, and what it does to the bounds and to values.

    mu = (1 - dial) product(mu_i) + dial coordinated(mu_i); in the latter one uniform number per step drives all agents,
    so the marginals stay. Hence kappa = dial * TV(coordinated, product), linear in the dial; its largest value, 1 -
    A^(1-n) for uniform marginals, is below 1. Imitating each agent's marginal loses at most 2/(1-g)^2 kappa of mu's
    value (performance difference; TV(product, mu) <= kappa): what imitation of the parts loses.
    """
    same, measured, lost = [], [], []
    for world in sweep.factorised[:4]:
        marginals = world.marginals()
        top = tv(dec_mdps.coordinated(marginals), product(marginals)).amax(-1)
        for dial in (0.0, 0.3, 0.7, 1.0):
            mixed = replace(world, behaviour=dec_mdps.correlated(marginals, dial), policies=marginals)
            same.append((sup(mixed.marginals() - marginals), exact(1e-9)))
            measured.append(((mixed.kappa() - dial * top).abs(), exact(1e-9)))
    for world in sweep.correlated:
        loss = (world.value(world.behaviour) - world.value(product(world.marginals()))).abs()
        lost.append((loss, bias_bound(world.gamma, world.kappa())))
    columns = tabular.dial_effects(max(2, sweep.instances // 5), sweep.seed, value_bound)
    note = "coordination worlds, g = 0.9, dial 0, 0.25, .., 1: "
    note += "; ".join(f"{name} {listed(column, '.3g')}" for name, column in columns.items())
    return [
        check("the generator keeps every marginal, to 1e-9", same),
        check("measured kappa = dial * largest kappa, to 1e-9", measured),
        check("|V(mu) - V(product of marginals)| <= 2/(1-g)^2 kappa", lost, note=note),
    ], columns


CLAIMS = [contraction, adaptive, proposition1, lemma1, theorem1, lemma2, theorem2, theorem3]
CLAIMS = {claim.__name__: claim for claim in [*CLAIMS, coverage, tradeoff, correlation]}


def main(argv=None):
    """Check the chosen claims, print the table, write JSON and figures; the exit status is 1 if a verdict surprises."""
    args = parse(Args, argv, description=__doc__)
    names = list(CLAIMS) if args.only == "all" else args.only.split(",")
    for name in names:
        check_choice("claim", name, CLAIMS)
    for name, low, high in (("agents", 2, 12), ("instances", 2, 100_000), ("seed", 0, 2**31)):
        if not low <= getattr(args, name) <= high:
            raise InputError(f"--{name} must be between {low} and {high:,}, not {getattr(args, name)}")
    verdicts.check_folder(Path(args.out))
    rows, data = [], {}
    for name in tqdm(names, file=sys.stderr, unit="claim"):
        found, data[name] = CLAIMS[name](dec_mdps.make_sweep(args.seed, args.instances, args.agents))
        rows += [replace(row, claim=name) for row in found]
    print(verdicts.table(rows), flush=True)
    verdicts.save(Path(args.out), asdict(args), rows, data)
    return int(any(row.verdict != row.expected for row in rows))


if __name__ == "__main__":
    run_script("theory_checks.py", lambda: sys.exit(main()))
