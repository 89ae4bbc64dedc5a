"""When a strategy acts in a run, and down to how many tokens of each image."""

from __future__ import annotations

from tokengraph.attach.site import Site
from tokengraph.attach.state import State


def plans(site: Site, state: State) -> tuple[list[int], ...] | None:
    """The schedule worked out for each image's own number of patches; ``None`` where one holds for all."""
    if state.one_grid is not None:
        return None
    made = {patches: site.plan(patches) for patches in {h * w for h, w in state.grids or ()}}
    return tuple(made[h * w] for h, w in state.grids or ())


def budget(site: Site, state: State, finished: int) -> int | list[int]:
    """Patch tokens to have left once ``finished`` blocks are done; one number an image where that differs."""
    if state.plans is None:
        return site.plan(state.patches)[finished]
    keep = [plan[finished] for plan in state.plans]
    return keep[0] if len(set(keep)) == 1 else keep


def acts(site: Site, state: State, finished: int, keep: int | list[int]) -> bool:
    """Whether the strategy acts on any image. Before everything comes back, dropping would change nothing."""
    return not ends_whole(site, finished) and any(
        site.recipe.select.acts(finished, k, n) for k, n in pairs(state, keep)
    )


def restores(site: Site, state: State, finished: int, keep: int | list[int]) -> bool:
    """Whether every patch comes back once ``finished`` blocks are done."""
    if ends_whole(site, finished):
        return state.coarse
    if finished in site.recipe.again or not any(k > n for k, n in pairs(state, keep)):
        return False
    plans = (site.plan(state.patches),) if state.plans is None else state.plans
    return any(plan[finished] > plan[finished - 1] for plan in plans)


def comes_again(site: Site, state: State, finished: int) -> bool:
    """Whether every patch comes back once ``finished`` blocks are done, before the strategy chooses again."""
    return finished in site.recipe.again and state.coarse and not ends_whole(site, finished)


def ends_whole(site: Site, finished: int) -> bool:
    """Whether this is the last block, all patches are wanted, and the strategy stored those that left.

    They then come back before the final norm: behind it, what was stored would not fit.
    """
    wanted = site.recipe.lift or site.trace.whole
    return wanted and finished == site.trace.depth and site.recipe.select.stores


def pairs(state: State, keep: int | list[int]) -> list[tuple[int, int]]:
    """Budget and tokens of each image; once where all are alike."""
    if state.counts is None and not isinstance(keep, list):
        return [(keep, state.count)]
    counts = state.counts or (state.count,) * state.images
    return list(zip(keep if isinstance(keep, list) else [keep] * len(counts), counts, strict=True))
