"""What attach gives back, whatever was attached."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from tokengraph.attach.changes import undo
from tokengraph.attach.pause import paused

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(eq=False, repr=False)
class Handle:
    """Something attached to a model. Calling it calls the model; as a context manager it detaches at the end.

    Attributes:
        model: The model that was given, changed in place.
        trace: The record of the model's last run.
        select: The strategy, as it was bound to the model.
    """

    model: nn.Module
    trace: Any
    select: Any

    def remove(self) -> None:
        """Gives the model back as it was. Calling it again does nothing, whoever has attached something since."""
        undo(self.model, self.trace)

    def paused(self) -> AbstractContextManager[nn.Module]:
        """The plain model for a while, for example for an evaluation inside training.

        ``with handle.paused() as model:`` gives the model with its own classes and without tokengraph's hooks; at the
        end everything is attached again, and the record of the last run is still there.

        Cost: one look at every module.
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
