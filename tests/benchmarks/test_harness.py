"""The harness measures what it says: order of calls, ratios, and memory of a known allocation."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import harness
import pytest
import torch
from calm import Others, Patience
from harness import Effort, Summary, Timing


class Busy:
    """Stands for ``calm.Others``: tells of rounds that were disturbed, by number."""

    def __init__(self, disturbed: dict[int, float]) -> None:
        self.disturbed, self.round = disturbed, -1

    def __call__(self) -> Busy:
        return self

    def wait(self, patience: Patience) -> None:
        pass

    def mark(self) -> None:
        self.round += 1

    def share(self) -> float:
        return self.disturbed.get(self.round, 0.0)

    def calm(self) -> bool:
        return self.share() == 0.0


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch):
    return lambda disturbed: monkeypatch.setattr(harness, "Others", Busy(disturbed))


def counting(calls: list[int], seconds: float = 0.0):
    def call() -> None:
        calls.append(len(calls))
        time.sleep(seconds)

    return call


def test_interleave_calls_in_turn(busy):
    busy({})
    order: list[str] = []
    calls = {n: lambda n=n: (order.append(n), time.sleep(0.002)) for n in "abc"}
    harness.interleave(calls, Effort(3, block=0.0))
    assert "".join(order) == "aa" + "bb" + "cc" + 3 * "abc"  # the warm-up goes one by one


def test_interleave_repeats_short_calls_within_a_round(busy):
    busy({})
    calls: list[int] = []
    timing = harness.interleave({"short": lambda: calls.append(1)}, Effort(2, block=0.005))["short"]
    assert len(calls) > 100
    assert len(timing.seconds) == 2
    assert timing.ms.median < 1


def test_interleave_measures_the_time_of_one_call():
    timing = harness.interleave({"sleep": lambda: time.sleep(0.004)}, Effort(3, block=0.008))["sleep"]
    assert 4 <= timing.ms.low < 40


def test_interleave_stops_early_but_not_before_three_rounds(busy):
    busy({})
    ticks: list[int] = []
    timing = harness.interleave(
        {"a": counting([], 0.01)}, Effort(50, seconds=0.0, block=0.0), tick=lambda: ticks.append(1)
    )["a"]
    assert len(timing.seconds) == len(ticks) == 3


def test_interleave_repeats_rounds_that_others_disturb(busy):
    busy({0: 0.5, 2: 0.9})
    calls: list[int] = []
    slow = {2 + 0, 2 + 2}  # after two warm-up calls

    def call() -> None:
        calls.append(1)
        time.sleep(0.05 if len(calls) - 1 in slow else 0.001)

    timing = harness.interleave({"a": call}, Effort(4, block=0.0))["a"]
    assert len(calls) == 2 + 6
    assert len(timing.seconds) == 4
    assert max(timing.seconds) < 0.04


def test_interleave_takes_the_calmest_rounds_where_none_is_calm(busy):
    busy({i: 0.1 + 0.01 * i for i in range(100)})
    calls: list[int] = []
    timing = harness.interleave({"a": counting(calls)}, Effort(4, block=0.0))["a"]
    assert len(calls) == 2 + 12  # three times the rounds at most
    assert len(timing.seconds) == 4


def test_others_sees_another_process_at_work():
    others = Others()
    if not others.known:
        pytest.skip("this system does not say")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spin:
        others.mark()
        time.sleep(0.5)
        share = others.share()
        spin.kill()
    assert share > 0.2 / (os.cpu_count() or 1)


def test_others_waits_no_longer_than_patience_lasts(monkeypatch: pytest.MonkeyPatch):
    others, patience = Others(), Patience(1.0)
    others.known = True
    monkeypatch.setattr(Others, "share", lambda self: 1.0)
    start = time.monotonic()
    others.wait(patience)
    assert patience.left <= 0.0
    assert 0.9 < time.monotonic() - start < 5.0


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
