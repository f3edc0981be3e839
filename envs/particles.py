"""Batched particle worlds: simple_spread, simple_tag and simple_world in OMAR's variant, as torch tensors.

Thousands of worlds step together on any device. The dynamics, rewards and observations are those of the
offline multi-agent literature (OMAR, Pan et al. 2022), which differ from the ones `mpe2` ships;
`envs/pettingzoo.py` holds the same worlds built on `mpe2`, and the tests compare the two step by step.

Array letters: W worlds, N learning agents, P acting bodies (learners first, then the prey if there is one),
L landmarks, O observation numbers of a learner.
"""

from dataclasses import dataclass

import torch

from utils.errors import InputError, check_choice

NUM_ACTIONS = 5  # discrete actions: stay, -x, +x, -y, +y
HORIZON = 25  # steps per episode; a time limit, never a terminal state
DT, DAMPING = 0.1, 0.25
CONTACT_FORCE, CONTACT_MARGIN = 100.0, 1e-3
SPREAD_MAX_REWARD, SPREAD_TOUCH_PENALTY = 10.0, 5.0


@dataclass(frozen=True)
class Task:
    """Constants of a task. Bodies are (size, gain on the action, speed limit); landmarks (size, collides)."""

    learner: tuple[float, float, float]
    prey: tuple[float, float, float] | None
    landmarks: tuple[tuple[float, bool], ...]
    landmark_range: float  # landmarks start uniformly in [-range, range]^2
    catch_reward: float = 0.0  # a predator team's reward for each predator that touches the prey
    bound_weight: float = 0.0  # weight of the prey's penalty for leaving the arena


INF = float("inf")
OBSTACLE, FOOD, FOREST = (0.2, True), (0.03, False), (0.3, False)
TASKS = {
    "simple_spread": Task((0.15, 5.0, INF), None, ((0.05, False),) * 3, 1.0),
    "simple_tag": Task((0.075, 9.0, 1.0), (0.05, 16.0, 1.3), (OBSTACLE,) * 2, 0.9, 10.0, 1.0),
    "simple_world": Task(
        (0.075, 9.0, 1.0), (0.045, 16.0, 1.3), (OBSTACLE, FOOD, FOOD, FOREST, FOREST), 0.9, 5.0, 2.0
    ),
}
FOODS, FORESTS = slice(1, 3), slice(3, 5)  # places in simple_world's landmarks
ENV_IDS, ACTION_KINDS = tuple(TASKS), ("discrete", "continuous")
WITH_PREY = tuple(env_id for env_id, task in TASKS.items() if task.prey)


def arena_penalty(distance: torch.Tensor) -> torch.Tensor:
    """The prey's penalty b(z) for a coordinate of absolute value z: free inside 0.9, steep outside 1."""
    outside = torch.exp(2 * distance - 2).clamp(max=10)
    return torch.where(distance < 0.9, 0.0, torch.where(distance < 1, 10 * (distance - 0.9), outside))


def others_of(count: int) -> torch.Tensor:
    """For each of `count` bodies the other ones, in order: [count, count - 1]."""
    return torch.tensor([[j for j in range(count) if j != i] for i in range(count)])


def check_actions(actions: torch.Tensor, shape: tuple, action_kind: str) -> None:
    """Raise InputError unless actions are of this shape and kind; others might broadcast in silence."""
    if tuple(actions.shape) != shape or actions.is_floating_point() != (action_kind == "continuous"):
        got = f"{actions.dtype} {tuple(actions.shape)}"
        raise InputError(f"{action_kind} actions must have shape {shape}, got {got}")


class Worlds:
    """num_worlds particle worlds stepped together.

    action_kind: "discrete", integers 0..4 (stay, -x, +x, -y, +y), or "continuous", forces in [-1, 1]^2.
    num_agents: the learning agents, 3 to 10 in simple_spread, 3 elsewhere.
    prey: maps the prey's observation [W, O_prey] to its action, [W] or [W, 2]; tag and world need it to step.
    seed: fixes every later reset. Raises InputError for unknown tasks, kinds or counts.

    The state may be read and assigned: position [W, P, 2], velocity [W, P, 2], landmarks [W, L, 2].
    """

    def __init__(
        self,
        env_id,
        num_worlds,
        action_kind="discrete",
        num_agents=3,
        prey=None,
        device="cpu",
        dtype=torch.float32,
        seed=0,
    ):
        check_choice("env-id", env_id, ENV_IDS)
        check_choice("action kind", action_kind, ACTION_KINDS)
        most = 10 if env_id == "simple_spread" else 3
        if not 3 <= num_agents <= most:
            raise InputError(f"{env_id} has {'3 to 10' if most == 10 else '3'} agents, not {num_agents}")
        self.env_id, self.action_kind, self.prey = env_id, action_kind, prey
        self.num_worlds, self.num_learners, self.horizon = num_worlds, num_agents, HORIZON
        self.action_dim, self.action_shape = (NUM_ACTIONS, ()) if action_kind == "discrete" else (2, (2,))
        self.device, self.dtype = torch.device(device), dtype
        self.generator = torch.Generator(self.device).manual_seed(seed)

        task = self.task = TASKS[env_id]
        landmarks = task.landmarks if task.prey else task.landmarks[:1] * num_agents
        bodies = (task.learner,) * num_agents + ((task.prey,) if task.prey else ())
        self.num_bodies, self.num_landmarks = len(bodies), len(landmarks)
        self.size, self.gain, self.max_speed = self._tensor(bodies).unbind(-1)  # [P] each
        self.landmark_size = self._tensor([size for size, _ in landmarks])  # [L]
        self.agent_range = 2.0 if env_id == "simple_spread" and num_agents > 3 else 1.0
        self.landmark_range = self.agent_range if env_id == "simple_spread" else task.landmark_range
        self.force_of_action = self._tensor([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])

        # Bodies push each other and are pushed by landmarks that collide; these come last among the `solids`.
        collides = torch.tensor([collides for _, collides in landmarks], device=self.device)
        self.solid_landmarks = collides.nonzero().squeeze(-1)
        solid_size = torch.cat([self.size, self.landmark_size[self.solid_landmarks]])
        self.contact_distance = self.size[:, None] + solid_size  # [P, P + solid landmarks]
        self.is_self = torch.eye(*self.contact_distance.shape, device=self.device, dtype=dtype)
        self.others = others_of(self.num_bodies).to(self.device)
        self.reset()
        self.obs_dim = self.observe(0).shape[-1]

    def _tensor(self, values):
        return torch.tensor(values, device=self.device, dtype=self.dtype)

    def _uniform(self, count, half_width, copies):
        shape = (self.num_worlds // copies, count, 2)
        unit = torch.rand(shape, generator=self.generator, device=self.device, dtype=self.dtype)
        return ((2 * unit - 1) * half_width).repeat(copies, 1, 1)

    def reset(self, seed=None, copies=1):
        """Start every world anew; returns the learners' observations [W, N, O].

        seed: starts the random numbers anew. copies: W / copies different starts, the whole list repeated
        `copies` times, so that several teams can be compared from the same starts.
        """
        if seed is not None:
            self.generator.manual_seed(seed)
        self.position = self._uniform(self.num_bodies, self.agent_range, copies)
        self.landmarks = self._uniform(self.num_landmarks, self.landmark_range, copies)
        self.velocity = torch.zeros_like(self.position)
        return self._observe(slice(0, self.num_learners))

    def observe(self, i):
        """Observation of body i, [W, O_i]; i = P - 1 is the prey in simple_tag and simple_world."""
        return self._observe(slice(i, i + 1)).squeeze(1)

    def _observe(self, which):
        """Observations [W, n, O] of n bodies of one kind (learners, or the prey), in the published order."""
        position = self.position[:, which]  # [W, n, 2]
        own = position.unsqueeze(2)
        landmarks = self.landmarks.unsqueeze(1) - own  # [W, n, L, 2]
        others = self.position[:, self.others[which]] - own  # [W, n, P - 1, 2]
        parts = [self.velocity[:, which], position, landmarks.flatten(2), others.flatten(2)]
        if self.task.prey is None:
            parts.append(torch.zeros_like(others.flatten(2)))  # the silent communication channel, 2 per other
        elif which.start < self.num_learners:
            parts.append(self.velocity[:, -1:].expand_as(position))  # predators see the prey's velocity
        if self.env_id == "simple_world":
            reach = self.size[which, None] + self.landmark_size[FORESTS]  # [n, forests]
            inside = landmarks[:, :, FORESTS].norm(dim=-1) < reach
            parts.append(2 * inside.to(self.dtype) - 1)
        return torch.cat(parts, dim=-1)

    def step(self, actions):
        """Move learners by `actions` ([W, N] or [W, N, 2]) and the prey by its policy.

        Returns the learners' next observations [W, N, O] and rewards [W, N].
        """
        check_actions(actions, (self.num_worlds, self.num_learners, *self.action_shape), self.action_kind)
        if self.task.prey is not None:
            if self.prey is None:
                raise InputError(f"{self.env_id} needs a prey policy to step")
            actions = torch.cat([actions, self.prey(self.observe(self.num_bodies - 1)).unsqueeze(1)], dim=1)
        rewards = self.advance(actions)
        return self._observe(slice(0, self.num_learners)), rewards[:, : self.num_learners]

    def advance(self, actions):
        """Move all bodies by `actions`, [W, P] integers or [W, P, 2] forces; returns rewards [W, P]."""
        check_actions(actions, (self.num_worlds, self.num_bodies, *self.action_shape), self.action_kind)
        push = self.force_of_action[actions] if self.action_kind == "discrete" else actions.to(self.dtype)
        force = push * self.gain[:, None] + self._contact_forces()
        velocity = self.velocity * (1 - DAMPING) + force * DT
        speed = velocity.norm(dim=-1, keepdim=True)
        limit = self.max_speed[:, None]
        self.velocity = torch.where(speed > limit, velocity / speed * limit, velocity)
        self.position = self.position + self.velocity * DT
        return self._rewards()

    def _contact_forces(self):
        """Soft contacts of every body with every solid, [W, P, 2]; zero to rounding when far apart."""
        solids = torch.cat([self.position, self.landmarks[:, self.solid_landmarks]], dim=1)
        delta = self.position.unsqueeze(2) - solids.unsqueeze(1)  # [W, P, solids, 2]
        # It is 1 to oneself, where delta is 0: no force, no division by 0.
        distance = delta.norm(dim=-1) + self.is_self
        overlap = (self.contact_distance - distance) / CONTACT_MARGIN
        penetration = torch.logaddexp(overlap, torch.zeros_like(overlap)) * CONTACT_MARGIN
        return (delta * (CONTACT_FORCE * penetration * (1 - self.is_self) / distance).unsqueeze(-1)).sum(2)

    def _rewards(self):
        """Rewards [W, P] of the state just reached."""
        if self.task.prey is None:
            apart = (self.landmarks.unsqueeze(2) - self.position.unsqueeze(1)).norm(dim=-1)  # [W, L, P]
            covered = (1 / apart.amin(2)).clamp(max=SPREAD_MAX_REWARD).sum(1, keepdim=True)  # [W, 1]
            between = (self.position.unsqueeze(2) - self.position.unsqueeze(1)).norm(dim=-1)  # [W, P, P]
            touching = (between < self.contact_distance[:, : self.num_bodies]).sum(2) - 1  # not oneself
            return covered - SPREAD_TOUCH_PENALTY * touching
        prey = self.position[:, -1:]
        apart = (self.position[:, :-1] - prey).norm(dim=-1)  # [W, N]
        hits = (apart < self.contact_distance[:-1, self.num_bodies - 1]).sum(1)
        chase = 0.1 * apart.sum(1)
        predator = self.task.catch_reward * hits - chase
        bound = arena_penalty(prey.squeeze(1).abs()).sum(-1)
        caught = chase - self.task.catch_reward * hits - self.task.bound_weight * bound
        if self.env_id == "simple_world":
            food = (self.landmarks[:, FOODS] - prey).norm(dim=-1)  # [W, foods]
            eaten = (food < self.size[-1] + self.landmark_size[FOODS]).sum(1)
            caught = caught + 2 * eaten + 0.05 * food.amin(1)
        return torch.cat([predator.unsqueeze(1).expand(-1, self.num_learners), caught.unsqueeze(1)], dim=1)
