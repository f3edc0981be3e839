"""Batched HalfCheetah 2x3 of multi-agent MuJoCo: two agents, the back and the front leg, with 3 joints each.

The numbers are those of gymnasium-robotics' `mamujoco_v1.parallel_env("HalfCheetah", "2x3", agent_obsk=0,
global_categories=())`, that is, of gymnasium's HalfCheetah-v5; the tests compare the two step by step. Worlds
are shared out over threads; which thread steps a world, and beside which others, changes nothing in it.

Array letters: W worlds, N = 2 agents.
"""

import importlib.util
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mujoco
import numpy as np
import torch

from envs.particles import check_actions
from utils.errors import InputError

ENV_ID = "HalfCheetah-2x3"
HORIZON = 1000  # steps per episode; a time limit, never a terminal state
FRAME_SKIP = 5  # simulator steps in a step of the environment, HalfCheetah-v5's
RESET_NOISE = 0.1
CONTROL_COST = 0.1
# Places in the state of an agent's observation: angle and velocity of foot, shin, thigh.
OBSERVED = ((4, 13, 3, 12, 2, 11), (7, 16, 6, 15, 5, 14))
# Gymnasium's own model, found without importing gymnasium, which takes long.
ASSETS = Path(importlib.util.find_spec("gymnasium").origin).parent / "envs" / "mujoco" / "assets"
# A world's row: the time, 9 positions, 9 velocities, the solver's 9 accelerations. It fixes the next step.
ROW = mujoco.mjtState.mjSTATE_FULLPHYSICS | mujoco.mjtState.mjSTATE_WARMSTART
POSITIONS, VELOCITIES = slice(1, 10), slice(10, 19)


class HalfCheetah:
    """num_worlds HalfCheetahs stepped together, with the interface of envs.particles.Worlds.

    seed: fixes every later reset. The first worlds of a larger batch start as a smaller batch does.
    """

    env_id, action_kind = ENV_ID, "continuous"
    num_learners = num_bodies = 2
    horizon, obs_dim, state_dim, action_dim = HORIZON, 6, 17, 3

    def __init__(self, num_worlds, device="cpu", seed=0):
        self.num_worlds, self.device = num_worlds, torch.device(device)
        threads = min(torch.get_num_threads(), num_worlds)  # what OMP_NUM_THREADS allows
        self._model = mujoco.MjModel.from_xml_path(str(ASSETS / "half_cheetah.xml"))
        self._simulators = [mujoco.MjData(self._model) for _ in range(threads)]  # take up each world in turn
        bounds = [num_worlds * i // threads for i in range(threads + 1)]
        self._parts = [range(*part) for part in itertools.pairwise(bounds)]
        self._pool = ThreadPoolExecutor(threads)
        self._rows = np.zeros((num_worlds, mujoco.mj_stateSize(self._model, ROW)))
        self._positions, self._velocities = self._rows[:, POSITIONS], self._rows[:, VELOCITIES]
        self._seconds = self._model.opt.timestep * FRAME_SKIP
        self._seed(seed)
        self.reset()

    def _seed(self, seed):
        # One each for positions and velocities: a start depends on its place, not on how many there are.
        self._generators = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2)]

    def reset(self, seed=None, copies=1):
        """Start every world anew, as Worlds.reset does; returns the agents' observations [W, N, 6]."""
        if seed is not None:
            self._seed(seed)
        shape = (self.num_worlds // copies, 9)
        shift = self._generators[0].uniform(-RESET_NOISE, RESET_NOISE, shape)
        velocities = RESET_NOISE * self._generators[1].standard_normal(shape)
        self._put(np.tile(self._model.qpos0 + shift, (copies, 1)), np.tile(velocities, (copies, 1)))
        return self._observe()

    def _put(self, positions, velocities):
        """Start the worlds at positions and velocities, [W, 9] each."""
        data = self._simulators[0]
        for row, position, velocity in zip(self._rows, positions, velocities, strict=True):
            mujoco.mj_resetData(self._model, data)
            data.qpos[:], data.qvel[:] = position, velocity
            mujoco.mj_forward(self._model, data)
            mujoco.mj_getState(self._model, data, row, ROW)

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
        """Move by torques `actions` [W, N, 3], which must be finite; returns rewards [W, N], the same for
        both agents."""
        check_actions(actions, (self.num_worlds, self.num_learners, self.action_dim), self.action_kind)
        if not actions.isfinite().all():
            raise InputError("actions must be finite")
        torques = actions.detach().cpu().flatten(1).double().numpy()
        before = self._positions[:, 0].copy()

        def step_part(data, worlds):
            for w in worlds:
                mujoco.mj_setState(self._model, data, self._rows[w], ROW)
                data.ctrl[:] = torques[w]
                mujoco.mj_step(self._model, data, nstep=FRAME_SKIP)  # without Python's lock: in parallel
                mujoco.mj_getState(self._model, data, self._rows[w], ROW)

        list(self._pool.map(step_part, self._simulators, self._parts))
        speed = (self._positions[:, 0] - before) / self._seconds
        rewards = speed - CONTROL_COST * np.square(torques).sum(1)
        rewards = torch.from_numpy(rewards.astype(np.float32)).to(self.device)
        return rewards.unsqueeze(1).expand(-1, self.num_learners)
