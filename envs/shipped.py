"""The shipped networks, read from `envs/policies/` and played: the prey, and the policies behind the data.

Each learner has its own actor on its own observation, a softmax for discrete actions (`Softmax`) and a
Gaussian for forces and torques (`Gaussian`); `data/behaviour.py` trains them. The prey acts greedily, so that
it is a deterministic part of its world.

Array letters: N agents of a team, W worlds, T steps, O observation numbers, H hidden units, A discrete
actions or numbers of an action, D numbers of the simulator's state."""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from envs.particles import ENV_IDS, WITH_PREY
from utils.errors import InputError
from utils.files import reading

POLICY_DIR = Path(__file__).parent / "policies"
CONTINUOUS_ENV_IDS = (*ENV_IDS, "HalfCheetah-2x3")


def init_mlp(count: int, sizes: tuple[int, ...], generator: torch.Generator) -> list[torch.Tensor]:
    """`count` networks as nn.Linear initialises them: weights [count, in, out], biases [count, 1, out]."""
    params = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        for shape in ((count, fan_in, fan_out), (count, 1, fan_out)):
            uniform = torch.rand(shape, generator=generator, device=generator.device)
            params.append((2 * uniform - 1) / fan_in**0.5)
    return params


def mlp(params: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Stacked networks with ReLU hidden layers: x [count, rows, in] -> [count, rows, out]."""
    for layer in range(0, len(params), 2):
        x = torch.baddbmm(params[layer + 1], x if layer == 0 else x.relu(), params[layer])
    return x


class Softmax:
    """Discrete policies. An actor is the six tensors of its networks, whose outputs are the logits."""

    @staticmethod
    def sample(actor, obs, generator) -> torch.Tensor:
        """Actions [N, W] drawn by stacked actors on obs [N, W, O]."""
        logits = mlp(actor, obs)
        uniform = torch.rand(logits.shape, generator=generator, device=logits.device).clamp_(1e-20, 1 - 1e-7)
        return (logits - (-uniform.log()).log()).argmax(-1)  # the Gumbel trick

    @staticmethod
    def evaluate(actor, obs, actions) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [N, W] of actions on obs [N, W, O], and the entropies [N, W]."""
        log_pi = mlp(actor, obs).log_softmax(-1)  # [N, W, A]
        return log_pi.gather(-1, actions.unsqueeze(-1)).squeeze(-1), -(log_pi.exp() * log_pi).sum(-1)

    @staticmethod
    def greedy(actor, obs) -> torch.Tensor:
        """The most likely actions [N, W] on obs [N, W, O]."""
        return mlp(actor, obs).argmax(-1)

    @classmethod
    def act(cls, actor, obs, generator) -> torch.Tensor:
        """Sampled actions [W, N], as the world takes them, on its observations [W, N, O]."""
        return cls.sample(actor, obs.transpose(0, 1), generator).transpose(0, 1)

    @staticmethod
    def uniform(worlds, generator) -> torch.Tensor:
        """Uniform actions [W, N]."""
        shape = (worlds.num_worlds, worlds.num_learners)
        return torch.randint(worlds.action_dim, shape, generator=generator, device=worlds.device)


class Gaussian:
    """Continuous policies, with the functions of Softmax; actions have another axis, A. An actor is the six
    tensors of its networks, the tanh of whose outputs is the mean, and log_std [N, 1, A], the same in every
    state.

    PPO learns on the samples as drawn; the world gets them, and the datasets log them, clipped to [-1, 1].
    The entropy bonus also keeps the outputs small: a saturated tanh has no gradient and would not come back.
    """

    @classmethod
    def sample(cls, actor, obs, generator) -> torch.Tensor:
        mean = cls.greedy(actor, obs)
        return mean + actor[6].exp() * torch.randn(mean.shape, generator=generator, device=mean.device)

    @staticmethod
    def evaluate(actor, obs, actions) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, log_std = mlp(actor[:6], obs), actor[6]
        squares = ((actions - outputs.tanh()) / log_std.exp()) ** 2
        log_prob = -0.5 * squares - log_std - 0.5 * math.log(2 * math.pi)
        entropy = log_std + 0.5 * math.log(2 * math.pi * math.e) - outputs**2
        return log_prob.sum(-1), entropy.sum(-1)

    @staticmethod
    def greedy(actor, obs) -> torch.Tensor:
        return mlp(actor[:6], obs).tanh()

    @classmethod
    def act(cls, actor, obs, generator) -> torch.Tensor:
        return cls.sample(actor, obs.transpose(0, 1), generator).transpose(0, 1).clamp(-1, 1)

    @staticmethod
    def uniform(worlds, generator) -> torch.Tensor:
        shape = (worlds.num_worlds, worlds.num_learners, worlds.action_dim)
        return torch.rand(shape, generator=generator, device=worlds.device) * 2 - 1


POLICY = {"discrete": Softmax, "continuous": Gaussian}


def greedy(params: list[torch.Tensor], action_kind: str = "discrete"):
    """A deterministic policy of one agent, as Worlds(prey=...) takes it: obs [W, O] -> actions."""
    return lambda obs: POLICY[action_kind].greedy(params, obs.unsqueeze(0))[0]


@torch.no_grad()
def rollout(worlds, actor, generator) -> dict[str, torch.Tensor]:
    """One episode in every world, by stacked actors `actor`, by uniform actions where it is None, or by a
    function of observations [W, N, O] and the generator.

    Returns observations [W, T + 1, N, O], actions [W, T, N] (int64) or [W, T, N, A] (in [-1, 1]), rewards
    [W, T, N] and, where the worlds have one (HalfCheetah), the simulator's states [W, T + 1, D].
    """
    policy = POLICY[worlds.action_kind]
    log = dict(observations=[worlds.reset()], actions=[], rewards=[])
    if hasattr(worlds, "state"):
        log["states"] = [worlds.state()]
    for _ in range(worlds.horizon):
        obs = log["observations"][-1]
        if actor is None:
            actions = policy.uniform(worlds, generator)
        else:
            actions = actor(obs, generator) if callable(actor) else policy.act(actor, obs, generator)
        obs, rewards = worlds.step(actions)
        for name, x in (("observations", obs), ("actions", actions), ("rewards", rewards)):
            log[name].append(x)
        if "states" in log:
            log["states"].append(worlds.state())
    return {name: torch.stack(steps, dim=1) for name, steps in log.items()}


# ----------------------------------------------------------------------------------------- policy files


@dataclass(frozen=True)
class Policies:
    """A policy file: `iterates` are stacked actors in the order of training, the expert last; prey is None
    where there is none.

    facts["weights"] holds how often each of them but the expert plays in medium-replay and medium data,
    facts["kept_iterations"] says which of training they are."""

    iterates: list[list[torch.Tensor]]
    prey: list[torch.Tensor] | None
    facts: dict


def policy_file(env_id: str, folder: Path = POLICY_DIR, action_kind: str = "discrete") -> Path:
    """Where the policies of a task are. Raises InputError, with the command that makes them, where not."""
    path = Path(folder) / f"{env_id}-{action_kind}.npz"
    if not path.is_file():
        command = f"python -m data.behaviour --env-id {env_id} --action-kind {action_kind}"
        command += f" --out {folder}" * (Path(folder) != POLICY_DIR)
        raise InputError(f"no policy file {path}; make it with: {command}")
    return path


def load_policies(
    env_id: str, device="cpu", folder: Path = POLICY_DIR, action_kind: str = "discrete"
) -> Policies:
    """The policies of a task, by default the shipped ones. Raises InputError where there are none."""
    path = policy_file(env_id, folder, action_kind)
    tensors = range(6 if action_kind == "discrete" else 7)  # three layers' weights and biases, log_std
    with reading(path, f"a policy file of {env_id}"), np.load(path, allow_pickle=False) as file:
        facts = json.loads(str(file["facts"]))
        arrays = {k: torch.from_numpy(file[k].astype(np.float32)) for k in file.files if k != "facts"}
        if facts["env_id"] != env_id:
            raise ValueError(f"it holds policies of {facts['env_id']}")
        if not all(array.isfinite().all() for array in arrays.values()):
            raise ValueError("a parameter is not finite")
        actor = [arrays[f"actor{j}"].to(device) for j in tensors]  # [iterates, N, ...]
        prey = [arrays[f"prey{j}"].to(device) for j in range(6)] if env_id in WITH_PREY else None
        if facts["action_kind"] != action_kind:
            raise ValueError(f"it holds {facts['action_kind']} policies")
        for weights in facts["weights"].values():
            if not all(w >= 0 for w in weights) or any(len(layer) != len(weights) + 1 for layer in actor):
                raise ValueError("it does not say how often each iterate plays")
        if not all(math.isfinite(facts[k]) for k in ("random_score", "expert_score")):
            raise ValueError("its scores are not finite")
    return Policies([[layer[i] for layer in actor] for i in range(len(actor[0]))], prey, facts)
