"""How fast the scripts are, and why: `python experiments/benchmark.py` writes results/benchmark.md (and .json, its numbers).

    python experiments/benchmark.py --only round            # one of round, scaling, sizes, score, simulation, ideas

Every figure is a ratio, or stands beside others of the same run: other machines, other seconds. Rounds are those of the
scripts themselves: the time of each line of their training loop is added up under the banner above it. The reference,
`Loops`, does the same round with separate networks and loops over members, agents and sizes, as CFCQL's published code
does; after each measured round it must have reached the same parameters. Processors only: what a GPU does is another
question.
"""

import contextlib
import inspect
import io
import itertools
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # a first call of torch.compile is a first call

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

import spacql
import spacql_continuous
from data import datasets
from data.behaviour import rollout
from envs import half_cheetah
from envs.particles import NUM_ACTIONS
from utils import stacked
from utils.errors import check_choice
from utils.files import atomic, current_commit, parse, run_script

SCRIPTS = {"spacql.py": spacql, "spacql_continuous.py": spacql_continuous}
KINDS = {"spacql.py": "discrete", "spacql_continuous.py": "continuous"}
PAPER = "--batch-size 1024 --penalty-agents 99"  # of a round: batch 1024, the penalty over all agents
SIZES = {"the paper's (batch 1024, all agents)": PAPER, "batch 1024": "--batch-size 1024", "default (batch 256)": ""}
AXES = {  # what grows; the flags and the number of agents of each point
    "critics": [(n, f"--num-critics {n}", 3) for n in (2, 5, 10, 20)],
    "agents": [(n, "", n) for n in (3, 5, 7, 10)],
    "seeds": [(n, f"--num-seeds {n}", 3) for n in (1, 2, 5, 10)],
    "batch": [(n, f"--batch-size {n}", 3) for n in (256, 1024, 4096)],
}
MANY, SAMPLES = 10, (10, 5, 3, 2, 1)  # agents where --k-samples is measured, and its values
WARM_UP, ROUNDS = 3, 8  # rounds before and while measuring
SMALL = "--device cpu --eval-every 1000000 --rounds 1000000 --eval-episodes 1 --cql-alpha 0.5"


@dataclass(frozen=True)
class Args:
    """Measure and write results/benchmark.md."""

    only: str | None = None
    """sections to measure, with commas between: round, scaling, sizes, score, simulation, ideas; the others are kept"""
    out: str = "results/benchmark.md"
    """where the report goes; its numbers lie beside it as .json"""


# ---------------------------------------------------------------------------------------- rounds of the scripts


class Enough(Exception):
    """All rounds that are wanted have been done."""


class Watch:
    """Takes the place of a script's progress bar, and so sees its training loop between rounds.

    Of every two rounds one is timed as a whole, and one line by line for its split into phases. `before` and `after`
    are called around each measured round with the loop's local variables and the random numbers drawn in it.
    """

    def __init__(self, module, rounds, before=None, after=None):
        self.module, self.rounds, self.before, self.after = module, rounds, before, after
        self.totals, self.split, self.draws, self.flops = [], Counter(), [], 0
        self.phases, phase = {}, "start"
        for number, line in enumerate(inspect.getsource(module).splitlines(), start=1):
            phase = line.split("----")[1].split(":")[0].strip() if "# ----" in line else phase
            self.phases[number] = f"{phase}, backward" if phase == "critics" and "backward()" in line else phase

    def __call__(self, iterable, **_):
        self.module.per_seed = self.draw
        yield from itertools.islice(iterable, WARM_UP)
        frame = sys._getframe(1)
        if self.before is None:  # else before and after count what they like
            with FlopCounterMode(display=False) as counter:
                yield WARM_UP
            self.flops = counter.get_total_flops()
        for _ in range(self.rounds):
            yield from self.measure(frame)
        raise Enough

    def draw(self, *args):
        self.draws.append(stacked.per_seed(*args))
        return self.draws[-1]

    def measure(self, frame):
        for by_line in (False, True):
            if self.before:
                self.before(frame.f_locals)
            self.draws.clear()
            if by_line:
                self.phase, frame.f_trace = None, self.trace
                sys.settrace(lambda *_: None)
            start = self.last = time.perf_counter()
            yield WARM_UP
            if by_line:
                sys.settrace(None)
                frame.f_trace = None
            else:
                self.totals.append(time.perf_counter() - start)
            if self.after:
                self.after(frame.f_locals, self.draws)

    def trace(self, frame, event, arg):
        phase = self.phases[frame.f_lineno]
        if phase != self.phase:
            now = time.perf_counter()
            self.split[self.phase] += now - self.last
            self.phase, self.last = phase, time.perf_counter()
        return self.trace

    def seconds(self):
        """Seconds of the fastest round: others were disturbed."""
        return min(self.totals)

    def shares(self):
        """Share of each phase in a round."""
        spent = {phase: seconds for phase, seconds in self.split.items() if phase not in (None, "now and then")}
        return {phase: seconds / sum(spent.values()) for phase, seconds in spent.items()}


def watch(script, flags, rounds=ROUNDS, before=None, after=None):
    """Run rounds of a script on a small dataset under a Watch, which is returned."""
    module = SCRIPTS[script]
    seen, bar, tracer = Watch(module, rounds, before, after), module.tqdm, sys.gettrace()
    module.tqdm = seen
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            flags = f"{SMALL} {flags} --dataset-size 50000 --data-dir {folder}/datasets --out {folder}/runs"
            if "--dataset " not in flags:
                flags += " --dataset random"
            with contextlib.suppress(Enough):
                module.main(flags.split())
    finally:
        module.tqdm, module.per_seed = bar, stacked.per_seed
        sys.settrace(tracer)
    return seen


# ----------------------------------------------------------------------------------------------- the reference


def separate(params, m, state=None):
    """Stacked network m of the first seed by itself, and an Adam of its own with its state."""
    layers = []
    for w, b in zip(params[::2], params[1::2], strict=True):
        layer = nn.Linear(*w.shape[2:], device=w.device)
        layer.weight.data.copy_(w.data[0, m].T)
        layer.bias.data.copy_(b.data[0, m, 0])
        layers += [layer, nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    if state is None:
        return network
    adam = torch.optim.Adam(network.parameters(), lr=state.param_groups[0]["lr"])
    for p, q in zip(params, network.parameters(), strict=True):
        if p in state.state:
            kept = {k: v[0, m].T.reshape(q.shape).clone() for k, v in state.state[p].items() if k != "step"}
            adam.state[q] = kept | dict(step=state.state[p]["step"].cpu().clone())
    return network, adam


class Loops:
    """A round of the first seed by plain loops, from the parameters and optimizers that a script starts it with."""

    def __init__(self, loop, members):
        """loop: the local variables of a script's `train`; members: how many of its critics to use."""
        self.args, self.data, self.scale = loop["args"], loop["data"], loop["scale"]
        self.num, self.sizes = loop["num"], loop["sizes"].tolist()
        self.discrete = "action_dim" not in loop
        nets, adams = loop["nets"], loop["adams"]
        self.critics = [separate(nets["critic"], e, adams["critic"]) for e in range(members)]
        self.actors = [separate(nets["actor"], i, adams["actor"]) for i in range(self.num)]
        self.target_critics = [separate(nets["target_critic"], e) for e in range(members)]
        self.target_actors = [separate(nets["target_actor"], i) for i in range(self.num)]

    def joint(self, actions):
        """The critics' action input, [B, N * A], of actions [B, N(, A)]."""
        if self.discrete:
            return torch.cat([nn.functional.one_hot(actions[:, i], NUM_ACTIONS).float() for i in range(self.num)], 1)
        return self.normal(actions.flatten(1))

    def normal(self, joint):
        return joint if self.discrete or self.args.action_norm == "none" else joint - joint.mean(0)

    def policies(self, outputs, noise):
        """Target actions of all agents, a list of [B] or [B, A], from their actors' outputs."""
        if self.discrete:
            steps = [x.softmax(-1).cumsum(-1)[:, :-1] for x in outputs]
            return [(noise[:, i, None] >= step).sum(-1) for i, step in enumerate(steps)]
        return [(x.tanh() + noise[:, i]).clamp(-1, 1) for i, x in enumerate(outputs)]

    def target(self, reward, state, obs, logged, draws):
        """Equations (1) to (4): draws are pairs (order, noise) for each size."""
        lowest, inverse, outputs = [], [], [network(obs[:, i]) for i, network in enumerate(self.target_actors)]
        for k, (order, noise) in zip(self.sizes, draws, strict=True):
            rank, joint = order.argsort(-1).argsort(-1), logged.clone()
            for i, action in enumerate(self.policies(outputs, noise)):
                chosen = rank[:, i] < k
                joint[chosen, i] = action[chosen]
            inputs = torch.cat([state, self.joint(joint)], 1)
            lowest.append(torch.stack([network(inputs)[:, 0] for network in self.target_critics]).amin(0))
            if self.args.backup == "spacql":
                spread = torch.stack([network(inputs)[:, 0] for network, _ in self.critics]).std(0, correction=0)
                inverse.append(spread**-self.args.weight_temperature)
            else:
                inverse.append(torch.ones_like(reward))
        weighted = sum(w * q for w, q in zip(inverse, lowest, strict=True))
        return reward + self.args.gamma * weighted / sum(inverse)

    def changed(self, actions, who, candidates):
        """Joint actions [B * C, N * A] in which agent who [B] plays candidates [B, C(, A)], the others as given."""
        count = candidates.shape[1]
        joint = actions.repeat_interleave(count, 0)
        joint[torch.arange(len(joint)), who.repeat_interleave(count)] = candidates.flatten(0, 1)
        return self.joint(joint)

    def step(self, loss, network, adam):
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), self.args.max_grad_norm)
        adam.step()

    def update_critics(self, target, state, actions, agents, proposals):
        """Equation (5): agents [B, M] in the penalty and their candidate actions [B, M, C(, A)]."""
        data, count = torch.cat([state, self.joint(actions)], 1), proposals.shape[2]
        states, tried = state.repeat_interleave(count, 0), []
        for m in range(agents.shape[1]):
            tried.append(torch.cat([states, self.changed(actions, agents[:, m], proposals[:, m])], 1))
        tried = torch.cat(tried)  # CFCQL's code asks a critic about all agents at once
        for network, adam in self.critics:
            q = network(data)[:, 0]
            log_sum = network(tried).view(-1, len(state), count).logsumexp(-1).mean(0)
            if not self.discrete:  # a log-mean over uniform candidates, over their density
                log_sum = log_sum + proposals.shape[-1] * math.log(2) - math.log(count)
            self.step(((q - target) ** 2 + self.args.cql_alpha * (log_sum - q)).mean(), network, adam)

    def update_actors(self, state, obs, actions):
        """Equation (6)."""
        for critic, _ in self.critics:
            critic.requires_grad_(False)
        for i, (network, adam) in enumerate(self.actors):
            outputs, who = network(obs[:, i]), torch.full((len(obs),), i)
            if self.discrete:
                joint = self.changed(actions, who, torch.arange(NUM_ACTIONS).expand(len(obs), -1))
                inputs = torch.cat([state.repeat_interleave(NUM_ACTIONS, 0), joint], 1)
                with torch.no_grad():
                    q = sum(critic(inputs) for critic, _ in self.critics).view(-1, NUM_ACTIONS) / len(self.critics)
                log_pi = outputs.log_softmax(-1)
                loss = -(log_pi.exp() * (q - self.args.entropy_coef * log_pi)).sum(1).mean()
            else:
                joint = self.changed(actions, who, outputs.tanh().unsqueeze(1))
                inputs = torch.cat([state, joint], 1)
                q = sum(critic(inputs) for critic, _ in self.critics) / len(self.critics)
                loss = self.args.action_l2 * outputs.tanh().square().mean() - q.mean()
                loss = loss + self.args.output_l2 * outputs.square().mean()
            self.step(loss, network, adam)

    def transitions(self, index):
        """Rows of the transitions index [B], agent by agent as CFCQL's buffers hold them."""
        horizon, data = self.data["horizon"], self.data
        episode, t = index // (horizon - 1), index % (horizon - 1)
        rows, action_rows = episode * (horizon + 1) + t, episode * horizon + t
        obs = data["obs"] if "obs" in data else data["state"].unflatten(-1, (self.num, -1))
        now, later = ([torch.stack([obs[r, i] for i in range(self.num)], 1)] for r in (rows, rows + 1))
        acts, next_acts = (
            torch.stack([data["actions"][r, i] for i in range(self.num)], 1) for r in (action_rows, action_rows + 1)
        )
        return data["state"][rows], *now, acts, data["rewards"][action_rows], data["state"][rows + 1], *later, next_acts

    def round(self, draws):
        """The round with the random numbers that the script drew in it."""
        index, *draws = (draw[0] for draw in draws)  # of the first seed
        for u in range(self.args.critic_updates):
            state, obs, actions, reward, next_state, next_obs, next_actions = self.transitions(index[u])
            if self.discrete:
                noise = draws[0][u]  # [B, K + 1, N, 2]
                pairs = [(noise[:, j, :, 1], noise[:, j, :, 0]) for j in range(1, noise.shape[1])]
                agents = noise[:, 0, :, 1].argsort(-1)[:, : self.args.penalty_agents]
                proposals = torch.arange(NUM_ACTIONS).expand(*agents.shape, -1)
            else:
                order, jitter, uniform = draws[0][u], draws[1][u], draws[2 + u]
                jitter = spacql_continuous.TARGET_NOISE * jitter
                pairs = [(order[:, j + 1], jitter[:, j]) for j in range(jitter.shape[1])]
                agents = order[:, 0].argsort(-1)[:, : self.args.penalty_agents]
                proposals = 2 * uniform - 1
            with torch.no_grad():
                target = self.target(reward, next_state, next_obs, next_actions, pairs)
            self.update_critics(target, state, actions, agents, proposals)
        self.update_actors(state, obs, actions)
        for targets, networks in ((self.target_critics, self.critics), (self.target_actors, self.actors)):
            for target, (network, _) in zip(targets, networks, strict=True):
                for p, q in zip(target.parameters(), network.parameters(), strict=True):
                    p.data.copy_((1 - self.args.tau) * p.data + self.args.tau * q.data)

    @torch.no_grad()
    def distance(self, nets, before):
        """The largest difference of a network here and in a script's nets, over the way it went in this round."""
        worst = 0.0
        for name, networks in (("critic", self.critics), ("actor", self.actors)):
            for m, (network, _) in enumerate(networks):
                theirs, start = (
                    torch.cat([p.flatten() for p in separate(x[name], m).parameters()]) for x in (nets, before)
                )
                mine = torch.cat([p.flatten() for p in network.parameters()])
                worst = max(worst, float((mine - theirs).norm() / (theirs - start).norm()))
        return worst


def compare(script, flags, rounds=ROUNDS, members=()):
    """Rounds of a script and of Loops in turn: the Watch, and for each number of members (the script's own comes
    first) Loops' fastest round and operations; and the largest distance between the two."""
    seconds, flops, distances, kept = {}, {}, [], {}

    def before(loop):
        kept["nets"] = {name: [p.detach().clone() for p in params] for name, params in loop["nets"].items()}
        counts = dict.fromkeys((loop["args"].num_critics, *members))
        kept["loops"] = {count: Loops(loop, count) for count in counts}

    def after(loop, draws):
        if not flops:  # the first round only counts
            for count, reference in kept["loops"].items():
                with FlopCounterMode(display=False) as counter:
                    reference.round(draws)
                flops[count] = counter.get_total_flops()
            return
        for count, reference in kept["loops"].items():
            start = time.perf_counter()
            reference.round(draws)
            seconds.setdefault(count, []).append(time.perf_counter() - start)
        first = next(iter(kept["loops"].values()))
        distances.append(first.distance(loop["nets"], kept["nets"]))
        if not distances[-1] < 0.05:
            raise AssertionError(f"the script and Loops differ by {distances[-1]:.0%} of the way")

    seen = watch(script, flags, rounds, before, after)
    loops = {count: dict(seconds=min(times), flops=flops[count]) for count, times in seconds.items()}
    return seen, loops, max(distances)


def drawing_seconds(batch, rows=1_000_000):
    """Seconds in which CFCQL's code draws the indices of one batch: without replacement, of all rows."""
    times, chance = [], np.random.RandomState(0)
    for _ in range(3):
        start = time.perf_counter()
        chance.choice(np.arange(rows), size=batch, replace=False)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matrix_peak(size=2048):
    """FLOP/s of a large matrix product, the most that this machine does in float32."""
    x, times = torch.randn(size, size), []
    for _ in range(5):
        start = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


# -------------------------------------------------------------------------------------------------- sections


def round_section():
    """Rounds against the reference, their split, and what part of the machine they use."""
    table = []
    for script, (size, flags) in itertools.product(SCRIPTS, SIZES.items()):
        seen, loops, distance = compare(script, flags, members=(2,))
        flops = watch(script, flags, rounds=1).flops
        row = dict(script=script, size=size, seconds=seen.seconds(), loops_flops=loops[10]["flops"])
        row |= dict(loops_10=loops[10]["seconds"], loops_2=loops[2]["seconds"])
        row |= dict(
            distance=distance, flops=flops, peak=matrix_peak(), drawing=5 * drawing_seconds(256 if not flags else 1024)
        )
        table.append(row | dict(split=seen.shares()))
    return table


def point(script, flags, path, rounds):
    """In a process of its own: seconds of a round and of its target, and the most memory beyond that at the start."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far (Linux)
    start = resident("VmRSS")
    seen = watch(script, f"{flags} --dataset {path}", rounds)
    memory = resident("VmHWM") - start
    return dict(seconds=seen.seconds(), target=seen.seconds() * seen.shares()["target"], mib=memory)


def resident(name):
    """MiB of memory that this process holds (VmRSS), or held at most (VmHWM)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) / 1024


def write_dataset(path, kind, num_agents, episodes=400):
    """Uniform actions in spread with this many agents, in the project's format; scores are plain returns."""
    worlds = datasets.make_env("simple_spread", episodes, num_agents, action_kind=kind)
    arrays = rollout(worlds, None, torch.Generator().manual_seed(0))
    attributes = dict(env_id="simple_spread", quality="random", action_kind=kind, random_score=0.0, expert_score=100.0)
    with datasets.atomic_hdf5(path, attributes) as file:
        for name, array in arrays.items():
            file[name] = array.numpy()
        file["terminals"] = np.zeros(arrays["rewards"].shape[:2], bool)


def alone(script, flags, num_agents=3, rounds=6):
    """`point` in a new process, so that its memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.h5"
        write_dataset(path, KINDS[script], num_agents)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(point, script, flags, path, rounds).result()


def scaling_section():
    """One axis at a time, the others at their defaults (10 critics, 3 agents, 1 seed, batch 256)."""
    table = []
    for script, (axis, points) in tqdm(list(itertools.product(SCRIPTS, AXES.items())), file=sys.stderr):
        for value, flags, num_agents in points:
            table.append(dict(script=script, axis=axis, value=value) | alone(script, flags, num_agents))
    return table


def exponent(rows, key):
    """Slope of log(key) over log(value)."""
    return float(np.polyfit(np.log([r["value"] for r in rows]), np.log([r[key] for r in rows]), 1)[0])


def sizes_section():
    """--k-samples with many agents: what it costs, and how far its target is off."""
    table = []
    for script in SCRIPTS:
        errors = {backup: target_errors(script, backup) for backup in ("uniform", "spacql")}
        for m in SAMPLES:
            row = dict(script=script, m=m) | alone(script, f"--k-samples {m}", MANY)
            for backup, found in errors.items():
                row |= {f"{backup}_deviation": found[m][0], f"{backup}_bias": found[m][1]}
            table.append(row)
    return table


def target_errors(script, backup, rounds=100):
    """Deviation and bias of the target from m sizes drawn, {m: (deviation, bias)}, in units of the full target's
    deviation over the batch, after some training."""
    module, kept = SCRIPTS[script], {}

    def keep(loop, _):
        kept.update({name: loop[name] for name in ("q_target", "u", "target", "rewards", "sizes", "args")})

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.h5"
        write_dataset(path, KINDS[script], MANY)
        watch(script, f"--dataset {path} --backup {backup}", rounds, None, keep)
    args, errors = kept["args"], {}
    for m in SAMPLES:
        draws = []
        for draw in range(200):
            generators = [torch.Generator().manual_seed(draw)]
            used = module.draw_sizes(kept["sizes"], m, args.batch_size, generators)
            places = (used - 1).expand(1, args.batch_size, -1)  # [S, B, m]
            some = kept["q_target"].gather(3, places.unsqueeze(1).expand(-1, args.num_critics, -1, -1))
            weights = module.backup_weights(backup, kept["u"].gather(2, places), args.weight_temperature)
            draws.append(module.spacql_target(kept["rewards"], some, weights, args.gamma) - kept["target"])
        draws, unit = torch.stack(draws), kept["target"].std()
        errors[m] = float(draws.square().mean().sqrt() / unit), float(draws.mean() / unit)
    return errors


def score_section():
    """What --k-samples does to learning with many agents: team returns (mean over agents) after 300 rounds."""
    table = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.h5"
        write_dataset(path, "discrete", MANY, episodes=8000)
        data = datasets.read_dataset(path, "simple_spread", "discrete").mean_return
        for m in tqdm((MANY, 3, 1), file=sys.stderr):
            flags = f"--dataset {path} --out {folder}/runs --k-samples {m} --num-seeds 2 --rounds 300 --cql-alpha 0.5"
            flags += " --device cpu"
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                summary = spacql.main([*flags.split(), "--eval-every", "50", "--eval-episodes", "100"])
            seconds = time.perf_counter() - start
            table.append(dict(m=m, returns=summary["scores"], k_eff=summary["k_eff"], data=data, seconds=seconds))
    return table


def simulation_section():
    """World-steps a second of a batch, and seconds to simulate the default datasets."""
    table = []
    for env_id, kind in itertools.product(datasets.ENV_IDS, ("discrete", "continuous")):
        worlds = datasets.make_env(env_id, 1024, action_kind=kind)
        arrays, times = rollout(worlds, None, torch.Generator().manual_seed(0)), []
        for action in arrays["actions"].unbind(1):
            start = time.perf_counter()
            worlds.step(action)
            times.append(time.perf_counter() - start)
        row = dict(env_id=env_id, kind=kind, steps_per_s=1024 / min(times))
        for quality in ("random", "medium-replay"):
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
                start = time.perf_counter()
                datasets.load_dataset(env_id, quality, 1_000_000, 0, folder, kind)
                row[quality] = time.perf_counter() - start
        table.append(row)
    for processes, num_worlds in itertools.product((1, torch.get_num_threads()), (64, 256)):
        speed = max(half_cheetah.measure_speed(processes, num_worlds) for _ in range(3))
        table.append(dict(env_id=half_cheetah.ENV_ID, processes=processes, worlds=num_worlds, steps_per_s=speed))
    return table


def ideas_section():
    """Gradient of the critics' loss at the paper's size, with one thing changed at a time."""
    num, dim, batch = 3, 54, 1024
    generators = [torch.Generator().manual_seed(0)]
    critic = [p.requires_grad_() for p in spacql.init_networks(generators, 10, (dim + num * NUM_ACTIONS, 64, 64, 1))]
    state, actions = torch.randn(1, batch, dim), torch.randint(NUM_ACTIONS, (1, batch, num))
    everyone = torch.arange(num).expand(1, batch, -1)
    rows = torch.cat([spacql.one_hot(actions).unsqueeze(2), spacql.counterfactuals(actions, everyone)], dim=2)

    def gradient(values):
        for p in critic:
            p.grad = None
        q = values(critic, state, rows).float()
        penalty = spacql.cql_penalty(q[..., 1:].unflatten(-1, (num, -1)), q[..., 0])
        spacql.critic_loss(q[..., 0], torch.zeros(1, batch), penalty, 1.0).sum().backward()
        return torch.cat([p.grad.flatten() for p in critic])

    @contextlib.contextmanager
    def one_part():
        kept, stacked.PART_NUMBERS = stacked.PART_NUMBERS, 2**62
        try:
            yield
        finally:
            stacked.PART_NUMBERS = kept

    def bf16(*inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return spacql.critic_values(*inputs)

    compiled = torch.compile(spacql.critic_values, dynamic=False)
    ideas = {
        "as it is": (spacql.critic_values, contextlib.nullcontext),
        "the whole batch in one part": (spacql.critic_values, one_part),
        "the last layer as a matrix product": (column_product, contextlib.nullcontext),
        "first layer by sums, without rows of actions": (summed_first_layer, contextlib.nullcontext),
        "backward by hand, in place": (by_hand, contextlib.nullcontext),
        "bfloat16 autocast": (bf16, contextlib.nullcontext),
        "torch.compile": (compiled, contextlib.nullcontext),
    }
    exact, table = gradient(spacql.critic_values), []
    for idea, (values, context) in ideas.items():
        with context():
            start = time.perf_counter()
            error = float((gradient(values) - exact).norm() / exact.norm())
            first, times = time.perf_counter() - start, []
            for _ in range(20):
                start = time.perf_counter()
                gradient(values)
                times.append(time.perf_counter() - start)
        table.append(dict(idea=idea, seconds=min(times), first=first, error=error))
    return table


def column_product(critic, state, joint):
    """`critic_values` with a matrix product in the last layer."""
    w1, b1, w2, b2, w3, b3 = (p.flatten(0, 1) for p in critic)
    members, dim, values = critic[0].shape[1], state.shape[-1], []
    for s, a in stacked.cache_parts(members * joint[..., 0].numel() * w2.shape[-1], state, joint):
        rows = a.shape[2]
        s, a = (x.repeat_interleave(members, dim=0) for x in (s, a.flatten(1, 2)))
        x = (a @ w1[:, dim:]).unflatten(1, (-1, rows)) + torch.baddbmm(b1, s, w1[:, :dim]).unsqueeze(2)
        x = torch.baddbmm(b2, x.flatten(1, 2).relu_(), w2).relu_()
        values.append(torch.baddbmm(b3, x, w3).view(1, members, -1, rows))
    return torch.cat(values, dim=2)


def summed_first_layer(critic, state, joint):
    """`critic_values` for row 0 = the data and then every agent's every action: a candidate's first layer is the data's
    minus what the agent's logged action adds plus what the candidate adds, with no product for each row."""
    w1, b1, w2, b2, w3, b3 = (p.flatten(0, 1) for p in critic)
    members, dim, values = critic[0].shape[1], state.shape[-1], []
    each = w1[:, dim:].unflatten(1, (1, -1, NUM_ACTIONS))  # [E, 1, N, A, H]
    for s, a in stacked.cache_parts(members * joint[..., 0].numel() * w2.shape[-1], state, joint):
        logged = a[0, :, 0]  # [B, N * A]
        data = torch.cat([s[0], logged], dim=1) @ w1 + b1  # [E, B, H]
        own = torch.einsum("bia,eiah->ebih", logged.unflatten(1, (-1, NUM_ACTIONS)), each[:, 0])
        x = ((data.unsqueeze(2) - own).unsqueeze(3) + each).flatten(2, 3)
        x = torch.cat([data.unsqueeze(2), x], dim=2).flatten(1, 2).relu_()
        x = torch.baddbmm(b2, x, w2).relu_()
        values.append(((x * w3.mT).sum(-1) + b3.squeeze(-1)).view(1, members, -1, a.shape[2]))
    return torch.cat(values, dim=2)


class ByHand(torch.autograd.Function):
    """The layers of `critic_values` for one part, with a backward that adds up in place."""

    @staticmethod
    def forward(ctx, s, a, w1, b1, w2, b2, w3, b3):
        dim, rows = s.shape[-1], a.shape[1] // s.shape[1]
        h1 = torch.bmm(a, w1[:, dim:]).unflatten(1, (-1, rows))
        h1 = h1.add_(torch.baddbmm(b1, s, w1[:, :dim]).unsqueeze(2)).relu_().flatten(1, 2)
        h2 = torch.baddbmm(b2, h1, w2).relu_()
        ctx.save_for_backward(s, a, h1, h2, w2, w3)
        return (h2 * w3.mT).sum(-1) + b3.squeeze(-1)

    @staticmethod
    def backward(ctx, grad):
        s, a, h1, h2, w2, w3 = ctx.saved_tensors
        grad, relu_backward = grad.unsqueeze(-1), torch.ops.aten.threshold_backward.grad_input
        d2 = grad * w3.mT
        relu_backward(d2, h2, 0, grad_input=d2)
        d1 = torch.bmm(d2, w2.mT)
        relu_backward(d1, h1, 0, grad_input=d1)
        d_state = d1.unflatten(1, (s.shape[1], -1)).sum(2)
        w1_grad = torch.cat([torch.bmm(s.mT, d_state), torch.bmm(a.mT, d1)], dim=1)
        last = (h2 * grad).sum(1).unsqueeze(-1), grad.sum(1, keepdim=True)
        return None, None, w1_grad, d_state.sum(1, True), torch.bmm(h1.mT, d2), d2.sum(1, True), *last


def by_hand(critic, state, joint):
    """`critic_values` with the gradient of `ByHand`."""
    params, members = [p.flatten(0, 1) for p in critic], critic[0].shape[1]
    parts = stacked.cache_parts(members * joint[..., 0].numel() * params[2].shape[-1], state, joint)
    each = [(s.repeat_interleave(members, 0), a.flatten(1, 2).repeat_interleave(members, 0)) for s, a in parts]
    return torch.cat([ByHand.apply(*pair, *params).view(1, members, -1, joint.shape[2]) for pair in each], dim=2)


# ---------------------------------------------------------------------------------------------------- report


def ms(seconds):
    return f"{1000 * seconds:.0f}" if seconds >= 0.01 else f"{1000 * seconds:.1f}"


def lines_of(head, rows):
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def report_round(table):
    head = ["script", "size", "round ms", "Loops ms", "of two", "Loops / round", "of two / round", "with drawing"]
    times = [[ms(r[key]) for key in ("seconds", "loops_10", "loops_2")] for r in table]
    rows = [(r["script"], r["size"], *t, *ratios(r, r)) for r, t in zip(table, times, strict=True)]
    text = lines_of(head, rows) + "\n"

    phases = list(dict.fromkeys(phase for r in table for phase in r["split"]))
    rows = []
    for r in table:
        shares = [f"{r['split'].get(phase, 0):.1%}" for phase in phases]
        facts = (f"{5 / r['seconds']:.0f}", f"{r['flops'] / 1e9:.1f}", f"{r['loops_flops'] / 1e9:.1f}")
        facts += (f"{r['flops'] / r['seconds'] / r['peak']:.0%}",)
        rows.append((r["script"], r["size"], *shares, *facts, f"{r['distance']:.0e}"))
    head = ["script", "size", *phases, "updates/s", "GFLOP a round", "Loops'", "share of peak", "distance"]
    text += lines_of(head, rows) + "\n"

    places = {(r["script"], r["size"]): r for r in table}
    all_agents, one_agent, _ = SIZES
    rows = [(script, *ratios(places[script, one_agent], places[script, all_agents])) for script in SCRIPTS]
    return text + lines_of(
        ["batch 1024, one agent against all", "Loops / round", "of two / round", "with drawing"], rows
    )


def ratios(own, loops):
    """Loops' time over the script's own: with ten critics, with two, and with two and CFCQL's drawing."""
    times = (loops["loops_10"], loops["loops_2"], loops["loops_2"] + loops["drawing"])
    return [f"{seconds / own['seconds']:.2f}" for seconds in times]


def report_scaling(table):
    rows = []
    for (script, axis), group in itertools.groupby(table, key=lambda r: (r["script"], r["axis"])):
        group = list(group)
        times = ", ".join(f"{r['value']}: {ms(r['seconds'])} ({r['mib']:.0f})" for r in group)
        rows.append((script, axis, times, *(f"{exponent(group, key):.2f}" for key in ("seconds", "target"))))
    return lines_of(["script", "axis", "value: ms a round (MiB more)", "exponent", "exponent of the target"], rows)


def report_sizes(table):
    names = ("uniform_deviation", "uniform_bias", "spacql_deviation", "spacql_bias")
    head = ["script", "m", "round ms", "target ms", *(name.replace("_", ", ") for name in names)]
    rows = [(r["script"], r["m"], ms(r["seconds"]), ms(r["target"]), *(f"{r[k]:.3f}" for k in names)) for r in table]
    return lines_of(head, rows)


def report_score(table):
    rows = []
    for r in table:
        returns = ", ".join(f"{x:.1f}" for x in r["returns"])
        rows.append((r["m"], returns, f"{r['data']:.1f}", f"{r['k_eff']:.2f}", f"{r['seconds']:.0f}"))
    return lines_of(["m", "returns of two seeds", "mean of the data", "k_eff", "seconds"], rows)


def report_simulation(table):
    rows = [
        (r["env_id"], r["kind"], f"{r['steps_per_s']:,.0f}", f"{r['random']:.1f}", f"{r['medium-replay']:.1f}")
        for r in table
        if "kind" in r
    ]
    text = lines_of(["world", "actions", "world-steps/s", "s for 1,000,000 random", "medium-replay"], rows) + "\n"
    rows = [(r["processes"], r["worlds"], f"{r['steps_per_s']:,.0f}") for r in table if "processes" in r]
    return text + lines_of(["HalfCheetah processes", "worlds", "world-steps/s"], rows)


def report_ideas(table):
    rows = []
    for r in table:
        ratio = r["seconds"] / table[0]["seconds"]
        rows.append((r["idea"], f"{ratio:.2f}", ms(r["seconds"]), f"{r['first']:.1f}", f"{r['error']:.0e}"))
    return lines_of(["idea", "times as long", "ms", "first call s", "gradient's error"], rows)


SECTIONS = {  # name: (title, measure, report)
    "round": ("One round", round_section, report_round),
    "scaling": ("Scaling", scaling_section, report_scaling),
    "sizes": (f"--k-samples with {MANY} agents: cost and error", sizes_section, report_sizes),
    "score": (f"--k-samples with {MANY} agents: score", score_section, report_score),
    "simulation": ("Simulation", simulation_section, report_simulation),
    "ideas": ("Ideas", ideas_section, report_ideas),
}


INTRODUCTION = """# Benchmark

Written by `python experiments/benchmark.py`; one section again: `--only round`. Seconds of rounds, steps and
gradients are those of the fastest repetition (whole datasets, scores and first calls: of the only one), on
shared processors whose speed varies by a third: compare figures of one table, not of two.
"""
EXPLANATIONS = {
    "round": """Five critic updates, an actor update and a Polyak step on spread; ten critics, one seed. *penalty*: the
joint actions that it weighs; their values are part of the *critics*' forward pass, with which clipping and Adam
are counted. `Loops` (in the same file) does the same round with a network for each member and agent, from the same
parameters and random numbers, but repeats a state for each row that it asks about, hence more operations;
*distance* is the most by which a network then differs, over the way it went in the round. *of two*: Loops with
two critics, CFCQL's number, but with SPaCQL's target. *with drawing*: the same, plus the time in which CFCQL's
code draws the indices of five batches, without replacement from a million rows. *share of peak*: floating point
operations of all matrix products, over those that a product of two 2048 x 2048 matrices does in the same time.
The last table sets the scripts' own penalty, over one random agent for each transition, against Loops with
CFCQL's, over all: less arithmetic for the same expected gradient.""",
    "scaling": """One axis at a time, the others at their defaults (ten critics, three agents, one seed, batch 256, on
spread with uniform data); a process for each point. In brackets the memory at its most, beyond what the process held
before it read the data. Exponents: slope of log seconds over log value. More agents also mean wider observations; the
target asks the critics about n joint actions of n agents.""",
    "sizes": """The target from m of the n sizes, ten agents, after 200 rounds. Deviation and bias of the estimate over
200 draws, in units of the target's deviation over the batch; *uniform*: `--backup uniform`, of fixed weights.""",
    "score": """spacql.py, spread with ten agents, uniform data (200,000 transitions), 300 rounds of batch 256, two
seeds at once. Returns are undiscounted, mean over agents; there is no expert of this size to normalise them by.""",
    "simulation": "Batches of 1024 worlds, prey included; then whole datasets, written to disk and read back.",
    "ideas": """The gradient of the critics' loss at the paper's size (10 critics, batch 1024, 16 rows each), one thing
changed at a time. The first three rows say what the script's own form buys.""",
}


def write_report(path, numbers):
    """The report of all sections that have been measured."""
    text = INTRODUCTION
    for name, (title, _, report) in SECTIONS.items():
        if name in numbers:
            facts = "{machine}, commit {commit}, {wall_s:.0f} s".format(**numbers[name])
            text += f"\n## {title}\n\n{EXPLANATIONS[name]} ({facts})\n\n{report(numbers[name]['rows'])}"
    with atomic(path) as partial:
        partial.write_text(text)


def machine():
    """The machine in words."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    return f"{model}, {torch.get_num_threads()} of {os.cpu_count()} cores, torch {torch.__version__}"


def main():
    args = parse(Args, description=__doc__)
    chosen = args.only.split(",") if args.only else list(SECTIONS)
    for name in chosen:
        check_choice("only", name, SECTIONS)
    path = Path(args.out)
    numbers = json.loads(path.with_suffix(".json").read_text()) if path.with_suffix(".json").is_file() else {}
    for name in chosen:
        facts, start = dict(machine=machine(), commit=current_commit()), time.perf_counter()
        rows = SECTIONS[name][1]()
        numbers[name] = facts | dict(wall_s=time.perf_counter() - start, rows=rows)
        with atomic(path.with_suffix(".json")) as partial:
            partial.write_text(json.dumps(numbers, indent=1) + "\n")
        write_report(path, numbers)


if __name__ == "__main__":
    run_script("experiments/benchmark.py", main)
