"""Run folders, checkpoints, logs and plots: what a training script needs around the method."""

import contextlib
import io
import json
import os
import re
import sys
import threading
import time
import uuid
import warnings
import zipfile
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from utils.errors import InputError, check_numbers
from utils.figures import save_figure
from utils.files import atomic, parse, reading, say

NETWORKS = ("critic", "actor", "target_critic", "target_actor")
KINDS = dict(script=str, args=dict, round=int, facts=dict, history=dict, critic_adam=dict, actor_adam=dict)
KINDS |= dict.fromkeys((*NETWORKS, "scale", "generators"), list)  # of a checkpoint's entries
SAME_SCORE = 0.01  # of data: what rounding on another machine may change
MAY_DIFFER = ("rounds", "device", "data_dir", "track", "resume")  # between a run and what resumes it
NOT_NEGATIVE = "seed data_seed cql_alpha clone_weight entropy_coef output_l2 action_l2 target_noise".split()
LEAST, MOST = dict.fromkeys(NOT_NEGATIVE, 0), dict(gamma=1, num_seeds=1000, num_critics=1000)
TAGS = {"scores": "eval/score", "weights": "weights/k", "u": "uncertainty/k", "k_eff": "weights/k_eff"}


def pick_device(name: str) -> torch.device:
    """The device of that name; auto is a GPU if there is one. Raises InputError where it cannot be used."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()  # the device named meta makes tensors but cannot read them
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from None
    return device


# ------------------------------------------------------------------------------------ the command line


def open_run(args_class, argv, description: str, script: str) -> tuple:
    """Read the command line: the arguments, and the checkpoint that they resume or None.

    A resumed run has its own settings: of the flags only --rounds may grow, and where it runs may differ
    (MAY_DIFFER). Raises InputError for whatever cannot be meant.
    """
    intro = "\n".join(description.splitlines()[:3])
    args = parse(args_class, argv, description=intro)
    check_numbers(vars(args), LEAST, MOST)
    if args.track:
        check_wandb()
    if args.resume is None:
        folder = run_folder(args)
        if len(folder.name) > 200:
            raise InputError(f"a run folder's name of {len(folder.name)} characters is too long: give --name")
        parent = next(parent for parent in folder.absolute().parents if parent.exists())
        if not (parent.is_dir() and os.access(parent, os.W_OK)):  # say so before any work is done
            raise InputError(f"cannot write {folder}: {parent} is not a folder that can be written to")
        return args, None
    folder, saved = load_checkpoint(args.resume)
    if saved["script"] != script:
        raise InputError(f"{folder} is a run of {saved['script']}, not of {script}")
    try:
        settings = args_class(**saved["args"])
    except TypeError:
        raise InputError(f"the settings of {folder} are not those of this version") from None
    args = parse(args_class, argv, default=settings)
    for field in fields(args):
        given, own = getattr(args, field.name), getattr(settings, field.name)
        moved = field.name == "dataset" and os.sep in str(given) + str(own)  # `restore` compares the data
        if given != own and field.name not in MAY_DIFFER and not moved:
            flag = f"--{field.name.replace('_', '-')}"
            raise InputError(f"{folder} was made with {flag} {own}, not {given}: only --rounds may grow")
    if args.rounds < settings.rounds:
        raise InputError(f"{folder} was made with --rounds {settings.rounds}: they may only grow")
    if saved["round"] >= args.rounds == finished_rounds(folder):
        raise InputError(f"{folder} has done its {args.rounds} rounds: --rounds prolongs it")
    return args, saved


def check_wandb() -> None:
    """Raise InputError unless Weights & Biases can be used."""
    try:
        import wandb
    except ImportError:
        raise InputError("--track needs the wandb package: pip install wandb") from None
    offline = os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")
    if not (offline or wandb.login(prompt=False)):
        raise InputError("--track needs a login: run `wandb login`, or set WANDB_MODE=offline") from None


def run_folder(args, method: str | None = None) -> Path:
    """The run's folder: --name, or one from task, data, method (by default of args) and seeds."""
    source = Path(args.dataset)
    named = os.sep not in args.dataset and not source.exists()
    data = args.dataset if named else "-".join(source.absolute().with_suffix("").parts[-2:])
    method = method or f"{args.backup}-{args.penalty}-{args.num_critics}critics"
    name = f"{args.env_id}__{data}__{method}__seed{args.seed}x{args.num_seeds}"
    return Path(args.out) / (args.name or re.sub(r"[^\w.=-]+", "-", name))


def claim_folder(args, method: str | None = None) -> Path:
    """The run's folder: that of the run it resumes, or a new one that no other run can get at the same time.

    Where the name is taken it is numbered: -2, -3, ...
    """
    if args.resume:
        return checkpoint_file(args.resume).parent
    folder = first = run_folder(args, method)
    number = 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = first.with_name(f"{first.name}-{number}")


# -------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(folder: Path, networks: dict, optimizers: dict, generators: list, rest: dict) -> None:
    """Write folder/checkpoint.pt: the state of networks, optimizers and random numbers, and the rest."""
    contents = rest | {name: [p.detach() for p in params] for name, params in networks.items()}
    contents |= {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    buffer = io.BytesIO()  # in between, since torch itself does not say when a disk is full
    torch.save(contents | dict(generators=[g.get_state() for g in generators]), buffer)
    with atomic(folder / "checkpoint.pt") as partial:
        partial.write_bytes(buffer.getvalue())


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint of a run folder, or the file itself."""
    path = Path(path)
    return path / "checkpoint.pt" if path.is_dir() else path


def load_checkpoint(path: str | Path) -> tuple[Path, dict]:
    """Read the checkpoint of a run folder without executing anything in it: (folder, contents).

    contents["args"] are the run's settings as a dict. Raises InputError for missing, damaged or
    foreign files.
    """
    path = checkpoint_file(path)
    if not path.is_file():
        raise InputError(f"no checkpoint {path}")
    with reading(path, "a checkpoint"):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles that it goes on to refuse
            saved = torch.load(path, map_location="cpu", weights_only=True)
        for key, kind in KINDS.items():
            if type(saved[key]) is not kind:
                raise TypeError(f"its {key} is no {kind.__name__}")
            if kind is list and not all(map(torch.is_tensor, saved[key])):
                raise TypeError(f"its {key} are not tensors")
    return path.parent, saved


def finished_rounds(folder: Path) -> int | None:
    """The rounds of which the results are in a run folder; None where there are no results."""
    try:
        with np.load(folder / "returns.npz", allow_pickle=False) as file:
            return json.loads(str(file["summary"]))["rounds"]
    except Exception:  # missing, damaged or foreign: all mean that the results have to be made
        return None


def restore(saved: dict | None, networks: dict, optimizers: dict, generators, scale: list, facts) -> tuple:
    """Copy a checkpoint's state into networks {name: tensors}, optimizers {name: optimizer} and generators.

    Returns the next round and the history; of a new run, which has no checkpoint, 1 and an empty one. Raises
    InputError where the data, of this scale and these facts, are not those of the run.
    """
    if saved is None:
        return 1, {}
    for name, tensors in (networks | dict(scale=scale)).items():
        if [t.shape for t in tensors] != [t.shape for t in saved[name]]:
            raise InputError(f"the checkpoint's {name} does not fit these settings and data")
    same = [torch.allclose(a, b.cpu()) for a, b in zip(saved["scale"], scale, strict=True)]
    if not (all(same) and abs(saved["facts"].get("data_score", np.inf) - facts["data_score"]) < SAME_SCORE):
        raise InputError("these are not the data of the run: their mean, deviation or score differs")
    if len(saved["generators"]) != len(generators):
        raise InputError(f"the checkpoint holds {len(saved['generators'])} seeds, not {len(generators)}")
    for name, params in networks.items():
        for param, value in zip(params, saved[name], strict=True):
            param.data.copy_(value)
    for name, optimizer in optimizers.items():
        try:
            optimizer.load_state_dict(saved[name])
        except Exception as error:  # torch raises many kinds
            raise InputError(f"the checkpoint's {name} does not fit these settings: {error}") from None
    for generator, state in zip(generators, saved["generators"], strict=True):
        try:
            generator.set_state(state)
        except RuntimeError:  # each kind of device has its own random numbers
            generator.manual_seed(generator.initial_seed() + saved["round"])
            say("the run was on another kind of device: its random numbers go other ways from here")
    return saved["round"] + 1, saved["history"]


# ------------------------------------------------------------------------------------ logs and results


def start_log(folder: Path, args, first_round: int) -> SimpleNamespace:
    """Write the arguments and open the TensorBoard log; returns folder, writer and the time of the start.

    With --track a run, resumed or not, is one run of W&B.
    """
    if args.track:
        import wandb

        with atomic(folder / "wandb_id.txt") as partial:
            file = folder / "wandb_id.txt"
            partial.write_text(file.read_text() if file.exists() else uuid.uuid4().hex)
        settings = dict(project="spacql", name=folder.name, id=file.read_text(), resume="allow", dir=folder)
        with contextlib.redirect_stdout(sys.stderr):
            wandb.init(config=asdict(args), sync_tensorboard=True, **settings)
    hook = threading.excepthook  # TensorBoard's thread tells of a full disk, which `flush` does too
    threading.excepthook = lambda told: isinstance(told.exc_value, OSError) or hook(told)
    if args.backup == "spacql" and args.num_critics == 1:
        say("one critic has no spread: its weights w_k are uniform")
    with atomic(folder / "args.json") as partial:
        partial.write_text(json.dumps(asdict(args), indent=2))
    writer = SummaryWriter(folder, purge_step=first_round)  # what is newer than the checkpoint is dropped
    return SimpleNamespace(folder=folder, writer=writer, start=time.time())


def log_report(log, history: dict, round_number: int, report: dict, sizes: torch.Tensor, bar) -> None:
    """Add a report {name: [S] or, by the replacement sizes in use, [S, K]} to the history, the TensorBoard
    log, as means over seeds, and the progress bar. The history has weights and u of all sizes 1 .. the
    largest, 0 where not in use."""
    values = {name: value.tolist() for name, value in report.items()}
    for name in ("weights", "u"):
        of_all_sizes = np.zeros((len(values[name]), max(sizes.tolist())))
        of_all_sizes[:, [size - 1 for size in sizes.tolist()]] = values[name]
        values[name] = of_all_sizes.tolist()
    values["k_eff"] = (report["weights"] * sizes).sum(-1).tolist()
    before = history["seconds"][-1] if history else 0.0
    now = time.time()
    history.setdefault("round", []).append(round_number)
    history.setdefault("seconds", []).append(round(before + now - log.start, 2))
    log.start = now
    for name, value in values.items():
        history.setdefault(name, []).append(value)
        tag = TAGS.get(name, f"losses/{name}")
        mean = np.mean(value, axis=0)
        for k, number in enumerate(np.atleast_1d(mean), start=1):
            log.writer.add_scalar(f"{tag}{k}" if mean.ndim else tag, number, round_number)
    log.writer.flush()
    bar.set_postfix(score=f"{np.mean(values['scores']):.1f}", k_eff=f"{np.mean(values['k_eff']):.2f}")


def score_summary(args, scores: torch.Tensor) -> dict:
    """What a line of JSON says of the normalised scores [S] of a run's seeds."""
    return dict(
        seeds=list(range(args.seed, args.seed + args.num_seeds)),
        scores=[round(score, 2) for score in scores.tolist()],
        score_mean=round(float(scores.mean()), 2),
        score_std=round(float(scores.std(correction=0)), 2),
    )


def save_returns(folder: Path, args, returns: torch.Tensor, summary: dict, history: dict) -> None:
    """Write returns.npz, which marks the run as finished, and print the summary as one line of JSON."""
    texts = {k: np.array(json.dumps(v)) for k, v in dict(args=asdict(args), summary=summary).items()}
    curves = {f"history_{k}": np.asarray(v) for k, v in history.items()}
    with atomic(folder / "returns.npz") as partial:
        np.savez_compressed(partial, returns=returns.cpu().numpy(), **texts, **curves)
    print(json.dumps(summary), flush=True)


def save_results(log, args, returns: torch.Tensor, scores: torch.Tensor, history: dict, facts: dict) -> dict:
    """Write returns.npz (final returns [S, episodes], arguments, summary, history) and progress.png, print
    the summary as one line of JSON, and return it. scores [S] are the normalised returns."""
    log.writer.close()
    if args.track:
        import wandb

        with contextlib.redirect_stdout(sys.stderr):  # only the summary goes to stdout
            wandb.finish()
    weights = np.mean(history["weights"][-1], axis=0)
    if args.backup == "spacql" and facts["quality"] == "expert" and weights[0] > 0.9:
        say("warning: w has collapsed on k = 1 on expert data: SPaCQL has become ICQL-QS here")
    shown = (
        "env_id dataset backup penalty actor_others clone_weight num_critics learning_rate cql_alpha rounds"
    )
    summary = dict(
        folder=str(log.folder),
        **{name: getattr(args, name) for name in shown.split()},
        **score_summary(args, scores),
        best_mean=round(float(np.max(history["scores"], axis=0).mean()), 2),
        data_score=round(facts["data_score"], 2),
        data_hash=facts["hash"],
        prey=facts.get("prey"),
        k_eff=round(float(np.mean(history["k_eff"][-1])), 4),
        weights=weights.round(4).tolist(),
        eval_seconds=history["seconds"],
        wall_s=round(history["seconds"][-1] + time.time() - log.start, 1),
        device=str(scores.device),
    )
    save_figure(draw_history, log.folder / "progress.png", (12, 3.4), history, summary)
    save_returns(log.folder, args, returns, summary, history)
    return summary


def draw_history(fig, history: dict, summary: dict) -> None:
    """Picture of score, weights w_k and k_eff over training; faint lines are single seeds."""
    scores, weights, k_eff = fig.subplots(1, 3)
    rounds, w = history["round"], np.asarray(history["weights"]).mean(1)  # [points], [points, N]
    num_agents = w.shape[1]
    for ax, key in ((scores, "scores"), (k_eff, "k_eff")):
        values = np.asarray(history[key])  # [points, S]
        ax.plot(rounds, values, lw=0.7, alpha=0.4, color="C0")
        ax.plot(rounds, values.mean(1), lw=2, color="C0", marker="o", ms=3)
    scores.axhline(summary["data_score"], color="0.5", ls="--", label="mean of the data")
    scores.set(xlabel="round", title="normalised score")
    scores.legend()
    weights.plot(rounds, w, lw=2, marker="o", ms=3, label=[f"k = {k + 1}" for k in range(num_agents)])
    weights.axhline(1 / num_agents, color="0.5", ls=":", label="uniform")
    weights.set(xlabel="round", title="weights $w_k$", ylim=(0, 1))
    weights.legend()
    k_eff.set(xlabel="round", title="$k_{eff}$", ylim=(1, max(2, num_agents)))
    fig.suptitle(Path(summary["folder"]).name)
