"""Plays, scores and films what a run has learnt, as CleanRL's `enjoy` does.

    python -m experiments.enjoy runs/NAME                   # its scores again, as one line of JSON
    python -m experiments.enjoy runs/NAME --gif team.gif    # and a film of its first seed

Takes run folders of spacql.py, spacql_continuous.py and experiments.bc. The episodes are those behind the
run's own reported scores, so that these come out again. Films are of the particle worlds; a team of three is
shown beside random play and the behaviour that logged the medium data, from the same starts. Nothing is
chosen: starts are those of seeds EVAL_SEED, EVAL_SEED + 1, ..., numbers above teams are mean scores.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro

import spacql
import spacql_continuous
from data.datasets import check_prey, find_prey, normalise
from envs import make_env
from envs.particles import ENV_IDS
from envs.shipped import POLICY, POLICY_DIR, load_policies
from experiments.films import compose, film, save_gif
from utils import runs
from utils.errors import InputError, check_choice
from utils.files import parse, run_script, say

SCRIPTS = {script.SCRIPT: script for script in (spacql, spacql_continuous)}
FILMED = 3  # episodes


@dataclass(frozen=True)
class Args:
    """What to play."""

    folder: tyro.conf.Positional[Path]  # run folder of either script, or its checkpoint.pt
    gif: Path | None = None  # film three episodes of the first seed into this file
    device: str = "auto"  # auto (a GPU if there is one), cpu, cuda, cuda:1, ...


def load_team(folder, device="cpu"):
    """What a run folder holds: the training script, its Args, the checkpoint with its networks on the device,
    and a function of a number that makes as many worlds. Raises InputError for damaged or foreign folders."""
    folder, saved = runs.load_checkpoint(folder)
    check_choice("script of a run", saved["script"], SCRIPTS)
    script = SCRIPTS[saved["script"]]
    try:
        args = script.Args(**saved["args"])
    except TypeError:
        raise InputError(f"the settings of {folder} are not those of this version") from None
    for name in (*runs.NETWORKS, "scale"):
        saved[name] = [x.to(device) for x in saved[name]]
    check_prey(str(folder), saved["facts"], getattr(args, "prey", None), getattr(args, "policies", None))
    worlds = partial(make_env, args.env_id, num_agents=saved["actor"][0].shape[1], device=device)
    if script is spacql_continuous:
        worlds = partial(worlds, action_kind="continuous", prey=find_prey(args, device))
    return script, args, saved, worlds


@torch.no_grad()
def film_teams(folder: Path, path: Path, learnt_score: float) -> None:
    """Film three episodes of the run's first seed, and where it has three agents, of two teams beside it."""
    script, settings, saved, worlds = load_team(folder)
    env, generator = worlds(script.FINAL_FACTOR * settings.eval_episodes), torch.Generator()
    first = [p[:1] for p in saved["actor"]]
    teams = {}  # policies of observations [1, B, N, O] -> actions [1, B, N] or [1, B, N, A]
    if env.num_learners == 3:
        place, behaviour = getattr(settings, "policies", None) or POLICY_DIR, POLICY[env.action_kind]
        policies = load_policies(env.env_id, folder=Path(place), action_kind=env.action_kind)
        weights = policies.facts["weights"]["medium"]
        medium = policies.iterates[weights.index(max(weights))]
        teams["random play"] = lambda obs: behaviour.uniform(worlds(obs.shape[1]), generator)[None]
        teams["medium behaviour"] = lambda obs: behaviour.act(medium, obs[0], generator)[None]
    scores = {}
    for name, policy in teams.items():
        returns = script.evaluate(policy, env, 1, script.EVAL_SEED + 1)
        scores[name] = normalise(float(returns.mean()), saved["facts"])
    learnt = f"learnt from {Path(settings.dataset).name} data"
    teams[learnt], scores[learnt] = partial(script.play, first, scale=saved["scale"]), learnt_score
    films = [film(worlds(1), policy, script.EVAL_SEED, FILMED) for policy in teams.values()]
    titles = [f"{name}: {round(score)}" for name, score in scores.items()]  # never -0
    save_gif(path, compose(films, titles), len(films[0]) // FILMED)
    say(f"{path}: seed {settings.seed}, {FILMED} episodes; {', '.join(titles)}")


def main(argv=None):
    """Score the run's teams and print the summary as JSON, then film; returns the summary."""
    args = parse(Args, argv, description="\n".join(__doc__.splitlines()[:4]))
    script, settings, saved, worlds = load_team(args.folder, runs.pick_device(args.device))
    if args.gif and settings.env_id not in ENV_IDS:
        raise InputError(f"only {', '.join(ENV_IDS)} can be filmed, not {settings.env_id}")
    policy = partial(script.play, saved["actor"], scale=saved["scale"])
    episodes = script.FINAL_FACTOR * settings.eval_episodes
    env = worlds(settings.num_seeds * episodes)
    returns = script.evaluate(policy, env, settings.num_seeds, script.EVAL_SEED + 1)  # [S, episodes]
    summary = dict(folder=str(args.folder), episodes=episodes, env_id=settings.env_id)
    summary |= dict(dataset=settings.dataset, rounds=saved["round"])
    summary |= runs.score_summary(settings, normalise(returns.mean(1), saved["facts"]))
    summary |= dict(data_score=round(saved["facts"]["data_score"], 2))
    print(json.dumps(summary), flush=True)
    if args.gif:
        film_teams(args.folder, args.gif, summary["scores"][0])
    return summary


if __name__ == "__main__":
    run_script("experiments.enjoy", main)
