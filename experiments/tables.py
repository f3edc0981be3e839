"""results/tables.md: the tables, the verdicts on the paper's claims and what is missing, from the CSV files alone."""

from pathlib import Path

import numpy as np

from experiments.claims import (
    CLAIMS,
    FAILS,
    HOLDS,
    PUBLISHED,
    PUBLISHED_DEVIATION,
    TASKS,
    Scores,
    in_words,
    judge,
    try_claim,
    weights,
)
from experiments.intervals import COVERAGE, FEWEST, crossing, difference, iqm, iqm_interval
from experiments.plan import BACKUPS, CLONING, METHODS, NARROW, QUALITIES, VS_POLICY, WEIGHTS, WIDE, Cell, Job
from experiments.records import DEPENDENCE, read
from utils.files import atomic

DATA_SCORES = {  # mean scores of the default datasets, by QUALITIES (README, Worlds and datasets)
    "discrete": {
        "simple_spread": (0.0, 7.0, 40.9, 99.9),
        "simple_tag": (0.2, 13.0, 40.3, 101.2),
        "simple_world": (-0.1, 17.3, 39.9, 100.5),
    },
    "continuous": {
        "simple_spread": (0.1, 13.6, 45.8, 115.3),
        "simple_tag": (0.0, 22.0, 40.8, 99.2),
        "simple_world": (0.1, 22.1, 40.4, 99.7),
        "HalfCheetah-2x3": (0.0, 17.4, 39.3, 101.0),
    },
}
TITLES = {
    "discrete": "Discrete actions (`spacql.py`)",
    "continuous": "Forces and torques (`spacql_continuous.py`)",
    "weights": "Other rules for the weights (`spacql.py`)",
    "actors": "Actors that improve against each other's policies (`spacql.py`)",
    "cloning": "Some behaviour cloning in the actor (`spacql.py`)",
    "cloning-continuous": "The same with forces (`spacql_continuous.py`)",
    "coordination": "Data of teams that act together, more or less (`spacql.py`)",
    "ablation": "What makes forces learnable, one change each (`spacql_continuous.py`)",
}
AGGREGATES = {"all": QUALITIES, "random and medium-replay": WIDE, "medium and expert": NARROW}
# Columns of each table, and the grid whose main rows stand in for methods that are not run twice.
COLUMNS = {"discrete": METHODS, "continuous": METHODS, "coordination": (*BACKUPS, *VS_POLICY)}
COLUMNS |= {"weights": ("spacql", *WEIGHTS), "cloning": ("spacql", "bc", *CLONING)}
COLUMNS |= {"cloning-continuous": COLUMNS["cloning"]}
COLUMNS |= {"actors": ("spacql", "spacql-vs-policy", "joint", "joint-vs-policy")}
OPPONENTS = (  # where data are coordinated
    ("joint", "icql-qs"),
    ("spacql", "uniform"),
    ("joint", "spacql"),
    ("joint-vs-policy", "icql-qs-vs-policy"),
    ("joint-vs-policy", "joint"),
)
BORROWED = {"weights": "discrete", "actors": "discrete", "cloning": "discrete", "cloning-continuous": "continuous"}
CHANGES = {  # of the method, with what each is compared, dataset by dataset
    "weights": tuple((name, "spacql") for name in WEIGHTS),
    "actors": (("spacql-vs-policy", "spacql"), ("joint-vs-policy", "joint")),
    "cloning": tuple((name, "spacql") for name in CLONING),
    "cloning-continuous": tuple((name, "spacql") for name in CLONING),
}
INTRODUCTION = f"""# Results

Written by `python experiments/run.py --figures` from the CSV files beside it, which have every run's command, seed, commit
and machine. Scores are last scores, not best ones: greedy actors after the last round (1000 episodes a seed,
HalfCheetah 20); 0 is random play and 100 the expert.

A score is the interquartile mean over seeds (of five seeds the mean of the middle three), in brackets the 95%
stratified bootstrap interval (rliable's method, 10,000 resamples). n is the number of seeds where it is not 5; fewer
than {FEWEST} have no interval. Intervals of so few seeds are too short: of normally distributed scores the one of five
seeds, called 95%, has the truth in {COVERAGE[5][0]:.0%} of cases, that of three in {COVERAGE[3][0]:.0%}. The highest
score of a row is bold, whatever the intervals say. All seeds learn from the same simulated dataset.
"""
RULE = f"""A comparison is a difference of interquartile means. It **holds** if its whole interval lies above 0, **does
not hold** if the whole interval lies below 0, and otherwise **cannot be told**. A sentence about several comparisons
does not hold as soon as one of them does not, and holds only if all do; what has fewer than {FEWEST} seeds is missing.
Beside a sentence stands the mean difference over its datasets, beside a dataset the comparison that decides. P(above)
is the chance that a seed of the first scores more than one of the second. Only continuous simple_spread random has the
paper's distribution of data and its unit of scores."""


def table(head: tuple, rows: list[tuple]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *rows))


def with_interval(groups: list[list[float]]) -> str:
    """IQM [low, high] of the seeds of one dataset or several; n where it is not 5."""
    if not groups or not all(groups):
        return ""
    found, sizes = iqm_interval(*groups), sorted({len(group) for group in groups})
    text = f"{found.value:.1f}"
    if not np.isnan(found.low):
        text += f" [{found.low:.1f}, {found.high:.1f}]"
    return text if sizes == [5] else f"{text} (n = {' to '.join(map(str, sizes[:: len(sizes) - 1 or 1]))})"


def row_of_scores(groups_of_methods: list[list[list[float]]]) -> list[str]:
    """Texts of a row's scores, the highest one bold if there are two."""
    texts = [with_interval(groups) for groups in groups_of_methods]
    values = [
        iqm(np.concatenate(groups)) if text else -np.inf for groups, text in zip(groups_of_methods, texts, strict=True)
    ]
    if sum(map(bool, texts)) > 1:
        best = int(np.argmax(values))
        value, _, rest = texts[best].partition(" ")
        texts[best] = f"**{value}** {rest}".strip()
    return texts


def published(dataset: tuple) -> str:
    """The paper's numbers on OMAR's data of that name."""
    names = {"spacql": "SPaCQL", "icql-qs": "ICQL-QS", "cfcql": "CFCQL", "macql": "MACQL"}
    deviation = f" ± {PUBLISHED_DEVIATION[dataset]}" if dataset in PUBLISHED_DEVIATION else ""
    return ", ".join(
        f"{names.get(name, name)} {score}{deviation if name == 'spacql' else ''}"
        for name, score in PUBLISHED.get(dataset, {}).items()
        if score is not None
    )


def main_table(grid: str, scores: Scores) -> str:
    """Every dataset and size of the discrete or the continuous grid, and aggregates over the main sizes."""
    rows, listed = [], set()
    for env_id, quality, rounds, batch_size in datasets_and_sizes(grid, scores):
        groups = [scores.rows.get((grid, env_id, quality, method, rounds, batch_size), []) for method in METHODS]
        texts = row_of_scores([[[float(row["score"]) for row in group]] for group in groups])
        size = rounds if batch_size == "256" else f"{rounds} (batch {batch_size})"
        data = DATA_SCORES[grid][env_id][QUALITIES.index(quality)]
        beside = "" if (env_id, quality) in listed else published((env_id, quality))
        listed.add((env_id, quality))
        rows.append((env_id, f"{quality} ({data})", size, *texts, f"*{beside}*" if beside else ""))
    for name, qualities in AGGREGATES.items():
        if places := common_datasets(grid, qualities, scores):
            fewest = [min(len(scores.values((grid, *where), method)) for method in METHODS) for where in places]
            first = list(zip(places, fewest, strict=True))  # a dataset weighs the same for every method
            texts = row_of_scores([[scores.values((grid, *d), method)[:n] for d, n in first] for method in METHODS])
            rows.append((f"{len(places)} datasets", name, "", *texts, ""))
    head = ("task", "data (mean score)", "rounds", *METHODS, "*published, on OMAR's data*")
    places = common_datasets(grid, QUALITIES, scores)
    names = [f"{env_id} {', '.join(q for e, q in places if e == env_id)}" for env_id in dict(places)]
    note = (
        f"Rows over several datasets have those on which every method has at least {FEWEST} seeds"
        f" ({'; '.join(names) or 'none so far'}), and of each the first seeds, as many as every method has there."
    )
    return f"{table(head, rows)}\n\n{note}"


def datasets_and_sizes(grid: str, scores: Scores) -> list[tuple]:
    """The rows of a main table, (env_id, quality, rounds, batch_size): by task and quality, the main size first."""
    main = {key[1:3] + key[4:] for key in scores.main.values() if key[0] == grid}
    keys = {key[1:3] + key[4:] for key in scores.rows if key[0] == grid}
    keys = [key for key in keys if key[0] in TASKS[grid] and key[1] in QUALITIES]
    order = lambda key: (TASKS[grid].index(key[0]), QUALITIES.index(key[1]), key not in main, int(key[2]))  # noqa: E731
    return sorted(keys, key=order)


def common_datasets(grid: str, qualities: tuple, scores: Scores) -> list[tuple]:
    """The datasets (env_id, quality) on which every method has enough seeds for an interval."""
    places = [(env_id, quality) for env_id in TASKS[grid] for quality in qualities]
    return [p for p in places if all(len(scores.values((grid, *p), method)) >= FEWEST for method in METHODS)]


def side_table(grid: str, scores: Scores) -> str:
    """A table of another grid: a row for each dataset, a column for each method; of one dataset, a row a method."""
    keys = [key for key in scores.main.values() if key[0] == grid]
    datasets = list(dict.fromkeys(key[1:3] for key in keys))
    columns = COLUMNS.get(grid, tuple(dict.fromkeys(key[3] for key in keys)))

    if len(datasets) == 1:
        rows = [(method, with_interval([own_or_borrowed(grid, datasets[0], method, scores)])) for method in columns]
        return table((f"{' '.join(datasets[0])}, {keys[0][4]} rounds", "score"), rows)
    rounds = {key[1:3]: key[4] for key in keys}
    groups = {d: [[own_or_borrowed(grid, d, method, scores)] for method in columns] for d in datasets}
    rows = [(*d, rounds[d], *row_of_scores(groups[d])) for d in datasets]
    text = table(("task", "data", "rounds", *columns), rows)
    if grid == "weights":
        rows = [(*d, *(last_weights(grid, d, method, scores) for method in columns)) for d in datasets]
        text += "\n\nThe weights w_1, w_2, w_3 that they end with (mean over states and seeds):\n\n"
        text += table(("task", "data", *columns), rows)
    return text


def own_or_borrowed(grid: str, dataset: tuple, method: str, scores: Scores) -> list[float]:
    """Scores of a method in a side grid, or those of the main grid that stand in for them."""
    return scores.values((grid, *dataset), method) or scores.values((BORROWED.get(grid), *dataset), method)


def changes_table(grid: str, scores: Scores) -> str:
    """What each change of CHANGES makes of the score, dataset by dataset, and how often that can be told."""
    datasets = dict.fromkeys(key[1:3] for key in scores.main.values() if key[0] == grid)
    rows, counted = {d: [] for d in datasets}, []
    for pair in CHANGES[grid]:
        verdicts = []
        for d in datasets:
            first, second = (own_or_borrowed(grid, d, method, scores) for method in pair)
            enough = min(len(first), len(second)) >= FEWEST
            found = difference([first], [second]) if enough else None
            rows[d].append(in_words(found) if enough else "")
            verdicts += [judge(found)] if enough else []
        if verdicts:
            above, below = verdicts.count(HOLDS), verdicts.count(FAILS)
            counted.append(f"* {pair[0]}: above {pair[1]} on {above}, below on {below} of {len(verdicts)} datasets")
    head = ("task", "data", *(" minus ".join(pair) for pair in CHANGES[grid]))
    lines = [(*d, *texts) for d, texts in rows.items() if any(texts)]
    return "\n".join([table(head, lines), "", *counted]) if lines else ""


def last_weights(grid: str, dataset: tuple, method: str, scores: Scores) -> str:
    """Mean weights of all sizes at the end of a method's runs, or of those that stand in for them."""
    for where in (grid, BORROWED[grid]):
        if found := scores.values((where, *dataset), method, weights):
            return ", ".join(f"{w:.3f}" for w in np.mean(found, axis=0))
    return ""


def dependence_table(scores: Scores, measured: list[dict]) -> str:
    """What the backups' scores differ by on data of more and more dependent actions, and where they change places.

    measured: the rows of dependence.csv.
    """
    dependence = {(row["env_id"], row["dataset"]): float(row["dependence_nats"]) for row in measured}
    datasets = dict.fromkeys(key[1:3] for key in scores.main.values() if key[0] == "coordination")
    rows, sentences = [], []
    for env_id in dict.fromkeys(env_id for env_id, _ in datasets):
        places = sorted((dependence[d], d) for d in datasets if d[0] == env_id and d in dependence)
        for nats, where in places:
            groups = [[scores.values(("coordination", *where), m) for m in pair] for pair in OPPONENTS]
            texts = [in_words(difference([a], [b])) if min(len(a), len(b)) >= FEWEST else "" for a, b in groups]
            rows.append((*where, f"{nats:.3f}", *texts))
        for pair in OPPONENTS:
            sides = [[scores.values(("coordination", *where), m) for _, where in places] for m in pair]
            ready = [i for i in range(len(places)) if min(len(side[i]) for side in sides) >= FEWEST]
            if len(ready) > 1:
                ready_places, *ready_sides = ([x[i] for i in ready] for x in ([p for p, _ in places], *sides))
                sentences.append(f"* {env_id}, {' minus '.join(pair)}: {where_it_crosses(ready_places, *ready_sides)}")
    head = ("task", "data", "dependence, nats", *(" minus ".join(pair) for pair in OPPONENTS))
    return "\n".join([table(head, rows), "", *sentences])


def where_it_crosses(places: list[float], first: list, second: list) -> str:
    """In words where along the dependence the second method gives way to the first, or the other way round.

    Differences about 0 change their sign by chance, so a crossing takes a place with the whole interval above 0 and one
    with the whole interval below.
    """
    verdicts = [judge(difference([a], [b])) for a, b in zip(first, second, strict=True)]
    above, below = verdicts.count(HOLDS), verdicts.count(FAILS)
    text = f"above 0 at {above}, below 0 at {below} of {len(places)} places"
    if not (above and below):
        return f"{text}: no crossing is shown"
    found, share = crossing(places, first, second)
    return (
        f"{text}: they cross at {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] nats ({share:.0%} of resamples)"
    )


def claims_section(scores: Scores) -> str:
    """All verdicts at a glance, and what they rest on."""
    overview, details, comparisons = [], [], []
    for claim in CLAIMS:
        verdicts, rows = dict.fromkeys(TASKS, ""), []
        for grid in claim.grids:
            verdict, together, findings = try_claim(claim, grid, scores)
            held, failed = (sum(finding.verdict == v for finding in findings.values()) for v in (HOLDS, FAILS))
            counts = f"holds on {held} of {len(findings)} datasets, does not on {failed}" if len(findings) > 1 else ""
            verdicts[grid] = "; ".join(filter(None, (f"**{verdict}**", counts, together)))
            for where, finding in findings.items():
                missing = f"missing: {', '.join(finding.missing)}" if finding.missing else ""
                rows.append((grid, *where, finding.verdict, "; ".join(filter(None, (finding.said, missing)))))
                comparisons += finding.comparisons
        overview.append((claim.text, *verdicts.values()))
        details.append(f"**{claim.text}**\n\n{table(('actions', 'task', 'data', 'verdict', 'difference'), rows)}")
    counted = (
        f"Nothing is corrected for the number of comparisons, {len(comparisons)} in all, of which"
        f" {comparisons.count(HOLDS)} hold and {comparisons.count(FAILS)} do not. Where two methods do not differ at"
        f" all, an interval misses 0 in {1 - COVERAGE[5][1]:.0%} of comparisons of five seeds with five, in"
        f" {1 - COVERAGE[3][1]:.0%} of three with three (normally distributed scores)."
    )
    return "\n\n".join([RULE, counted, table(("the paper's claim", *TASKS), overview), *details])


def aggregate_differences(scores: Scores) -> str:
    """SPaCQL against every other method, mean over all datasets where both have enough seeds."""
    rows = []
    for grid in TASKS:
        for name, qualities in AGGREGATES.items():
            for rival in METHODS[1:]:
                pairs = [
                    [scores.values((grid, env_id, quality), method) for method in ("spacql", rival)]
                    for env_id in TASKS[grid]
                    for quality in qualities
                ]
                pairs = [pair for pair in pairs if min(map(len, pair)) >= FEWEST]
                if pairs:
                    found = difference(*zip(*pairs, strict=True))
                    rows.append((grid, name, rival, len(pairs), in_words(found)))
    return table(("actions", "data", "SPaCQL minus", "datasets", "mean difference of IQMs"), rows)


def missing_section(cells: list[Cell], jobs: list[Job]) -> str:
    """What is planned and not done, by task and dataset."""
    if not jobs:
        return f"Nothing: all {len(cells)} cells are done."
    lines, by_dataset = [], {}
    for job in jobs:
        cell = job.cell
        size = f"{cell.rounds} rounds" + (f", batch {cell.batch_size}" if cell.batch_size != 256 else "")
        seeds = str(job.first) if job.count == 1 else f"{job.first} to {job.first + job.count - 1}"
        by_dataset.setdefault((cell.grid, cell.env_id, cell.dataset, size), []).append(f"{cell.method} ({seeds})")
    for (grid, env_id, dataset, size), methods in by_dataset.items():
        lines.append(f"* {grid}, {env_id} {dataset}, {size}: {', '.join(methods)}")
    whole = len({job.cell for job in jobs})
    text = (
        f"{whole} of {len(cells)} cells lack seeds (in brackets); {len(jobs)} commands, which"
        " `python experiments/run.py --dry-run` lists, would run them."
    )
    return "\n".join([text, "", *lines])


def write_tables(path: Path, scores: Scores, cells: list[Cell], jobs: list[Job]) -> None:
    """Write tables.md."""
    parts = [INTRODUCTION]
    parts += [f"## {TITLES[grid]}\n\n{main_table(grid, scores)}" for grid in TASKS]
    parts += ["## The paper's claims", claims_section(scores)]
    parts += ["## SPaCQL against each method over several datasets", aggregate_differences(scores)]
    measured = read(path.with_name(DEPENDENCE))
    side = [grid for grid in TITLES if grid not in TASKS and any(key[0] == grid for key in scores.rows)]
    for grid in side:
        parts.append(f"## {TITLES[grid]}\n\n{side_table(grid, scores)}")
        if grid in CHANGES and (changes := changes_table(grid, scores)):
            parts.append(changes)
        if grid == "coordination" and measured:
            parts.append(dependence_table(scores, measured))
    parts += ["## Not run", missing_section(cells, jobs)]
    with atomic(path) as partial:
        partial.write_text("\n\n".join(part.strip() for part in parts) + "\n")
