"""Which experiments there are. BLOCKS is the whole plan, in the order in which it runs, FLAGS what each
method means.

A cell is a task, a dataset, a method and a size; a job is one command that trains some seeds of a cell side
by side. To add experiments, add a Block, and its methods to FLAGS; a new grid also needs a script in SCRIPTS.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from utils.errors import InputError

QUALITIES = ("random", "medium-replay", "medium", "expert")  # data/omar.py's, without loading torch for them
TOP = Path(__file__).resolve().parent.parent  # the repository
RUNS = "runs/results"  # run folders, below TOP
# What tells the rows of a cell in the CSV files from those of other cells.
KEYS = ("grid", "env_id", "dataset", "method", "rounds", "batch_size")

SCRIPTS = {
    "discrete": "spacql.py",
    "continuous": "spacql_continuous.py",
    "actors": "spacql.py",  # that improve against each other's policies
    "cloning": "spacql.py",  # some behaviour cloning in the actor, for narrow data
    "cloning-continuous": "spacql_continuous.py",
    "coordination": "spacql.py",  # data whose teams act together, more or less
}

BACKUPS = ("spacql", "icql-qs", "joint", "uniform")
BASELINES = ("cfcql", "macql", "bc")
METHODS = BACKUPS + BASELINES
FLAGS = {
    "spacql": "--backup spacql",
    "icql-qs": "--backup icql-qs",
    "joint": "--backup joint",
    "uniform": "--backup uniform",
    "cfcql": "--backup joint --num-critics 2",
    "macql": "--backup joint --num-critics 2 --penalty macql",
    "bc": "",  # a script of its own: experiments/bc.py
}
# The same backups, with actors that improve against the others' policies in place of their logged actions.
VS_POLICY = {f"{backup}-vs-policy": f"--backup {backup} --actor-others policy" for backup in BACKUPS}
CLONING = {"clone": "--clone-weight 1", "clone-10": "--clone-weight 10"}
FLAGS |= VS_POLICY | CLONING


@dataclass(frozen=True)
class Block:
    """Cells that share a size: every task with every dataset and every method."""

    grid: str
    env_ids: tuple[str, ...]
    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    rounds: int | dict[str, int]  # or by dataset
    num_seeds: int = 5
    batch_size: int = 256
    flags: str = ""  # for all of its cells


@dataclass(frozen=True)
class Cell:
    """One entry of a table, whatever the seed."""

    grid: str
    env_id: str
    dataset: str
    method: str
    rounds: int
    batch_size: int
    num_seeds: int  # as planned: seeds 0, 1, ...
    flags: str

    @property
    def place(self) -> tuple[str, ...]:
        """The values of KEYS, as texts."""
        return tuple(str(getattr(self, name)) for name in KEYS)

    @property
    def name(self) -> str:
        """A safe folder name."""
        return "__".join(re.sub(r"[^\w.-]+", "_", part) for part in self.place[:5])


@dataclass(frozen=True)
class Job:
    """Seeds first, first + 1, ... of a cell, trained side by side by one command."""

    cell: Cell
    first: int
    count: int

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"{self.cell.name}__{self.first}x{self.count}"

    def command(self) -> str:
        """Its command line, to run from the repository's top."""
        cell = self.cell
        script = SCRIPTS[cell.grid]
        if cell.method == "bc":
            script = "-m experiments.bc" + " --continuous" * (script == "spacql_continuous.py")
        size = f"--rounds {cell.rounds}"
        if cell.batch_size != 256:
            size += f" --batch-size {cell.batch_size}"
        flags = f"--env-id {cell.env_id} --dataset {cell.dataset} {FLAGS[cell.method]} {size} {cell.flags}"
        seeds = f"--seed {self.first} --num-seeds {self.count}"
        place = f"--out {RUNS} --name {self.name}"
        return " ".join(f"OMP_NUM_THREADS=1 python {script} {flags} {seeds} {place}".split())


SPREAD, PREY, CHEETAH = ("simple_spread",), ("simple_tag", "simple_world"), ("HalfCheetah-2x3",)
WIDE, NARROW = QUALITIES[:2], QUALITIES[2:]  # where the paper claims most, and where it does not
EXPERT_FIRST = ("expert", "medium-replay", "medium", "random")
DISCRETE_SPREAD = {"random": 800, "medium-replay": 800, "medium": 400, "expert": 400}
CONTINUOUS_SPREAD = {"random": 800, "medium-replay": 300, "medium": 300, "expert": 300}
# What two cores can train: the full size takes 100,000 rounds of ten critics of 256 units.
REDUCED = "--num-critics 4 --hidden 128 --learning-rate 0.001 --eval-every 50"
TEAMS = tuple(f"mix:teams=3,unit=step,share={share},noise=0.1" for share in (0, 0.5, 1))
DOORS = tuple(f"mix:unit=step,share={share},noise=0.2" for share in (0, 0.25, 0.5, 0.75, 1))

BLOCKS = (  # in the order in which they run: the most telling first
    Block("discrete", SPREAD, QUALITIES, BACKUPS, DISCRETE_SPREAD),
    Block("discrete", SPREAD, QUALITIES, BASELINES, DISCRETE_SPREAD),
    Block("discrete", PREY, WIDE, METHODS, 400),
    Block("continuous", SPREAD, QUALITIES, METHODS, CONTINUOUS_SPREAD),
    Block("discrete", PREY, NARROW, METHODS, 400),
    Block("continuous", PREY, WIDE, METHODS, 400),
    Block("continuous", PREY, NARROW, METHODS, 400),
    Block("coordination", ("two_doors",), DOORS, (*BACKUPS, *VS_POLICY), 150, batch_size=128),
    Block("coordination", SPREAD, TEAMS, (*BACKUPS, *VS_POLICY), 200, num_seeds=3, flags="--cql-alpha 2.5"),
    Block("actors", PREY, QUALITIES, ("spacql-vs-policy", "joint-vs-policy"), 400, num_seeds=3),
    Block("actors", SPREAD, QUALITIES, ("spacql-vs-policy", "joint-vs-policy"), DISCRETE_SPREAD, num_seeds=3),
    Block("cloning", PREY, EXPERT_FIRST, tuple(CLONING), 400, num_seeds=3),
    Block("cloning", SPREAD, EXPERT_FIRST, tuple(CLONING), DISCRETE_SPREAD, num_seeds=3),
    Block("cloning-continuous", PREY, EXPERT_FIRST, tuple(CLONING), 400, num_seeds=3),
    Block("cloning-continuous", SPREAD, EXPERT_FIRST, tuple(CLONING), CONTINUOUS_SPREAD, num_seeds=3),
    # Single runs: HalfCheetah for two cores, longer or larger ones, and earlier sizes of tag and world.
    Block("continuous", CHEETAH, ("medium",), ("spacql",), 500, num_seeds=1, flags=REDUCED),
    Block("continuous", CHEETAH, (*WIDE, "expert"), ("spacql",), 200, num_seeds=1, flags=REDUCED),
    Block("discrete", SPREAD, ("random",), ("spacql", "joint"), 2400, num_seeds=1),
    Block("continuous", SPREAD, ("random",), ("spacql", "cfcql"), 1200, num_seeds=1, batch_size=1024),
    Block("continuous", PREY, NARROW, ("spacql",), 300, num_seeds=1),
)
# Every block once, small: three seeds are the fewest that have intervals.
QUICK = dict(rounds=4, batch_size=32, num_seeds=3)
QUICK_FLAGS = "--eval-every 2 --eval-episodes 4 --dataset-size 5000"


def cells_of(block: Block) -> list[Cell]:
    """The cells of a block, in the order in which they run."""
    rounds = block.rounds if isinstance(block.rounds, dict) else dict.fromkeys(block.datasets, block.rounds)
    size = (block.batch_size, block.num_seeds, block.flags)
    return [
        Cell(block.grid, env_id, dataset, method, rounds[dataset], *size)
        for env_id in block.env_ids
        for dataset in block.datasets
        for method in block.methods
    ]


def planned_cells(quick: bool = False) -> list[Cell]:
    """All cells in the order in which they run. quick: a few of every block, each of a few seconds."""
    if not quick:
        return [cell for block in BLOCKS for cell in cells_of(block)]
    cells = {}
    for block in BLOCKS:
        env_id, (first, *_, last) = block.env_ids[0], block.datasets * 2
        methods = (block.methods[0], block.methods[-1])
        for cell in cells_of(replace(block, env_ids=(env_id,), methods=methods)):
            if cell.dataset == first or (cell.dataset, cell.method) == (last, methods[0]):
                small = replace(cell, **QUICK, flags=f"{cell.flags} {QUICK_FLAGS}".strip())
                cells.setdefault(small.name, small)
    return list(cells.values())


def missing_jobs(cells: list[Cell], done: set[tuple]) -> list[Job]:
    """The jobs that train what is planned and not done: neighbouring seeds go into one job.

    done: (the values of KEYS, seed), all as texts.
    """
    jobs = []
    for cell in cells:
        seeds = [seed for seed in range(cell.num_seeds) if (*cell.place, str(seed)) not in done]
        firsts = [seed for seed in seeds if seed - 1 not in seeds]
        ends = [seed + 1 for seed in seeds if seed + 1 not in seeds]
        jobs += [Job(cell, first, end - first) for first, end in zip(firsts, ends, strict=True)]
    return jobs


def job_named(name: str, cells: list[Cell]) -> Job:
    """The job whose run folder has this name. Raises InputError where no cell is planned that fits."""
    by_name = {cell.name: cell for cell in cells}
    found = re.fullmatch(r"(.+)__(\d+)x([1-9]\d*)", name)
    if not found or found[1] not in by_name:
        raise InputError(f"no cell is named {name}: --dry-run lists the names")
    return Job(by_name[found[1]], int(found[2]), int(found[3]))
