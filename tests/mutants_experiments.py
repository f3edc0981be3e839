"""Deliberate mistakes in plan, runner and claims: {property: {name: wrong function}}, at most four of each.
The check of that name in test_experiments.py must reject each. A mutant takes the right function and its
arguments."""

import numpy as np

from experiments.claims import FAILS, HOLDS, Estimate

MUTANTS = {
    "a quarter is cut off at each end": {
        "mean": lambda right, scores: np.mean(scores),
        "median": lambda right, scores: np.median(scores),
        "quarter rounded up": lambda right, scores: right(sorted(scores)[1:-1] or scores),
    },
    "the interval is that of all resamples": {
        "mean instead": lambda right, group: right([float(np.mean(group))] * 4),
        "without replacement": lambda right, group: Estimate(*[right(group).value] * 3),
        "two are enough": lambda right, group: right([*group, group[0]] if len(group) == 2 else group),
    },
    "a difference is the mean of those on each dataset": {
        "pooled": lambda right, *sides: right(*[[np.concatenate(side)] for side in sides]),
        "swapped": lambda right, first, second: right(second, first),
        "first dataset": lambda right, first, second: right(first[:1], second[:1]),
    },
    "an interval decides": {
        "the value": lambda right, found: HOLDS if found.value > 0 else FAILS,
        "touching 0 holds": lambda right, found: HOLDS if found.low >= 0 else right(found),
        "all others fail": lambda right, found: HOLDS if found.low > 0 else FAILS,
    },
    "one method must be above all rivals": {
        "first rival": lambda right, claim, *rest: right(claim._replace(rivals=claim.rivals[:1]), *rest),
        "first method": lambda right, claim, *rest: right(claim._replace(methods=claim.methods[:1]), *rest),
        "first dataset": lambda right, claim, scores, places: right(claim, scores, places[:1]),
        "any seeds": lambda right, claim, scores, *rest: right(
            claim, {key: 2 * group for key, group in scores.items()}, *rest
        ),
    },
    "names are safe and tell cells apart": {
        "not safe": lambda right, cell: "__".join(map(str, cell[:5])),
        "without rounds": lambda right, cell: right(cell._replace(rounds=0)),
        "without grid": lambda right, cell: right(cell._replace(grid="grid")),
    },
    "commands say what cells mean": {
        "one method": lambda right, job: right(job._replace(cell=job.cell._replace(method="spacql"))),
        "one seed": lambda right, job: right(job._replace(count=1)),
        "no flags": lambda right, job: right(job._replace(cell=job.cell._replace(flags=""))),
    },
    "missing seeds are trained side by side": {
        "all": lambda right, cells, done: right(cells, set()),
        "over what is done": lambda right, *args: [j._replace(count=5 - j.first) for j in right(*args)[:1]],
        "anybody's seeds": lambda right, cells, done: right(cells, {(*cells[0][:6], s) for *_, s in done}),
    },
    "rows are what the run left": {
        "seeds swapped": lambda right, *args: [table[::-1] for table in right(*args)],
        "best is last": lambda right, *args: (right(*args)[0].assign(best=3.5), right(*args)[1]),
        "first weights": lambda right, *args: (right(*args)[0].assign(w1=0.3333), right(*args)[1]),
    },
    "rows stand in the order of the plan": {
        "as they came": lambda right, table, cells: right(table, []),
        "by text": lambda _, table, cells: table[:12].sort_values(list(table), key=lambda x: x.astype(str)),
        "the last of two": lambda right, table, cells: right(table[::-1], cells),
    },
    "bars count the seeds that end at the best": {
        "all of them": lambda right, fig, runs: right(fig, runs.assign(score=1.0)),
        "the rest": lambda right, fig, runs: right(fig, runs.assign(score=-runs["score"])),
        "one share": lambda right, fig, runs: right(fig, runs.assign(dataset=runs["dataset"][0])),
    },
    "curves are means with their range": {
        "middle seed": lambda right, fig, *tables: right(fig, *(t[t["seed"] == 1] for t in tables)),
        "first round": lambda right, fig, runs, curves: right(fig, runs, curves[curves["round"] == 20]),
        "large data first": lambda right, fig, runs, curves: right(fig, runs, curves[::-1]),
    },
}
