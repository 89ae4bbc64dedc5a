"""Timing that is robust on a noisy machine, and the peak memory of one call, for all benchmarks here."""

from __future__ import annotations

import os
import platform
import time
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch.utils.benchmark import timer  # waits for the accelerator before it reads the clock

from tokengraph.evaluate.memory import peak_bytes

Call = Callable[[], object]
# Processor time of this process, on one thread of a machine that others load too; it misses work on a device.
CLOCKS = {"wall": timer, "processor": time.process_time}
PACKAGES = "torch torch-geometric torch-cluster torch-scatter pyg-lib timm transformers torchvision numpy".split()


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    @property
    def iqr(self) -> float:
        """Distance between the quartiles."""
        return self.high - self.low

    @classmethod
    def of(cls, values: list[float]) -> Summary:
        """Summarises ``values``; quartiles are interpolated."""
        low, median, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double())
        return cls(median.item(), low.item(), high.item())


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one callable, one number for each round."""

    name: str
    seconds: list[float]

    @property
    def ms(self) -> Summary:
        """Summarises milliseconds per call."""
        return Summary.of([1e3 * s for s in self.seconds])

    def over(self, other: Timing) -> Summary:
        """Summarises the ratio of this time to that of ``other`` in each round, so that noise on both cancels."""
        return Summary.of([a / b for a, b in zip(self.seconds, other.seconds, strict=True)])


@dataclass(frozen=True)
class Effort:
    """How hard to measure.

    Attributes:
        rounds: Rounds at most, but at least 3.
        seconds: About how long a group of callables may take.
        block: Seconds that a block of one callable should take; short calls are repeated within it.
        clock: A name in ``CLOCKS``.
    """

    rounds: int = 15
    seconds: float = 60.0
    block: float = 0.02
    clock: str = "wall"


def interleave(
    calls: Mapping[str, Call], effort: Effort = Effort(), *, tick: Callable[[], object] | None = None
) -> dict[str, Timing]:
    """Times callables in turn, A B C A B C ..., so that slow phases of the machine hit all of them.

    Every round counts; the median forgives those that other processes disturb. ``torch.utils.benchmark.Timer`` would
    run two warm-up calls before every block, which triples the time of long calls; so this takes its clock and Python's
    own loop, and warms up once.

    Args:
        calls: What to time, by name.
        effort: Rounds and time limits.
        tick: Called after each round, for a progress bar.

    Returns:
        A :class:`Timing` with one number per round for each name.
    """
    clock = CLOCKS[effort.clock]
    timers = {name: timeit.Timer(call, timer=clock) for name, call in calls.items()}
    number = {}
    for name, each in timers.items():
        each.timeit(1)
        number[name] = max(1, min(10_000, round(effort.block / max(each.timeit(1), 1e-9))))
    rounds: list[list[float]] = []
    spent = 0.0
    while len(rounds) < min(3, effort.rounds) or (
        len(rounds) < effort.rounds and spent * (1 + 1 / len(rounds)) <= effort.seconds
    ):
        start = clock()
        rounds.append([each.timeit(number[name]) / number[name] for name, each in timers.items()])
        spent += clock() - start
        if tick is not None:
            tick()
    return {name: Timing(name, list(times)) for name, times in zip(calls, zip(*rounds, strict=True), strict=True)}


def peak_memory(call: Call, device: torch.device | str = "cpu") -> int:
    """Measures the peak memory of one call in bytes, beyond the memory before it, results included.

    On CUDA by the allocator's counters; on CPU by PyTorch's allocator events, as the profiler sees them. Scratch space
    inside MKL and oneDNN does not go through that allocator and is not seen.
    """
    return peak_bytes(call, torch.device(device))


def environment(device: torch.device | str) -> dict[str, object]:
    """Returns device, threads and versions, which readers need to judge the numbers."""
    device = torch.device(device)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    versions["torch"] = torch.__version__  # names the build (+cpu, +cu130), which the package's metadata may leave out
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.system(),
        "load": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def warn_if_busy() -> None:
    """Warns if other processes are busy: with several threads, times then measure the scheduler."""
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        print(
            f"Warning: other processes load this machine ({os.getloadavg()[0]:.1f} of {os.cpu_count()} cores). "
            "Multi-threaded times then mean little, also as ratios. Wait, or give --threads 1."
        )


def label(device: torch.device | str) -> str:
    """Folder name for results of this device: ``cpu-2-core``, ``nvidia-h200``."""
    device = torch.device(device)
    if device.type == "cuda":
        return "-".join(torch.cuda.get_device_name(device).lower().split())
    return f"{device.type}-{torch.get_num_threads()}-core"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
