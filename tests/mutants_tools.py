"""Deliberate mistakes in the tools of experiments/, by the check that must reject them, at most four each.

A mutant takes the right function and its arguments.
"""

import torch


def ties(worth):
    """Ties count so much."""
    return lambda right, low, high: float(
        ((high[:, None] > low).double() + worth * (high[:, None] == low).double()).mean()
    )


def agents_apart(right, state, choices, *rest):
    """Each choice is seen beside those of other transitions."""
    shuffled = [column.roll(7 * f) for f, column in enumerate(choices.T)]
    return right(state, torch.stack(shuffled, dim=1), *rest)


def column(name, change):
    """One number of a row is changed: change(row)."""
    return lambda right, *args: (row := right(*args)) | {name: change(row)}


def replaced_part(place, change):
    """Of what `replaced` returns, by the actors and uniform, one part is changed."""

    def mutant(right, *args):
        parts = list(right(*args))
        parts[place] = change(parts[place])
        return parts

    return mutant


def asking(change):
    """The critics are asked something else: change(critic, state, joint) -> the same."""
    return lambda right, script, q_values, *rest: right(
        script, lambda *asked: q_values(*change(*asked)), *rest
    )


MUTANTS = {
    "auroc is the share of pairs won": {
        "ties lose": ties(0.0),
        "ties win": ties(1.0),
        "swapped": lambda right, low, high: right(high, low),
        "at the same place only": lambda right, low, high: float((high[:3] > low[:3]).double().mean()),
    },
    "columns say what they are of": {
        "auroc of the next size": lambda right, u, v, changed, k: right(u.roll(1, 1), v, changed, k),
        "what did not change": lambda right, u, v, changed, k: right(u, v, ~changed, k),
        "uniform as the actors": lambda right, u, v, changed, k: right(u, u, changed, k),
        "paired with size 1": column("paired", lambda row: row["above_k1"]),
    },
    "surprise is that of separate networks": {
        "mean over choices": lambda right, model, *rest: right(model, *rest) / 3,
        "another network": lambda right, model, *rest: right([p.roll(1, 0) for p in model], *rest),
        "another state": lambda right, model, state, choices: right(model, state.roll(1, 0), choices),
        "another joint action": lambda right, model, state, choices: right(model, state, choices.roll(1, 1)),
    },
    "the model of the behaviour knows who agrees with whom": {
        "agents apart": agents_apart,
        "another state": lambda right, state, *rest: right(state.roll(1, 0), *rest),
        "sees all choices": lambda right, *args: (
            lambda params: [params[0].where(params[0] != 0, 0.1), *params[1:]]
        )(right(*args)),
    },
    "distance is to the nearest pair": {
        "squared": lambda right, *args: right(*args).square(),
        "states do not count": lambda right, pairs, state, joint: right(
            (0 * pairs[0], pairs[1]), 0 * state, joint
        ),
        "joint actions do not count": lambda right, pairs, state, joint: right(
            (pairs[0], 0 * pairs[1]), state, 0 * joint
        ),
        "another size": lambda right, pairs, state, joint: right(pairs, state, joint.roll(1, 1)),
    },
    "replacement is the backup's": {
        "all agents": replaced_part(0, lambda joint: joint[:, :, -1:].expand_as(joint)),
        "one size more": replaced_part(0, lambda joint: joint.roll(-1, 2)),
        "uniform as the actors'": lambda right, *args: [right(*args)[0]] * 2,
        "uniform never changes": replaced_part(1, lambda joint: joint[:, :, :1].expand_as(joint)),
    },
    "detectors ask the critics": {
        "fewer members": asking(lambda critic, state, joint: ([p[:, 1:] for p in critic], state, joint)),
        "another state": asking(lambda critic, state, joint: (critic, state.roll(1, 1), joint)),
        "another size": asking(lambda critic, state, joint: (critic, state, joint.roll(1, 2))),
        "range as deviation": lambda right, *args: [
            row | dict(detector={"std": "range", "range": "std"}.get(row["detector"], row["detector"]))
            for row in right(*args)
        ],
    },
    "fresh data are on the run's scale": {
        "on their own": lambda right, script, trained, fresh: right(script, fresh, fresh),
        "the trained ones": lambda right, script, trained, fresh: right(script, trained, trained),
        "the state before": lambda right, *args: (
            lambda state, obs, actions: (state.roll(1, 0), obs.roll(1, 0), actions)
        )(*right(*args)),
    },
    "cloning is by likelihood or by distance": {
        "sign": lambda right, *args: -right(*args),
        "mean over agents": lambda right, *args: right(*args).mean(1, keepdim=True).expand(-1, 3),
        "another transition's actions": lambda right, outputs, actions, kind: right(
            outputs, actions.roll(1, 1), kind
        ),
        "the other kind": lambda right, outputs, actions, continuous: right(outputs, actions, not continuous),
    },
    "steps are those of plain loops": {  # functions of the scripts that are changed, in turn
        "spacql_target": lambda right, *args: 1 - right(*args),
        "cql_penalty": lambda right, *args: 1.1 * right(*args),
        "actor_loss": lambda right, *args: 1.1 * right(*args),
        "clip_gradients": lambda right, params: None,
    },
}
