"""Divides chunks among torchrun's processes, which share one folder; the first process writes the report."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

PATIENCE = timedelta(days=7)  # one process may have far more work than another


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run.

    Args:
        rank: Its number among all processes.
        world: Number of processes.
        local: Its number on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """True for the process that writes shared files."""
        return self.rank == 0

    def mine(self, index: int) -> bool:
        """Returns whether part ``index`` belongs to this process."""
        return index % self.world == self.rank

    def wait(self) -> None:
        """Waits until every process calls this."""
        if self.world > 1:
            dist.barrier()


def find_ranks() -> Ranks:
    """Reads torchrun's ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``; joins the other processes over gloo."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if not dist.is_available():
        return Ranks()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", 1)) < 2:
            return Ranks()
        dist.init_process_group("gloo", timeout=PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size(), local)
