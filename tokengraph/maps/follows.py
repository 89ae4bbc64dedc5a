"""The type of maps that can come after a hard map; the composed map has the type of the second."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

Map = TypeVar("Map", covariant=True)


class Follows(Protocol[Map]):
    """A map that may come after a hard one."""

    def after(self, first: Any) -> Map:
        """Returns the composition: the hard map ``first``, then this one."""
        ...
