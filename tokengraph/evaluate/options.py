"""The options of an evaluation's run."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Options:
    """The options of an evaluation's run.

    Args:
        batch_size: Images a batch.
        chunk: Images between two saves; an interruption loses at most this many of one setting.
        limit: Largest number of images, drawn with ``seed``; ``None`` takes all.
        device: Device of the model; by default CUDA if it is available.
        amp: ``"bfloat16"`` or ``"float16"`` runs under autocast; ``None`` does not.
        time: Measures time of plain, attached and ideal models in turn.
        time_batch: Images in the timed batch; by default ``batch_size``, at most 8 on CPU.
        time_rounds: Largest number of timing rounds.
        memory: Measures peak memory of a run.
        resamples: Bootstrap samples of the intervals.
        seed: Seed of subsets, folds and bootstrap.
        folds: Folds of a probe without training images of its own.
        l2: Weight decay of the linear probe.
        neighbors: Neighbours of the nearest-neighbour probe.
        map_images: The most images that the map of ``probe_mapped`` is fitted on; of more it takes evenly spaced ones.
        workers: Threads that read images ahead.
        progress: Shows progress.

    Raises:
        ValueError: For a number that is too small.
    """

    batch_size: int = 32
    chunk: int = 128
    limit: int | None = None
    device: str | torch.device | None = None
    amp: str | None = None
    time: bool = True
    time_batch: int | None = None
    time_rounds: int = 7
    memory: bool = True
    resamples: int = 2000
    seed: int = 0
    folds: int = 5
    l2: float = 0.01
    neighbors: int = 20
    map_images: int = 2048
    workers: int = 2
    progress: bool = True

    def __post_init__(self) -> None:
        least = {
            "batch_size": 1,
            "chunk": 1,
            "time_rounds": 3,
            "resamples": 10,
            "folds": 2,
            "neighbors": 1,
            "map_images": 3,
            "workers": 0,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"Expected {name} >= {low} (got {getattr(self, name)}).")
        if self.time_batch is not None and self.time_batch < 1:
            raise ValueError(f"Expected time_batch >= 1 (got {self.time_batch}).")
        if self.l2 < 0:
            raise ValueError(f"Expected l2 >= 0 (got {self.l2}).")
        if self.amp not in (None, "bfloat16", "float16"):
            raise ValueError(f"Expected amp as bfloat16 or float16 (got {self.amp!r}).")

    def timed(self, device: torch.device) -> int:
        """Images in the batch that is timed: on CPU larger ones only take longer."""
        return self.time_batch or (min(self.batch_size, 8) if device.type == "cpu" else self.batch_size)

    def place(self, local_rank: int = 0) -> torch.device:
        """The device of this process.

        Raises:
            ValueError: If the requested device is not available.
        """
        if self.device is not None:
            wanted = torch.device("cuda", local_rank) if str(self.device) == "cuda" else self.device
            try:
                return torch.zeros(1, device=wanted).device
            except (AssertionError, RuntimeError) as error:  # no such kind, no driver, no such number
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ValueError(f"Expected an available device (got {str(self.device)!r}: {reason})") from error
        return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
