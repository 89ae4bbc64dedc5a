"""``tg.plan`` chooses input size, strategy and tokens after each block for a budget, from a few dozen images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters import find_adapter
from tokengraph.adapters.base import check_images
from tokengraph.adapters.coarse import SITE
from tokengraph.attach.resize import resizable
from tokengraph.errors import check_kind
from tokengraph.evaluate.costs import anatomy
from tokengraph.evaluate.progress import Progress
from tokengraph.evaluate.settings import Setting
from tokengraph.kinds import explains
from tokengraph.planning.bench import Bench, figures
from tokengraph.planning.budget import read_budget
from tokengraph.planning.explore import CUTS, PICKS, Explorer, Trial
from tokengraph.planning.facts import Figures, Target
from tokengraph.planning.family import Family, families
from tokengraph.planning.files import PRESERVE
from tokengraph.planning.pays import PAYS, read_pays, that_pay
from tokengraph.planning.record import Plan
from tokengraph.planning.refine import MOVES, STARTS, refine
from tokengraph.planning.similarity import similarities
from tokengraph.planning.space import Budget, Space
from tokengraph.planning.timed import in_time, start_clock, times

LEAST_IMAGES = 3
HELD_OUT = 3  # every third image is held out


@explains
def plan(
    model: nn.Module,
    images: Tensor | Iterable[Tensor],
    *,
    speedup: float | None = None,
    cost: float | None = None,
    time: float | None = None,  # noqa: A002
    tokens: int | float | None = None,
    preserve: str = "class",
    strategies: Sequence[str | Setting | Mapping[str, Any]] | str | None = None,
    resolution: bool = True,
    held_out: Tensor | Iterable[Tensor] | None = None,
    batch_size: int = 8,
    memory: dict[str, Any] | None = None,
    pays: str | Path | None = None,
    progress: bool = True,
) -> Plan:
    """Chooses where a model merges its tokens, by which strategy, and on images of which size.

    It measures on two thirds of the images: each input size alone, what one cut to half of the tokens loses after each
    block, schedules as they are published, and then schedules that curves fitted to all measurements propose by
    dynamic programming. Every new measurement corrects the curves. A local search moves removals between blocks. The
    best schedule, by the mean and the worst images, is measured again on the other third of the images.

    Args:
        model: A supported model; it runs in eval mode, on its device, and is as before at the end.
        images: ``[B, 3, H, W]``, normalised for the model, or several such batches; a few dozen, as the model will see
            them.
        speedup: Budget: the plain model's time divided by the plan's, on this device at ``batch_size``.
        cost: Budget: multiply-adds of the blocks as a share of the plain model's, merging included, in (0, 1].
        time: Budget: milliseconds of a batch of ``batch_size`` images on this device.
        tokens: Budget: patch tokens after the last block, a number or a float share of the input; cost is ignored.
        preserve: What must stay near the plain model's: ``"class"`` token (mean patch without one), ``"patches"``
            (lifted), ``"features"`` (both) or ``"logits"``.
        strategies: Names of strategies, with options as in ``"tome,reduce=mlerp"``; ``"all"`` takes all that need no
            training, ``"none"`` smaller images alone. Default: the few that measured best.
        resolution: Also tries smaller images, if positions of the model can be resampled.
        held_out: Images to measure the plan on; by default every third of ``images``.
        batch_size: Images of a run, and of timing.
        memory: A dict that keeps measurements. Give the same one again, with the same model and images, to plan for
            another budget in less time.
        pays: A file of ``benchmarks/pays.py``: strategies that by its measurements save no time on as many tokens as
            the model's input has, at its width, ``batch_size`` and threads, are left out without being measured. By
            default nothing is left out; under budgets of time every strategy is timed on this device either way.
        progress: Shows progress.

    Returns:
        The plan. If nothing meets a budget of time, or the plain model already does, it changes nothing and its notes
        say so.

    Raises:
        ValueError: If not exactly one budget is given, a budget is out of range or cannot be met, images are too few,
            or model and options do not fit.
        TypeError: For other kinds of objects.

    Cost: about 150 runs of the images (12 blocks and the default strategies), at half of the plain model's cost on
        average; a third of them stop after the first batch. A ViT-S/14 and 48 images at 224 px take about three minutes
        of one core, and two more for each further budget with the same ``memory``.

    Example:
        >>> from tokengraph.testing import tiny_vit
        >>> model, images = tiny_vit(), torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> found = plan(model, images, cost=0.7, strategies="tome", resolution=False, progress=False)
        >>> found.tokens[0], found.measured.cost <= 0.7
        (16, True)
    """
    started = perf_counter()
    budget = read_budget(speedup=speedup, cost=cost, time=time, tokens=tokens)
    if preserve not in PRESERVE:
        raise ValueError(f"Expected preserve as one of {', '.join(PRESERVE)} (got {preserve!r}).")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"Expected batch_size >= 1 (got {batch_size!r}).")
    check_kind(model, nn.Module, "model")
    tried = families(strategies)
    was_training = model.training
    model.eval()
    try:
        target, pixels = _target(model, resolution)
        tried, left_out = _that_pay(tried, pays, target, batch_size)
        ours, theirs = _split(model, images, held_out, batch_size)
        body = anatomy(model)
        assert body is not None
        space = Space(body, target, _counted(budget, target), pixels)
        bench = Bench(model, ours, preserve, body, {} if memory is None else _checked(memory, model, ours))
        with Progress(_steps(space, tried), "plan", progress) as shown:
            explorer = Explorer(bench, space, shown)
            explorer.notes += left_out
            chosen = _search(explorer, tried, _timing(ours, batch_size))
        alike = similarities(model, ours)
        found = _measured(explorer, chosen, Bench(model, theirs, preserve, body), _timing(ours, batch_size))
    finally:
        model.train(was_training)
    return replace(
        found,
        preserve=preserve,
        budget={budget.kind: budget.value},
        similarity=alike,
        seconds=round(perf_counter() - started, 1),
    )


def _target(model: nn.Module, resolution: bool) -> tuple[Target, int]:
    """Describes the model; also returns the pixels of a patch, 0 if its input size stays.

    Raises:
        ValueError: If the model is unsupported or attached.
    """
    if any(SITE in m.__dict__ for m in model.modules()):
        raise ValueError("Expected a plain model (got one with a strategy attached). Call handle.remove() first.")
    core, adapter = find_adapter(model)
    grid = adapter.grid(core)
    side = grid[0] if len(grid) == 2 and grid[0] == grid[1] else 0
    target = Target(type(model).__name__, len(adapter.blocks(core)), adapter.channels(core), side, math.prod(grid))
    if not resolution or not side or not resizable(core, adapter):
        return target, 0
    embedding = adapter.embedding(core)
    pixels = next((p for p in range(1, 129) if adapter.image_grid(embedding, torch.empty(1, 3, p, p)) == (1, 1)), 0)
    return target, pixels


def _that_pay(
    tried: list[Family], pays: str | Path | None, target: Target, batch_size: int
) -> tuple[list[Family], list[str]]:
    """Leaves out strategies that do not pay by the user's table; returns notes about them."""
    if pays is None:
        return tried, []
    facts = {"tokens": target.patches, "channels": target.channels, "batch": batch_size}
    return that_pay(tried, read_pays(pays), **facts, threads=torch.get_num_threads())


def _split(model: nn.Module, images: Any, held_out: Any, batch_size: int) -> tuple[list[Tensor], list[Tensor]]:
    """Returns batches to plan on and to measure on."""
    ours = _joined(images, "images")
    if held_out is None:
        if len(ours) < LEAST_IMAGES:
            raise ValueError(
                f"Expected at least {LEAST_IMAGES} images (got {len(ours)}). A few dozen make a good plan."
            )
        held = torch.arange(len(ours)) % HELD_OUT == HELD_OUT - 1
        ours, theirs = ours[~held], ours[held]
    else:
        theirs = _joined(held_out, "held_out")
    like = next(model.parameters())
    return tuple([b.to(like.device, like.dtype) for b in part.split(batch_size)] for part in (ours, theirs))  # type: ignore[return-value]


def _checked(memory: dict[str, Any], model: nn.Module, batches: Sequence[Tensor]) -> dict[str, Any]:
    """Returns the outcomes in a user's memory, and marks it with model and images.

    Raises:
        ValueError: If it has measurements of other ones.
    """
    weights = float(sum(p.detach().double().sum() for p in model.parameters()))
    facts = type(model).__name__, weights, [float(b.double().sum()) for b in batches]
    if memory.setdefault("facts", facts) != facts:
        raise ValueError("Expected a memory of the same model and images (got one of others). Give a new dict.")
    return memory.setdefault("outcomes", {})


def _joined(images: Any, what: str) -> Tensor:
    if not isinstance(images, Iterable):
        raise TypeError(f"Expected {what} as tensors [B, 3, H, W] (got {type(images).__name__}).")
    batches = [images] if isinstance(images, Tensor) else list(images)
    for batch in batches:
        if not isinstance(batch, Tensor):
            raise TypeError(f"Expected {what} as tensors [B, 3, H, W] (got {type(batch).__name__}).")
        check_images(batch)
    if not sum(len(b) for b in batches):
        raise ValueError(f"Expected at least one image in {what} (got none).")
    if len({tuple(b.shape[1:]) for b in batches}) > 1:
        raise ValueError(f"Expected {what} of one size (got {sorted({tuple(b.shape[1:]) for b in batches})}).")
    return torch.cat(batches)


def _counted(budget: Budget, target: Target) -> Budget:
    """Resolves a budget of tokens for the model's input."""
    if budget.kind != "tokens":
        return budget
    value = budget.value
    count = int(value) if isinstance(value, int) else max(1, round(value * target.patches))
    if count > target.patches:
        raise ValueError(f"Expected tokens <= {target.patches}, the model's patches (got {value}).")
    return replace(budget, tokens=count)


def _steps(space: Space, tried: Sequence[Family]) -> int:
    return 20 + len(tried) * (min(CUTS, space.target.depth) + 5) + 2 * PICKS + STARTS * MOVES


def _timing(batches: Sequence[Tensor], batch_size: int) -> Tensor:
    """Returns a full batch to time."""
    batch = batches[0]
    return batch[torch.arange(batch_size, device=batch.device) % len(batch)]


def _search(explorer: Explorer, tried: Sequence[Family], batch: Tensor) -> Trial | None:
    """Returns the best schedule that was measured; ``None`` if none meets the budget, or the plain model does."""
    space, budget = explorer.space, explorer.space.budget
    if budget.timed:
        start_clock(explorer, tried, batch)
    if space.fits(space.alone(space.target.side), None):
        explorer.notes.append("The plain model meets the budget: nothing to change.")
        return None
    explorer.run(tried)
    refine(explorer)
    if not budget.timed:
        if explorer.best() is None:
            raise ValueError(
                f"Expected a budget that can be met (got {budget.kind}={budget.value:g}). The model's smallest images "
                "and these strategies cost more. Try a larger budget, other strategies or resolution=True."
            )
        return explorer.best()
    return in_time(explorer, batch)


def _measured(explorer: Explorer, chosen: Trial | None, held: Bench, batch: Tensor) -> Plan:
    """Returns the plan with its figures on held-out images, and its time."""
    from tokengraph import __version__

    space = explorer.space
    plain = explorer.plan(None, space.target.side, space.alone(space.target.side))
    bare = plain if chosen is None else explorer.plan(chosen.family, chosen.side, chosen.tokens)
    if bare.plain:
        return replace(bare, notes=tuple(explorer.notes), sensitivity=explorer.sensitivity, version=__version__)
    spent = times(explorer, [plain, bare], batch)
    assert chosen is not None
    if spent[0] is not None and spent[1] is not None and spent[0] / spent[1] < PAYS:
        explorer.notes.append(
            f"On this device, at batches of {len(batch)}, it is no faster than the plain model "
            f"({spent[1]:.1f} ms for {spent[0]:.1f} ms)."
        )
    known = spent if None not in spent else None
    return replace(
        bare,
        predicted=_predicted(explorer, chosen, held.preserve),
        measured=figures(held.run(bare), known),
        sensitivity=explorer.sensitivity,
        notes=tuple(explorer.notes),
        version=__version__,
    )


def _predicted(explorer: Explorer, chosen: Trial, preserve: str) -> Figures:
    """Returns what the search predicted: the loss of the curves, or else of the images that were planned on."""
    space, loss = explorer.space, chosen.measured.loss if chosen.predicted is None else chosen.predicted
    made = Figures(cost=space.share(chosen.tokens, chosen.family), loss=loss)
    key = {"class": "class_cosine", "patches": "patch_cosine", "logits": "kl"}.get(preserve)
    if key is not None:
        made = replace(made, **{key: loss if key == "kl" else 1 - loss})
    if space.clock is not None:
        spent = space.spent(chosen.tokens, chosen.family)
        made = replace(made, ms=spent, speedup=space.clock.plain / spent)
    return made
