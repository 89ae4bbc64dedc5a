"""Names of the strategies: those of this package, and all others of the library."""

from __future__ import annotations

from tokengraph.select.base import Select
from tokengraph.select.base import resolve as resolve_any
from tokengraph.vlm.selectors.dpp import DPP
from tokengraph.vlm.selectors.duplicates import Duplicates
from tokengraph.vlm.selectors.lower_resolution import LowerResolution
from tokengraph.vlm.selectors.tower_output import PruMerge, Received, VisionZip

OWN: dict[str, type[Select]] = {
    "cdpruner": DPP,
    "dart": Duplicates,
    "dpp": DPP,
    "duplicates": Duplicates,
    "fastv": Received,
    "lower-resolution": LowerResolution,
    "prumerge": PruMerge,
    "received": Received,
    "visionzip": VisionZip,
}


def resolve(select: str | type[Select] | Select) -> Select:
    """Returns an instance of a strategy given by name, class or instance; see :func:`tokengraph.resolve`."""
    if isinstance(select, str) and (own := OWN.get(select.lower().replace("_", "-"))) is not None:
        return own()
    try:
        return resolve_any(select)
    except ValueError as error:
        raise ValueError(f"{error} For visual tokens also: {', '.join(OWN)}.") from None
