"""Several processes of torchrun that share one folder: each takes its chunks, one writes the report."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

PATIENCE = timedelta(days=7)  # a process may have far more to do than another


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run.

    Args:
        rank: Its number.
        world: How many there are.
        local: Its number on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this one writes what is common to all."""
        return self.rank == 0

    def mine(self, index: int) -> bool:
        """Whether part ``index`` is this process's."""
        return index % self.world == self.rank

    def wait(self) -> None:
        """Waits until all have come here."""
        if self.world > 1:
            dist.barrier()


def find_ranks() -> Ranks:
    """Reads ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK`` as torchrun sets them; joins the others over gloo."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if not dist.is_available():
        return Ranks()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", 1)) < 2:
            return Ranks()
        dist.init_process_group("gloo", timeout=PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size(), local)
