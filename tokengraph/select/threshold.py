"""Base class of methods whose own threshold decides how many tokens stay: their layers, and the fewest tokens."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from tokengraph.schedule import Relative, Schedule
from tokengraph.select.base import Select


class ThresholdSelect(Select):
    """A strategy with layers of its own, after which images may keep different numbers of tokens.

    Without a schedule it acts at :meth:`own_layers`. A schedule gives other layers and the fewest tokens that each
    image keeps: ``{2: 49}`` acts once 2 blocks are finished and leaves 49 or more.
    """

    ragged: ClassVar[bool] = True
    _at: tuple[int, ...] | None = None

    @abstractmethod
    def own_layers(self) -> tuple[int, ...]:
        """Returns the numbers of finished blocks at which it acts without a schedule."""

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """Returns the strategy for a model of ``depth`` blocks, and its schedule; see :meth:`tokengraph.Select.bind`.

        Raises:
            ValueError: If a layer of its own is outside of the model.
        """
        own, first = self.own_layers(), 0 if self.placement == "before" else 1
        if schedule is None:
            if any(not first <= layer <= depth for layer in own):
                raise ValueError(
                    f"Expected layers in [{first}, {depth}] for {type(self).__name__} (got {list(own)}). Give it "
                    "layers of this model, or a schedule."
                )
            at, schedule = own, dict.fromkeys(own, 1)
        elif isinstance(schedule, Relative):
            at = tuple(layer for layer, _ in schedule.shares)
        elif isinstance(schedule, Mapping):
            at = tuple(int(layer) for layer in schedule)
        else:
            at = tuple(range(1, depth + 1))
        bound = copy.copy(self)
        object.__setattr__(bound, "_at", at)  # also where the dataclass is frozen
        return bound, schedule

    @property
    def acting_layers(self) -> tuple[int, ...]:
        """The layers of the schedule that ``attach`` was given, or else its own."""
        return self.own_layers() if self._at is None else self._at

    def acts(self, finished: int, keep: int, count: int) -> bool:
        """At its layers alone; see :meth:`tokengraph.Select.acts`."""
        return keep < count and finished in self.acting_layers
