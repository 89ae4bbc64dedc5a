"""What the dense examples share: strategies, sliding windows; quality, FLOPs and time of backbone and whole model."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tokengraph as tg


def effort(text: str, images: int) -> tuple[int, int, int]:
    """Reads the command line of an example: steps of training, rounds of timing, and images to measure on."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5, help="of timing")
    parser.add_argument("--quick", action="store_true", help="2 steps, 1 round, 1 image")
    args = parser.parse_args()
    return (2, 1, 1) if args.quick else (args.steps, args.rounds, images)


def slide(predict: Callable[[Tensor], Tensor], images: Tensor, side: int, stride: int) -> Tensor:
    """Averages the logits ``[n, K, side, side]`` of windows that slide over images ``[B, 3, H, W]``, all one batch."""
    starts = [[*range(0, length - side, stride), length - side] for length in images.shape[2:]]
    places = [(slice(None), slice(None), slice(y, y + side), slice(x, x + side)) for y in starts[0] for x in starts[1]]
    logits = predict(torch.cat([images[place] for place in places])).chunk(len(places))
    total = images.new_zeros(images.size(0), logits[0].size(1), *images.shape[2:])
    times = images.new_zeros(images.shape[2:])
    for place, part in zip(places, logits, strict=True):
        total[place] += part
        times[place[2:]] += 1
    return total / times


def ways(after: int, depth: int, clusters: tuple[int, int]) -> dict[str, Any]:
    """Clusters after block ``after``; every patch is back after the last of ``depth`` blocks, before the head."""
    return {
        "plain": None,
        "AiluRus": (tg.AiluRus(), {after: 0.5, depth: "reconstruct"}),
        "Expedite": (tg.Expedite(clusters=clusters), {after: "cluster", depth: "reconstruct"}),
        "MPM": (tg.MPM(layers=(after, after + 1)),),
    }


@dataclass
class Meter:
    """Seconds and FLOPs between the start of one module and the end of another."""

    first: nn.Module
    last: nn.Module
    counter: FlopCounterMode = field(default_factory=lambda: FlopCounterMode(display=False))
    seconds: float = 0.0
    flops: int = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        def now(sign: int) -> None:
            self.seconds += sign * time.perf_counter()
            self.flops += sign * self.counter.get_total_flops()

        self.seconds, self.flops = 0.0, 0
        hooks = (
            self.first.register_forward_pre_hook(lambda *_: now(-1)),
            self.last.register_forward_hook(lambda *_: now(1)),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def compare(
    model: nn.Module,
    meter: Meter,
    ways: dict[str, Any],
    run: Callable[[], Any],
    score: Callable[[Any], float],
    rounds: int,
) -> None:
    """Prints quality, FLOPs and time of backbone and of the whole, in interleaved rounds over the plain model."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    flops, quality = {}, {}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            with torch.no_grad(), tg.attach(model, *way, lift=True) if way else nullcontext(), meter.running():
                if turn == 0:  # also warms up; only attention by separate products is counted
                    with sdpa_kernel(SDPBackend.MATH), meter.counter:
                        quality[name] = score(run())
                        flops[name] = meter.flops / 1e9, meter.counter.get_total_flops() / 1e9
                    continue
                start = time.perf_counter()
                run()
                times[name].append((meter.seconds, time.perf_counter() - start))
    for name in ways:
        over = [[a[i] / b[i] for a, b in zip(times[name], times["plain"], strict=True)] for i in (0, 1)]
        backbone, whole = (statistics.median(ratios) if ratios else float("nan") for ratios in over)
        print(
            f"{name:9s} quality {quality[name]:.3f}  backbone {flops[name][0]:.2f} GFLOPs, time {backbone:.2f} of plain"
            f"  whole {flops[name][1]:.2f} GFLOPs, time {whole:.2f} of plain"
        )
