"""The harness measures what it says: order of calls, ratios, and memory of a known allocation."""

from __future__ import annotations

import time

import harness
import pytest
import torch
from harness import Effort, Summary, Timing


def test_interleave_calls_in_turn():
    order: list[str] = []
    calls = {n: lambda n=n: (order.append(n), time.sleep(0.002)) for n in "abc"}
    harness.interleave(calls, Effort(3, block=0.0))
    assert "".join(order) == "aa" + "bb" + "cc" + 3 * "abc"  # the warm-up goes one by one


def test_interleave_repeats_short_calls_within_a_round():
    calls: list[int] = []
    timing = harness.interleave({"short": lambda: calls.append(1)}, Effort(3, block=0.005))["short"]
    assert len(calls) > 100
    assert len(timing.seconds) == 3
    assert timing.ms.median < 1


def test_interleave_measures_the_time_of_one_call():
    timing = harness.interleave({"sleep": lambda: time.sleep(0.004)}, Effort(3, block=0.008))["sleep"]
    assert 4 <= timing.ms.low < 40


def test_interleave_stops_early_but_not_before_three_rounds():
    ticks: list[int] = []
    timing = harness.interleave(
        {"a": lambda: time.sleep(0.01)}, Effort(50, seconds=0.0, block=0.0), tick=lambda: ticks.append(1)
    )["a"]
    assert len(timing.seconds) == len(ticks) == 3


def test_over_takes_the_ratio_round_by_round():
    fast, slow = Timing("fast", [1.0, 2.0, 4.0]), Timing("slow", [3.0, 4.0, 16.0])
    assert slow.over(fast) == Summary(3.0, 2.5, 3.5)
    assert slow.over(fast).iqr == 1.0


def test_ms_interpolates_quartiles():
    assert Timing("t", [0.001, 0.002, 0.003, 0.004]).ms == Summary(2.5, 1.75, 3.25)


def test_peak_memory_counts_what_is_held_at_once():
    mebi = 2**20

    def call() -> torch.Tensor:
        a = torch.empty(1 * mebi, dtype=torch.uint8)
        b = torch.empty(2 * mebi, dtype=torch.uint8)
        del a
        c = torch.empty(3 * mebi, dtype=torch.uint8)
        del c
        return b

    assert harness.peak_memory(call) == pytest.approx(5 * mebi, abs=4096)


def test_peak_memory_leaves_out_what_was_there_and_what_is_cached():
    there = torch.ones(2**20)
    cache: list[torch.Tensor] = []

    def call() -> torch.Tensor:
        if not cache:
            cache.append(torch.ones(2**22))
        return there.add_(1.0)

    assert harness.peak_memory(call) < 2**16


def test_peak_memory_sees_temporaries_inside_an_operator():
    x = torch.randn(1, 512, 64)
    got = harness.peak_memory(lambda: torch.cdist(x, x))
    assert got > 512 * 512 * 4  # the result, and the augmented copies that the product form makes


def test_environment_names_device_threads_and_versions():
    found = harness.environment("cpu")
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__
    assert harness.label("cpu") == f"cpu-{torch.get_num_threads()}-core"


def test_processor_time_leaves_out_what_others_take():
    def wait():
        time.sleep(0.03)

    wall, own = (
        harness.interleave({"wait": wait}, harness.Effort(3, 1.0, 0.0, clock))["wait"].ms.median
        for clock in ("wall", "processor")
    )
    assert own < 10 < 30 <= wall
