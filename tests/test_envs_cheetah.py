"""HalfCheetah 2x3: is it the library's, step by step, however its worlds are shared out, and does it end
cleanly?

`differences` steps our worlds beside the library's from the same states; deliberate mistakes
(mutants_data.py) show that it notices.
"""

import gc
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from common import ROOT, generator, one_line
from mutants_data import CHEETAH

from envs.half_cheetah import HalfCheetah

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from gymnasium_robotics import mamujoco_v1


def children() -> list[int]:
    """Processes of this one that run worlds and have not ended."""
    command = ["pgrep", "-P", str(os.getpid()), "-f", "cheetah_physics"]
    return [int(pid) for pid in subprocess.run(command, capture_output=True, text=True).stdout.split()]


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
    worlds = HalfCheetah(2, processes=2)
    play(worlds, some_actions(5, 2))
    worlds.reset()  # forgets what was before
    assert differences(worlds, steps, action_scale) == set()


@pytest.mark.parametrize("name", CHEETAH)
def test_comparison_notices_mistakes(name, monkeypatch):
    mistake, wrong = CHEETAH[name]
    mistake(monkeypatch)
    assert differences(HalfCheetah(1, processes=1), 20) == wrong


def test_starts_are_distributed_as_the_librarys():
    worlds, single = HalfCheetah(4000, processes=1), library_env().single_agent_env.unwrapped
    shift, velocities = worlds._positions - single.init_qpos, worlds._velocities - single.init_qvel
    limit = single._reset_noise_scale
    assert np.abs(shift).max() <= limit and np.allclose(np.abs(shift).mean(0), limit / 2, atol=0.003)
    assert np.allclose(velocities.mean(0), 0, atol=0.008) and np.allclose(
        velocities.std(0), limit, atol=0.005
    )


# ------------------------------------------------------------------------- however the worlds are shared out


def test_numbers_do_not_depend_on_processes_or_neighbours():
    actions = some_actions(60, 7)
    first = play(HalfCheetah(7, seed=2, processes=1), actions)
    for processes in (2, 3):
        again = play(HalfCheetah(7, seed=2, processes=processes), actions)
        assert all(map(torch.equal, first, again)), processes
    fewer = play(HalfCheetah(3, seed=2, processes=2), actions[:, :3])  # starts as the larger batch does
    assert all(torch.equal(a[:, :3], b) for a, b in zip(first, fewer, strict=True))


def test_wrong_actions_are_refused_and_move_nothing():
    worlds = HalfCheetah(3, processes=1)
    before, right = worlds.state(), torch.zeros(3, 2, 3)
    for actions in (right.flatten(1), right[:2], right.long(), right * np.nan):
        assert "actions must be" in one_line(lambda actions=actions: worlds.step(actions))
    assert torch.equal(worlds.state(), before)


def test_wrong_counts_are_refused():
    for counts in (dict(num_worlds=0), dict(num_worlds=2, processes=0)):
        assert "must be at least 1" in one_line(lambda counts=counts: HalfCheetah(**counts))


# ------------------------------------------------------------------------------------------- ends cleanly


@pytest.mark.parametrize("end", ["close twice", "del", "exception", "killed worker"])
def test_no_process_and_no_open_file_is_left(end):
    gc.collect()  # what earlier tests have left
    opened = len(os.listdir("/proc/self/fd"))
    worlds = HalfCheetah(3, processes=5)
    worlds.step(some_actions(1, 3)[0])
    assert len(children()) == 2, "none for worlds that are not there, and this process steps some"
    if end.startswith("close"):
        for _ in end.split():
            worlds.close()
        with pytest.raises(RuntimeError, match="closed"):
            worlds.step(some_actions(1, 3)[0])
    elif end == "exception":
        worlds._physics.step = lambda *_: 1 / 0
        with pytest.raises(ZeroDivisionError):
            worlds.step(some_actions(1, 3)[0])
    elif end == "killed worker":
        os.kill(children()[0], signal.SIGKILL)
        with pytest.raises(RuntimeError, match="worker process ended"):
            play(worlds, some_actions(3, 3))
    del worlds
    gc.collect()
    assert children() == [] and len(os.listdir("/proc/self/fd")) == opened


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL, None], ids=["interrupt", "kill", "exit"])
def test_workers_end_with_their_parent(end, tmp_path):
    """The child is interrupted as by Ctrl-C: the signal goes to its whole process group."""
    code = f"""
import signal, sys; sys.path.insert(0, {str(ROOT)!r})
import torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
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
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().split()[2] != "Z"
