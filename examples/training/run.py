"""Parts that any training needs: processes that share a batch, a log, and checkpoints for exact resumption."""

import argparse
import gc
import json
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Options that a resumed run takes from the checkpoint.
SETTINGS = ("images", "batch", "lr", "epochs", "frozen", "keep", "ratio_weight", "seed", "amp", "checkpoint_blocks")


class Processes:
    """The processes started by torchrun, or this one alone. Each takes its rows of one global batch."""

    def __init__(self, batch: int) -> None:
        if "WORLD_SIZE" in os.environ:
            dist.init_process_group("gloo")
        self.rank, self.count = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if batch % self.count:
            raise ValueError(f"Expected a batch that {self.count} processes can share evenly (got {batch}).")

    def share(self, rows: Tensor) -> Tensor:
        return rows.chunk(self.count)[self.rank]

    def mean(self, values: Tensor) -> Tensor:
        if self.count > 1:
            dist.all_reduce(values)
        return values / self.count

    def wrap(self, module: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(module) if self.count > 1 else module

    def close(self) -> None:
        if dist.is_initialized():
            gc.collect()  # a DistributedDataParallel that outlives its group may hang
            dist.destroy_process_group()


class Run:
    """The state of the whole training: its log, its random numbers, and its checkpoints."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.saved: dict[str, Any] = {} if args.resume is None else torch.load(args.resume, weights_only=True)
        for name, value in self.saved.get("settings", {}).items():
            setattr(args, name, value)
        self.args, self.processes, self.epochs_left = args, Processes(args.batch), args.stop_after
        torch.manual_seed(args.seed)  # for weights
        self.generator = torch.Generator().manual_seed(args.seed)  # for order and noise, equal on all processes
        self.rows: list[dict[str, Any]] = self.saved.get("rows", [])  # one per step
        self.dense: dict[str, Tensor] = self.saved.get("dense", {})
        self.first = self.processes.rank == 0
        if self.first:
            args.out.mkdir(parents=True, exist_ok=True)
            self._write(self.rows, "w")

    def finish_epoch(self, rows: list[dict[str, Any]], task: Any, optimizer: Any, schedule: Any, epoch: int) -> None:
        """Logs the epoch's steps, and saves the state that the next epoch needs."""
        self.rows += rows
        self.epochs_left -= 1
        if not self.first:
            return
        self._write(rows, "a")
        state = {name: part.state_dict() for name, part in _parts(task, optimizer, schedule).items()}
        state |= {"phase": task.name, "epoch": epoch, "rows": self.rows, "dense": self.dense}
        state |= {"generator": self.generator.get_state(), "random": torch.get_rng_state()}
        own = getattr(self.args, "settings", ())  # those of the script
        state["settings"] = {name: getattr(self.args, name) for name in (*SETTINGS, *own)}
        torch.save(state, self.args.out / "checkpoint.tmp")
        os.replace(self.args.out / "checkpoint.tmp", self.args.out / "checkpoint.pt")  # atomic

    def restore(self, task: Any, optimizer: Any, schedule: Any) -> int:
        """Loads the checkpoint if it belongs to this task, and returns the number of finished epochs."""
        if self.saved.get("phase") != task.name:
            return 0
        for name, part in _parts(task, optimizer, schedule).items():
            part.load_state_dict(self.saved[name])
        self.generator.set_state(self.saved["generator"])
        torch.set_rng_state(self.saved["random"])
        return self.saved["epoch"]

    def finish(self, done: bool) -> None:
        """Says how to go on with a training that was stopped, and lets the processes go."""
        if self.first and not done:
            print(f"To go on: --resume {self.args.out / 'checkpoint.pt'}")
        self.processes.close()

    def _write(self, rows: list[dict[str, Any]], mode: str) -> None:
        with (self.args.out / "log.jsonl").open(mode) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def _parts(task: Any, optimizer: Any, schedule: Any) -> dict[str, Any]:
    return {"model": task.model, "optimizer": optimizer, "schedule": schedule}
