"""Deliberate mistakes in the training scripts, by the check that must reject them, at most four each.

A mutant takes the right function and its arguments. Mutants of a round's steps, or of a run on a GPU, are
edits of the script's text instead: what is replaced, and by what.
"""

import torch


def clip_over(*axes):
    """Clips by a norm over these axes of all parameters."""

    def clip(right, params):
        norm = sum(p.grad.square().sum(axes, keepdim=True) for p in params).sqrt()
        for p in params:
            p.grad.mul_((0.5 / (norm + 1e-6)).clamp(max=1.0))

    return clip


def always_to_the_limit(right, params):
    for p in params:
        p.grad.mul_(1e6)
    right(params)


def by_parameter(right, params):
    for p in params:
        right([p])


def numbers_apart(right, logged, policy, order, sizes):
    """Each number of an action is replaced by a choice of agents of its own."""
    orders = [order.roll(i, 1) for i in range(logged.shape[-1])]
    parts = zip(logged.split(1, -1), policy.split(1, -1), orders, strict=True)
    return torch.cat([right(*part, sizes) for part in parts], dim=-1)


def with_part(place, change):
    """Of what the right function returns, one part is changed: change(part, all parts)."""

    def mutant(right, *args):
        parts = list(right(*args))
        parts[place] = change(parts[place], parts)
        return tuple(parts)

    return mutant


def data_part(place, change):
    """Of the transitions that `prepare` returns, one part is changed."""
    return lambda right, raw, device: with_part(0, lambda data, _: with_part(place, change)(lambda: data))(
        right, raw, device
    )


def copy(generator):
    """A generator that will draw the same numbers."""
    return torch.Generator().set_state(generator.get_state())


MUTANTS = {
    "exactly k agents are replaced": {
        "k + 1 agents": lambda right, logged, policy, order, k: right(logged, policy, order, k + 1),
        "n - k agents": lambda right, logged, policy, order, k: right(
            logged, policy, order, order.shape[-1] - k
        ),
        "k on average": lambda right, logged, policy, order, k: torch.where(
            (order < k[:, None] / order.shape[-1])[..., None], policy, logged.unsqueeze(2)
        ),
        "another agent's actions": lambda right, logged, policy, *rest: right(
            logged, policy.roll(1, 3), *rest
        ),
    },
    "every set of agents is equally likely": {
        "first agents": lambda right, logged, policy, order, k: torch.where(
            (torch.arange(order.shape[-1]) < k[:, None])[..., None], policy, logged.unsqueeze(2)
        ),
        "one order for all k": lambda right, logged, policy, order, k: right(
            logged, policy, order[:, :, :1].expand_as(order), k
        ),
        "agent 0 preferred": lambda right, logged, policy, order, k: right(
            logged, policy, order * torch.tensor([0.9, 1, 1, 1]), k
        ),
        "numbers apart": numbers_apart,
    },
    "uncertainty is the spread of the members": {
        "divided by E - 1": lambda right, q: q.std(1, correction=min(1, q.shape[1] - 1)),
        "variance": lambda right, q: q.var(1, correction=0),
        "range": lambda right, q: q.amax(1) - q.amin(1),
        "one member": lambda right, q: q[:, 0].abs(),
    },
    "weights are inverse uncertainties": {
        "rising in u": lambda right, u: right(1 / u),
        "softmax of -u": lambda right, u: (-u).softmax(-1),
        "uniform": lambda right, u: right(0 * u),
        "added constant": lambda right, u: right(u + 1e-3),
    },
    "sizes without spread share the weight": {
        "plain inverse": lambda right, u: (1 / u) / (1 / u).sum(-1, keepdim=True),
        "no spread, no weight": lambda right, u: right(u.where(u > 0, torch.inf)),
        "floor too high": lambda right, u: right(u.clamp(min=1e-3)),
    },
    "target mixes the smallest member of each size": {
        "mean over members": lambda right, r, q, w, gamma: r + gamma * (w * q.mean(1)).sum(-1),
        "min after the mixture": lambda right, r, q, w, gamma: (
            r + gamma * (w.unsqueeze(1) * q).sum(-1).amin(1)
        ),
        "weights ignored": lambda right, r, q, w, gamma: right(
            r, q, torch.full_like(w, 1 / w.shape[-1]), gamma
        ),
        "rewards discounted": lambda right, r, q, w, gamma: right(gamma * r, q, w, gamma),
    },
    "average target is the exact operator": {
        "largest member": lambda right, r, q, w, gamma: r + gamma * (w * q.amax(1)).sum(-1),
        "best size": lambda right, r, q, w, gamma: r + gamma * q.amin(1).amax(-1),
        "no discount": lambda right, r, q, w, gamma: right(r, q, w, 1.0),
    },
    "penalty is a mean of logs of weighted sums": {
        "sum over agents": lambda right, q, w, data: right(q, w, 0 * data) * q.shape[3] - data,
        "agents and candidates in one": lambda right, q, w, data: (
            (q + w.unsqueeze(1)).flatten(3).logsumexp(-1) - data
        ),
        "data held fixed": lambda right, q, w, data: right(q, w, data.detach()) + 0 * data,
        "weights of another agent": lambda right, q, w, data: right(q, w.roll(1, 2), data),
    },
    "critic loss is each members own": {
        "no penalty": lambda right, q, y, penalty, alpha: right(q, y, penalty, 0),
        "alpha twice": lambda right, q, y, penalty, alpha: right(q, y, alpha * penalty, alpha),
        "sum over the batch": lambda right, q, *rest: right(q, *rest) * q.shape[2],
        "mean of the members": lambda right, q, *rest: right(q.mean(1, True).expand_as(q), *rest),
    },
    "actors ascend their own value": {
        "sign": lambda right, out, q, *rest: right(out, -q, *rest),
        "last term missing": lambda right, out, q, logged, clone, extra: right(out, q, logged, clone, 0.0),
        "another agent's Q": lambda right, out, q, *rest: right(out, q.roll(1, 2), *rest),
        "clones another row": lambda right, out, q, logged, *rest: right(out, q, logged.roll(1, 1), *rest),
    },
    "counterfactuals change one agent at a time": {
        "others shifted": lambda right, actions, agents, to: right(actions.roll(1, 2), agents, to),
        "wrong agent": lambda right, actions, agents, to: right(actions, (agents + 1) % actions.shape[2], to),
        "another candidate": lambda right, actions, agents, to: right(actions, agents, to.roll(1, 3)),
        "another row's agents": lambda right, actions, agents, to: right(actions, agents.roll(1, 1), to),
    },
    "samples follow the policy": {
        "one sample": lambda right, actor, obs, count, g: right(actor, obs, 1, g).expand(
            -1, -1, count, -1, -1
        ),
        "another agent": lambda right, actor, *rest: right([p.roll(1, 1) for p in actor], *rest),
        "another row": lambda right, actor, obs, *rest: right(actor, obs.roll(1, 1), *rest),
        "one generator": lambda right, actor, obs, count, g: right(actor, obs, count, g[:1] * len(g)),
    },
    "candidates change random agents": {
        "others shifted": lambda right, args, actions, *rest: right(args, actions.roll(1, 1), *rest),
        "seeds alike": lambda right, *args: right(*args[:-1], [copy(args[-1][0]) for _ in args[-1]]),
        "one transition for all": with_part(0, lambda joint, _: joint[:, :1].expand_as(joint)),
        "team as one agent": lambda right, args, *rest: right(
            type(args)(**vars(args) | dict(penalty="macql")), *rest
        ),
    },
    "candidates are weighed by their densities": {
        "no density": with_part(1, lambda weights, _: 0 * weights),
        "density of another candidate": with_part(1, lambda weights, _: weights.roll(1, -1)),
        "policies swapped": lambda right, args, actions, policies, g: right(args, actions, policies[::-1], g),
        "density multiplied": with_part(1, lambda weights, _: -weights),
    },
    "joint candidates take the team as one agent": {
        "single agents": lambda right, args, *rest: right(
            type(args)(**vars(args) | dict(penalty="cfcql")), *rest
        ),
        "agents in step": with_part(0, lambda joint, _: joint[..., :1, :].expand_as(joint)),
        "policies swapped": lambda right, args, actions, policies, g: right(args, actions, policies[::-1], g),
        "mean density": with_part(1, lambda weights, _: weights / 3 + (weights == 0)),
    },
    "penalty estimates the integral over all actions": {
        "no density": with_part(1, lambda weights, _: 0 * weights),
        "candidates counted": with_part(1, lambda weights, _: weights + 1),
        "half the density": with_part(1, lambda weights, _: weights / 2),
        "wider": with_part(0, lambda joint, _: 1.2 * joint),
    },
    "critics are separate networks": {
        "another member": lambda right, critic, *rest: right([p.roll(1, 1) for p in critic], *rest),
        "another state": lambda right, critic, state, joint: right(critic, state.roll(1, 1), joint),
        "actions before state": lambda right, critic, *rest: right(
            [critic[0].roll(4, 2), *critic[1:]], *rest
        ),
        "a part without a gradient": lambda right, *args: torch.cat(
            [right(*args)[:, :, :1].detach(), right(*args)[:, :, 1:]], dim=2
        ),
    },
    "actors are separate networks": {
        "another agent": lambda right, actor, obs: right([p.roll(1, 1) for p in actor], obs),
        "another observation": lambda right, actor, obs: right(actor, obs.roll(1, 2)),
        "shared": lambda right, actor, obs: right([p[:, :1].expand_as(p) for p in actor], obs),
        "held": lambda right, actor, obs: right(actor, obs).detach() + 0 * sum(p.sum() for p in actor),
    },
    "networks start as linear layers do": {
        "fan-out for fan-in": lambda right, *args: [
            p * (p.shape[2] / p.shape[3]) ** 0.5 for p in right(*args)
        ],
        "biases zero": lambda right, *args: [p * (j % 2 == 0) for j, p in enumerate(right(*args))],
        "members alike": lambda right, *args: [p[:, :1].expand_as(p) for p in right(*args)],
        "one generator": lambda right, g, *args: right(g[:1] * len(g), *args),
    },
    "each network is clipped by itself": {
        "one norm for all": clip_over(0, 1, 2, 3),
        "by parameter": by_parameter,
        "not at all": lambda right, params: None,
        "always to the limit": always_to_the_limit,
    },
    "a seed draws the same numbers alone": {
        "one generator": lambda right, draw, g, *args: right(draw, g[:1] * len(g), *args),
        "seeds swapped": lambda right, draw, g, *args: right(draw, g, *args).roll(1, 0),
        "global generator": lambda right, draw, g, *args: torch.stack([draw(*args) for _ in g]),
    },
    "transitions stay inside their episode": {
        "next action repeated": data_part(6, lambda _, data: data[2]),
        "next observation repeated": data_part(5, lambda _, data: data[1]),
        "states one step late": data_part(0, lambda state, _: state.roll(1, 0)),
        "rewards of one agent": data_part(3, lambda rewards, _: rewards * 2),
    },
    "actors see in play what they saw in training": {
        "not standardised": lambda right, actor, obs, scale: right(
            actor, obs, [0 * scale[0], 1 + 0 * scale[1]]
        ),
        "mean alone": lambda right, actor, obs, scale: right(actor, obs, [scale[0], 1 + 0 * scale[1]]),
        "another agent": lambda right, actor, obs, scale: right([p.roll(1, 1) for p in actor], obs, scale),
    },
    "returns are summed over time and averaged over agents": {
        "mean over time": lambda right, policy, env, *rest: right(policy, env, *rest) / env.horizon,
        "seeds swapped": lambda right, *args: right(*args).flip(0),
        "another start": lambda right, policy, env, num_seeds, seed: right(policy, env, num_seeds, seed + 1),
    },
}

ROUND = {
    "target": {
        "u of the targets": (
            "values(critic, next_state, replaced))",
            "values(target_critic, next_state, replaced))",
        ),
        "present actions": ("partial_replacement(next_actions", "partial_replacement(actions"),
        "policies at s": ("sample_policy(target_actor, next_obs", "sample_policy(target_actor, obs"),
        "it has a gradient": (
            "no_grad():\n                sampled",
            "enable_grad():\n                sampled",
        ),
    },
    "critics": {
        "values of the next state": (
            "values(critic, state, joint)  # [S, E",
            "values(critic, next_state, joint)  # [S, E",
        ),
        "not clipped": ("clip_gradients(critic)\n", "pass\n"),
        "equal weights": ("replacement_weights(u)\n", "replacement_weights(0 * u)\n"),
        "no discount": ("weights, args.gamma)", "weights, 1.0)"),
    },
    "actors": {
        "next observations": (
            "outputs = actor_outputs(actor, obs)",
            "outputs = actor_outputs(actor, next_obs)",
        ),
        "one critic": ("state, joint).mean(1)", "state, joint)[:, 0]"),
        "not clipped": ("clip_gradients(actor)\n", "pass\n"),
        "targets follow twice as fast": ("critic + actor, TAU", "critic + actor, 2 * TAU"),
    },
}

GPU = {
    "a tensor left on the CPU": ("torch.tensor(list(sizes), device=device)", "torch.tensor(list(sizes))"),
    "an item in the loop": (
        "watched.append(weights.mean(1))",
        "watched.append(weights.mean(1 if u.min().item() else 1))",
    ),
}
