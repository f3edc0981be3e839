"""The paper's three particle tasks, one world at a time, as PettingZoo `ParallelEnv`s built on `mpe2`.

The tasks are OMAR's variant (Pan et al. 2022) of OpenAI's particle worlds. Each class below overrides exactly
what differs in plain `mpe2`, so this file is slow and plain. It is the reference that `envs/particles.py` is
tested against (the two share no code) and it draws the pictures.

What OMAR's variant changes, and where:
- `Physics`: positions move by the *new* velocity, and an agent's force is scaled twice by its `accel` (gain
  5 in simple_spread, 9 for predators, 16 for the prey).
- `Spread`: reward by inverse distance, -5 per touch; a wider start for more than 3 agents.
- `Tag`: both sides are also rewarded by the distances between predators and prey.
- `SimpleWorld`: `mpe2`'s simple_world_comm with 3 predators and 1 prey who all see through the forests and
  never talk, rewarded like simple_tag; the prey earns 0.05 per unit of distance to the nearest food.

Lengths, velocities and times are in the engine's units (one step is 0.1). P bodies (agents), L landmarks.
"""

from functools import partial
from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from mpe2._mpe_utils.core import World
from mpe2.simple_spread import simple_spread
from mpe2.simple_tag import simple_tag
from mpe2.simple_world_comm import simple_world_comm
from pettingzoo import ParallelEnv
from PIL import Image, ImageDraw, ImageFont

from utils.errors import InputError, check_choice

DIRECTIONS = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], dtype=np.float64)  # of discrete actions
FRAME_SIZE = 400  # pixels per side of a frame
SUPERSAMPLING = 3  # frames are drawn this much larger and shrunk, for smooth edges
PAPER, ARENA, OUTLINE = (255, 255, 255), (225, 225, 225), (45, 45, 45)
COLOURS = {  # by mpe2's names of entities; Okabe and Ito's palette, told apart by colour-blind readers too
    "agent": (86, 180, 233),  # the prey, too
    "adversary": (230, 120, 40),
    "landmark": (120, 120, 120),
    "food": (240, 228, 66),
    "forest": (178, 223, 197),
}


class Physics(World):
    """`mpe2`'s engine with OMAR's two differences."""

    def apply_action_force(self, p_force):
        """Scale each action by the agent's `accel` once more than `mpe2` does (`action.u` is scaled once)."""
        p_force = super().apply_action_force(p_force)
        for i, agent in enumerate(self.agents):
            p_force[i] = p_force[i] * (1.0 if agent.accel is None else agent.accel)
        return p_force

    def integrate_state(self, p_force):
        """Let the engine damp, push and cap the velocities, then move by them (`mpe2`: by the old ones)."""
        starts = [entity.state.p_pos.copy() for entity in self.entities]
        super().integrate_state(p_force)
        for entity, start in zip(self.entities, starts, strict=True):
            if entity.movable:
                entity.state.p_pos = start + entity.state.p_vel * self.dt


def with_physics(world):
    """Return `world` (any of mpe2's world classes, which only add attributes) under OMAR's physics."""
    physics = Physics()
    vars(physics).update(vars(world))
    return physics


def distance(a, b) -> float:
    return float(np.sqrt(np.sum(np.square(a.state.p_pos - b.state.p_pos))))


class Spread(simple_spread.Scenario):
    """N agents cover N landmarks without touching each other."""

    def make_world(self, num_agents):
        self.start_range = 1.0 if num_agents == 3 else 2.0  # crowds get twice the room
        return with_physics(super().make_world(num_agents))

    def reset_world(self, world, np_random):
        super().reset_world(world, np_random)
        for entity in world.entities:  # mpe2 starts everything in [-1, 1]^2
            entity.state.p_pos = self.start_range * entity.state.p_pos

    def reward(self, agent, world):
        touches = -super().reward(agent, world)  # mpe2: -1 for each other agent touched
        nearest = [min(distance(a, landmark) for a in world.agents) for landmark in world.landmarks]
        # 1 / max(d, 0.1) is min(1 / d, 10), defined at d = 0 as well
        return sum(1.0 / max(d, 0.1) for d in nearest) - 5.0 * touches


class Tag(simple_tag.Scenario):
    """3 predators hunt 1 prey around 2 obstacles."""

    start_range = 1.0

    def make_world(self, num_predators):
        return with_physics(super().make_world(num_good=1, num_adversaries=num_predators, num_obstacles=2))

    def reward(self, agent, world):
        (prey,) = self.good_agents(world)
        shaping = 0.1 * sum(distance(predator, prey) for predator in self.adversaries(world))
        # mpe2: hits alone for the predators; hits and the bounds penalty for the prey
        return super().reward(agent, world) + (-shaping if agent.adversary else shaping)


class SimpleWorld(simple_world_comm.Scenario):
    """3 predators hunt 1 prey among 1 obstacle, 2 food and 2 forests (the order of the landmarks)."""

    start_range = 1.0

    def make_world(self, num_predators):
        counts = {"num_landmarks": 1, "num_food": 2, "num_forests": 2}
        world = with_physics(super().make_world(num_good_agents=1, num_adversaries=num_predators, **counts))
        world.dim_c = 0  # nobody talks: the communication at the end of mpe2's observations becomes empty
        for i, agent in enumerate(world.agents):
            agent.name = f"adversary_{i}" if agent.adversary else "agent_0"
            agent.leader = True  # mpe2's leader is the agent that sees through forests
            agent.silent = True
        return world

    def reward(self, agent, world):
        (prey,) = self.good_agents(world)
        reward = super().reward(agent, world)
        shaping = 0.1 * sum(distance(predator, prey) for predator in self.adversaries(world))
        if agent.adversary:  # mpe2 counts the agent's own distance only: take it out and put the sum in
            return reward + 0.1 * distance(agent, prey) - shaping
        # mpe2 charges 0.05 times the distance to the nearest food, OMAR pays it: the difference is twice that
        return reward + shaping + 2 * 0.05 * min(distance(food, prey) for food in world.food)


SCENARIOS = {"simple_spread": Spread, "simple_tag": Tag, "simple_world": SimpleWorld}


class ParticleEnv(ParallelEnv):
    """One particle world behind PettingZoo's parallel interface.

    env_id: "simple_spread", "simple_tag" or "simple_world".
    action_kind: "discrete" (`Discrete(5)`: no-op, -x, +x, -y, +y) or "continuous" (`Box(-1, 1, (2,))`).
    num_agents: learning agents, 3 to 10 in simple_spread; 3 in the others, where the prey, an ordinary agent
        of the environment, comes last.
    render_mode: None or "rgb_array"; max_cycles: steps until truncation.
    Raises InputError, a ValueError, for anything else.
    """

    metadata: ClassVar = {"name": "particle_worlds", "render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, env_id, action_kind="discrete", num_agents=3, render_mode=None, max_cycles=25):
        check_choice("environment", env_id, SCENARIOS)
        check_choice("action kind", action_kind, ["discrete", "continuous"])
        most = 10 if env_id == "simple_spread" else 3
        if not 3 <= num_agents <= most:
            raise InputError(f"{env_id} has {'3 to 10' if most == 10 else '3'} agents, not {num_agents}")
        if render_mode is not None:
            check_choice("render mode", render_mode, self.metadata["render_modes"])
        self.action_kind, self.render_mode, self.max_cycles = action_kind, render_mode, max_cycles
        self.scenario = SCENARIOS[env_id]()
        self.world = self.scenario.make_world(num_agents)
        self._bodies = {agent.name: agent for agent in self.world.agents}
        self.possible_agents, self.agents = list(self._bodies), []
        self._generator, _ = seeding.np_random(None)
        self.scenario.reset_world(self.world, self._generator)

        # one space object per agent for good: seeding a space must hold from then on
        discrete, box = gymnasium.spaces.Discrete, gymnasium.spaces.Box
        space = partial(discrete, 5) if action_kind == "discrete" else partial(box, -1, 1, (2,), np.float32)
        self._action_spaces = {name: space() for name in self._bodies}
        shapes = {name: self.observe(name).shape for name in self._bodies}
        self._observation_spaces = {k: box(-np.inf, np.inf, shape, np.float32) for k, shape in shapes.items()}

    def observation_space(self, agent):
        return self._observation_spaces[agent]

    def action_space(self, agent):
        return self._action_spaces[agent]

    def reset(self, seed=None, options=None):
        """Start an episode; a seed fixes it and those after it. Returns observations and infos by name."""
        if seed is not None:
            self._generator, _ = seeding.np_random(seed)
        self.scenario.reset_world(self.world, self._generator)
        self.steps, self.agents = 0, self.possible_agents[:]
        return {name: self.observe(name) for name in self.agents}, {name: {} for name in self.agents}

    def step(self, actions):
        """Move every agent by `actions`, a dict by name. Returns observations, rewards, terminations,
        truncations and infos, by name."""
        if not self.agents:
            raise InputError("no episode is running: call reset() before step()")
        for name in self.agents:
            if name not in actions:
                raise InputError(f"no action for {name}")
            agent = self._bodies[name]
            agent.action.u = self._force(actions[name]) * (5.0 if agent.accel is None else agent.accel)
        self.world.step()
        self.steps += 1
        names, over = self.agents, self.steps >= self.max_cycles
        self.agents = [] if over else names
        rewards = {name: float(self.scenario.reward(self._bodies[name], self.world)) for name in names}
        ended, cut = dict.fromkeys(names, False), dict.fromkeys(names, over)  # only by the time limit
        return {name: self.observe(name) for name in names}, rewards, ended, cut, {name: {} for name in names}

    def _force(self, action) -> np.ndarray:
        """The force [2] of one agent's action, each component in [-1, 1]."""
        if self.action_kind == "discrete":
            if np.ndim(action) != 0 or int(action) != action or not 0 <= action < len(DIRECTIONS):
                raise InputError(f"a discrete action is one whole number from 0 to 4, not {action}")
            return DIRECTIONS[int(action)].copy()
        force = np.array(action, dtype=np.float64)
        if force.shape != (2,) or not (np.abs(force) <= 1).all():
            raise InputError(f"a continuous action is 2 numbers in [-1, 1], not {action}")
        return force

    def observe(self, agent, dtype=np.float32) -> np.ndarray:
        """Observation of the agent of that name; ask for float64, the engine's type, for exact comparison."""
        return self.scenario.observation(self._bodies[agent], self.world).astype(dtype)

    def get_state(self):
        """Return copies, float64, of positions [P, 2], velocities [P, 2] and landmarks [L, 2]."""
        bodies, landmarks = self.world.agents, self.world.landmarks
        positions, places = (np.stack([x.state.p_pos for x in group]) for group in (bodies, landmarks))
        return positions, np.stack([body.state.p_vel for body in bodies]), places

    def set_state(self, positions, velocities, landmarks):
        """Put the bodies and landmarks where `get_state` (of any environment of this task) said they are."""
        for agent, position, velocity in zip(self.world.agents, positions, velocities, strict=True):
            agent.state.p_pos, agent.state.p_vel = np.array(position, float), np.array(velocity, float)
        for landmark, position in zip(self.world.landmarks, landmarks, strict=True):
            landmark.state.p_pos = np.array(position, float)

    def render(self):
        """Draw the world: an RGB picture [FRAME_SIZE, FRAME_SIZE, 3], uint8 (None without a render mode), of
        numbered agents and the square where they start. The view zooms out when a body leaves it."""
        if self.render_mode is None:
            return None
        arena, entities = self.scenario.start_range, self.world.entities
        reach = max(np.abs(entity.state.p_pos).max() + entity.size for entity in entities)
        half = 1.02 * max(1.15 * arena, reach)  # half the side of what is seen
        pixels = FRAME_SIZE * SUPERSAMPLING
        picture = Image.new("RGB", (pixels, pixels), PAPER)
        draw, scale = ImageDraw.Draw(picture), pixels / (2 * half)

        def box(x, y, radius):  # left, top, right, bottom in pixels, whose y axis points down
            left, top, size = half + x - radius, half - y - radius, 2 * radius
            return [scale * left, scale * top, scale * (left + size), scale * (top + size)]

        draw.rectangle(box(0, 0, arena), outline=ARENA, width=SUPERSAMPLING)
        for entity in sorted(entities, key=lambda entity: -entity.size):  # small bodies on top of big ones
            colour = COLOURS[entity.name.replace("_", " ").split()[0]]
            place = box(*entity.state.p_pos, entity.size)
            draw.ellipse(place, fill=colour, outline=OUTLINE, width=SUPERSAMPLING)
            if entity in self.world.agents:
                number = str(self.world.agents.index(entity))
                font = ImageFont.load_default(1.4 * entity.size * scale)
                draw.text(np.add(place[:2], place[2:]) / 2, number, OUTLINE, font, anchor="mm")
        return np.array(picture.resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.LANCZOS))


parallel_env = ParticleEnv  # PettingZoo's name for what makes an environment
