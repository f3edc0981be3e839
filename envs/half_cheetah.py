"""Batched HalfCheetah 2x3 of multi-agent MuJoCo: two agents, the back and the front leg, with 3 joints each.

The numbers are those of gymnasium-robotics' `mamujoco_v1.parallel_env("HalfCheetah", "2x3", agent_obsk=0,
global_categories=())`, that is, of gymnasium's HalfCheetah-v5; the tests compare the two step by step. Worlds
are shared out over processes; which process steps a world, and beside which others, changes nothing in it.

Array letters: W worlds, N = 2 agents.
"""

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

import numpy as np
import torch

from envs.cheetah_physics import FRAME_SKIP, NUM_TORQUES, POSITIONS, ROW, VELOCITIES, Physics
from utils.errors import InputError

PROGRAM = Path(__file__).with_name(
    "cheetah_physics.py"
)  # as a file: as a module, it would import torch with envs
ENV_ID = "HalfCheetah-2x3"
HORIZON = 1000  # steps per episode; a time limit, never a terminal state
RESET_NOISE = 0.1
CONTROL_COST = 0.1
# Places in the state of an agent's observation: angle and velocity of foot, shin, thigh.
OBSERVED = ((4, 13, 3, 12, 2, 11), (7, 16, 6, 15, 5, 14))


class HalfCheetah:
    """num_worlds HalfCheetahs stepped together, with the interface of envs.particles.Worlds.

    processes: how many step them, this one included; by default torch's threads, at most one per world.
    seed: fixes every later reset. The first worlds of a larger batch start as a smaller batch does.
    Raises InputError for counts below 1.
    """

    env_id, action_kind = ENV_ID, "continuous"
    num_learners = num_bodies = 2
    horizon, obs_dim, state_dim, action_dim = HORIZON, 6, 17, 3

    def __init__(self, num_worlds, device="cpu", seed=0, processes=None):
        processes = torch.get_num_threads() if processes is None else processes  # what OMP_NUM_THREADS allows
        if num_worlds < 1 or processes < 1:
            raise InputError(f"worlds and processes must be at least 1, not {num_worlds} and {processes}")
        self.num_worlds, self.device, self._workers = num_worlds, torch.device(device), []
        self._end_workers = weakref.finalize(self, end_workers, self._workers)  # also at exit
        with tempfile.TemporaryFile() as file:  # without a name: gone with the last process that has it open
            file.truncate(num_worlds * ROW * 8)
            self._physics = Physics(file.fileno(), num_worlds)
            processes = min(processes, num_worlds)
            bounds = [num_worlds * i // processes for i in range(processes + 1)]
            self._own, *others = itertools.pairwise(bounds)  # this process steps the first worlds itself
            self._workers += [start_worker(file.fileno(), num_worlds, *part) for part in others]
        rows = self._physics.rows
        self._positions, self._velocities = rows[:, POSITIONS], rows[:, VELOCITIES]
        self._torques = rows[:, -NUM_TORQUES:]
        self._seconds = self._physics.model.opt.timestep * FRAME_SKIP
        self._rest = self._physics.model.qpos0  # where an episode starts, but for noise
        self._seed(seed)
        self.reset()

    def _seed(self, seed):
        # One each for positions and velocities: a start depends on its place, not on how many there are.
        self._generators = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2)]

    def reset(self, seed=None, copies=1):
        """Start every world anew; returns the agents' observations [W, N, 6].

        seed: starts the random numbers anew. copies: W / copies different starts, the whole list repeated
        `copies` times, so that several teams can be compared from the same starts.
        """
        if seed is not None:
            self._seed(seed)
        shape = (self.num_worlds // copies, 9)
        shift = self._generators[0].uniform(-RESET_NOISE, RESET_NOISE, shape)
        velocities = RESET_NOISE * self._generators[1].standard_normal(shape)
        self._physics.reset(np.tile(self._rest + shift, (copies, 1)), np.tile(velocities, (copies, 1)))
        return self._observe()

    def state(self):
        """The simulator's state [W, 17]: 8 positions (all but how far it has run) and 9 velocities."""
        state = np.concatenate([self._positions[:, 1:], self._velocities], axis=1)
        return torch.from_numpy(state.astype(np.float32)).to(self.device)

    def observe(self, i):
        """Observation of agent i, [W, 6]."""
        return self._observe()[:, i]

    def _observe(self):
        return self.state()[:, OBSERVED]

    def step(self, actions):
        """Move by torques [W, N, 3] in [-1, 1]; returns observations [W, N, 6] and rewards [W, N]."""
        rewards = self.advance(actions)
        return self._observe(), rewards

    def advance(self, actions):
        """Move by torques `actions` [W, N, 3]; returns rewards [W, N], the same for both agents.

        Raises InputError for other shapes and what is not finite, RuntimeError where a worker has ended.
        """
        shape = (self.num_worlds, self.num_learners, self.action_dim)
        if tuple(actions.shape) != shape or not actions.is_floating_point():
            got = f"{actions.dtype} {tuple(actions.shape)}"
            raise InputError(f"actions must be floats of shape {shape}, got {got}")
        if not actions.isfinite().all():
            raise InputError("actions must be finite")
        if not self._end_workers.alive:
            raise RuntimeError("these HalfCheetah worlds are closed")
        self._torques[:] = actions.detach().cpu().flatten(1).numpy()
        before = self._positions[:, 0].copy()
        try:
            for worker in self._workers:
                os.write(worker.stdin.fileno(), b".")
            self._physics.step(*self._own)
            for worker in self._workers:
                if not os.read(worker.stdout.fileno(), 1):
                    raise BrokenPipeError
        except BaseException as error:  # an interrupt too: the workers may be in the middle of a step
            self.close()
            if isinstance(error, BrokenPipeError):
                raise RuntimeError(
                    "a HalfCheetah worker process ended unexpectedly; the worlds are closed"
                ) from None
            raise
        speed = (self._positions[:, 0] - before) / self._seconds
        rewards = speed - CONTROL_COST * np.square(self._torques).sum(1)
        rewards = torch.from_numpy(rewards.astype(np.float32)).to(self.device)
        return rewards.unsqueeze(1).expand(-1, self.num_learners)

    def close(self):
        """End the worker processes; the worlds cannot be stepped any more."""
        self._end_workers()


def start_worker(file: int, num_worlds: int, start: int, stop: int) -> subprocess.Popen:
    """A process that steps worlds start .. stop - 1 of the shared file; it ends when its standard input does.

    It is a program of its own rather than a fork or multiprocessing's child: those copy torch's locked
    threads, or import the caller's script, torch and all. In its own session no Ctrl-C reaches it.
    """
    command = [sys.executable, PROGRAM, *map(str, (file, num_worlds, start, stop))]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    return subprocess.Popen(command, **pipes, pass_fds=[file], start_new_session=True)


def end_workers(workers: list[subprocess.Popen]) -> None:
    """Close the workers' pipes, which ends them, and wait until they have."""
    for worker in workers:
        worker.stdin.close()
    for worker in workers:
        worker.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(timeout=2)
        worker.kill()  # one that hangs; nothing happens to one that has ended
        worker.wait()
