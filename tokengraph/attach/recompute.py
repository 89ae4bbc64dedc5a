"""Gradient checkpointing runs blocks again during backward. This finds the run they belong to."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Generic, TypeVar

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from tokengraph.adapters.base import InputShape
from tokengraph.nn.modes import backward_task

RUNS = 8  # runs whose blocks may wait for their backward

S = TypeVar("S")


class Recompute(Generic[S]):
    """Keeps states of earlier runs for gradient checkpointing, and the states that backward recomputes.

    A checkpointed block finds the state of its tokens by the storage of its input, which its checkpoint keeps alive. A
    checkpoint around the whole model starts a new run inside backward, kept apart from the model's last run.
    """

    def __init__(self) -> None:
        self._entered: OrderedDict[tuple[int, int, int], tuple[StorageWeakRef, S]] = OrderedDict()
        self._task = -1
        self._states: dict[int, S] = {}
        self._shape: InputShape | None = None

    def remember(self, index: int, x: Tensor, state: S, most: int) -> None:
        """Keeps the state of ``x``, the input of block ``index``; at most the last ``most`` entries stay."""
        try:
            storage = x.untyped_storage()
        except (NotImplementedError, RuntimeError):  # torch.func tensors have no storage and no checkpoints
            return
        ref = StorageWeakRef(storage)  # no other storage takes this id while the entry lives
        key = (index, ref.cdata, int(x.storage_offset()))
        self._entered[key] = ref, state
        self._entered.move_to_end(key)
        while len(self._entered) > most:
            self._entered.popitem(last=False)

    def find(self, index: int, x: Tensor) -> S | None:
        """Returns the state kept for these tokens, or ``None``."""
        found = self._entered.get((index, x.untyped_storage()._cdata, int(x.storage_offset())))
        return None if found is None else found[1]

    def let_go(self) -> None:
        """Drops entries whose tensors have been freed."""
        for key in [k for k, (ref, _) in self._entered.items() if ref.expired()]:
            del self._entered[key]

    def write(self, layer: int, state: S) -> None:
        """Stores the state after ``layer`` blocks of the run that this backward pass recomputes."""
        self._follow()
        self._states[layer] = state

    def read(self, layer: int) -> S | None:
        """Returns the state that :meth:`write` stored; ``None`` outside backward, or if nothing was recomputed."""
        return self._states.get(layer) if self._states and backward_task() == self._task else None

    def note(self, shape: InputShape) -> None:
        """Stores the shape of the images of a run that begins within this backward pass."""
        self._follow()
        self._states.clear()
        self._shape = shape

    def shape(self) -> InputShape | None:
        """Returns the shape that :meth:`note` stored; ``None`` outside backward, or if no run began there."""
        return self._shape if self._shape is not None and backward_task() == self._task else None

    def _follow(self) -> None:
        if (task := backward_task()) != self._task:
            self._task, self._states, self._shape = task, {}, None

    def __reduce__(self) -> Any:
        return Recompute, ()
