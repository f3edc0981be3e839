"""Deliberate mistakes in the tools of experiments/, by the check that must reject them, at most four each.

A mutant takes the right function and its arguments.
"""


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


MUTANTS = {
    "columns say what they are of": {
        "auroc of the next size": lambda right, u, v, k: right(u.roll(1, 0), v, k),
        "uniform as the actors": lambda right, u, v, k: right(u, u, k),
        "swapped": column("auroc", lambda row: 1 - row["auroc"]),
    },
    "the model of the behaviour knows the habits": {
        "another state": lambda right, state, choices: right(state.roll(1, 0), choices),
        "another agent": lambda right, state, choices: right(state, choices.roll(1, 1)),
        "mean over choices": lambda right, *args: right(*args) / 3,
    },
    "distance is to the nearest pair": {
        "squared": lambda right, *args: right(*args).square(),
        "states do not count": lambda right, pairs, s, a: right((0 * pairs[0], pairs[1]), 0 * s, a),
        "joint actions do not count": lambda right, pairs, s, a: right((pairs[0], 0 * pairs[1]), s, 0 * a),
        "another joint action": lambda right, pairs, state, joint: right(pairs, state, joint.roll(1, 0)),
    },
    "replacement is the backup's": {
        "all agents": replaced_part(0, lambda joint: joint[:, :, -1:].expand_as(joint)),
        "one size more": replaced_part(0, lambda joint: joint.roll(-1, 2)),
        "uniform as the actors'": lambda right, *args: [right(*args)[0]] * 2,
        "uniform never changes": replaced_part(1, lambda joint: joint[:, :, :1].expand_as(joint)),
    },
    "estimates are of their joint actions": {
        "fewer members": lambda right, script, q, *rest: right(script, q[:, 1:], *rest),
        "another state": lambda right, *args: right(*args[:4], args[4].roll(1, 1), args[5]),
        "another size": lambda right, *args: right(*args[:5], args[5].roll(1, 2)),
    },
    "cloning is by likelihood or by distance": {
        "sign": lambda right, *args: -right(*args),
        "mean over agents": lambda right, *args: right(*args).mean(1, keepdim=True).expand(-1, 3),
        "another transition's actions": lambda right, out, a, kind: right(out, a.roll(1, 1), kind),
        "the other kind": lambda right, outputs, actions, continuous: right(outputs, actions, not continuous),
    },
}
