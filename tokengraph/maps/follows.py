"""What may come after a hard map: the product of two maps is of the second one's kind."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

Map = TypeVar("Map", covariant=True)


class Follows(Protocol[Map]):
    """A map that may come after a hard one."""

    def after(self, first: Any) -> Map:
        """The map that the hard map ``first`` and then this one make."""
        ...
