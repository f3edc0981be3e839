"""Which experiments there are: PLAN, in the order in which they run, and FLAGS, what each method means.

A cell is a task, a dataset, a method and a size; a job is one command that trains some seeds of a cell side
by side. To add experiments, add a block of cells, and its methods to FLAGS; a new grid also needs a script.
"""

import re
from typing import NamedTuple

from utils.errors import InputError

QUALITIES = ("random", "medium-replay", "medium", "expert")  # data/omar.py's, without loading torch for them
RUNS = "runs/results"  # run folders, below TOP

SCRIPTS = {
    "recipe": "-m experiments.original_recipe",  # on the paper's own random data
    "penalty": "spacql.py",  # CFCQL's and MACQL's at several alphas
    "penalty-continuous": "spacql_continuous.py",
    "continuous": "spacql_continuous.py",
    "size": "spacql_continuous.py",  # more and fewer transitions
    "omar-prey": "spacql_continuous.py",  # whose predators learnt against OMAR's prey
    "discrete": "spacql.py",
    "narrow": "spacql.py",  # other actors, for expert and medium data
    "crowd": "spacql.py",  # six agents
    "coordination": "spacql.py",  # data whose teams act together, more or less
}
TEN_CRITICS, TWO_CRITICS = ("spacql", "icql-qs", "joint"), ("cfcql", "icql-qs-2")
METHODS = (*TEN_CRITICS, *TWO_CRITICS, "bc")
MAIN = (*TEN_CRITICS, "cfcql", "bc")
# The same backups, with actors that improve against the others' policies in place of their logged actions.
VS_POLICY = tuple(f"{backup}-vs-policy" for backup in TEN_CRITICS)
NARROW_METHODS = ("spacql-vs-policy", "clone")
ALPHAS, CHOOSING = (0.1, 0.3, 0.9, 2.7, 8.1, 24.3), range(3)  # and the seeds that choose among them
SWEPT = {f"{name}-{alpha}": (name, alpha) for name in ("cfcql", "macql") for alpha in ALPHAS}
CROWD_SWEPT = {f"cfcql-{alpha}": ("cfcql", alpha) for alpha in (0.9, 2.7, 8.1, 24.3, 72.9, 218.7)}
FLAGS = {
    **{backup: f"--backup {backup}" for backup in (*TEN_CRITICS, "uniform")},
    "cfcql": "--backup joint --num-critics 2",
    "icql-qs-2": "--backup icql-qs --num-critics 2",
    "macql": "--backup joint --num-critics 2 --penalty macql",
    "bc": "",  # a script of its own: experiments/bc.py
    **{f"{backup}-vs-policy": f"--backup {backup} --actor-others policy" for backup in TEN_CRITICS},
    "clone": "--clone-weight 1",
}
FLAGS |= {m: f"{FLAGS[name]} --cql-alpha {alpha}" for m, (name, alpha) in (SWEPT | CROWD_SWEPT).items()}
SIZED = {f"{name}-{size}": (name, size) for size in (16_000, 250_000, 1_000_000) for name in TWO_CRITICS}
FLAGS |= {method: f"{FLAGS[name]} --dataset-size {size}" for method, (name, size) in SIZED.items()}
# For each task first: python -m data.behaviour --env-id TASK --action-kind continuous --prey FILE --out ...
OMAR_PREY = {f"{name}-omar-prey": name for name in (*TEN_CRITICS, *TWO_CRITICS)}
FLAGS |= {method: f"{FLAGS[name]} --policies datasets/omar_prey" for method, name in OMAR_PREY.items()}
# The original recipe, minus one of its parts; then all of them, and what of it can be put back.
OURS = (
    "--norm-states data --no-affine --no-small-last-layer --no-first-critic --no-first-batch --no-terminal"
    " --no-clip-together --no-exact-k1 --no-agents-mean --centred-rewards --output-l2 0.1"
)
RECIPES = {
    "original": "",
    "not-actor": "--norm-in target fit",  # in (6) by the data's
    "not-actor-l2": "--norm-in target fit --output-l2 0.1",
    "l2": "--output-l2 0.1",
    "not-target": "--norm-in fit actor",
    "ours": f"{OURS} --norm-actions none",
    "rewards": "--centred-rewards",
    "cured-rewards": "--norm-in target fit --output-l2 0.1 --centred-rewards",
    "slow": "--learning-rate 0.001",  # spread's is 0.01
    "slow-cured": "--norm-in target fit --output-l2 0.1 --learning-rate 0.001",
    "target": "--norm-in target",
    "fit": "--norm-in fit",
    "actor": "--norm-in actor",
    "states": "--norm-actions data",
    "actions": "--norm-states data",
    "no-affine": "--no-affine",
    "fixed": "--norm-states data --norm-actions data --no-affine",
    "fixed-affine": "--norm-states data --norm-actions data",
    "running": "--norm-states running --norm-actions running",
    "one-pass": "--norm-actions one-pass",
    "own-calls": "--no-one-call",
    "ours-call": f"{OURS} --norm-actions call",
    "ours-own-calls": f"{OURS} --norm-actions call --no-one-call",
    "large-last-layer": "--no-small-last-layer",
    "mean-critic": "--no-first-critic",
    "last-batch": "--no-first-batch",
    "timeouts": "--no-terminal",
    "no-noise": "--target-noise 0",
    "own-clip": "--no-clip-together",
    "no-l2": "--action-l2 0",
}
PUT_BACK = {  # parts of the original recipe into ours
    "ours-rewards": "--no-centred-rewards",
    "ours-terminal": "--terminal",
    "ours-actors": "--first-critic --first-batch",
    "ours-no-l2": "--output-l2 0",
    "ours-rest": "--affine --small-last-layer --clip-together",
    "ours-affine": "--affine",
    "ours-small": "--small-last-layer",
    "ours-clip": "--clip-together",
}
RECIPES |= {name: f"{OURS} --norm-actions none {flags}" for name, flags in PUT_BACK.items()}
RECIPE_BACKUPS = {backup: FLAGS[backup] for backup in TEN_CRITICS}
RECIPE_BACKUPS["spacql"] += " --num-critics 10"
FLAGS |= {
    f"{backup}-{recipe}": f"{flags} {changes} --penalty-agents 1"
    for backup, flags in RECIPE_BACKUPS.items()
    for recipe, changes in RECIPES.items()
}


class Cell(NamedTuple):
    """One entry of a table, whatever the seed."""

    grid: str
    env_id: str
    dataset: str
    method: str
    rounds: int
    batch_size: int
    num_seeds: int  # as planned: seeds 0, 1, ...
    flags: str


KEYS = list(Cell._fields[:6])  # what tells a cell's rows in the CSV files from those of others


class Job(NamedTuple):
    """Seeds first, first + 1, ... of a cell, trained side by side by one command."""

    cell: Cell
    first: int
    count: int

    @property
    def name(self) -> str:
        """The name of its run folder, safe for any file system."""
        parts = [re.sub(r"[^\w.-]+", "_", str(part)) for part in self.cell[:5]]
        return "__".join([*parts, f"{self.first}x{self.count}"])

    def command(self) -> str:
        """Its command line, to run from the repository's top."""
        cell = self.cell
        script = SCRIPTS[cell.grid]
        if cell.method == "bc":
            script = "-m experiments.bc" + " --continuous" * (script == "spacql_continuous.py")
        size = f"--rounds {cell.rounds}" + f" --batch-size {cell.batch_size}" * (cell.batch_size != 256)
        flags = f"--env-id {cell.env_id} --dataset {cell.dataset} {FLAGS[cell.method]} {size} {cell.flags}"
        seeds = f"--seed {self.first} --num-seeds {self.count}"
        place = f"--out {RUNS} --name {self.name}"
        return " ".join(f"OMP_NUM_THREADS=1 python {script} {flags} {seeds} {place}".split())


def block(grid, env_ids, datasets, methods, rounds, num_seeds=5, batch_size=256, flags="") -> list[Cell]:
    """Cells that share a size: every task with every dataset and every method."""
    return [
        Cell(grid, env_id, dataset, method, rounds, batch_size, num_seeds, flags)
        for env_id in env_ids
        for dataset in datasets
        for method in methods
    ]


def both(*recipes: str) -> list[str]:
    """The methods that train these recipes with k = 1 and joint backups."""
    return [f"{backup}-{recipe}" for recipe in recipes for backup in ("joint", "icql-qs")]


SPREAD, TAG, WORLD, CHEETAH = ("simple_spread",), ("simple_tag",), ("simple_world",), ("HalfCheetah-2x3",)
PREY, PARTICLES = TAG + WORLD, SPREAD + TAG + WORLD
RANDOM, REPLAY, NARROW = ("random",), ("medium-replay",), ("expert", "medium")
WIDE = RANDOM + REPLAY  # where the paper claims most
# What two cores can train: the full size takes 100,000 rounds of 256 units.
REDUCED = "--hidden 128 --learning-rate 0.001 --eval-every 50"
PREY_FILE = "--prey omar_prey/{}/pretrained_adv_model.pt"  # OMAR's, which is not shipped
CROWD = tuple(f"datasets/crowd-{size}.h5" for size in (2500, 25_000))  # by experiments/crowd.py
DOORS = tuple(f"mix:share={share},noise=0.2" for share in (0, 0.25, 0.5, 0.75, 1))

THREE = ("original", "not-actor-l2", "ours")
ON_SPREAD = ("slow", "slow-cured", "cured-rewards", *PUT_BACK)  # with joint backups
PARTS = [name for name in RECIPES if name not in (*THREE, "rewards", *ON_SPREAD)]
PAPER_SIZE = dict(rounds=2000, batch_size=1024)
ON_TAG, ON_WORLD = (PAPER_SIZE | dict(flags=PREY_FILE.format(*task)) for task in (TAG, WORLD))
# The rows with the paper's own data, and one agent in the penalty, which is unbiased.
OWN_DATA = ((TAG, PREY_FILE.format(*TAG)), (SPREAD, ""), (WORLD, PREY_FILE.format(*WORLD)))
EXACT = [(task, PAPER_SIZE | dict(flags=f"--paper-size --penalty-agents 1 {own}")) for task, own in OWN_DATA]
LATE = {task: size | dict(rounds=8000) for task, size in EXACT[:2]}  # does anything collapse?
CHOSEN = {  # by the seeds of CHOOSING, and run with five more
    ("simple_tag", "expert"): ("cfcql-8.1", "macql-24.3"),
    ("simple_tag", "medium"): ("cfcql-8.1", "macql-2.7"),
    ("simple_world", "expert"): ("cfcql-2.7", "macql-0.3"),
    ("simple_world", "medium"): ("cfcql-2.7", "macql-0.9"),
}
PLAN = (  # in the order in which they run: the most telling first
    block("recipe", TAG, RANDOM, both(*THREE), **ON_TAG),
    block("recipe", TAG, RANDOM, both(*PARTS), **ON_TAG, num_seeds=2),
    block("recipe", SPREAD, RANDOM, both(*THREE), **PAPER_SIZE, num_seeds=3),
    block("recipe", SPREAD, RANDOM, both("l2", "rewards"), **PAPER_SIZE, num_seeds=2),
    block("recipe", SPREAD, RANDOM, [f"joint-{x}" for x in ON_SPREAD], **PAPER_SIZE, num_seeds=2),
    block("recipe", WORLD, RANDOM, both(*THREE), **ON_WORLD, num_seeds=3),
    block("recipe", TAG, RANDOM, ("spacql-original", "spacql-not-actor-l2"), **ON_TAG, num_seeds=3),
    [
        cell._replace(num_seeds=8) if cell.method in CHOSEN[cell[1:3]] else cell
        for cell in block("penalty", PREY, NARROW, SWEPT, 400, num_seeds=len(CHOOSING))
    ],
    block("penalty-continuous", PREY, NARROW, list(SWEPT)[1:5], 400, num_seeds=len(CHOOSING)),
    *(block("continuous", task, RANDOM, TWO_CRITICS, **size) for task, size in EXACT),
    block("continuous", PARTICLES, REPLAY, (*MAIN, "icql-qs-2"), 800),
    *(block("continuous", task, RANDOM, TEN_CRITICS, **size, num_seeds=3) for task, size in EXACT),
    block("continuous", WORLD, RANDOM, TWO_CRITICS, **EXACT[2][1] | dict(rounds=5000)),  # the paper's number
    *(block("continuous", task, RANDOM, ("spacql", "icql-qs-2"), 800, flags=prey) for task, prey in OWN_DATA),
    block("size", TAG, REPLAY, SIZED, 800, num_seeds=3),
    block("omar-prey", PREY, REPLAY, OMAR_PREY, 800),
    block("discrete", PARTICLES, REPLAY, MAIN, 800),
    block("discrete", TAG, NARROW, MAIN, 800),
    block("narrow", PREY, NARROW, NARROW_METHODS, 800, num_seeds=3),
    block("crowd", SPREAD, CROWD[:1], (*CROWD_SWEPT, "bc"), 400, num_seeds=len(CHOOSING)),
    block("crowd", SPREAD, CROWD, TEN_CRITICS, 400, flags="--cql-alpha 72.9"),  # chosen by these
    block("coordination", ("two_doors",), DOORS, (*TEN_CRITICS, *VS_POLICY), 150, batch_size=128),
    block("continuous", PARTICLES, NARROW, (*MAIN, "icql-qs-2"), 800, num_seeds=3),
    block("discrete", PARTICLES, RANDOM, MAIN, 800),
    block("discrete", WORLD + SPREAD, NARROW, MAIN, 800, num_seeds=3),
    *(block("continuous", task, RANDOM, TWO_CRITICS, **size, num_seeds=3) for task, size in LATE.items()),
    block("continuous", SPREAD, RANDOM, ("spacql", "joint"), **LATE[SPREAD], num_seeds=3),
    block("continuous", SPREAD, RANDOM, ("icql-qs", "uniform"), **LATE[SPREAD], num_seeds=1),
    block("continuous", CHEETAH, REPLAY, ("spacql", "cfcql"), 1500, num_seeds=1, flags=REDUCED),
    block("continuous", CHEETAH, ("medium",), ("spacql", "cfcql"), 500, num_seeds=1, flags=REDUCED),
)


def planned_cells() -> list[Cell]:
    """All cells in the order in which they run."""
    return [cell for cells in PLAN for cell in cells]


def missing_jobs(cells: list[Cell], done: set[tuple]) -> list[Job]:
    """The jobs that train what is planned and not done: neighbouring seeds go into one job.

    done: (the values of KEYS, seed).
    """
    jobs = []
    for cell in cells:
        seeds = [seed for seed in range(cell.num_seeds) if (*cell[:6], seed) not in done]
        firsts = [seed for seed in seeds if seed - 1 not in seeds]
        ends = [seed + 1 for seed in seeds if seed + 1 not in seeds]
        jobs += [Job(cell, first, end - first) for first, end in zip(firsts, ends, strict=True)]
    return jobs


def job_named(name: str, cells: list[Cell]) -> Job:
    """The job whose run folder has this name. Raises InputError where no cell is planned that fits."""
    cell_name, _, seeds = name.rpartition("__")
    cell = {Job(cell, 0, 1).name.rpartition("__")[0]: cell for cell in cells}.get(cell_name)
    if cell is None or not re.fullmatch(r"\d+x[1-9]\d*", seeds):
        raise InputError(f"no cell is named {name}: --dry-run lists the names")
    return Job(cell, *map(int, seeds.split("x")))
