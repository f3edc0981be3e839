"""The benchmark's reference does the rounds of the scripts, by loops; its seconds are no test's business."""

import sys

import benchmark
import pytest

from utils import stacked

SMALL = "--num-critics 3 --batch-size 24 --hidden 16 --critic-updates 2"
ROUNDS = ["", "--penalty-agents 3 --backup joint", "--backup uniform --weight-temperature 1", "--weight-temperature 3"]


@pytest.mark.parametrize("flags", ROUNDS)
@pytest.mark.parametrize("script", benchmark.SCRIPTS)
def test_rounds_end_where_those_of_plain_loops_do(script, flags):
    seen, loops, distance = benchmark.compare(script, f"{SMALL} {flags}", rounds=2, members=(2,))
    assert distance < 0.01 and list(loops) == [3, 2]
    assert {"sample", "target", "penalty", "critics", "critics, backward", "actors", "Polyak"} == set(seen.shares())
    assert len(seen.totals) == 2 and abs(sum(seen.shares().values()) - 1) < 1e-9


@pytest.mark.parametrize("script", benchmark.SCRIPTS)
@pytest.mark.parametrize("wrong", ["spacql_target", "cql_penalty", "actor_loss"])
def test_a_round_that_differs_is_noticed(script, wrong, monkeypatch):
    module = benchmark.SCRIPTS[script]
    right, tracer = getattr(module, wrong), sys.gettrace()
    monkeypatch.setattr(module, wrong, lambda *args: 1 - right(*args))
    with pytest.raises(AssertionError, match="the script and Loops differ by"):
        benchmark.compare(script, SMALL, rounds=1)
    assert sys.gettrace() is tracer and module.per_seed is stacked.per_seed, "left as found"


def test_operations_are_counted():
    seen = benchmark.watch("spacql.py", f"{SMALL} --penalty none --backup joint", rounds=1)
    state, actions, hidden, batch, critics = 54, 15, 16, 24, 3
    network = 2 * batch * critics * (state * hidden + actions * hidden + hidden * hidden)
    target, backward = network, 2 * network - 2 * batch * critics * (state + actions) * hidden
    alternatives = 2 * batch * critics * (state * hidden + 15 * (actions * hidden + hidden * hidden))
    actor = 2 * batch * 3 * (18 * hidden + hidden * hidden + hidden * 5)
    expected = 2 * (target + network + backward + actor) + alternatives + 3 * actor
    assert abs(seen.flops / expected - 1) < 0.05
