"""HalfCheetah 2x3: is it the library's, step by step, however its worlds are shared out?

`differences` steps our worlds beside the library's from the same states; deliberate mistakes
(mutants_data.py) show that it notices.
"""

import warnings

import mujoco
import numpy as np
import pytest
import torch
from common import generator, one_line
from mutants_data import CHEETAH

from envs.half_cheetah import HalfCheetah

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from gymnasium_robotics import mamujoco_v1


def some_actions(steps, num_worlds, seed=0):
    """Uniform torques [T, W, 2, 3]."""
    return torch.rand(steps, num_worlds, 2, 3, generator=generator(seed)) * 2 - 1


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


def differences(worlds, steps, action_scale=1.0):
    """Step worlds and the library's side by side; which of their numbers were ever unequal, as a set of
    names."""
    env, wrong = library_env(), set()
    single = env.single_agent_env.unwrapped
    starts = [x.copy() for x in (worlds._positions, worlds._velocities)]
    actions = some_actions(steps, worlds.num_worlds, 1) * action_scale
    obs, rewards, states = play(worlds, actions)
    for w in range(worlds.num_worlds):
        env.reset(seed=0)
        mujoco.mj_resetData(single.model, single.data)
        single.set_state(starts[0][w], starts[1][w])
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
        ours = worlds._positions[w], worlds._velocities[w]
        if not all(map(np.array_equal, ours, (single.data.qpos, single.data.qvel))):
            wrong.add("float64 state at the end")
    return wrong


@pytest.mark.parametrize(("steps", "action_scale"), [(1000, 1.0), (100, 1.5)])
def test_whole_episodes_are_the_librarys_to_the_last_bit(steps, action_scale):
    """Torques beyond 1 are limited by the simulator and paid for in full, here as there."""
    worlds = HalfCheetah(2)
    play(worlds, some_actions(5, 2))
    worlds.reset()  # forgets what was before
    assert differences(worlds, steps, action_scale) == set()


@pytest.mark.parametrize("name", CHEETAH)
def test_comparison_notices_mistakes(name, monkeypatch):
    mistake, wrong = CHEETAH[name]
    mistake(monkeypatch)
    assert differences(HalfCheetah(1), 20) == wrong


def test_starts_are_distributed_as_the_librarys():
    worlds, single = HalfCheetah(4000), library_env().single_agent_env.unwrapped
    shift, velocities = worlds._positions - single.init_qpos, worlds._velocities - single.init_qvel
    limit = single._reset_noise_scale
    assert np.abs(shift).max() <= limit and np.allclose(np.abs(shift).mean(0), limit / 2, atol=0.003)
    assert np.allclose(velocities.mean(0), 0, atol=0.008)
    assert np.allclose(velocities.std(0), limit, atol=0.005)


# ------------------------------------------------------------------------- however the worlds are shared out


def test_numbers_do_not_depend_on_threads_or_neighbours(monkeypatch):
    actions = some_actions(60, 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    first = play(HalfCheetah(7, seed=2), actions)
    for threads in (2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        again = play(HalfCheetah(7, seed=2), actions)
        assert all(map(torch.equal, first, again)), threads
    fewer = play(HalfCheetah(3, seed=2), actions[:, :3])  # starts as the larger batch does
    assert all(torch.equal(a[:, :3], b) for a, b in zip(first, fewer, strict=True))


def test_wrong_actions_are_refused_and_move_nothing():
    worlds = HalfCheetah(3)
    before, right = worlds.state(), torch.zeros(3, 2, 3)
    for actions in (right.flatten(1), right[:2], right.long(), right * np.nan):
        assert "actions must " in one_line(lambda actions=actions: worlds.step(actions))
    assert torch.equal(worlds.state(), before)
