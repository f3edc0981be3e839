"""Deliberate mistakes in the training scripts, by the check that must reject them.

A mutant takes the right function and its arguments. Mutants of a round's steps, or of a run on a GPU, are
edits of the script's text instead: what is replaced, and by what.
"""

import torch


def with_part(place, change):
    """Of what the right function returns, one part is changed."""

    def mutant(right, *args):
        parts = list(right(*args))
        parts[place] = change(parts[place])
        return parts

    return mutant


def data_part(place, change):
    """Of the transitions that `prepare` returns, one part is changed: change(all parts)."""
    return with_part(0, lambda data: [change(data) if i == place else part for i, part in enumerate(data)])


MUTANTS = {
    "exactly k agents are replaced": {
        "k + 1 agents": lambda right, logged, policy, order, k: right(logged, policy, order, k + 1),
        "n - k agents": lambda right, a, pi, order, k: right(a, pi, order, order.shape[-1] - k),
        "k on average": lambda right, logged, policy, order, k: torch.where(
            (order < k[:, None] / order.shape[-1])[..., None], policy, logged.unsqueeze(2)
        ),
    },
    "every set of agents is equally likely": {
        "one order for all k": lambda right, a, pi, o, k: right(a, pi, o[:, :, :1].expand_as(o), k),
        "agent 0 preferred": lambda right, a, pi, o, k: right(a, pi, o * torch.tensor([0.9, 1, 1, 1]), k),
    },
    "uncertainty is the spread of the members": {
        "divided by E - 1": lambda right, q: q.std(1, correction=min(1, q.shape[1] - 1)),
        "variance": lambda right, q: q.var(1, correction=0),
        "range": lambda right, q: q.amax(1) - q.amin(1),
    },
    "weights are inverse uncertainties": {
        "rising in u": lambda right, u: right(1 / u),
        "softmax of -u": lambda right, u: (-u).softmax(-1),
        "plain inverse": lambda right, u: (1 / u) / (1 / u).sum(-1, keepdim=True),
        "floor too high": lambda right, u: right(u.clamp(min=1e-3)),
    },
    "target mixes the smallest member of each size": {
        "mean over members": lambda right, r, q, w, gamma: r + gamma * (w * q.mean(1)).sum(-1),
        "min after the mixture": lambda right, r, q, w, g: r + g * (w.unsqueeze(1) * q).sum(-1).amin(1),
        "rewards discounted": lambda right, r, q, w, gamma: right(gamma * r, q, w, gamma),
    },
    "penalty is a mean of logs of weighted sums": {
        "sum over agents": lambda right, q, w, data: right(q, w, 0 * data) * q.shape[3] - data,
        "data held fixed": lambda right, q, w, data: right(q, w, data.detach()) + 0 * data,
        "weights of another agent": lambda right, q, w, data: right(q, w.roll(1, 2), data),
    },
    "critic loss is each members own": {
        "no penalty": lambda right, q, y, penalty, alpha: right(q, y, penalty, 0),
        "sum over the batch": lambda right, q, *rest: right(q, *rest) * q.shape[2],
        "mean of the members": lambda right, q, *rest: right(q.mean(1, True).expand_as(q), *rest),
    },
    "actors ascend their own value": {
        "sign": lambda right, out, q, *rest: right(out, -q, *rest),
        "last term missing": lambda right, out, q, logged, clone, extra: right(out, q, logged, clone, 0.0),
        "another agent's Q": lambda right, out, q, *rest: right(out, q.roll(1, 2), *rest),
        "clones another row": lambda right, out, q, logged, *rest: right(out, q, logged.roll(1, 1), *rest),
    },
    "samples follow the policy": {
        "one sample": lambda right, *args: right(*args)[:, :, :1].expand_as(right(*args)),
        "another agent": lambda right, actor, *rest: right([p.roll(1, 1) for p in actor], *rest),
        "one generator": lambda right, actor, obs, count, g: right(actor, obs, count, g[:1] * len(g)),
    },
    "candidates change random agents": {
        "others shifted": lambda right, args, actions, *rest: right(args, actions.roll(1, 1), *rest),
        "one transition for all": with_part(0, lambda joint: joint[:, :1].expand_as(joint)),
    },
    "candidates are weighed by their densities": {
        "no density": with_part(1, lambda weights: 0 * weights),
        "density of another candidate": with_part(1, lambda weights: weights.roll(1, -1)),
        "policies swapped": lambda right, args, actions, policies, g: right(args, actions, policies[::-1], g),
    },
    "joint candidates take the team as one agent": {
        "agents in step": with_part(0, lambda joint: joint[..., :1, :].expand_as(joint)),
        "seeds alike": with_part(0, lambda joint: joint[:1].expand_as(joint)),
    },
    "critics are separate networks": {
        "another member": lambda right, critic, *rest: right([p.roll(1, 1) for p in critic], *rest),
        "another state": lambda right, critic, state, joint: right(critic, state.roll(1, 1), joint),
        "held": lambda right, critic, *rest: right([p.detach() for p in critic], *rest) + 0 * critic[0].sum(),
    },
    "networks start as linear layers do": {
        "half as wide": lambda right, *args: [p / 2 for p in right(*args)],
        "biases zero": lambda right, *args: [p * (j % 2 == 0) for j, p in enumerate(right(*args))],
        "members alike": lambda right, *args: [p[:, :1].expand_as(p) for p in right(*args)],
        "one generator": lambda right, g, *args: right(g[:1] * len(g), *args),
    },
    "transitions stay inside their episode": {
        "next action repeated": data_part(6, lambda data: data[2]),
        "next observation repeated": data_part(5, lambda data: data[1]),
        "rewards doubled": data_part(3, lambda data: 2 * data[3]),
    },
    "actors see in play what they saw in training": {
        "not scaled": lambda right, actor, obs, scale: right(actor, obs, [scale[0], 1 + 0 * scale[1]]),
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
        "u of the targets": ("values(critic, next_state, r", "values(target_critic, next_state, r"),
        "policies at s": ("sample_policy(target_actor, next_obs", "sample_policy(target_actor, obs"),
        "it has a gradient": ("no_grad():\n                s", "enable_grad():\n                s"),
    },
    "critics": {
        "next state's values": ("values(critic, state, joint)  #", "values(critic, next_state, joint)  #"),
        "clipped by one norm": (".square().sum((-2, -1), keepdim=True)", ".square().sum()"),
        "weights rise with u": ("replacement_weights(u)\n", "replacement_weights(1 / u)\n"),
    },
    "actors": {
        "next observations": ("actor_outputs(actor, obs)  #", "actor_outputs(actor, next_obs)  #"),
        "one critic": ("state, joint).mean(1)", "state, joint)[:, 0]"),
        "targets follow twice as fast": ("critic + actor, TAU", "critic + actor, 2 * TAU"),
    },
}

GPU = {
    "a tensor left on the CPU": ("torch.tensor(list(sizes), device=device)", "torch.tensor(list(sizes))"),
    "an item in the loop": ("append(weights.mean(1))", "append(weights.mean(1 if u.min().item() else 1))"),
}
