"""The policies behind the datasets: densities, training, and files that are read or refused."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from common import Trap, generator, one_line, repeatable
from hypothesis import example, given
from hypothesis import strategies as st

import data.behaviour as behaviour
import data.datasets as datasets
from data.behaviour import default_args
from data.mixes import load_teams
from envs import make_env
from envs.half_cheetah import HalfCheetah
from envs.particles import ENV_IDS, WITH_PREY, Worlds
from envs.shipped import (
    CONTINUOUS_ENV_IDS,
    POLICY,
    POLICY_DIR,
    Gaussian,
    greedy,
    init_mlp,
    load_policies,
    mlp,
    policy_file,
)

ALL = [(env_id, "discrete") for env_id in ENV_IDS] + [(env_id, "continuous") for env_id in CONTINUOUS_ENV_IDS]


@pytest.mark.parametrize("kind", POLICY)
def test_density_and_entropy_are_those_of_torchs_distributions(kind):
    """That samples are distributed so is tested on datasets (test_data.py)."""
    policy, actor = POLICY[kind], init_mlp(2, (6, 64, 64, 3), generator(0))
    actor[4] *= 2  # means away from zero
    actor += [torch.linspace(-1, 0, 3).expand(2, 1, -1)] * (kind == "continuous")
    obs = hidden = torch.randn(2, 50, 6, generator=generator(1))
    for layer in (0, 2):
        hidden = (hidden @ actor[layer] + actor[layer + 1]).relu()
    outputs, actions = hidden @ actor[4] + actor[5], policy.sample(actor, obs, generator(2))
    log_prob, entropy = policy.evaluate(actor, obs, actions)
    if kind == "discrete":
        expected, mode = torch.distributions.Categorical(logits=outputs), outputs.argmax(-1)
        torch.testing.assert_close(log_prob, expected.log_prob(actions))
        torch.testing.assert_close(entropy, expected.entropy())
    else:
        expected, mode = torch.distributions.Normal(outputs.tanh(), actor[6].exp()), outputs.tanh()
        torch.testing.assert_close(log_prob, expected.log_prob(actions).sum(-1))
        torch.testing.assert_close(entropy, (expected.entropy() - outputs**2).sum(-1))
        assert actions.abs().max() > 1, "unclipped here"
    torch.testing.assert_close(greedy([p[:1] for p in actor], kind)(obs[0]), mode[0])


# ------------------------------------------------------------------------------------------------ training


def make(out, env_id, kind, *flags):
    """Run `python -m data.behaviour` here, judging on few episodes, with short ones of HalfCheetah."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(behaviour, "SCORE_EPISODES", 20)
        patch.setattr(HalfCheetah, "horizon", 25)
        behaviour.main([*map(str, ("--env-id", env_id, "--action-kind", kind, "--out", out, *flags))])


@pytest.mark.parametrize(
    ("env_id", "kind"),
    [("simple_spread", "discrete"), ("simple_tag", "continuous"), ("HalfCheetah-2x3", "continuous")],
)
def test_training_writes_a_file_that_loads_and_is_deterministic(env_id, kind, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        flags = ("--seed", seed, "--iterations", 3, "--num-worlds", 8, "--selfplay-iterations", 2)
        make(tmp_path / name, env_id, kind, *flags, "--value-iterations", 1, "--kept-iterates", 2)
        assert os.listdir(tmp_path / name) == [f"{env_id}-{kind}.npz"]
    first, again, other = (load_policies(env_id, folder=tmp_path / name, action_kind=kind) for name in "abc")
    assert all(map(torch.equal, first.iterates[-1], again.iterates[-1])) and first.facts == again.facts
    assert not any(map(torch.equal, first.iterates[-1], other.iterates[-1]))
    assert not any(map(torch.equal, first.iterates[0], first.iterates[-1])), "all parameters moved"
    facts = first.facts
    assert len(first.iterates) == facts["medium_iterate"] + 2 == len(facts["kept_iterations"]) <= 3
    assert facts["kept_iterations"][-1] == 3 == len(facts["training_returns"])
    assert (facts["env_id"], facts["action_kind"]) == (env_id, kind)
    assert (first.prey is None) == (env_id not in WITH_PREY)
    assert facts["training"]["learning_rate"] == default_args(env_id, kind).learning_rate
    if env_id in ENV_IDS:  # scores are those of the half-precision networks in the file
        judge = make_env(env_id, 20, seed=4, action_kind=kind, prey=first.prey and greedy(first.prey, kind))
        assert behaviour.score(judge, None, 5) == pytest.approx(facts["random_score"], abs=1e-4)
        assert behaviour.score(judge, first.iterates[-1], 5) == pytest.approx(facts["expert_score"], abs=1e-4)


def test_standard_scores_are_folded_into_the_saved_actors():
    worlds = HalfCheetah(4, threads=1)
    worlds.horizon = 50
    team = behaviour.Team(worlds, range(2), default_args("HalfCheetah-2x3", "continuous"), torch.Generator())
    assert team.obs_std.max() > 5 * team.obs_std.min(), "the raw numbers are of different sizes"
    for action in torch.rand(20, 4, 2, 3, generator=generator(0)) * 2 - 1:
        worlds.step(action)
    obs, raw = team.observe(worlds), torch.stack([worlds.observe(0), worlds.observe(1)])
    assert 0.3 < obs.std() < 3
    with torch.no_grad():
        torch.testing.assert_close(Gaussian.greedy(team.snapshot(), raw), Gaussian.greedy(team.actor, obs))


def test_values_learn_first_and_move_no_actor():
    args = default_args("simple_spread", "continuous")
    args = replace(args, num_worlds=16, value_iterations=3, iterations=1)
    worlds, draws = Worlds("simple_spread", 16, "continuous"), generator(1)
    team = behaviour.Team(worlds, range(3), args, draws)
    before = [p.detach().clone() for p in team.actor], [p.detach().clone() for p in team.critic]
    (_, start), (_, end) = behaviour.train(worlds, [team], 1, args, draws, "test")
    assert all(map(torch.equal, before[0], start)) and not any(map(torch.equal, before[0], end))
    assert not any(map(torch.equal, before[1], team.critic))


@pytest.mark.parametrize("kind", POLICY)
def test_ppo_raises_the_return(kind, monkeypatch):
    """Against a prey of hardly any self-play; seeds 1 and 2 gain 16 to 56."""
    monkeypatch.setattr(behaviour, "SCORE_EPISODES", 300)
    args = replace(default_args("simple_tag", kind), iterations=30, num_worlds=40, selfplay_iterations=2)
    arrays = behaviour.train_behaviour(replace(args, value_iterations=3))
    facts = json.loads(str(arrays["facts"]))
    assert facts["expert_score"] > facts["random_score"] + 10
    assert np.mean(facts["training_returns"][-5:]) > np.mean(facts["training_returns"][:5]) + 10
    assert 0 < facts["medium_iterate"] < 30 and len(arrays["actor0"]) == facts["medium_iterate"] + 2


@pytest.mark.parametrize(("env_id", "kind"), ALL)
def test_shipped_policies_are_good_enough(env_id, kind):
    policies, path = load_policies(env_id, action_kind=kind), policy_file(env_id, action_kind=kind)
    facts = policies.facts
    gain = facts["expert_score"] - facts["random_score"]
    assert gain > dict(simple_spread=300, simple_tag=60, simple_world=25).get(env_id, 2500)
    assert env_id != "simple_spread" or facts["expert_score"] > 516.8, "the published one"
    assert abs(100 * (facts["medium_score"] - facts["random_score"]) / gain - 40) < 5
    assert len(policies.iterates) == facts["medium_iterate"] + 2 <= 101 and path.stat().st_size < 3e6
    obs = make_env(env_id, 20, seed=1, action_kind=kind).reset().transpose(0, 1)
    assert mlp(policies.iterates[0][:6], obs).abs().max() < 0.3, "the first iterate plays almost uniformly"


def test_failed_training_leaves_no_file(tmp_path, monkeypatch):
    def half_written(partial, **_):
        Path(partial).write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(behaviour, "train_behaviour", lambda args: {"facts": np.array("{}")})
        patch.setattr(np, "savez_compressed", half_written)
        assert "No space left" in one_line(lambda: make(tmp_path / "out", "simple_tag", "discrete"))
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr(behaviour, "train_behaviour", lambda args: pytest.fail("trained in vain"))
    (tmp_path / "file").write_text("")
    for out, flags, words in (
        ("file/out", [], "cannot write"),
        ("new", ["--iterations", 0], "--iterations must be at least 1"),
        ("new", ["--value-iterations", -1], "--value-iterations must be at least 0"),
    ):
        call = lambda out=out, flags=flags: make(tmp_path / out, "simple_tag", "discrete", *flags)  # noqa: E731
        assert words in one_line(call)
    assert not (tmp_path / "new").exists()


# --------------------------------------------------------------------------------------------------- files


def facts(**changes):
    """An edit of a policy file's arrays: other facts."""
    return lambda arrays: arrays.update(facts=json.dumps(json.loads(str(arrays["facts"])) | changes))


def trap(name):
    """An edit of a policy file's arrays: an object that makes the folder ./executed when it is unpickled."""
    return lambda arrays: arrays.update({name: np.array([Trap("executed")], dtype=object)})


def edit_npz(name, folder, change):
    """A copy of a shipped file of arrays in another folder, changed: change gets the dict of arrays."""
    with np.load(POLICY_DIR / name) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(folder / name, **arrays)


TAG, TEAMS = "simple_tag-continuous.npz", "simple_spread-discrete-teams.npz"
LOADERS = {  # file name: loader
    TAG: lambda folder: load_policies("simple_tag", folder=folder, action_kind="continuous"),
    TEAMS: lambda folder: load_teams("simple_spread", folder),
}
BAD_POLICIES = [
    (TAG, lambda a: a.pop("actor6"), "actor6"),
    (TAG, lambda a: a.pop("prey6"), "prey6"),
    (TAG, lambda a: a.pop("facts"), "facts"),
    (TAG, facts(random_score=float("nan")), "scores are not finite"),
    (TAG, facts(env_id="simple_world"), "policies of simple_world"),
    (TAG, facts(action_kind="discrete"), "discrete policies"),
    (TAG, lambda a: a.update(actor0=a["actor0"][:-1]), "number of iterates"),
    (TAG, lambda a: a["actor2"].__setitem__((0, 0, 0, 0), np.nan), "parameter is not finite"),
    (TAG, trap("facts"), "allow_pickle=False"),
    (TEAMS, lambda a: a.pop("actor3"), "actor3"),
    (TEAMS, facts(env_id="simple_tag"), "policies of simple_tag"),
    (TEAMS, lambda a: a.update({k: v[:2] for k, v in a.items() if k != "facts"}), "other shapes"),
    (TEAMS, facts(teams=[]), "other shapes"),
    (TEAMS, lambda a: a.update(actor5=np.zeros((3, 3, 1, 6), "f2")), "other shapes"),
    (TEAMS, trap("actor0"), "allow_pickle=False"),
]


@pytest.mark.parametrize(("name", "change", "words"), BAD_POLICIES)
def test_bad_policy_file_is_refused(name, change, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    edit_npz(name, tmp_path, lambda arrays: None)
    LOADERS[name](tmp_path)
    edit_npz(name, tmp_path, change)
    message = one_line(lambda: LOADERS[name](tmp_path))
    assert words in message and str(tmp_path / name) in message and not Path("executed").exists()


@repeatable
@given(share=st.floats(0, 0.99), noise=st.binary(max_size=100))
@example(share=0.0, noise=b"")
@example(share=0.0, noise=b"\x93NUMPY\x01\x00" + b"\x00" * 99)
def test_damaged_policy_file_is_refused(share, noise, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    for name, load in LOADERS.items():
        whole = (POLICY_DIR / name).read_bytes()
        (folder / name).write_bytes(whole[: int(share * len(whole))] + noise)
        assert f"cannot read {folder / name} as " in one_line(lambda load=load: load(folder))


def test_missing_policies_and_unknown_tasks_name_the_way_out(tmp_path, monkeypatch):
    folder, world = tmp_path / "datasets", ("simple_world", "continuous")
    (tmp_path / "simple_spread-discrete.npz").write_bytes(policy_file("simple_spread").read_bytes())
    monkeypatch.setattr(datasets, "POLICY_DIR", tmp_path)
    command = "python -m data.behaviour --env-id simple_world --action-kind continuous"
    for call, words in (
        (lambda: load_policies(world[0], folder=tmp_path, action_kind=world[1]), command),
        (lambda: datasets.load_dataset(world[0], "random", 100, 0, folder, world[1]), command),
        (lambda: load_teams("simple_spread", tmp_path), "python -m data.mixes"),
        (lambda: datasets.load_dataset("simple_spread", "mix", 100, 0, folder), "python -m data.mixes"),
        (lambda: load_policies("HalfCheetah", action_kind="continuous"), "did you mean 'HalfCheetah-2x3'"),
        (lambda: load_policies("simple_tag", action_kind="forces"), "unknown action kind 'forces'"),
    ):
        assert words in one_line(call)
    assert not folder.exists()
