"""The physics of HalfCheetah worlds in MuJoCo. It needs no torch, so that worker processes start quickly.

python envs/cheetah_physics.py FD WORLDS START STOP     # a worker, started by envs.half_cheetah alone
"""

import importlib.util
import mmap
import os
import sys
from pathlib import Path

import mujoco
import numpy as np

FRAME_SKIP = 5  # simulator steps in a step of the environment, HalfCheetah-v5's
POSITIONS, VELOCITIES = slice(1, 10), slice(10, 19)  # places in a world's row; the time is the first
NUM_TORQUES = 6
ROW = 28 + NUM_TORQUES  # time, 9 positions, 9 velocities, the solver's 9 accelerations; then the torques


class Physics:
    """Worlds as rows [W, ROW] of float64 in memory that processes share; a row determines the next step."""

    def __init__(self, file: int, num_worlds: int):
        """file: descriptor of a file of num_worlds * ROW * 8 bytes."""
        self.rows = np.frombuffer(mmap.mmap(file, num_worlds * ROW * 8)).reshape(num_worlds, ROW)
        # gymnasium's own model, found without importing gymnasium, which takes long
        package = Path(importlib.util.find_spec("gymnasium").origin).parent
        self.model = mujoco.MjModel.from_xml_path(
            str(package / "envs" / "mujoco" / "assets" / "half_cheetah.xml")
        )
        self.data = mujoco.MjData(self.model)  # one simulator, which takes up each world in turn
        self.spec = mujoco.mjtState.mjSTATE_FULLPHYSICS | mujoco.mjtState.mjSTATE_WARMSTART

    def reset(self, positions: np.ndarray, velocities: np.ndarray) -> None:
        """Start every world anew at positions and velocities, [W, 9] each."""
        for row, position, velocity in zip(self.rows, positions, velocities, strict=True):
            mujoco.mj_resetData(self.model, self.data)
            self.data.qpos[:], self.data.qvel[:] = position, velocity
            mujoco.mj_forward(self.model, self.data)
            mujoco.mj_getState(self.model, self.data, row[:-NUM_TORQUES], self.spec)

    def step(self, start: int, stop: int) -> None:
        """One step of the environment, by the torques in their rows, in worlds start .. stop - 1."""
        for row in self.rows[start:stop]:
            state = row[:-NUM_TORQUES]
            mujoco.mj_setState(self.model, self.data, state, self.spec)
            self.data.ctrl[:] = row[-NUM_TORQUES:]
            mujoco.mj_step(self.model, self.data, nstep=FRAME_SKIP)
            mujoco.mj_getState(self.model, self.data, state, self.spec)


def main() -> None:
    """Step the worlds start .. stop - 1 for each byte that comes in, answer with one; end with the parent."""
    file, num_worlds, start, stop = map(int, sys.argv[1:])
    physics = Physics(file, num_worlds)
    while os.read(0, 1):
        physics.step(start, stop)
        try:
            os.write(1, b".")
        except BrokenPipeError:  # the parent was interrupted in the middle of this step
            return


if __name__ == "__main__":
    main()
