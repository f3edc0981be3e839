"""The policies behind the datasets: densities, what rollouts log, training, and files that are read or
refused."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from common import Trap, generator, one_line, repeatable
from damage import edit_npz
from hypothesis import example, given
from hypothesis import strategies as st

import data.behaviour as behaviour
import data.datasets as datasets
from data.behaviour import default_args
from envs import half_cheetah, make_env
from envs.half_cheetah import HalfCheetah
from envs.particles import ENV_IDS, WITH_PREY, Worlds
from envs.shipped import (
    CONTINUOUS_ENV_IDS,
    POLICY,
    POLICY_DIR,
    Gaussian,
    Softmax,
    greedy,
    init_mlp,
    load_policies,
    mlp,
    policy_file,
    rollout,
)

ALL = [(env_id, "discrete") for env_id in ENV_IDS] + [(env_id, "continuous") for env_id in CONTINUOUS_ENV_IDS]


def an_actor(kind, agents=2, obs_dim=6, action_dim=3):
    actor = init_mlp(agents, (obs_dim, 64, 64, action_dim), generator(0))
    actor[4] *= 2  # means away from zero
    return actor + [torch.linspace(-1, 0, action_dim).expand(agents, 1, -1)] * (kind == "continuous")


def outputs_of(actor, obs):
    hidden = obs
    for layer in (0, 2):
        hidden = (hidden @ actor[layer] + actor[layer + 1]).relu()
    return hidden @ actor[4] + actor[5]


@pytest.mark.parametrize("kind", POLICY)
def test_density_and_entropy_are_those_of_torchs_distributions(kind):
    actor, obs, policy = an_actor(kind), torch.randn(2, 50, 6, generator=generator(1)), POLICY[kind]
    actions, outputs = policy.sample(actor, obs, generator(2)), outputs_of(actor, obs)
    log_prob, entropy = policy.evaluate(actor, obs, actions)
    if kind == "discrete":
        expected = torch.distributions.Categorical(logits=outputs)
        torch.testing.assert_close(log_prob, expected.log_prob(actions))
        torch.testing.assert_close(entropy, expected.entropy())
        mode = outputs.argmax(-1)
    else:
        expected, mode = torch.distributions.Normal(outputs.tanh(), actor[6].exp()), outputs.tanh()
        torch.testing.assert_close(log_prob, expected.log_prob(actions).sum(-1))
        torch.testing.assert_close(entropy, (expected.entropy() - outputs**2).sum(-1))
        assert actions.abs().max() > 1, "unclipped here"
    torch.testing.assert_close(greedy([p[:1] for p in actor], kind)(obs[0]), mode[0])


def test_actions_for_the_world_are_samples_and_clipped():
    """Of 20,000 samples in one state, the shares that distribution functions give."""
    obs = torch.randn(1, 2, 6, generator=generator(1)).expand(20_000, -1, -1)
    actor = an_actor("discrete")
    actions = Softmax.act(actor, obs, generator(2))
    expected = outputs_of(actor, obs[:1].transpose(0, 1)).softmax(-1).squeeze(1)  # [N, A]
    share = torch.stack([(actions == a).float().mean(0) for a in range(3)], -1)
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)

    actor = an_actor("continuous")
    actions = Gaussian.act(actor, obs, generator(2))
    mean, std = (
        outputs_of(actor, obs[:1].transpose(0, 1)).tanh().squeeze(1),
        actor[6].exp().squeeze(1),
    )  # [N, A]
    normal = torch.distributions.Normal(mean, std)
    assert actions.shape == (20_000, 2, 3) and actions.abs().max() == 1
    torch.testing.assert_close(
        (actions == 1).float().mean(0), 1 - normal.cdf(torch.ones(())), atol=0.015, rtol=0
    )
    torch.testing.assert_close(
        (actions == -1).float().mean(0), normal.cdf(-torch.ones(())), atol=0.015, rtol=0
    )
    for bound in (mean, 0.5 * mean):
        torch.testing.assert_close((actions < bound).float().mean(0), normal.cdf(bound), atol=0.015, rtol=0)


@pytest.mark.parametrize(("env_id", "kind"), ALL)
def test_rollouts_log_what_happened(env_id, kind):
    worlds = make_env(env_id, 40 if env_id in ENV_IDS else 2, seed=1, action_kind=kind)
    worlds.horizon = min(worlds.horizon, 60)
    played = load_policies(env_id, action_kind=kind).iterates[-1]
    by_hand, logs = lambda obs, draws: POLICY[kind].act(played, obs, draws), []
    for actor in (None, played, by_hand):
        worlds.reset(seed=7)
        logs.append(log := rollout(worlds, actor, generator(2)))
        actions = log["actions"]
        assert log["observations"].shape[:3] == (worlds.num_worlds, worlds.horizon + 1, worlds.num_learners)
        if kind == "continuous":
            assert actions.dtype == torch.float32 and actions.abs().max() <= 1
            assert (actions.abs() == 1).any() == (actor is not None), "samples are clipped"
        worlds.reset(seed=7)
        assert torch.equal(worlds.reset(), log["observations"][:, 0])
        for t in range(worlds.horizon):
            obs, rewards = worlds.step(actions[:, t])
            assert torch.equal(obs, log["observations"][:, t + 1])
            assert torch.equal(rewards, log["rewards"][:, t])
        assert ("states" in log) == (env_id not in ENV_IDS)
        if "states" in log:
            assert torch.equal(log["states"][:, -1], worlds.state())
            assert torch.equal(log["states"][:, :, half_cheetah.OBSERVED], log["observations"])
    assert torch.equal(logs[1]["actions"], logs[2]["actions"])


# -----------------------------------------------------------------------------------------------------
# training


def make(out, env_id, kind, *flags):
    """Run `python -m data.behaviour` here, judging on few episodes, with short ones of HalfCheetah."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(behaviour, "SCORE_EPISODES", 80)
        patch.setattr(HalfCheetah, "horizon", 25)
        behaviour.main([*map(str, ("--env-id", env_id, "--action-kind", kind, "--out", out, *flags))])


@pytest.mark.parametrize(("env_id", "kind"), ALL)
def test_training_writes_a_file_that_loads_and_is_deterministic(env_id, kind, tmp_path, monkeypatch):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        flags = ("--seed", seed, "--iterations", 3, "--num-worlds", 8, "--selfplay-iterations", 2)
        make(tmp_path / name, env_id, kind, *flags, "--value-iterations", 1, "--kept-iterates", 2)
        assert os.listdir(tmp_path / name) == [f"{env_id}-{kind}.npz"]
    first, again, other = (load_policies(env_id, folder=tmp_path / name, action_kind=kind) for name in "abc")
    assert all(map(torch.equal, first.iterates[-1], again.iterates[-1])) and first.facts == again.facts
    assert not any(map(torch.equal, first.iterates[-1], other.iterates[-1]))
    assert not any(map(torch.equal, first.iterates[0], first.iterates[-1])), "all parameters moved"
    facts, task = first.facts, default_args(env_id, kind)
    assert len(first.iterates) == facts["medium_iterate"] + 2 == len(facts["kept_iterations"]) <= 3
    assert facts["kept_iterations"][-1] == 3 == len(facts["training_returns"])
    assert (facts["env_id"], facts["action_kind"]) == (env_id, kind)
    assert (first.prey is None) == (env_id not in WITH_PREY)
    assert {len(actor) for actor in first.iterates} == {6 if kind == "discrete" else 7}
    assert (
        facts["training"]["learning_rate"] == task.learning_rate and facts["training"]["gamma"] == task.gamma
    )

    # The scores in the file are those of the half-precision networks in the file, not of what they were
    # rounded from.
    if env_id in ENV_IDS:
        judge = make_env(env_id, 80, seed=4, action_kind=kind, prey=first.prey and greedy(first.prey, kind))
        assert behaviour.score(judge, None, 5) == pytest.approx(facts["random_score"], abs=1e-4)
        assert behaviour.score(judge, first.iterates[-1], 5) == pytest.approx(facts["expert_score"], abs=1e-4)


def test_standard_scores_are_folded_into_the_saved_actors():
    worlds = HalfCheetah(4, processes=1)
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
    args = replace(
        default_args("simple_spread", "continuous"), num_worlds=16, value_iterations=3, iterations=1
    )
    worlds, draws = Worlds("simple_spread", 16, "continuous"), generator(1)
    team = behaviour.Team(worlds, range(3), args, draws)
    before = [p.detach().clone() for p in team.actor], [p.detach().clone() for p in team.critic]
    (_, start), (_, end) = behaviour.train(worlds, [team], 1, args, draws, "test")
    assert all(map(torch.equal, before[0], start)) and not any(map(torch.equal, before[0], end))
    assert not any(map(torch.equal, before[1], team.critic))


@pytest.mark.parametrize("kind", POLICY)
def test_ppo_raises_the_return(kind, monkeypatch):
    """Against a prey of hardly any self-play; seeds 1 to 3 gain 13 to 62."""
    monkeypatch.setattr(behaviour, "SCORE_EPISODES", 300)
    args = replace(default_args("simple_tag", kind), iterations=42, num_worlds=56, selfplay_iterations=2)
    arrays = behaviour.train_behaviour(replace(args, value_iterations=3))
    facts = json.loads(str(arrays["facts"]))
    assert facts["expert_score"] > facts["random_score"] + 10
    assert np.mean(facts["training_returns"][-5:]) > np.mean(facts["training_returns"][:5]) + 10
    assert 0 < facts["medium_iterate"] < 42 and len(arrays["actor0"]) == facts["medium_iterate"] + 2


@pytest.mark.parametrize("kind", POLICY)
def test_shipped_policies_are_good_enough(kind):
    for env_id in (name for name, other in ALL if other == kind):
        policies, path = load_policies(env_id, action_kind=kind), policy_file(env_id, action_kind=kind)
        facts = policies.facts
        gain = facts["expert_score"] - facts["random_score"]
        assert gain > dict(simple_spread=300, simple_tag=60, simple_world=25).get(env_id, 2500)
        assert abs(100 * (facts["medium_score"] - facts["random_score"]) / gain - 40) < 5, env_id
        assert len(policies.iterates) == facts["medium_iterate"] + 2 <= 101
        assert path.stat().st_size < 3e6
        obs = make_env(env_id, 20, seed=1, action_kind=kind).reset().transpose(0, 1)
        assert mlp(policies.iterates[0][:6], obs).abs().max() < 0.3, (
            "the first iterate plays almost uniformly"
        )
    assert load_policies("simple_spread", action_kind=kind).facts["expert_score"] > 516.8, "the published one"


def test_failed_training_leaves_no_file(tmp_path, monkeypatch):
    def half_written(partial, **_):
        Path(partial).write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(behaviour, "train_behaviour", lambda args: {"facts": np.array("{}")})
        patch.setattr(np, "savez_compressed", half_written)
        assert "No space left" in one_line(lambda: make(tmp_path / "out", "simple_tag", "discrete"))
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(behaviour, "train_behaviour", lambda args: pytest.fail("trained in vain"))
    assert "cannot write" in one_line(lambda: make(tmp_path / "file" / "out", "simple_tag", "discrete"))


@pytest.mark.parametrize(
    "flag", ["--iterations", "--num-worlds", "--epochs", "--minibatches", "--selfplay-iterations"]
)
def test_counts_below_one_are_refused(flag, tmp_path):
    assert f"{flag} must be at least 1" in one_line(
        lambda: make(tmp_path / "out", "simple_tag", "discrete", flag, 0)
    )
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------
# files


def facts(**changes):
    """An edit of a policy file's arrays: other facts; None removes one."""

    def edit(arrays):
        new = json.loads(str(arrays["facts"])) | changes
        arrays["facts"] = np.array(json.dumps({k: v for k, v in new.items() if v is not None}))

    return edit


BAD_POLICIES = [
    (lambda a: a.pop("actor6"), "actor6"),
    (lambda a: a.pop("prey6"), "prey6"),
    (lambda a: a.pop("facts"), "facts"),
    (lambda a: a.update(facts=np.array("{")), "JSON"),
    (lambda a: a.update(facts=np.array("[1]")), "TypeError"),
    (facts(medium_iterate=None), "medium_iterate"),
    (facts(expert_score=None), "expert_score"),
    (facts(random_score=float("nan")), "scores are not finite"),
    (facts(env_id="simple_world"), "policies of simple_world"),
    (facts(action_kind="discrete"), "discrete policies"),
    (lambda a: a.update(actor0=a["actor0"][:-1]), "number of iterates"),
    (lambda a: a["actor2"].__setitem__((0, 0, 0, 0), np.nan), "parameter is not finite"),
    (lambda a: a.update(actor0=np.full(3, "x")), "could not convert"),
]


@pytest.mark.parametrize(("change", "words"), BAD_POLICIES)
def test_bad_policy_file_is_refused(change, words, tmp_path):
    copy = tmp_path / "simple_tag-continuous.npz"
    load = lambda: load_policies("simple_tag", folder=tmp_path, action_kind="continuous")  # noqa: E731
    edit_npz(POLICY_DIR / copy.name, copy, lambda arrays: None)
    assert load().prey is not None
    edit_npz(POLICY_DIR / copy.name, copy, change)
    message = one_line(load)
    assert words in message and str(copy) in message


@pytest.mark.parametrize("name", ["facts", "actor0", "extra"])
def test_pickled_objects_are_refused_and_not_executed(name, tmp_path):
    path = tmp_path / "simple_spread-discrete.npz"
    trap = np.array([Trap(tmp_path / "executed")], dtype=object)
    edit_npz(POLICY_DIR / path.name, path, lambda arrays: arrays.update({name: trap}))
    message = one_line(lambda: load_policies("simple_spread", folder=tmp_path))
    assert "allow_pickle=False" in message and not (tmp_path / "executed").exists()


@repeatable
@given(share=st.floats(0, 0.99), noise=st.binary(max_size=100))
@example(share=0.0, noise=b"")
@example(share=0.0, noise=b"hello\n")
@example(share=0.0, noise=b"\x93NUMPY\x01\x00" + b"\x00" * 99)
def test_damaged_policy_file_is_refused(share, noise, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    whole, path = (POLICY_DIR / "simple_tag-discrete.npz").read_bytes(), folder / "simple_tag-discrete.npz"
    path.write_bytes(whole[: int(share * len(whole))] + noise)
    assert f"cannot read {path} as a policy file" in one_line(
        lambda: load_policies("simple_tag", folder=folder)
    )


def test_missing_policies_and_unknown_tasks_name_the_way_out(tmp_path, monkeypatch):
    command = "python -m data.behaviour --env-id simple_world --action-kind continuous"
    assert command in one_line(
        lambda: load_policies("simple_world", folder=tmp_path, action_kind="continuous")
    )
    monkeypatch.setattr(datasets, "POLICY_DIR", tmp_path)
    missing = lambda: datasets.load_dataset("simple_world", "random", 100, 0, tmp_path / "x", "continuous")  # noqa: E731
    assert command in one_line(missing) and list(tmp_path.iterdir()) == []
    for args, words in (
        (("HalfCheetah-2x3",), "unknown env-id 'HalfCheetah-2x3'"),
        (("HalfCheetah", "cpu", POLICY_DIR, "continuous"), "did you mean 'HalfCheetah-2x3'"),
        (("simple_tag", "cpu", POLICY_DIR, "forces"), "unknown action kind 'forces'"),
    ):
        assert words in one_line(lambda args=args: load_policies(*args))


def test_both_kinds_offer_the_same_functions():
    discrete, continuous = (
        {name for name in vars(kind) if not name.startswith("_")} for kind in POLICY.values()
    )
    assert discrete == continuous
