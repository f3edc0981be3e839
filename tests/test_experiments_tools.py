"""The tools of experiments/: cloning, enjoy and its films, pictures, detectors of joint actions, benchmark.
Each `check_...` must also reject the mistakes of mutants_tools.py."""

import itertools
import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from common import (
    SCRIPTS,
    SEEDS,
    SMALL,
    close,
    double_networks,
    generator,
    indices,
    normal,
    one_line,
    rejects,
    repeatable,
    separate_network,
)
from hypothesis import given
from hypothesis import strategies as st
from mutants_tools import MUTANTS
from PIL import Image
from torch import nn

import spacql
from data.datasets import load_dataset
from envs import make_env
from envs.half_cheetah import HalfCheetah
from experiments import bc, benchmark, enjoy, films, pictures, uncertainty

pytestmark = pytest.mark.usefixtures("elsewhere")
NUM, STATE = 3, 4  # agents, numbers of a state
UNCERTAIN = "--states 40 --transitions 500 --out u.csv".split()


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


def test_cloning_is_by_likelihood_or_by_distance(script):
    check_cloning(bc.cloning_loss, script)


def clone(data_dir, script, flags):
    """A small run of bc.py: its summary and its history."""
    kind = ["--continuous"] if script.kind == "continuous" else []
    size = "--dataset-size 5000 --batch-size 64 --eval-every 20 --eval-episodes 50 --device cpu".split()
    summary = bc.main([*kind, *size, "--data-dir", str(data_dir), *flags.split()])
    with np.load(Path(summary["folder"]) / "returns.npz", allow_pickle=False) as file:
        assert json.loads(str(file["summary"])) == summary
        settings = json.loads(str(file["args"]))
        assert all(settings[name] is not None for name in bc.SIZES) and file["returns"].shape[1] == 250
        return summary, {name: file[name] for name in file.files if name.startswith("history_")}


def test_cloning_learns(script, data_dir, capfd):
    """Its loss falls, and the score gets from random play near the data's."""
    summary, history = clone(data_dir, script, "--rounds 120 --num-seeds 2 --eval-every 3")
    assert json.loads(capfd.readouterr().out) == summary and summary["method"] == "bc"
    assert list(history["history_round"]) == list(range(3, 121, 3))
    loss = history["history_actor_loss"]
    assert loss.shape == history["history_scores"].shape == (40, 2)
    assert (loss[-10:].mean(0) < loss[0] - 0.05).all()
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
    [
        ("--env-id two_door", "did you mean 'two_doors'"),
        ("--rounds 0", "--rounds must be at least 1"),
        ("--learning-rate nan", "finite"),
        ("--prey a.pt", "need --continuous"),
        ("--continuous --env-id simple_tag --prey a.pt", "--prey is for OMAR folders"),
    ],
)
def test_cloning_refuses_in_one_line(flags, said, data_dir):
    assert said in one_line(lambda: bc.main([*flags.split(), "--data-dir", str(data_dir)]))
    assert not Path("runs").exists()


# ------ enjoy and films


def test_a_finished_run_is_scored_and_filmed(script, run, monkeypatch, capfd):
    monkeypatch.setattr(enjoy, "FILMED", 2)
    env_id = dict(discrete="simple_spread", continuous="simple_tag")[script.kind]
    summary = run(f"--env-id {env_id} --num-seeds 2 --name one")
    capfd.readouterr()
    again = enjoy.main(["runs/one", "--gif", "team.gif"])
    out, err = capfd.readouterr()
    assert json.loads(out) == again and "team.gif: seed 0" in err
    for name in ("scores", "score_mean", "score_std", "data_score", "seeds", "env_id", "dataset", "rounds"):
        assert again[name] == summary[name], name
    with Image.open("team.gif") as gif:
        assert gif.n_frames == 2 * (make_env(env_id, 1).horizon + 1)
        assert gif.size == (films.SIDE, films.SIDE + films.CAPTION)
    few = enjoy.main(["runs/one/checkpoint.pt", "--episodes", "3"])
    assert few["episodes"] == 3 and few["scores"] != summary["scores"]


def test_other_worlds_are_scored_but_not_filmed(script, run):
    summary = run(f"--env-id {script.world} {script.world_flags} --rounds 1 --name other")
    assert enjoy.main(["runs/other"])["scores"] == summary["scores"]
    assert "can be filmed" in one_line(lambda: enjoy.main(["runs/other", "--gif", "a.gif"]))
    assert "no film of" in one_line(lambda: pictures.main(["--gif", "--run", "runs/other", "--out", "."]))
    assert not list(Path().glob("*.gif"))


def test_json_comes_before_the_film(run, monkeypatch, capfd):
    run("--rounds 1 --name one")
    capfd.readouterr()

    def failing(*args):
        raise OSError("no film")

    monkeypatch.setattr(enjoy, "film", failing)
    with pytest.raises(OSError, match="no film"):
        enjoy.main(["runs/one", "--gif", "a.gif"])
    assert json.loads(capfd.readouterr().out)["folder"] == "runs/one"


def test_damaged_and_foreign_folders_are_refused(script, run):
    run("--rounds 1 --name one")
    path = Path("runs/one/checkpoint.pt")
    good = path.read_bytes()
    assert "no checkpoint" in one_line(lambda: enjoy.main(["runs/none"]))
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for damaged in (good[: len(good) // 2], bytes(flipped), b"no archive"):
        path.write_bytes(damaged)
        assert "cannot read" in one_line(lambda: enjoy.main(["runs/one"]))
    path.write_bytes(good)
    saved = torch.load(path, weights_only=True)
    torch.save(saved | dict(script="other.py"), path)
    assert "unknown script of a run 'other.py'" in one_line(lambda: enjoy.main(["runs/one"]))
    torch.save(saved | dict(args=saved["args"] | dict(tau=1)), path)
    assert "not those of this version" in one_line(lambda: enjoy.main(["runs/one"]))
    path.write_bytes(good)
    assert "--episodes" in one_line(lambda: enjoy.main(["runs/one", "--episodes", "0"]))


@pytest.mark.parametrize(("env_id", "kind"), [("simple_spread", "continuous"), ("simple_tag", "discrete")])
def test_teams_are_filmed_from_the_same_starts(env_id, kind):
    worlds = make_env(env_id, 1, action_kind=kind)

    def always(action):
        return lambda obs: torch.tensor(action).expand(*obs.shape[:3], *np.shape(action))

    moves = (0, 2) if kind == "discrete" else ([0.0, 0.0], [1.0, 0.0])
    still, right = (films.film(worlds, always(action), 7, 2) for action in moves)
    length = worlds.horizon + 1
    assert len(still) == len(right) == 2 * length
    for i in range(2 * length):
        same = (still[i][0] == right[i][0]).all()
        assert same if i % length == 0 else not same  # also of the second episode, whatever was played before
        assert still[i][1].startswith(f"episode {i // length + 1}, step {i % length}, return ")
    assert still[0][1].endswith("return 0") and not still[length - 1][1].endswith("return 0")


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


# ------ pictures


def test_each_replaced_agent_costs_what_the_figure_says():
    rareness = [pictures.mean_surprise(k) for k in range(4)]
    assert [f"{10.0**-x:.1g}" for x in rareness] == ["0.04", "0.005", "0.0006", "7e-05"]
    random = np.random.default_rng(0)
    for k in range(4):
        sampled = np.concatenate([pictures.surprise(k, random) for _ in range(50)])
        assert abs(sampled.mean() - rareness[k]) < 5 * sampled.std() / len(sampled) ** 0.5


def test_idea_is_drawn_the_same_every_time(tmp_path):
    pictures.main(["--idea", "--out", str(tmp_path)])
    first = np.asarray(Image.open(tmp_path / "idea.png"))
    assert first.shape[1] > 1500 and (first[0, 0] == 255).all()  # wide enough for 900 points, on white
    pictures.draw_idea(tmp_path / "again.png")
    np.testing.assert_array_equal(first, np.asarray(Image.open(tmp_path / "again.png")))


def test_three_teams_are_filmed(script, run, monkeypatch, capfd):
    """The learnt one, the first of two seeds, has the score that its run reported; random play about 0."""
    summary = run("--num-seeds 2 --name one")
    monkeypatch.setattr(pictures, "EPISODES", 1)
    pictures.main("--gif --run runs/one --out .".split())
    said = capfd.readouterr().err
    assert f"learnt from medium data: {summary['scores'][0]:.0f}\n" in said
    assert "random play: " in said and "medium behaviour: " in said
    with Image.open("simple_spread.gif") as gif:
        assert gif.size[0] == 3 * films.SIDE and gif.n_frames == 26
    assert "say what to draw" in one_line(lambda: pictures.main([]))


# ------ detectors: what is measured


def check_auroc(measure, low, high=(2.0, 3.0, 0.0)):
    """All pairs: a win counts 1, a tie 1/2."""
    wins = sum((h > x) + (h == x) / 2 for h in high for x in low)
    found = measure(torch.tensor(low), torch.tensor(high))
    assert found == pytest.approx(wins / (len(low) * len(high)), abs=1e-9)


@repeatable
@given(*[st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)] * 2)
def test_auroc_is_the_share_of_pairs_won(low, high):
    check_auroc(uncertainty.auroc, low, high)


def check_detection(detect, seed=0):
    """By loops over states and pairs of states."""
    u, uniform = (torch.randint(4, (7, 4), generator=generator(seed + i)).double() for i in range(2))
    changed = torch.rand((7, 4), generator=generator(seed + 2)) < 0.6

    def half(x, y):
        return float(x > y) + float(x == y) / 2

    for k in range(1, 4):
        pairs = list(indices(7, 7))
        expected = dict(
            auroc=sum(half(u[i, k], u[j, 0]) for i, j in pairs) / 49,
            auroc_changed=sum(half(u[i, k], u[j, 0]) for i, j in pairs if changed[i, k])
            / (7 * int(changed[:, k].sum())),
            auroc_uniform=sum(half(uniform[i, k], u[j, 0]) for i, j in pairs) / 49,
            paired=sum(half(u[i, k], u[i, 0]) for i in range(7)) / 7,
            above_k1=sum(half(u[i, k], u[i, 1]) for i in range(7)) / 7,
            changed=int(changed[:, k].sum()) / 7,
        )
        assert detect(u, uniform, changed, k) == pytest.approx(expected, abs=1e-6)


def test_columns_say_what_they_are_of():
    check_detection(uncertainty.detection)


# ------ detectors: a model of the behaviour, and neighbours


def check_surprise(surprise, seed=0, batch=3, sizes=4, count=3, values=3):
    """Sums over choices of log-probabilities, each from its own network with a little doubt; and those of all
    joint actions add up to 1."""
    model = double_networks(SCRIPTS[0], seed, 1, count, (STATE + count * values, 6, 5, values))
    model = [3 * p.detach() for p in model]
    for f in range(count):
        model[0][:, f, STATE + f * values :] = 0.0
    state = normal(seed + 1, batch, STATE)
    choices = torch.randint(values, (batch, sizes, count), generator=generator(seed))
    expected = torch.zeros(batch, sizes, dtype=torch.float64)
    for b, k, f in indices(batch, sizes, count):
        flags = [float(choices[b, k, g] == v) for g in range(count) for v in range(values)]
        logits = separate_network(model, 0, f)(torch.cat([state[b], torch.tensor(flags).double()]))
        p = float(logits.detach().softmax(-1)[choices[b, k, f]])
        expected[b, k] -= math.log(0.99 * p + 0.01 / values)
    stacked = [p[0] for p in model]
    close(surprise(stacked, state, choices), expected)
    every = torch.tensor(list(itertools.product(range(values), repeat=count)))
    total = (-surprise(stacked, state, every.expand(batch, -1, -1))).exp().sum(-1)
    close(total, torch.ones(batch))


def test_surprise_is_that_of_separate_networks():
    check_surprise(uncertainty.surprise)


def conventions(rows, seed):
    """States of random signs and choices in them: all agents agree, nine times of ten, on 0 or 1 if the first
    sign is -1, else on 2 or 3; with the tenth chance an agent chooses at random."""
    g = generator(seed)
    state = torch.randint(2, (rows, STATE), generator=g) * 2.0 - 1
    agreed = (state[:, 0] > 0).long() * 2 + torch.randint(2, (rows,), generator=g)
    random = torch.randint(5, (rows, NUM), generator=g)
    return state, torch.where(torch.rand((rows, NUM), generator=g) < 0.1, random, agreed[:, None])


def check_model(fit, seed=0):
    """Cross-entropy on fresh pairs near the entropy, and one agent that does not agree is found out."""
    model = fit(*conventions(8000, seed), 5, generator(seed))
    state, choices = conventions(2000, seed + 1)
    broken = choices.clone()
    broken[:, 0] = (choices[:, 1] ^ 1).clamp(max=4)  # the other of the state's two
    u = uncertainty.surprise(model, state, torch.stack([choices, broken], dim=1))
    entropy = 0.0
    for joint in itertools.product(range(5), repeat=NUM):
        p = sum(0.5 * math.prod(0.9 * (a == agreed) + 0.02 for a in joint) for agreed in (0, 1))
        entropy -= p * math.log(p)
    assert entropy - 0.15 < u[:, 0].mean() < entropy + 0.2
    assert uncertainty.auroc(*u.unbind(1)) > 0.9 and u.min() > 0


def test_the_model_of_the_behaviour_knows_who_agrees_with_whom():
    check_model(uncertainty.fit_behaviour)


def test_numbers_in_bins():
    """Equal bins from -1 to 1, both ends included; discrete actions are what they are."""
    numbers = torch.linspace(-1, 1, 100)
    edges = [-1 + 2 * b / uncertainty.BINS for b in range(1, uncertainty.BINS)]
    expected = [sum(float(x) >= edge for edge in edges) for x in numbers]
    assert uncertainty.as_choices(numbers.view(50, 1, 2), "continuous").flatten().tolist() == expected
    actions = torch.randint(5, (6, NUM), generator=generator(0))
    assert torch.equal(uncertainty.as_choices(spacql.one_hot(actions), "discrete"), actions)


def check_distance(measure, seed=0, known=9, batch=4, sizes=3, width=2):
    """The nearest of all pairs by loops, each part in units of its root mean square between two of them."""
    pairs = normal(seed, known, STATE) * 5, normal(seed + 1, known, width)
    state, joint = 5 * normal(seed + 2, batch, STATE), normal(seed + 3, batch, sizes, width)
    state[0], joint[0, 0] = pairs[0][3], pairs[1][3]
    units = [sum(float((x - y).square().sum()) for x in part for y in part) / known**2 for part in pairs]
    found = measure(pairs, state, joint)
    for b, k in indices(batch, sizes):
        away = [
            float((state[b] - s).square().sum()) / units[0]
            + float((joint[b, k] - a).square().sum()) / units[1]
            for s, a in zip(*pairs, strict=True)
        ]
        close(found[b, k], math.sqrt(min(away)), 1e-6)


@repeatable
@given(SEEDS, st.integers(4, 20), SMALL, SMALL)
def test_distance_is_to_the_nearest_pair(seed, known, batch, sizes):
    check_distance(uncertainty.distance, seed, known, batch, sizes)


# ------ detectors: in a run


def check_replaced(replace, script):
    """k = 0 is what was logged; of a'^(k) at most k agents differ, all as the actor plays."""
    obs, logged = normal(0, 1, 300, NUM, 5).float(), script.actions(1, 1, 300, NUM).float()
    actor = script.module.init_networks([generator(0)], NUM, (5, 8, 8, script.dim))
    actor[5][..., 0] = 50.0
    joint, uniform = replace(script.module, actor, obs, logged, generator(1))
    assert joint.shape == uniform.shape == (1, 300, NUM + 1, NUM, script.dim)
    assert torch.equal(joint[:, :, 0], logged) and torch.equal(uniform[:, :, 0], logged)
    acts = (joint[..., 0] > 0.75) & (joint != logged.unsqueeze(2)).any(-1)
    assert ((joint != logged.unsqueeze(2)).any(-1) == acts).all(), "who changes acts as the actor"
    count = acts.sum(-1)[0]  # [300, N + 1]
    assert (count <= torch.arange(NUM + 1)).all() and (count.amax(0) == torch.arange(NUM + 1)).all()
    moved = (uniform != logged.unsqueeze(2)).any(-1)
    assert (moved.sum(-1) <= torch.arange(NUM + 1)).all() and not (uniform[..., 0][moved] > 0.75).all()
    assert moved[:, :, NUM].float().mean() > 0.7


def test_replacement_is_the_backups(script):
    check_replaced(uncertainty.replaced, script)


def check_fresh(fresh_transitions, script, states=True):
    """Where both are the same, what a script makes of them; and what moves by a deviation moves by 1."""
    trained = script.dataset(0, states)
    data, _ = script.module.prepare(trained, "cpu")
    shift = trained.observations.std((0, 1), correction=0)
    moved = SimpleNamespace(**vars(script.dataset(0, states)))
    moved.observations = trained.observations + shift
    moved.actions = trained.actions.roll(1, 0)
    state, obs, actions = fresh_transitions(script.module, trained, moved)
    still = shift < 1e-5
    close((obs - data[5])[:, ~still], torch.ones_like(obs)[:, ~still], 1e-2)
    assert torch.equal(actions, script.module.prepare(moved, "cpu")[0][-1])
    close(state, data[4] if states else obs.flatten(1), 1e-4)


@pytest.mark.parametrize("states", [False, True])
def test_fresh_data_are_on_the_runs_scale(script, states):
    check_fresh(uncertainty.fresh_transitions, script, states)


def check_judge(judge, script):
    """By loops over separate critics, on the joint actions of the run."""
    module, num, count = script.module, 2, 12
    critic = double_networks(script, 0, 1, 4, (STATE + num * script.dim, 6, 5, 1))
    critic = [p.detach() for p in critic]
    actor = module.init_networks([generator(1)], num, (5, 8, 8, script.dim))
    rows = normal(2, 30, STATE), normal(3, 30, num, 5).float(), script.actions(4, 30, num).float()
    seen = {}

    def remember(state, joint):
        seen[len(seen)] = state, joint
        return joint.flatten(2).sum(-1)

    asked = module.critic_values, critic, actor, rows, dict(mine=remember), count, generator(5)
    found = judge(module, *asked)
    (state, joint), (_, uniform) = seen.values()
    u = {}
    for name, actions in (("actors", joint), ("uniform", uniform)):
        values = torch.zeros(4, count, num + 1).double()
        for e, b, k in indices(4, count, num + 1):
            inputs = torch.cat([state[b].double(), actions[b, k].flatten().double()])
            values[e, b, k] = separate_network(critic, 0, e)(inputs).detach()
        relative = values - values[..., :1]
        spreads = values.std(0, correction=0), values.amax(0) - values.amin(0), relative.std(0, correction=0)
        u[name] = dict(zip(("std", "range", "relative"), spreads, strict=True))
    changed = (joint != joint[:, :1]).flatten(2).any(-1)
    for row in found[: 3 * num]:
        name, k = row.pop("detector"), row.pop("k")
        expected = uncertainty.detection(u["actors"][name], u["uniform"][name], changed, k)
        for key, value in expected.items():
            if name == "relative" and key in uncertainty.AGAINST_LOGGED:
                assert row[key] == ""
            else:
                assert row[key] == pytest.approx(value, abs=1e-5, nan_ok=True), (name, k, key)
    assert [row["detector"] for row in found[3 * num :]] == ["mine"] * num


def test_detectors_ask_the_critics(script):
    check_judge(uncertainty.judge, script)


def test_runs_are_judged_and_judged_anew(script, run, data_dir, monkeypatch):
    monkeypatch.setattr(uncertainty, "STEPS", 20)
    monkeypatch.setattr(uncertainty, "PAIRS", 64)
    run("--num-seeds 2 --seed 5 --rounds 2 --name one")
    flags = [*UNCERTAIN, "--data-dir", str(data_dir)]
    uncertainty.main([*flags, "runs/one"])
    first = pd.read_csv("u.csv", dtype=str)
    assert list(first["detector"].unique()) == ["std", "range", "relative", "likelihood", "neighbour"]
    assert (
        len(first) == 2 * 5 * 3 and set(first["seed"]) == {"5", "6"} and set(first["script"]) == {script.name}
    )
    uncertainty.main([*flags, "runs/one"])
    pd.testing.assert_frame_equal(pd.read_csv("u.csv", dtype=str), first)
    if script.kind == "continuous":  # critics see the simulator's state there, and there are two agents
        run("--env-id HalfCheetah-2x3 --rounds 1 --eval-episodes 2 --name other")
        uncertainty.main([*flags, "runs/other"])
        assert len(pd.read_csv("u.csv")) == 30 + 5 * 2
        assert HalfCheetah.horizon == 25


def test_what_cannot_be_judged_is_refused(script, run, data_dir):
    run("--num-critics 1 --rounds 1 --name single")
    assert "without several critics there is no spread" in one_line(lambda: uncertainty.main(["runs/single"]))
    load_dataset("simple_spread", "medium", 2500, 0, data_dir, script.kind)
    (path,) = data_dir.glob(f"simple_spread-{script.kind}-medium-2500-seed0-*.h5")
    Path("mine.h5").write_bytes(path.read_bytes())
    run("--rounds 1 --dataset mine.h5 --name file")
    assert "no fresh data like mine.h5" in one_line(lambda: uncertainty.main(["runs/file"]))
    assert "no checkpoint" in one_line(lambda: uncertainty.main(["runs/none"]))


CHECKS = {  # of the properties in MUTANTS: the check, the right function, and what else the check is given
    "cloning is by likelihood or by distance": (check_cloning, bc.cloning_loss, SCRIPTS),
    "auroc is the share of pairs won": (check_auroc, uncertainty.auroc, [[1.0, 2.0, 2.0, 5.0]]),
    "columns say what they are of": (check_detection, uncertainty.detection, [0]),
    "surprise is that of separate networks": (check_surprise, uncertainty.surprise, [0]),
    "the model of the behaviour knows who agrees with whom": (check_model, uncertainty.fit_behaviour, [0]),
    "distance is to the nearest pair": (check_distance, uncertainty.distance, [0]),
    "replacement is the backup's": (check_replaced, uncertainty.replaced, SCRIPTS),
    "detectors ask the critics": (check_judge, uncertainty.judge, SCRIPTS),
    "fresh data are on the run's scale": (check_fresh, uncertainty.fresh_transitions, SCRIPTS),
}


@pytest.mark.parametrize(
    ("name", "mistake"), [(name, mistake) for name in CHECKS for mistake in MUTANTS[name]]
)
def test_mistakes_are_noticed(name, mistake):
    check, right, cases = CHECKS[name]
    for case in cases:
        rejects(check, partial(MUTANTS[name][mistake], right), case)


# ------ benchmark


@pytest.fixture
def doubles():
    """Everything is made in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def check_steps(script, penalty_agents=1):
    """Two rounds of each step by both end with the same values, losses and networks, of two seeds."""
    sizes = dict(seeds=2, critics=3, agents=NUM, batch=16, penalty_agents=penalty_agents)
    case = benchmark.make_case(script.module, **sizes)
    loops = benchmark.Loops(case)
    target, critics, actors = benchmark.steps_of(case)
    for _ in range(2):
        y = target()
        for mine, theirs in ((y, loops.target()), (critics(y), loops.critics(y)), (actors(), loops.actors())):
            close(mine, theirs, 1e-7)
    for name, s, m in itertools.product(("critic", "actor"), range(2), range(3)):
        mine = separate_network(getattr(case, name), s, m).parameters()
        for p, q in zip(mine, getattr(loops, name)[s][m].parameters(), strict=True):
            close(p.detach(), q.detach(), 1e-7)


@pytest.mark.parametrize("penalty_agents", [1, NUM])
def test_steps_are_those_of_plain_loops(doubles, script, penalty_agents):
    check_steps(script, penalty_agents)


@pytest.mark.parametrize("name", MUTANTS["steps are those of plain loops"])
def test_a_step_that_differs_is_noticed(doubles, name, script, monkeypatch):
    mutant = MUTANTS["steps are those of plain loops"][name]
    monkeypatch.setattr(script.module, name, partial(mutant, getattr(script.module, name)))
    rejects(check_steps, script)


def test_operations_are_counted():
    """A product of 3 x 4 by 4 x 5, and a sum; a view is none."""
    x, y = torch.ones(3, 4), torch.ones(4, 5)
    ms, gflop, calls = benchmark.measure(lambda: (x @ y).view(15).sum(), repetitions=3)
    assert round(gflop * 1e9) == 2 * 3 * 4 * 5 and calls == 2 and ms > 0


def test_the_report_has_every_row(monkeypatch):
    monkeypatch.setattr(benchmark, "CASES", dict(small={}))
    monkeypatch.setattr(benchmark, "AXES", dict(critics=(2, 3)))
    benchmark.main("--quick --out b.md".split())
    numbers, text = json.loads(Path("b.json").read_text()), Path("b.md").read_text()
    assert [row["part"] for row in numbers["round"]] == ["target", "critics", "actors", "round"] * 2
    assert len(numbers["scaling"]) == 2 and "## Round" in text and "## Scaling" in text
    for start in (0, 4):
        shares = [int(row["share"].rstrip("%")) for row in numbers["round"][start : start + 4]]
        assert 98 <= sum(shares[:3]) <= 102 and shares[3] == 100
    benchmark.main("--quick --only scaling --out c.md".split())
    assert "## Round" not in Path("c.md").read_text()
