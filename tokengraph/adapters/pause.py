"""Restores the plain model temporarily; attached strategies come back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from tokengraph.adapters.coarse import SITE


@contextmanager
def paused(model: nn.Module) -> Iterator[nn.Module]:
    """Restores modules' own classes and removes tokengraph's hooks until the end of the ``with``.

    Sites, parts and records stay in place. This works for every kind of attachment, for copies, and for a pause within
    a pause. Attachments removed during the pause do not come back.

    Args:
        model: Any module; pauses every attachment in it.

    Yields:
        The model.

    Cost: one pass over the modules and their hooks.
    """
    sites = [(m, m.__dict__[SITE], type(m)) for m in model.modules() if SITE in m.__dict__]
    swapped = [(m, site.original, kind) for m, site, kind in sites if site.original not in (None, kind)]
    changed = [(m, site.values, {k: getattr(m, k) for k in site.values}) for m, site, _ in sites if site.values]
    tables = [table for m in model.modules() for table in (m._forward_hooks, m._forward_pre_hooks)]
    hooked = [(table, list(table.items())) for table in tables if any(map(_is_ours, table.values()))]
    for module, original, _ in swapped:
        module.__class__ = original
    for module, values, _ in changed:
        _set(module, values)
    for table, entries in hooked:
        for key, hook in entries:
            if _is_ours(hook):
                del table[key]
    try:
        yield model
    finally:
        if all(m.__dict__.get(SITE) is site for m, site, _ in sites):  # else it was removed during the pause
            for module, _, kind in swapped:
                module.__class__ = kind
            for module, _, values in changed:
                _set(module, values)
            for table, entries in hooked:
                _put_back(table, entries)


def is_paused(model: nn.Module) -> bool:
    """Returns whether something is attached to ``model``, and paused. Cost: one look at every module."""
    swapped = [(m, m.__dict__[SITE].original) for m in model.modules() if SITE in m.__dict__]
    known = [(m, original) for m, original in swapped if original is not None]
    return bool(known) and all(type(m) is original for m, original in known)


def _is_ours(hook: Any) -> bool:
    return bool(getattr(hook, "of_tokengraph", False))


def _set(module: nn.Module, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(module, name, value)


def _put_back(table: Any, entries: list[tuple[int, Any]]) -> None:
    """Puts hooks back in their old order; hooks that the user removed stay removed, and new ones come last."""
    now = dict(table)
    table.clear()
    for key, hook in entries:
        if _is_ours(hook) or key in now:
            table[key] = hook
    table.update({key: hook for key, hook in now.items() if key not in table})
