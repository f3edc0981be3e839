"""HalfCheetah 2x3: is it the library's, step by step, however its worlds are shared out, and does it end cleanly?
And the Gaussian behaviour policies: densities, learning, files and what their rollouts log.

`differences` steps our worlds beside the library's from the same states; deliberate mistakes (`MISTAKES`) show that it
notices.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

import data.behaviour as behaviour
import envs.half_cheetah as half_cheetah
from data.behaviour import CONTINUOUS_ENV_IDS, POLICY, Gaussian, default_args, greedy, load_policies, rollout
from envs.half_cheetah import HalfCheetah
from envs.particles import ENV_IDS, Worlds
from utils.errors import InputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from gymnasium_robotics import mamujoco_v1

ROOT = Path(__file__).parent.parent


def children() -> list[int]:
    """Processes of this one that run worlds and have not ended."""
    found = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "cheetah_physics"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def some_actions(steps, num_worlds, seed=0):
    """Uniform torques [T, W, 2, 3]."""
    return torch.rand(steps, num_worlds, 2, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def play(worlds, actions):
    """The observations, rewards and states of actions [T, W, 2, 3], each stacked over steps."""
    log = []
    for action in actions:
        obs, rewards = worlds.step(action)
        log.append((obs, rewards, worlds.state()))
    return [torch.stack(x) for x in zip(*log, strict=True)]


# --------------------------------------------------------------------------------------------- the library's


def library_env():
    return mamujoco_v1.parallel_env("HalfCheetah", "2x3", agent_obsk=0, global_categories=())


def library_at(env, positions, velocities):
    """Put the library's environment where one of ours starts."""
    env.reset(seed=0)
    single = env.single_agent_env.unwrapped
    mujoco.mj_resetData(single.model, single.data)
    single.set_state(positions, velocities)


def differences(worlds, steps, action_scale=1.0):
    """Step worlds and the library's side by side; which of their numbers were ever unequal, as a set of names."""
    env, wrong = library_env(), set()
    starts = [x.copy() for x in (worlds._positions, worlds._velocities)]
    actions = some_actions(steps, worlds.num_worlds, 1) * action_scale
    obs, rewards, states = play(worlds, actions)
    for w in range(worlds.num_worlds):
        library_at(env, starts[0][w], starts[1][w])
        for t in range(steps):
            seen, paid, ended, cut, _ = env.step({f"agent_{n}": actions[t, w, n].numpy() for n in range(2)})
            for n in range(2):
                if not np.array_equal(obs[t, w, n].numpy(), seen[f"agent_{n}"].astype(np.float32)):
                    wrong.add("observations")
                if rewards[t, w, n].item() != pytest.approx(paid[f"agent_{n}"], rel=1e-6, abs=1e-6):
                    wrong.add("rewards")
                assert not ended[f"agent_{n}"]
                assert cut[f"agent_{n}"] == (t + 1 == worlds.horizon), "truncated at the end, not before"
            if not np.array_equal(states[t, w].numpy(), env.state().astype(np.float32)):
                wrong.add("states")
        single = env.single_agent_env.unwrapped.data
        ours = worlds._positions[w], worlds._velocities[w]
        if not all(np.array_equal(a, b) for a, b in zip(ours, (single.qpos, single.qvel), strict=True)):
            wrong.add("float64 state at the end")
    return wrong


@pytest.mark.parametrize(("steps", "action_scale"), [(1000, 1.0), (1000, 0.3), (100, 1.5)])
def test_whole_episodes_are_the_librarys_to_the_last_bit(steps, action_scale):
    """Torques beyond 1 are limited by the simulator and paid for in full, here as there."""
    worlds = HalfCheetah(2, processes=2)
    play(worlds, some_actions(5, 2))
    worlds.reset()  # forgets what was before
    assert differences(worlds, steps, action_scale) == set()


SWAPPED = ((4, 13, 3, 12, 2, 11), (7, 16, 5, 14, 6, 15))
MISTAKES = {
    "observed joints swapped": ("OBSERVED", SWAPPED, {"observations"}),
    "agents swapped": ("OBSERVED", half_cheetah.OBSERVED[::-1], {"observations"}),
    "control for free": ("CONTROL_COST", 0.0, {"rewards"}),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_comparison_notices_mistakes(name, monkeypatch):
    constant, value, wrong = MISTAKES[name]
    monkeypatch.setattr(half_cheetah, constant, value)
    assert differences(HalfCheetah(1, processes=1), 20) == wrong


def test_comparison_notices_swapped_torques(monkeypatch):
    advance = HalfCheetah.advance
    monkeypatch.setattr(HalfCheetah, "advance", lambda self, actions: advance(self, actions[..., [1, 0, 2]]))
    assert differences(HalfCheetah(1, processes=1), 20) >= {"observations", "states", "rewards"}


def test_starts_are_distributed_as_the_librarys():
    worlds, single = HalfCheetah(4000, processes=1), library_env().single_agent_env.unwrapped
    shift, velocities = worlds._positions - single.init_qpos, worlds._velocities - single.init_qvel
    limit = single._reset_noise_scale
    assert np.abs(shift).max() <= limit and np.allclose(np.abs(shift).mean(0), limit / 2, atol=0.003)
    assert np.allclose(velocities.mean(0), 0, atol=0.008) and np.allclose(velocities.std(0), limit, atol=0.005)


def test_random_return_is_the_measured_one():
    worlds = HalfCheetah(12, seed=3)
    returns = rollout(worlds, None, torch.Generator().manual_seed(3))["rewards"].sum(1)
    assert torch.equal(returns[:, 0], returns[:, 1]), "one reward for the team"
    assert -330 < returns.mean() < -220, "-285 over 500 episodes, of a standard deviation of about 80"


# ------------------------------------------------------------------------- however the worlds are shared out


def test_numbers_do_not_depend_on_processes_or_neighbours():
    actions = some_actions(60, 7)
    first = play(HalfCheetah(7, seed=2, processes=1), actions)
    for processes in (2, 3):
        again = play(HalfCheetah(7, seed=2, processes=processes), actions)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), processes
    fewer = play(HalfCheetah(3, seed=2, processes=2), actions[:, :3])  # a smaller batch starts as the larger one
    assert all(torch.equal(a[:, :3], b) for a, b in zip(first, fewer, strict=True))


def test_seeds_and_copies():
    worlds = HalfCheetah(6, seed=4, processes=1)
    one, two = worlds.reset(), worlds.reset()
    assert not torch.equal(one, two)
    again = HalfCheetah(6, seed=4, processes=1)
    assert torch.equal(one, again.reset()) and torch.equal(two, again.reset())
    assert torch.equal(worlds.reset(seed=9), again.reset(seed=9)) and not torch.equal(again.reset(seed=8), one)
    copies = worlds.reset(seed=9, copies=3)
    assert torch.equal(copies, again.reset(seed=9)[:2].repeat(3, 1, 1)) and not torch.equal(copies[0], copies[1])
    torch.rand(3), np.random.rand(3)  # global random numbers do not matter
    assert torch.equal(copies, worlds.reset(seed=9, copies=3))


def test_interface_is_that_of_the_particle_worlds():
    worlds = HalfCheetah(4, processes=1)
    obs = worlds.reset()
    assert (obs.shape, worlds.state().shape) == ((4, 2, worlds.obs_dim), (4, worlds.state_dim))
    assert (obs.dtype, worlds.state().dtype) == (torch.float32, torch.float32)
    assert torch.equal(torch.stack([worlds.observe(0), worlds.observe(1)], 1), obs)
    obs, rewards = worlds.step(some_actions(1, 4)[0])
    assert (obs.shape, rewards.shape, rewards.dtype) == ((4, 2, 6), (4, 2), torch.float32)
    assert (worlds.env_id, worlds.action_kind, worlds.horizon) == ("HalfCheetah-2x3", "continuous", 1000)
    assert (worlds.num_worlds, worlds.num_learners, worlds.action_dim) == (4, 2, 3)
    for name in ("num_worlds", "num_learners", "num_bodies", "horizon", "obs_dim", "device", "action_kind", "env_id"):
        assert hasattr(Worlds("simple_spread", 2), name) and hasattr(worlds, name)


@pytest.mark.parametrize(
    "actions",
    [torch.zeros(3, 6), torch.zeros(2, 2, 3), torch.zeros(3, 2, 3, dtype=torch.int64), torch.full((3, 2, 3), np.nan)],
)
def test_wrong_actions_are_refused_and_move_nothing(actions):
    worlds = HalfCheetah(3, processes=1)
    before = worlds.state()
    with pytest.raises(InputError, match="actions must be"):
        worlds.step(actions)
    assert torch.equal(worlds.state(), before)


@pytest.mark.parametrize("counts", [dict(num_worlds=0), dict(num_worlds=2, processes=0)])
def test_counts_below_one_are_refused(counts):
    with pytest.raises(InputError, match="must be at least 1, not 0"):
        HalfCheetah(**counts)


# ------------------------------------------------------------------------------------------- ends cleanly


def test_no_process_for_one_and_none_more_than_worlds():
    worlds = HalfCheetah(5, processes=1)
    assert children() == []
    worlds = HalfCheetah(2, processes=5)
    assert len(children()) == 1, "two worlds: this process and another one"
    worlds.close()
    assert children() == []


@pytest.mark.parametrize("end", ["close", "close twice", "del", "exception"])
def test_no_process_and_no_open_file_is_left(end):
    opened = len(os.listdir("/proc/self/fd"))
    worlds = HalfCheetah(4, processes=3)
    worlds.step(some_actions(1, 4)[0])
    assert len(children()) == 2
    if end.startswith("close"):
        worlds.close()
        if end == "close twice":
            worlds.close()
        with pytest.raises(RuntimeError, match="closed"):
            worlds.step(some_actions(1, 4)[0])
    elif end == "exception":
        with pytest.raises(ZeroDivisionError):
            raising(worlds)
    del worlds
    gc.collect()
    assert children() == [] and len(os.listdir("/proc/self/fd")) == opened


def raising(worlds):
    worlds._physics.step = lambda *_: 1 / 0
    worlds.step(some_actions(1, 4)[0])


def test_killed_worker_is_an_error_and_not_a_hang():
    worlds = HalfCheetah(4, processes=3)
    worlds.step(some_actions(1, 4)[0])
    os.kill(children()[0], signal.SIGKILL)
    with pytest.raises(RuntimeError, match="worker process ended"):
        for _ in range(3):
            worlds.step(some_actions(1, 4)[0])
    assert children() == []


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL, None], ids=["interrupt", "kill", "exit"])
def test_workers_end_with_their_parent(end, tmp_path):
    """The child is interrupted as by Ctrl-C: the signal goes to its whole process group."""
    code = f"""
import signal, sys; sys.path.insert(0, {str(ROOT)!r})
import torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background inherits deafness to it
from envs.half_cheetah import HalfCheetah
worlds = HalfCheetah(4, processes=3)
worlds.step(torch.zeros(4, 2, 3))
print(*[worker.pid for worker in worlds._workers], flush=True)
while {end is not None}:
    worlds.step(torch.zeros(4, 2, 3))
"""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, start_new_session=True, **pipes)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    if end is not None:
        os.killpg(parent.pid, end)
    try:
        errors = parent.communicate(timeout=20)[1]
    finally:
        parent.kill()
    until = time.time() + 5
    while any(map(alive, pids)) and time.time() < until:
        time.sleep(0.02)
    assert not any(map(alive, pids))
    assert errors == "" if end != signal.SIGINT else errors.count("Traceback") == 1, "workers say nothing"
    assert list(tmp_path.iterdir()) == [], "no MUJOCO_LOG.TXT"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


# -------------------------------------------------------------------------------------- Gaussian policies


def an_actor(seed=0, agents=2, obs_dim=6, action_dim=3):
    actor = Gaussian.init(agents, obs_dim, action_dim, torch.Generator().manual_seed(seed))
    actor[4] *= 50  # means away from zero
    actor[6] += torch.linspace(-0.5, 0.5, action_dim)
    return actor


def test_log_probability_is_that_of_torchs_normal():
    actor, obs = an_actor(), torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(1))
    actions, log_prob = Gaussian.explore(actor, obs, torch.Generator().manual_seed(2))
    hidden = obs
    for layer in (0, 2):
        hidden = (hidden @ actor[layer] + actor[layer + 1]).relu()
    outputs = hidden @ actor[4] + actor[5]
    normal = torch.distributions.Normal(outputs.tanh(), actor[6].exp())
    torch.testing.assert_close(log_prob, normal.log_prob(actions).sum(-1))
    again, entropy = Gaussian.evaluate(actor, obs, actions)
    torch.testing.assert_close(again, log_prob)
    torch.testing.assert_close(entropy, (normal.entropy() - outputs**2).sum(-1))
    torch.testing.assert_close(greedy([p[:1] for p in actor], "continuous")(obs[0]), outputs[0].tanh())
    assert actions.abs().max() > 1, "unclipped here"


def test_actions_for_the_world_are_the_samples_clipped():
    actor = an_actor()
    obs = torch.randn(1, 2, 6, generator=torch.Generator().manual_seed(1)).expand(20_000, -1, -1)
    actions = Gaussian.act(actor, obs, torch.Generator().manual_seed(2))
    mean, std = Gaussian.greedy(actor, obs[:1].transpose(0, 1)).squeeze(1), actor[6].exp().squeeze(1)  # [N, A]
    normal = torch.distributions.Normal(mean, std)
    assert actions.shape == (20_000, 2, 3) and actions.abs().max() == 1
    for share, expected in (
        ((actions == 1).double().mean(0), 1 - normal.cdf(torch.ones(()))),
        ((actions == -1).double().mean(0), normal.cdf(-torch.ones(()))),
        ((actions < mean).double().mean(0), normal.cdf(mean)),
        ((actions < 0.5 * mean).double().mean(0), normal.cdf(0.5 * mean)),
    ):
        torch.testing.assert_close(share.float(), expected, atol=0.015, rtol=0)


@pytest.mark.parametrize("env_id", CONTINUOUS_ENV_IDS)
def test_rollouts_log_what_happened(env_id):
    policies = load_policies(env_id, action_kind="continuous")
    if env_id in ENV_IDS:
        prey = policies.prey and greedy(policies.prey, "continuous")
        worlds = Worlds(env_id, 40, "continuous", prey=prey, seed=1)
    else:
        worlds = HalfCheetah(2, seed=1)
        worlds.horizon = 60
    for actor in (None, policies.iterates[-1]):
        worlds.reset(seed=7)
        log = rollout(worlds, actor, torch.Generator().manual_seed(2))
        actions = log["actions"]
        assert actions.dtype == torch.float32 and actions.abs().max() <= 1
        if actor is None:
            assert abs(actions.mean()) < 0.05 and abs(actions.var() - 1 / 3) < 0.03
        else:
            assert (actions.abs() == 1).float().mean() > 0.01, "clipped samples"
        assert log["observations"].shape[:3] == (worlds.num_worlds, worlds.horizon + 1, worlds.num_learners)
        worlds.reset(seed=7)
        assert torch.equal(worlds.reset(), log["observations"][:, 0])
        for t in range(worlds.horizon):
            obs, rewards = worlds.step(actions[:, t])
            assert torch.equal(obs, log["observations"][:, t + 1]) and torch.equal(rewards, log["rewards"][:, t])
        assert ("states" in log) == (env_id not in ENV_IDS)
        if "states" in log:
            assert torch.equal(log["states"][:, -1], worlds.state())
            assert torch.equal(log["states"][:, :, half_cheetah.OBSERVED], log["observations"])


def make(monkeypatch, out, env_id, *flags):
    """Run `python -m data.behaviour --action-kind continuous` here, judging on few episodes."""
    monkeypatch.setattr(behaviour, "SCORE_EPISODES", 80)
    flags = ("--env-id", env_id, "--action-kind", "continuous", "--out", out, *flags)
    monkeypatch.setattr(sys, "argv", ["behaviour", *map(str, flags)])
    behaviour.main()


@pytest.mark.parametrize("env_id", CONTINUOUS_ENV_IDS)
def test_training_writes_a_file_that_loads_and_is_deterministic(env_id, tmp_path, monkeypatch):
    monkeypatch.setattr(HalfCheetah, "horizon", 25)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        flags = ("--seed", seed, "--iterations", 3, "--num-worlds", 8, "--selfplay-iterations", 2)
        make(monkeypatch, tmp_path / name, env_id, *flags, "--value-iterations", 1, "--kept-iterates", 2)
        assert os.listdir(tmp_path / name) == [f"{env_id}-continuous.npz"]
    first, again, other = (load_policies(env_id, folder=tmp_path / name, action_kind="continuous") for name in "abc")
    assert all(torch.equal(a, b) for a, b in zip(first.iterates[-1], again.iterates[-1], strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(first.iterates[-1], other.iterates[-1], strict=True))
    assert first.facts == again.facts and first.facts["action_kind"] == "continuous"
    assert len(first.iterates) == first.facts["medium_iterate"] + 2 <= 3
    assert len(first.facts["kept_iterations"]) == len(first.iterates) and first.facts["kept_iterations"][-1] == 3
    assert len(first.facts["training_returns"]) == 3
    assert all(not torch.equal(a, b) for a, b in zip(first.iterates[0], first.iterates[-1], strict=True)), "moved"
    assert (first.prey is None) == (env_id not in ("simple_tag", "simple_world"))
    assert {len(actor) for actor in first.iterates} == {7}
    expected = default_args(env_id, "continuous")
    assert first.facts["training"]["learning_rate"] == expected.learning_rate, "the task's settings"
    assert first.facts["training"]["gamma"] == expected.gamma


def test_standard_scores_are_folded_into_the_saved_actors():
    worlds = HalfCheetah(4, processes=1)
    worlds.horizon = 50
    team = behaviour.Team(worlds, range(2), default_args("HalfCheetah-2x3", "continuous"), torch.Generator())
    assert team.obs_std.max() > 5 * team.obs_std.min(), "the raw numbers are of different sizes"
    play(worlds, some_actions(20, 4))
    obs = team.observe(worlds)
    raw = torch.stack([worlds.observe(0), worlds.observe(1)])
    assert 0.3 < obs.std() < 3
    with torch.no_grad():
        torch.testing.assert_close(Gaussian.greedy(team.snapshot(), raw), Gaussian.greedy(team.actor, obs))


def test_values_learn_first_and_move_no_actor():
    args = replace(default_args("simple_spread", "continuous"), num_worlds=16, value_iterations=3, iterations=1)
    worlds, generator = Worlds("simple_spread", 16, "continuous"), torch.Generator().manual_seed(1)
    team = behaviour.Team(worlds, range(3), args, generator)
    before = [p.detach().clone() for p in team.actor], [p.detach().clone() for p in team.critic]
    (_, start), (_, end) = behaviour.train(worlds, [team], 1, args, generator, "test")
    assert all(torch.equal(a, b) for a, b in zip(before[0], start, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before[0], end, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before[1], team.critic, strict=True))


def test_ppo_raises_the_return(monkeypatch):
    """Against a prey of one iteration of self-play; seeds 1 to 3 gain 13 to 39."""
    monkeypatch.setattr(behaviour, "SCORE_EPISODES", 300)
    args = default_args("simple_tag", "continuous")
    args = replace(args, iterations=45, num_worlds=48, value_iterations=3, selfplay_iterations=1)
    facts = json.loads(str(behaviour.train_behaviour(args)["facts"]))
    assert facts["expert_score"] > facts["random_score"] + 10
    assert np.mean(facts["training_returns"][-5:]) > np.mean(facts["training_returns"][:5]) + 10


def test_shipped_policies_are_good_enough():
    facts = {env_id: load_policies(env_id, action_kind="continuous").facts for env_id in CONTINUOUS_ENV_IDS}
    gain = {env_id: f["expert_score"] - f["random_score"] for env_id, f in facts.items()}
    assert facts["simple_spread"]["expert_score"] > 516.8, "the published expert"
    assert gain["simple_tag"] > 60 and gain["simple_world"] > 25
    assert facts["HalfCheetah-2x3"]["expert_score"] > 2500
    assert -290 < facts["HalfCheetah-2x3"]["random_score"] < -250
    for env_id, f in facts.items():
        assert abs(100 * (f["medium_score"] - f["random_score"]) / gain[env_id] - 40) < 5, env_id
        policies = load_policies(env_id, action_kind="continuous")
        assert len(policies.iterates) == f["medium_iterate"] + 2 == len(f["kept_iterations"]) <= 81
        assert behaviour.policy_file(env_id, action_kind="continuous").stat().st_size < 3e6


@pytest.mark.parametrize("missing", [None, "actor6", "prey6"])
def test_bad_policy_file_is_refused(missing, tmp_path):
    path = tmp_path / "simple_tag-continuous.npz"
    with np.load(behaviour.POLICY_DIR / path.name) as file:
        np.savez(path, **{name: array for name, array in file.items() if name != missing})
    if missing:
        with pytest.raises(InputError, match=missing):
            load_policies("simple_tag", folder=tmp_path, action_kind="continuous")
    os.rename(path, tmp_path / "simple_tag-discrete.npz")
    with pytest.raises(InputError, match="continuous policies of simple_tag" if missing is None else "cannot read"):
        load_policies("simple_tag", folder=tmp_path)


def test_unknown_tasks_and_missing_files_name_the_way_out(tmp_path):
    with pytest.raises(InputError, match="unknown env-id 'HalfCheetah-2x3'"):
        load_policies("HalfCheetah-2x3")
    with pytest.raises(InputError, match="did you mean 'HalfCheetah-2x3'"):
        load_policies("HalfCheetah", action_kind="continuous")
    with pytest.raises(InputError, match="unknown action kind 'forces'"):
        load_policies("simple_tag", action_kind="forces")
    with pytest.raises(InputError, match="--env-id HalfCheetah-2x3 --action-kind continuous"):
        load_policies("HalfCheetah-2x3", folder=tmp_path, action_kind="continuous")


def test_both_kinds_offer_the_same_functions():
    offered = [{name for name in vars(kind) if not name.startswith("_")} for kind in POLICY.values()]
    assert offered[0] - {"sample"} == offered[1] - {"log_prob"}
