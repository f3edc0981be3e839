"""Deliberate mistakes in theory/, by the property whose check must reject them."""

from dataclasses import replace

import torch

import spacql
from theory.dec_mdps import DecMDPs, product, query_kernel
from theory.headline import samples_needed
from theory.tabular import draw_transitions, fitted_backup

replacement = spacql.partial_replacement  # the right one, where tests put another in its place


def with_behaviour(world, behaviour):
    return replace(world, behaviour=behaviour)


MISTAKES = {
    "replaced": {
        "the others": lambda w, s: w.replaced([i for i in range(w.num_agents) if i not in s]),
        "others independent": lambda w, s: with_behaviour(w, product(w.marginals())).replaced(s),
        "one agent fewer": lambda w, s: w.replaced(s[1:]),
    },
    "kappa": {
        "of all agents": lambda w, s: w.kappa(),
        "of the policies": lambda w, s: with_behaviour(w, product(w.policies)).kappa(s),
    },
    "occupancy": {
        "not normalised": lambda w, m: w.occupancy(m) / (1 - w.gamma)[:, None],
        "uniform policy": lambda w, m: w.occupancy(torch.full_like(m, 1 / m.shape[-1])),
    },
    "state values": {
        "one step late": lambda w, m: w.gamma[:, None] * w.state_values(m),
        "of the policies": lambda w, m: w.state_values(product(w.policies)),
    },
    "extreme critic": {
        "best for worst": lambda w, pick: w.extreme_critic(torch.max),
        "of the largest size": lambda w, pick: w.exact_critic(w.mixtures[:, -1]).unsqueeze(1),
    },
    "worst error": {
        "half": lambda *args: DecMDPs.worst_error(*args) / 2,
        "states by policy": lambda w, *args: with_behaviour(w, product(w.policies)).worst_error(*args),
        "logged as replaced": lambda w, *args: w.worst_error(*args[:-1], args[-2]),
    },
    "query kernel": {
        "k + 1 agents": lambda p: torch.cat([query_kernel(p)[:, 1:], query_kernel(p)[:, -1:]], 1),
        "n - k agents": lambda p: query_kernel(p).flip(1),
        "query and logged swapped": lambda p: query_kernel(p).mT,
    },
    "partial_replacement": {
        "the others": lambda a, pi, order, k: replacement(a, pi, -order, a.shape[2] - k),
        "k + 1 agents": lambda a, pi, order, k: replacement(a, pi, order, k + 1),
        "agents in reverse": lambda a, pi, order, k: replacement(a, pi, order.flip(-1), k),
    },
    "samples needed": {
        "one more": lambda *args: samples_needed(*args) + 1,
        "n - k agents": lambda rare, act, num, k: samples_needed(rare, act, num, num - k),
    },
    "draws": {
        "from the start": lambda w, *args: draw_transitions(replace(w, gamma=1e-9 * w.gamma), *args),
        "by the policies": lambda w, *args: draw_transitions(with_behaviour(w, product(w.policies)), *args),
        "backwards": lambda *args: draw_transitions(*args).mT,
    },
    "fitted backup": {
        "unseen pairs are 0": lambda w, c, prior, *rest: fitted_backup(w, c, 0 * prior, *rest),
        "equal weights": lambda *args: fitted_backup(*args[:-1], False),
        "one dataset for all": lambda w, c, *rest: fitted_backup(w, c[:, :1].expand_as(c), *rest),
    },
}
