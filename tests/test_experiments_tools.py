"""The tools of experiments/: cloning, enjoy and its films, detectors of joint actions, benchmark. Each
`check_...` must also reject the mistakes of mutants_tools.py."""

import itertools
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from common import SCRIPTS, close, generator, indices, normal, one_line, rejects
from mutants_tools import MUTANTS
from PIL import Image
from scipy.spatial.distance import cdist
from torch import nn

from data import mixes
from data.datasets import load_dataset
from envs import make_env
from experiments import bc, benchmark, crowd, enjoy, films, original_recipe, uncertainty
from utils.files import TOP

pytestmark = pytest.mark.usefixtures("elsewhere")
NUM, STATE = 3, 4  # agents, numbers of a state


# ------ cloning


def check_cloning(loss, script, seed=0):
    """By torch's own losses, one agent after another."""
    outputs, actions = normal(seed, 2, 5, NUM, script.dim), script.actions(seed + 1, 2, 5, NUM)
    found = loss(outputs, actions, script.kind == "continuous")
    for s, i in indices(2, NUM):
        if script.kind == "continuous":
            expected = nn.functional.mse_loss(outputs[s, :, i].tanh(), actions[s, :, i])
        else:
            expected = nn.functional.cross_entropy(outputs[s, :, i], actions[s, :, i].argmax(-1))
        close(found[s, i], expected)


def clone(data_dir, script, flags):
    """A small run of bc.py: its summary and its history."""
    kind = ["--continuous"] if script.kind == "continuous" else []
    size = "--dataset-size 5000 --batch-size 64 --eval-every 20 --eval-episodes 50 --device cpu".split()
    summary = bc.main([*kind, *size, "--data-dir", str(data_dir), *flags.split()])
    with np.load(Path(summary["folder"]) / "returns.npz", allow_pickle=False) as file:
        assert json.loads(str(file["summary"])) == summary
        settings = json.loads(str(file["args"]))
        assert None not in (settings["learning_rate"], settings["rounds"]) and file["returns"].shape[1] == 250
        return summary, {name: file[name] for name in file.files if name.startswith("history_")}


def test_cloning_learns(script, data_dir, capfd):
    """Its loss falls, and the score gets from random play near the data's."""
    summary, history = clone(data_dir, script, "--rounds 120 --num-seeds 2 --eval-every 3")
    assert json.loads(capfd.readouterr().out) == summary and summary["method"] == "bc"
    assert list(history["history_round"]) == list(range(3, 121, 3))
    loss = history["history_actor_loss"]
    assert loss.shape == history["history_scores"].shape == (40, 2)
    assert (loss[-10:].mean(0) < 0.95 * loss[0]).all()
    untrained, _ = clone(data_dir, script, "--rounds 1 --learning-rate 1e-9 --num-seeds 2")
    assert summary["score_mean"] > max(untrained["score_mean"] + 20, 0.75 * summary["data_score"])
    assert Path(untrained["folder"]).name == f"{Path(summary['folder']).name}-2", "a folder of its own"
    assert enjoy.main([summary["folder"]])["scores"] == summary["scores"], "its checkpoint has the same teams"
    assert "several critics" in one_line(lambda: uncertainty.main([summary["folder"]]))
    said = one_line(lambda: script.module.main(["--resume", summary["folder"], "--rounds", "500"]))
    assert "checkpoint's critic does not fit" in said


def test_cloned_seeds_together_are_seeds_alone(script, data_dir):
    both, _ = clone(data_dir, script, "--rounds 20 --num-seeds 2 --seed 3 --name a")
    alone, _ = clone(data_dir, script, "--rounds 20 --seed 4 --name b")
    assert both["seeds"] == [3, 4] and alone["scores"][0] == pytest.approx(both["scores"][1], abs=0.05)


@pytest.mark.parametrize(
    ("flags", "said"),
    [("--env-id two_door", "did you mean 'two_doors'"), ("--rounds 0", "--rounds must be at least 1")],
)
def test_cloning_refuses_in_one_line(flags, said, data_dir):
    assert said in one_line(lambda: bc.main([*flags.split(), "--data-dir", str(data_dir)]))
    assert not Path("runs").exists()


# ------ enjoy and films


def test_a_finished_run_is_scored_and_filmed(script, run, monkeypatch, capfd):
    """The same scores again, and a film of the first seed's team beside random play and medium behaviour."""
    short = films.parallel_env
    monkeypatch.setattr(films, "parallel_env", lambda *a, **k: short(*a, **(k | dict(max_cycles=3))))
    monkeypatch.setattr(enjoy, "FILMED", 2)
    env_id = dict(discrete="simple_spread", continuous="simple_tag")[script.kind]
    summary = run(f"--env-id {env_id} --num-seeds 2 --name one")
    capfd.readouterr()
    again = enjoy.main(["runs/one", "--gif", "team.gif"])
    out, err = capfd.readouterr()
    assert json.loads(out) == again
    assert "team.gif: seed 0, 2 episodes; random play: " in err and ", medium behaviour: " in err
    assert err.endswith(f", learnt from medium data: {round(summary['scores'][0])}\n") and ": -0" not in err
    for name in ("scores", "score_mean", "score_std", "data_score", "seeds", "env_id", "dataset", "rounds"):
        assert again[name] == summary[name], name
    with Image.open("team.gif") as gif:
        assert gif.n_frames == 2 * (3 + 1)
        assert gif.size == (3 * films.SIDE, films.SIDE + films.CAPTION)
    assert enjoy.main(["runs/one/checkpoint.pt"])["scores"] == summary["scores"]


def test_other_worlds_are_scored_but_not_filmed(script, run):
    summary = run(f"--env-id {script.world} {script.world_flags} --rounds 1 --name other")
    assert enjoy.main(["runs/other"])["scores"] == summary["scores"]
    assert "can be filmed" in one_line(lambda: enjoy.main(["runs/other", "--gif", "a.gif"]))
    assert not list(Path().glob("*.gif"))


def test_foreign_folders_are_refused(script, run):
    run("--rounds 1 --name one")
    path = Path("runs/one/checkpoint.pt")
    assert "no checkpoint" in one_line(lambda: enjoy.main(["runs/none"]))
    saved = torch.load(path, weights_only=True)
    torch.save(saved | dict(script="other.py"), path)
    assert "unknown script of a run 'other.py'" in one_line(lambda: enjoy.main(["runs/one"]))
    torch.save(saved | dict(args=saved["args"] | dict(tau=1)), path)
    assert "not those of this version" in one_line(lambda: enjoy.main(["runs/one"]))
    path.write_bytes(b"no archive")
    assert "cannot read" in one_line(lambda: enjoy.main(["runs/one"]))


def test_teams_are_filmed_from_the_same_starts():
    """In every episode, whatever was played before."""
    worlds, length = make_env("simple_tag", 1), 6
    worlds.horizon = length - 1
    plays = [lambda obs, action=action: torch.full(obs.shape[:3], action) for action in (0, 2)]
    still, right = (films.film(worlds, play, 7, 2) for play in plays)
    assert len(still) == len(right) == 2 * length
    for i, ((one, text), (other, _)) in enumerate(zip(still, right, strict=True)):
        assert (one == other).all() == (i % length == 0)
        assert text.startswith(f"episode {i // length + 1}, step {i % length}, return ")
        assert text.endswith("return 0") or i % length


def test_gif_shows_every_moment_of_every_team(tmp_path):
    team = [(np.full((400, 400, 3), shade, np.uint8), f"shade {shade}") for shade in (0, 60, 120, 180)]
    sheets = films.compose([team, team], ["one", "two"])
    texts = [np.asarray(sheet)[22 : films.CAPTION] for sheet in sheets]
    assert all((a != b).any() for a, b in itertools.pairwise(texts)), "what frames say is written"
    films.save_gif(tmp_path / "a.gif", sheets, length=2)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.size == (2 * films.SIDE, films.SIDE + films.CAPTION) and gif.n_frames == 4
        times = []
        for i in range(4):
            gif.seek(i)
            times.append(gif.info["duration"])
    assert times == [films.STEP_MS, films.PAUSE_MS] * 2


# ------ detectors: what is measured


def check_detection(detect, seed=0):
    """By loops over states and pairs of states: a win counts 1, a tie 1/2."""
    u, uniform = (torch.randint(4, (4, 7), generator=generator(seed + i)).double() for i in range(2))

    for k in range(1, 4):
        expected = {}
        for name, own in dict(auroc=u, auroc_uniform=uniform).items():
            wins = [float(x > y) + float(x == y) / 2 for x, y in itertools.product(own[k], u[0])]
            expected[name] = sum(wins) / len(wins)
        assert detect(u, uniform, k) == pytest.approx(expected, abs=1e-6)


# ------ detectors: a model of the behaviour, and neighbours


def habits(rows, seed):
    """States of random signs and choices in them: nine times of ten agent i plays i if the first sign is -1,
    else i + 2; with the tenth chance it plays at random."""
    g = generator(seed)
    state = torch.randint(2, (rows, STATE), generator=g) * 2.0 - 1
    random = torch.randint(5, (rows, NUM), generator=g)
    habit = torch.arange(NUM) + 2 * (state[:, :1] > 0).long()
    return state, torch.where(torch.rand((rows, NUM), generator=g) < 0.1, random, habit)


def check_model(surprise):
    """Cross-entropy on fresh pairs near the entropy, one agent with another's habit is found out, and the
    likelihoods of all joint actions at a state add up to 1."""
    state, choices = habits(1000, 1)
    broken = choices.clone()
    broken[:, 0] = 4
    logged, other = (surprise(state, x) for x in (choices, broken))
    entropy = -NUM * (0.92 * math.log(0.92) + 4 * 0.02 * math.log(0.02))
    assert entropy - 0.15 < logged.mean() < entropy + 0.25
    assert (other > logged).float().mean() > 0.9 and min(logged.min(), other.min()) > 0
    every = torch.tensor(list(itertools.product(range(5), repeat=NUM)))
    total = (-surprise(state[:1].expand(len(every), -1), every)).exp().sum()
    close(total, 1.0, 1e-4)


def test_the_model_of_the_behaviour_knows_the_habits():
    model = mixes.fit(*habits(8000, 0), 5, seed=0)
    right = partial(uncertainty.surprise, model)
    check_model(right)
    for wrong in MUTANTS["the model of the behaviour knows the habits"].values():
        rejects(check_model, partial(wrong, right))


def check_distance(measure, seed=0, known=9, batch=4, width=2):
    """The nearest of all pairs, each part in units of its own root mean square between two of them."""
    pairs = normal(seed, known, STATE) * 5, normal(seed + 1, known, width)
    asked = state, joint = 5 * normal(seed + 2, batch, STATE), normal(seed + 3, batch, width)
    state[0], joint[0] = pairs[0][3], pairs[1][3]
    square = partial(cdist, metric="sqeuclidean")
    away = sum(square(x, part) / square(part, part).mean() for x, part in zip(asked, pairs, strict=True))
    close(measure(pairs, state, joint), np.sqrt(away.min(1)), 1e-6)


# ------ detectors: in a run


def check_replaced(replace, script):
    """k = 0 is what was logged; of a'^(k) at most k agents differ, and some k do, as the actor plays;
    uniform actions do not."""
    obs, logged = normal(0, 1, 300, NUM, 5).float(), script.actions(1, 1, 300, NUM).float()
    actor = script.module.init_networks([generator(0)], NUM, (5, 8, 8, script.dim))
    actor[5][..., 0] = 50.0
    for joint, plays in zip(replace(script.module, actor, obs, logged, [generator(1)]), (1, 0), strict=True):
        moved = (joint != logged.unsqueeze(2)).any(-1)[0]  # [300, 1 + N, N]
        assert torch.equal(moved.sum(-1).amax(0), torch.arange(NUM + 1))
        assert (joint[0, ..., 0][moved] > 0.75).all() == plays and moved[:, NUM].float().mean() > 0.5


def check_estimates(estimate, script):
    """By loops over members, states and sizes; the other two as of single rows."""
    q, state, joint = normal(0, 2, 4, 6, 3), normal(1, 2, 6, STATE), script.actions(2, 2, 6, 3, NUM)
    pairs = normal(3, 5, STATE), normal(4, 5, NUM * script.dim)
    as_integers = partial(uncertainty.as_integers, script.module)
    rows, values = as_integers(joint.flatten(0, 2))
    model = mixes.fit(normal(5, *rows.shape[:1], STATE).float(), rows, values, seed=0)
    model = [[p.detach().double() for p in params] for params in model]
    found = estimate(script.module, q, model, pairs, state, joint)
    for s, b, k in indices(2, 6, 3):
        members = [float(q[s, e, b, k]) for e in range(4)]
        own, row = state[s, b][None], joint[s, b, k][None]
        expected = dict(
            std=np.std(members),
            likelihood=float(uncertainty.surprise(model, own, as_integers(row)[0])),
            neighbour=float(uncertainty.distance(pairs, own, row.flatten(1))),
        )
        assert {name: float(u[s, b, k]) for name, u in found.items()} == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def small_study(monkeypatch, data_dir, tmp_path):
    """Few steps, pairs and states."""
    small = dict(PAIRS=64, STATES=40, FRESH_SIZE=500, OUT=tmp_path / "u.csv")
    for name, value in small.items():
        monkeypatch.setattr(uncertainty, name, value)


def test_runs_are_judged_and_judged_anew(script, run, small_study):
    run("--num-seeds 2 --seed 5 --rounds 2 --name one")
    uncertainty.main(["runs/one"])
    first = pd.read_csv("u.csv")
    assert list(first["detector"].unique()) == ["std", "likelihood", "neighbour"]
    assert len(first) == 2 * 3 * 3 and set(first["seed"]) == {5, 6} and set(first["script"]) == {script.name}
    assert first[["auroc", "auroc_uniform"]].stack().between(0, 1).all() and first.notna().all(axis=None)
    committed = pd.read_csv(TOP / "results/csv/uncertainty.csv")
    assert list(committed) == list(first) and not committed.duplicated(["run", "seed", "k", "detector"]).any()
    if script.kind == "continuous":  # critics see the simulator's state there, and there are two agents
        run("--env-id HalfCheetah-2x3 --rounds 1 --eval-episodes 2 --name other")
        uncertainty.main(["runs/other", "runs/one"])
        assert len(pd.read_csv("u.csv")) == 18 + 3 * 2
    else:
        uncertainty.main(["runs/one"])
        pd.testing.assert_frame_equal(pd.read_csv("u.csv"), first)


def test_what_cannot_be_judged_is_refused(script, run, data_dir, small_study):
    run("--num-critics 1 --rounds 1 --name single")
    assert "without several critics there is no spread" in one_line(lambda: uncertainty.main(["runs/single"]))
    load_dataset("simple_spread", "medium", 2500, 0, data_dir, script.kind)
    (path,) = data_dir.glob(f"simple_spread-{script.kind}-medium-2500-seed0-*.h5")
    Path("mine.h5").write_bytes(path.read_bytes())
    run("--rounds 1 --dataset mine.h5 --name file")
    assert "no fresh data like mine.h5" in one_line(lambda: uncertainty.main(["runs/file"]))
    assert "no checkpoint" in one_line(lambda: uncertainty.main(["runs/none"]))
    assert "say which runs" in one_line(lambda: uncertainty.main([]))


CHECKS = {  # of the properties in MUTANTS: the check, the right function, and what else the check is given
    "cloning is by likelihood or by distance": (check_cloning, bc.cloning_loss, SCRIPTS),
    "columns say what they are of": (check_detection, uncertainty.detection, range(5)),
    "distance is to the nearest pair": (check_distance, uncertainty.distance, range(5)),
    "replacement is the backup's": (check_replaced, uncertainty.replaced, SCRIPTS),
    "estimates are of their joint actions": (check_estimates, uncertainty.estimates, SCRIPTS),
}


@pytest.mark.parametrize("name", CHECKS)
def test_holds_and_mistakes_are_noticed(name):
    check, right, cases = CHECKS[name]
    for case in cases:
        check(right, case)
        for mistake in MUTANTS[name].values():
            rejects(check, partial(mistake, right), case)


# ------ benchmark


def test_the_benchmark_has_every_row(monkeypatch):
    """Of a few small cases; twenty times the batch takes longer."""
    monkeypatch.setattr(benchmark, "DEFAULT", benchmark.DEFAULT | dict(num_critics=3, batch_size=32))
    monkeypatch.setattr(benchmark, "CASES", [{}, dict(batch_size=640), dict(agents=4)])
    monkeypatch.setattr(benchmark, "EVERY", 2)
    monkeypatch.setattr(benchmark, "TIMED", [(original_recipe, "joint-original", 32)])
    monkeypatch.setattr(benchmark, "OUT", Path("b.md"))
    benchmark.main()
    lines = [line.split("|")[1:-1] for line in Path("b.md").read_text().splitlines() if "|" in line]
    rows = [[cell.strip() for cell in line] for line in lines]
    cases = ("default", "batch_size 640", "agents 4")
    assert [row[:2] for row in rows[2:8]] == [[s.name, case] for s in SCRIPTS for case in cases]
    assert all(float(rows[i][2]) < float(rows[i + 1][2]) for i in (2, 5)), "default, then twenty times that"
    one, twenty = (np.array([row[2:5] for row in rows[10:14][first::2]], float) for first in (0, 1))
    assert [row[:2] for row in rows[10:14]] == [[s.name, n] for s in SCRIPTS for n in ("1", "20")]
    assert (twenty[:, 2] / one[:, 2]).round(2).tolist() == [20, 20], "FLOPs"
    assert (twenty[:, 0] < 2 * one[:, 0]).all(), "seeds share their calls, but for drawing"
    assert rows[16][:3] == [original_recipe.SCRIPT, "joint-original", "32"] and float(rows[16][3]) > 0


def test_what_is_asked_of_a_device():
    """A product and a sum of [8, 8] numbers: two calls, three matrices each; views are free."""
    x = torch.ones(8, 8)
    with benchmark.Demands() as asked:
        (x @ x).T + x[:8]
    assert (asked.calls, asked.bytes) == (2, 6 * x.nbytes)


def test_the_published_score_is_reached_by_the_mean_of_the_seeds(monkeypatch):
    """At the first evaluation where it is, not where the best seed is, not on other data or with moves."""
    monkeypatch.setattr(benchmark, "TIMED", [(original_recipe, "joint-original", 1024)])
    monkeypatch.setattr(benchmark, "round_ms", lambda *args, **sizes: 500.0)
    scores = dict(simple_tag=[(95, 70), (80, 100), (200, 200)], simple_world=[(94, 94), (94.2, 94.2), (0, 0)])
    places = dict(grid="recipe", dataset="random", method="joint-original", batch_size=1024, rounds=2000)
    curves = [
        places | dict(env_id=task, round=20 * i, seed=seed, score=score)
        for task, rounds in scores.items()
        for i, seeds in enumerate(rounds, 1)
        for seed, score in enumerate(seeds)
    ]
    others = dict(dataset="expert", score=200), dict(grid="discrete", score=200), dict(rounds=5000, score=200)
    curves += [row | other for row in curves for other in others]
    (row,) = benchmark.reached(pd.DataFrame(curves))
    assert row["simple_tag (89.4)"] == "round 40, 20 s" and row["simple_world (94.3)"] == "not reached"


def test_a_crowd_is_logged(tmp_path, monkeypatch):
    """Files that the script takes: six agents whose moves are the team's, but for a tenth of uniform ones, of
    which a fifth are the same; such teams score a little less, and far more than random play."""
    monkeypatch.setattr(crowd, "TOP", tmp_path)
    monkeypatch.setattr(crowd, "SIZES", (2500, 5000))
    monkeypatch.setattr(crowd, "EPISODES", 400)
    crowd.main()
    for size in crowd.SIZES:
        found = load_dataset("simple_spread", str(tmp_path / f"datasets/crowd-{size}.h5"))
        own = crowd.go(found.observations[:, :-1].flatten(0, 1)).view_as(found.actions)
        assert found.actions.shape == (size // 25, 25, 6) and 50 < found.facts["data_score"] < 100
        assert float((own == found.actions).float().mean()) == pytest.approx(0.92, abs=0.01)
