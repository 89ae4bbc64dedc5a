"""The plain model for a while, with everything that is attached still in place afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from tokengraph.adapters.coarse import SITE


@contextmanager
def paused(model: nn.Module) -> Iterator[nn.Module]:
    """Gives modules their own classes back and takes tokengraph's hooks off, until the end of the ``with``.

    Sites, parts and records stay, so that it serves every kind of attachment, copies, and a pause within a pause. What
    was removed meanwhile is not put back.

    Args:
        model: Any module; those in it that carry something of tokengraph are paused.

    Yields:
        The model.

    Cost: one look at every module and its hooks.
    """
    sites = [(m, m.__dict__[SITE], type(m)) for m in model.modules() if SITE in m.__dict__]
    swapped = [(m, site.original, kind) for m, site, kind in sites if site.original not in (None, kind)]
    tables = [table for m in model.modules() for table in (m._forward_hooks, m._forward_pre_hooks)]
    hooked = [(table, list(table.items())) for table in tables if any(map(_is_ours, table.values()))]
    for module, original, _ in swapped:
        module.__class__ = original
    for table, entries in hooked:
        for key, hook in entries:
            if _is_ours(hook):
                del table[key]
    try:
        yield model
    finally:
        if all(m.__dict__.get(SITE) is site for m, site, _ in sites):  # else it was removed in between
            for module, _, kind in swapped:
                module.__class__ = kind
            for table, entries in hooked:
                _put_back(table, entries)


def is_paused(model: nn.Module) -> bool:
    """Returns whether something is attached to ``model``, and paused. Cost: one look at every module."""
    swapped = [(m, m.__dict__[SITE].original) for m in model.modules() if SITE in m.__dict__]
    known = [(m, original) for m, original in swapped if original is not None]
    return bool(known) and all(type(m) is original for m, original in known)


def _is_ours(hook: Any) -> bool:
    return bool(getattr(hook, "of_tokengraph", False))


def _put_back(table: Any, entries: list[tuple[int, Any]]) -> None:
    """Hooks in their old order; those that the user took off stay off, and new ones come last."""
    now = dict(table)
    table.clear()
    for key, hook in entries:
        if _is_ours(hook) or key in now:
            table[key] = hook
    table.update({key: hook for key, hook in now.items() if key not in table})
