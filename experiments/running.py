"""Runs jobs: one after another by hand or by any scheduler, several at a time on this machine, or over a Ray cluster.

A job is a command of its own (`experiments.plan.Job`) that writes a run folder. Where it has ended well, a record,
cell.json, is put into the folder at the very end. A folder without one is of no account: the job starts anew. Nothing
is shared between jobs but the simulated datasets, which are the same whoever writes them.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import numpy as np

from experiments.plan import TOP, Job
from experiments.records import RECORD
from utils.errors import InputError
from utils.files import atomic

# Linux ends a job when whatever started it dies, by kill -9 too: nobody would wait for it any more.
LAUNCH = (
    "import ctypes, runpy, sys; sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, 9); "
    "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
LOG = "output.txt"
# What is kept of a run folder on another machine, its record last.
RETURNED = ("returns.npz", "args.json", "progress.png", LOG, RECORD)
RAY_RETRIES = 5  # times that a job is done again when its worker dies
NOT_SENT = ["/.git", "/runs", "/datasets", "/results/quick", "__pycache__"]  # to the workers of a Ray cluster


def code_commit() -> str:
    """The commit of the code, marked -dirty where code differs from it; results and texts may."""
    git, code = ["git", "-C", str(TOP)], ["--", ".", ":!results", ":!*.md"]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        changes = subprocess.run([*git, "diff", "--name-only", "HEAD", *code], capture_output=True, text=True)
    except OSError:  # no git
        return "unknown"
    return (head.stdout.strip() or "unknown") + "-dirty" * bool(changes.stdout)


def is_done(job: Job, runs: Path) -> bool:
    """Whether its run folder below `runs` is complete."""
    return (runs / job.name / RECORD).is_file()


def start(job: Job, runs: Path) -> subprocess.Popen:
    """Start a job's command on one core, with run folders below `runs`; what an interrupted one left goes."""
    folder, log = runs / job.name, runs / f"{job.name}.txt"
    shutil.rmtree(folder, ignore_errors=True)
    runs.mkdir(parents=True, exist_ok=True)
    words = shlex.split(job.command(shlex.quote(str(runs))))[2:]
    with open(log, "w") as file:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", LAUNCH, *words]
        return subprocess.Popen(command, cwd=TOP, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL)


def finish(job: Job, runs: Path, process: subprocess.Popen, commit: str) -> str | None:
    """Put the record into the folder of a job whose process has ended; returns what went wrong, or None."""
    folder, log = runs / job.name, runs / f"{job.name}.txt"
    if process.wait() != 0:
        said = [line for line in re.split(r"[\r\n]+", log.read_text(errors="replace")) if line.strip()]
        return f"{said[-1].strip()}" if process.returncode > 0 and said else f"ended by signal {-process.returncode}"
    try:
        with np.load(folder / "returns.npz", allow_pickle=False) as file:
            summary = json.loads(str(file["summary"]))
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files
        return f"left no results that can be read: {error}"
    os.replace(log, folder / LOG)
    record = dict(command=job.command(), commit=commit, machine=machine(summary["device"]), wall_s=summary["wall_s"])
    with atomic(folder / RECORD) as partial:
        partial.write_text(json.dumps(record | dict(grid=job.cell.grid, cell=job.cell.key)))
    return None


def machine(device: str) -> str:
    """What a job ran on."""
    if device == "cpu":
        return f"1 {platform.machine()} core"
    import torch  # only here: it takes seconds to load

    return torch.cuda.get_device_name(device)


def run_one(job: Job, runs: Path, commit: str) -> str | None:
    """Run a job to its end; returns what went wrong, or None."""
    process = start(job, runs)
    try:
        return finish(job, runs, process, commit)
    finally:
        process.kill()  # of no effect where it has ended


def run_here(jobs: list[Job], runs: Path, workers: int):
    """Run jobs, `workers` at a time, each on one core; yields (job, what went wrong or None) as they end."""
    waiting, running = deque(jobs), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.popleft()
                running[job] = (start(job, runs), code_commit())
            for job in [job for job, (process, _) in running.items() if process.poll() is not None]:
                process, commit = running.pop(job)
                yield job, finish(job, runs, process, commit)
            time.sleep(0.1)
    finally:
        for process, _ in running.values():
            process.kill()


def run_elsewhere(job: Job, commit: str) -> dict[str, bytes]:
    """Run a job in a folder that is gone afterwards; returns its files. Raises RuntimeError where it fails.

    The folder is this attempt's own: one that a killed worker left cannot be mistaken for it.
    """
    with tempfile.TemporaryDirectory() as runs:
        if wrong := run_one(job, Path(runs), commit):
            raise RuntimeError(wrong)
        return {name: (Path(runs) / job.name / name).read_bytes() for name in RETURNED}


def keep(job: Job, runs: Path, contents: dict[str, bytes]) -> None:
    """Write what `run_elsewhere` returned as the job's run folder."""
    shutil.rmtree(runs / job.name, ignore_errors=True)
    for name in RETURNED:
        with atomic(runs / job.name / name) as partial:
            partial.write_bytes(contents[name])


def run_on_ray(jobs: list[Job], runs: Path, workers: int, address: str | None, work=run_elsewhere):
    """Run jobs as tasks of a Ray cluster, one core each; yields (job, what went wrong or None) as they end.

    address: of a running cluster, "auto" for the one of this machine; None starts one here with so many workers. The
    machines need this project's packages and no shared files: they are sent the code and return what is kept. A job
    whose worker dies is done again. work: what a task does with a job and the commit.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--ray needs the ray package: pip install ray") from None
    size = dict(address=address) if address else dict(num_cpus=workers, include_dashboard=False)
    sent = dict(working_dir=str(TOP), excludes=NOT_SENT)
    try:
        ray.init(**size, runtime_env=sent, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot connect to the Ray cluster {address or 'on this machine'}: {reason}") from None
    try:
        task, commit = ray.remote(num_cpus=1, max_retries=RAY_RETRIES)(work), code_commit()
        running = {task.remote(job, commit): job for job in jobs}
        while running:
            (ended, *_), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(ended)
            try:
                keep(job, runs, ray.get(ended))
                yield job, None
            except ray.exceptions.RayError as error:
                yield job, str(error).strip().splitlines()[-1]
    finally:
        ray.shutdown()
