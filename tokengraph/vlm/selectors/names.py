"""Names of the strategies: those of this package, and all others of the library."""

from __future__ import annotations

from tokengraph.select.base import Select
from tokengraph.select.base import resolve as resolve_any

OWN: dict[str, type[Select]] = {}


def resolve(select: str | type[Select] | Select) -> Select:
    """Returns an instance of a strategy given by name, class or instance; see :func:`tokengraph.resolve`."""
    if isinstance(select, str) and (own := OWN.get(select.lower().replace("_", "-"))) is not None:
        return own()
    return resolve_any(select)
