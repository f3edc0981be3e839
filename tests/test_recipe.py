"""experiments/original_recipe.py: its round against torch's own layers, called as the official code calls
them; with every flag set to ours, against spacql_continuous.py."""

import copy
from functools import partial

import pandas as pd
import pytest
import torch
from common import ROOT, differences, load, one_line, rejects, separate_network
from torch import nn
from torch.nn.functional import mse_loss

import spacql_continuous as ours
from data.datasets import load_dataset
from experiments import original_recipe, recipe_report
from experiments.plan import RECIPES
from utils import runs

FLAGS = (
    "--env-id simple_tag --dataset random --dataset-size 2500 --hidden 16 --batch-size 32 --rounds 2"
    " --eval-every 2 --eval-episodes 8 --device cpu --learning-rate 0.01 --cql-alpha 0.3"
)
GAMMA, ALPHA, TAU, RATE, BATCH, NUM, DIM = 0.95, 0.3, 0.01, 0.01, 32, 3, 2
BACKUPS = ("joint", "icql-qs", "spacql")
NETWORKS = ("critic", "actor", "target_critic", "target_actor")


@pytest.fixture
def train(data_dir, monkeypatch, elsewhere):
    """train(flags, module): the checkpoint of a small run."""
    monkeypatch.setattr(runs, "save_figure", lambda _, path, *__: path.touch())

    def train(flags="", module=original_recipe):
        return load(module.main([*FLAGS.split(), "--data-dir", str(data_dir), *flags.split()])["folder"])

    return train


def same(first, second, tolerance=2e-5):
    """Two stacks of networks: on average over the numbers of each tensor, which Adam makes differ by as much
    as its step where a gradient is nothing but rounding."""
    for a, b in zip(first, second, strict=True):
        assert a.shape == b.shape and (a.double() - b.double()).abs().mean() < tolerance


# ------ the official code's round


class Critics(nn.Module):
    """Several networks behind one batch-norm; a forward pass is a call."""

    def __init__(self, params):
        super().__init__()
        self.norm = nn.BatchNorm1d(params[0].shape[2]).double()
        self.members = nn.ModuleList(separate_network(params, 0, m) for m in range(params[0].shape[1]))

    def forward(self, states, *actions):
        x = self.norm(torch.cat([states, *actions], -1).flatten(0, -2))
        return [member(x).view(states.shape[:-1]) for member in self.members]


def actor_of(params, i):
    """Agent i's network: batch-norm and three layers, the last one small."""
    network = separate_network(params, 0, i)
    for p in network[-1].parameters():
        p.data.mul_(0.003 * 16**0.5)
    return nn.Sequential(nn.BatchNorm1d(params[0].shape[2]).double(), *network, nn.Tanh())


def transitions(dataset):
    """All rows, with the next row's action as a', across the ends of episodes too."""
    obs, actions = dataset.observations.double(), dataset.actions.double().flatten(0, 1)
    done = torch.zeros(dataset.rewards.shape[:2]).double()
    done[:, -1] = 1
    o, o2 = obs[:, :-1].flatten(0, 1), obs[:, 1:].flatten(0, 1)
    rewards = dataset.rewards.double()[..., 0].flatten()
    return o, actions, rewards, o2, torch.cat([actions[1:], actions[:1]]), done.flatten()


def replace_each(logged, new):
    """Of every agent, a list: joint actions in which it alone plays `new` [B, N, A]."""
    joint = [logged.clone() for _ in range(NUM)]
    for i in range(NUM):
        joint[i][:, i] = new[:, i]
    return joint


def official_rounds(dataset, backup, members, rounds):
    """The networks after some rounds of seed 0."""
    draw, rows = torch.Generator().manual_seed(0), transitions(dataset)
    obs_dim = rows[0].shape[-1]
    width = NUM * (obs_dim + DIM)
    critics = Critics(ours.init_networks([draw], members, (width, 16, 16, 1)))
    params = ours.init_networks([draw], NUM, (obs_dim, 16, 16, DIM))
    actors = [actor_of(params, i) for i in range(NUM)]
    target_critics, target_actors = copy.deepcopy((critics, actors))
    critic_adam = torch.optim.Adam(critics.parameters(), RATE)
    adams = [torch.optim.Adam(actor.parameters(), RATE) for actor in actors]
    for _ in range(rounds):
        for step in range(5):
            index = torch.randint(len(rows[0]), (BATCH,), generator=draw)
            o, a, r, o2, a2, done = (x[index] for x in rows)
            s, s2 = o.flatten(1), o2.flatten(1)
            with torch.no_grad():
                sizes = dict(spacql=[1, 2, 3], joint=[3]).get(backup, [1])
                noise = torch.randn((BATCH, len(sizes), NUM, DIM), generator=draw).double()
                policy = torch.stack([target_actors[i](o2[:, i]) for i in range(NUM)], 1)[:, None]
                policy = (policy + 0.05 * noise).clamp(-1, 1)
                if backup == "icql-qs":  # one call
                    joint = torch.stack([x.flatten(1) for x in replace_each(a2, policy[:, 0])])
                    q = [x.mean(0) for x in target_critics(s2.expand(NUM, -1, -1), joint)]
                    later = torch.minimum(*q)
                else:  # a call for every k
                    place = torch.rand((BATCH, len(sizes), NUM), generator=draw).argsort(-1).argsort(-1)
                    least, spread = [], []
                    for k, size in enumerate(sizes):
                        joint = torch.where((place[:, k] < size)[..., None], policy[:, k], a2).flatten(1)
                        least.append(torch.stack(target_critics(s2, joint)).amin(0))
                        spread.append(torch.stack(critics(s2, joint)).std(0, correction=0))
                    w = 1 / torch.stack(spread)
                    later = (w / w.sum(0) * torch.stack(least)).sum(0) if backup == "spacql" else least[0]
                y = r + GAMMA * (1 - done) * later

            who = torch.rand((BATCH, NUM), generator=draw).argsort(-1)
            play = 2 * torch.rand((BATCH, NUM, 10, DIM), generator=draw).double() - 1
            joint = a[:, None, None].repeat(1, NUM, 10, 1, 1)
            for b in range(BATCH):
                for m in range(NUM):
                    joint[b, m, :, who[b, m]] = play[b, m]
            loss = 0
            candidates = critics(s[:, None, None].expand(-1, NUM, 10, -1), joint.flatten(3))
            for q, others in zip(critics(s, a.flatten(1)), candidates, strict=True):
                loss = loss + mse_loss(q, y) + ALPHA * (others.logsumexp(-1).mean(1) - q).mean()
            critic_adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(critics.parameters(), 0.5)
            critic_adam.step()

            if step == 0:
                played = torch.stack([actors[i](o[:, i]) for i in range(NUM)], 1)
                joint = torch.stack([x.flatten(1) for x in replace_each(a, played)])  # one call
                loss = -critics(s.expand(NUM, -1, -1), joint)[0].mean()
                loss = loss + 1e-3 * sum(played[:, i].square().mean() for i in range(NUM))
                for adam in adams:
                    adam.zero_grad()
                loss.backward()
                for actor, adam in zip(actors, adams, strict=True):
                    nn.utils.clip_grad_norm_(actor.parameters(), 0.5)
                    adam.step()
        for target, online in zip([target_critics, *target_actors], [critics, *actors], strict=True):
            for old, new in zip(target.parameters(), online.parameters(), strict=True):
                old.data.lerp_(new.data, TAU)
    of_critics = [[[c.norm, *member] for member in c.members] for c in (critics, target_critics)]
    found = of_critics[0], actors, of_critics[1], target_actors
    return dict(zip(NETWORKS, map(stacked, found), strict=True))


def stacked(networks):
    """The parameters of networks of a batch-norm and layers, as the script keeps them."""
    found = []
    for norm, *layers in networks:
        layers = [layer for layer in layers if isinstance(layer, nn.Linear)]
        pairs = [(layer.weight.T, layer.bias[None]) for layer in layers]
        found.append([*sum(pairs, ()), norm.bias[None], norm.weight[None]])
    return [torch.stack(parts).detach()[None] for parts in zip(*found, strict=True)]


def check_official(train, dataset, backup, flags=""):
    members = 3 if backup == "spacql" else 2
    saved = train(f"--backup {backup} --num-critics {members} {flags}")
    expected = official_rounds(dataset, backup, members, rounds=2)
    for name in NETWORKS:
        found = expected[name]
        if "critic" in name:  # one batch-norm for all members
            found = found[:6] + [p[:, :1] for p in found[6:]]
        same(saved[name], found)


@pytest.fixture
def dataset(data_dir):
    return load_dataset("simple_tag", "random", 2500, 0, data_dir, "continuous")


@pytest.mark.parametrize("backup", BACKUPS)
def test_round(train, dataset, backup):
    check_official(train, dataset, backup)


CHANGES = {name: flags for name, flags in RECIPES.items() if name not in ("original", "ours")}


@pytest.mark.parametrize("flags", CHANGES.values(), ids=CHANGES)
def test_every_change_is_one(train, dataset, flags):
    """The round is no longer the official one: the mutants of `test_round` are the recipe's own flags."""
    rejects(check_official, train, dataset, "joint", flags)


@pytest.mark.parametrize("flags", ["--no-exact-k1", "--no-one-call", "--penalty-agents 1"])
def test_changes_of_k1(train, dataset, flags):
    rejects(check_official, train, dataset, "icql-qs", flags)


# ------ ours


@pytest.fixture
def exactly(monkeypatch):
    """Inputs are divided by their deviation, not by a little more."""
    monkeypatch.setattr(original_recipe, "EPS", 1e-12)


def check_ours(train, backup, flags):
    """All parts taken back, the steps are those of spacql_continuous.py."""
    same_size = f"--backup {backup} --num-critics 3 --num-seeds 2 --penalty-agents 1"
    saved, expected = train(f"{same_size} {flags}"), train(same_size, ours)
    for name in NETWORKS:
        same(saved[name][:6], expected[name])


@pytest.mark.parametrize("backup", BACKUPS)
def test_ours(train, exactly, backup):
    check_ours(train, backup, RECIPES["ours"])


@pytest.mark.parametrize("part", [x for x in f" {RECIPES['ours']}".split(" --") if x and "affine" not in x])
def test_no_part_of_ours_is_idle(train, exactly, part):
    """Without any one of the parts the steps are others; scale and shift are 1 and 0 where all is fixed."""
    backup = "icql-qs" if part == "no-exact-k1" else "joint"
    rejects(check_ours, train, backup, f" {RECIPES['ours']} ".replace(f" --{part} ", " "))


# ------ batch-norm, runs


def test_running_moments():
    """The momentum is torch's; the variance is that of the batch, without its correction."""
    norm = nn.BatchNorm1d(3).double()
    running = [torch.zeros(1, 1, 1, 3).double(), torch.ones(1, 1, 1, 3).double()]
    for seed in range(4):
        x = torch.randn(1, 50, 2, 3, generator=torch.Generator().manual_seed(seed)).double() * 2 + 1
        for call in x[0].unbind(1):
            norm(call)
        for r in range(2):
            original_recipe.moments(x[:, :, r : r + 1], 1, "running", None, running)
    torch.testing.assert_close(running[0].flatten(), norm.running_mean)
    torch.testing.assert_close(running[1].flatten(), norm.running_var, rtol=0.03, atol=0)


@pytest.mark.parametrize("flags", ["--norm-states running --norm-actions running", "--norm-actions one-pass"])
def test_resumed(train, flags):
    """Two rounds, then two more: bit by bit as four at once."""
    whole, half = train(f"{flags} --rounds 4 --name whole"), train(f"{flags} --rounds 2 --name half")
    assert half["round"] == 2 and differences(whole, half)
    resumed = load(original_recipe.main("--resume runs/half --rounds 4".split())["folder"])
    assert differences(whole, resumed) == []


def test_evaluations_move_nothing(train, monkeypatch):
    def check():
        often, seldom = (train(f"--norm-states running --eval-every {n}") for n in (1, 2))
        assert [place for place in differences(often, seldom) if "history" not in place] == []

    check()
    monkeypatch.setattr(torch, "_foreach_copy_", lambda *_: None)  # running moments as they were before
    rejects(check)


def test_refused(train):
    for flags in ("--clone-weight 1", "--actor-others policy", "--env-id HalfCheetah-2x3"):
        one_line(partial(train, flags))


# ------ the report


def check_ends(ends):
    """By loops: the last five evaluations' mean, and how far below the best five in a row it is."""
    scores = {seed: [(7 * i + 3 * seed) % 10 for i in range(9)] for seed in (0, 3)}
    keys = dict(env_id="simple_tag", recipe="fixed", backup="joint")
    rows = [keys | dict(seed=s, score=scores[s][i]) for i in range(9) for s in scores]
    found = ends(pd.DataFrame(rows))
    for seed, values in scores.items():
        means = [sum(values[i : i + 5]) / 5 for i in range(5)]
        end, drop = found.loc["simple_tag", "fixed", "joint", seed]
        assert (end, drop) == pytest.approx((means[-1], max(means) - means[-1]))


def test_ends():
    check_ends(recipe_report.ends)
    rejects(check_ends, lambda rows: recipe_report.ends(rows.iloc[::-1]))
    rejects(check_ends, lambda rows: recipe_report.ends(rows.iloc[:-2]))


def test_committed_report():
    """results/recipe.md is that of the CSV files."""
    assert (ROOT / "results/recipe.md").read_text() == recipe_report.text(recipe_report.read_cells())
