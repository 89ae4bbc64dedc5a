"""The handle that ``attach`` returns for every kind of strategy."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from tokengraph.adapters.pause import paused
from tokengraph.attach.changes import undo

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(eq=False, repr=False)
class Handle:
    """A strategy attached to a model. Calling it calls the model; as a context manager it detaches at the end.

    Attributes:
        model: The user's model, changed in place.
        trace: The record of the model's last run.
        select: The strategy, bound to the model.
    """

    model: nn.Module
    trace: Any
    select: Any

    def remove(self) -> None:
        """Restores the model. A second call does nothing, even if another strategy was attached since."""
        undo(self.model, self.trace)

    def paused(self) -> AbstractContextManager[nn.Module]:
        """Restores the plain model temporarily, for example for an evaluation inside training.

        ``with handle.paused() as model:`` gives the model with its own classes and without tokengraph's hooks. At the
        end everything is attached again, and the record of the last run is still there.

        Cost: one pass over the model's modules.
        """
        return paused(self.model)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, {self.select!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model."""
        return self.model(*args, **kwargs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()
