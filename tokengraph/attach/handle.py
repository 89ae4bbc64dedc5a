"""What attach gives back, whatever was attached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from tokengraph.attach.changes import undo

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(eq=False)
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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model."""
        return self.model(*args, **kwargs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()
