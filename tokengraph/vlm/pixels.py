"""Fewer units before the tower of Qwen2.5-VL and Qwen3-VL: those whose pixels are there already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.vlm.columns import check_prompt
from tokengraph.vlm.embeds import takes_encoder_outputs
from tokengraph.vlm.families.find import find_base, find_family
from tokengraph.vlm.families.mrope import merge_size
from tokengraph.vlm.packed_arguments import packed_arguments
from tokengraph.vlm.prompt import Prompt
from tokengraph.vlm.record import Group, Record, Reduction
from tokengraph.vlm.reduce import ReducedInputs
from tokengraph.vlm.rows import Reduced
from tokengraph.vlm.visual import Visual

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@explains
def drop_duplicates(model: Any, inputs: Mapping[str, Any], *, tolerance: float = 0.0) -> ReducedInputs:
    """Leaves units of pixels out that repeat others of their image or video, before the tower sees them.

    A unit is a square of patches that becomes one token, 28 x 28 pixels in Qwen2.5-VL. Blank margins, plain
    backgrounds and still parts of a video repeat; photographs hardly do. Every unit that remains keeps its place, in
    the tower and in the prompt. Nothing is patched: the tower takes the places as arguments.

    Args:
        model: Qwen2.5-VL or Qwen3-VL, or one with their tower.
        inputs: The processor's output, with ``pixel_values`` and ``image_grid_thw`` (``pixel_values_videos`` and
            ``video_grid_thw``).
        tolerance: 0: units repeat if all their values are equal, wherever they are in the image or video. Above: if
            no value differs by more than this from the unit that remains for the left, the upper or, in a video, the
            earlier neighbour; in normalised pixels, where one grey level is about 0.015.

    Returns:
        As :func:`tokengraph.vlm.reduce`; the record's ``lift`` gives a dropped unit the row of the one it repeats.

    Raises:
        ValueError: If the tower takes no such arguments, inputs have no pixels or do not fit, or ``tolerance`` is
            negative.

    Cost: one pass over the pixels, and a sort; with a tolerance a few operations on the host for each unit that
    resembles a neighbour. The tower then runs on the units that remain.
    """
    if not tolerance >= 0:
        raise ValueError(f"Expected tolerance >= 0 (got {tolerance}).")
    base = find_base(model)
    family = find_family(base)
    ids, mask = check_prompt(inputs)
    takes = takes_encoder_outputs(model, base, deep=True)
    assert takes
    present = [m for m, name in PIXELS.items() if inputs.get(name) is not None]
    if not present or any(inputs.get(f"{m}_grid_thw") is None for m in present):
        raise ValueError(
            f"Expected inputs with pixel_values and image_grid_thw, or those of videos (got "
            f"{', '.join(sorted(inputs))})."
        )
    prompt, side, done, outputs = Prompt(base, family, inputs, ids, mask), merge_size(base), [], {}
    chosen = []
    for modality in present:
        pixels, grid = inputs[PIXELS[modality]], inputs[f"{modality}_grid_thw"]
        counts = (grid.prod(dim=-1) // side**2).tolist()
        units = pixels.reshape(sum(counts), -1)
        prompt.place(Visual(modality, units[:, :0], counts))
        chosen.append(
            (
                modality,
                pixels,
                grid,
                counts,
                find_repeats(units, grid // units.new_tensor([1, side, side], dtype=grid.dtype), tolerance),
            )
        )
    for modality, pixels, grid, counts, stands in chosen:
        output, reduced = _encode(base, family, inputs, modality, pixels, grid, counts, stands)
        outputs[modality] = output
        done.append(reduced)
    result = ReducedInputs(prompt.without([each.stands for each in done]))
    columns = result["input_ids"].size(1)
    result["mm_encoder_outputs"] = outputs
    images = [image for i, each in enumerate(done) for image in each.images(prompt.rows_of(i))]
    result.record = Record(images, (ids.size(1), columns), family.name)
    return result


def _encode(
    base: Any,
    family: Any,
    inputs: Mapping[str, Any],
    modality: str,
    pixels: Tensor,
    grid: Tensor,
    counts: list[int],
    same: Tensor,
) -> tuple[Any, Reduced]:
    """Runs the tower on the units that stand for themselves; ``same [M]`` is the unit that each repeats."""
    own = torch.arange(same.numel(), device=same.device)
    stays = (same == own).nonzero().squeeze(1)
    side = merge_size(base)
    rows = (stays[:, None] * side**2 + torch.arange(side**2, device=stays.device)).flatten()
    arguments = packed_arguments(base.visual, grid, stays)
    output = base.visual(pixels.type(base.visual.dtype)[rows], grid_thw=grid, **arguments)
    ends = torch.tensor(counts, device=same.device).cumsum(0)
    kept = torch.bincount(torch.bucketize(stays, ends, right=True), minlength=len(counts)).tolist()
    output.pooler_output = output.pooler_output.split(kept)
    if getattr(output, "deepstack_features", None):
        output.deepstack_features = [layer.split(kept) for layer in output.deepstack_features]
    visual = Visual.of(modality, output)
    number = torch.full_like(same, -1).scatter(0, stays, torch.arange(stays.numel(), device=same.device))
    step = Assignment(number[same], stays.numel(), centers=stays, single=True)
    place = torch.arange(stays.numel(), device=same.device)
    reduction = Reduction([Group(own, step, place)], counts, kept, stays)
    tiles = family.tiles(base, inputs, Visual(modality, same[:, None], counts))
    reduced = Reduced(modality, tiles, visual.rows, visual.deep, kept, stays, reduction)
    return visual.with_rows(visual.rows, kept, visual.deep), reduced


def find_repeats(units: Tensor, grid: Tensor, tolerance: float) -> Tensor:
    """For each unit the first one that it repeats, ``[M]``; itself if it repeats none.

    Args:
        units: Pixels, ``[M, D]``, image after image, each frame by frame and row by row.
        grid: ``(t, h, w)`` of each image in units, ``[n, 3]``.
        tolerance: As for :func:`drop_duplicates`.
    """
    found, start = [], 0
    for t, h, w in grid.tolist():
        part = units[start : start + t * h * w]
        same = _equal(part) if tolerance == 0 else _alike(part, (t, h, w), tolerance)
        found.append(same + start)
        start += t * h * w
    return torch.cat(found)


def _equal(units: Tensor) -> Tensor:
    """For each unit the first that equals it bit for bit: found by a random projection, and compared."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(units.size(1), generator=generator, dtype=torch.float64).to(units.device)
    mark = units.double() @ direction
    _, group = torch.unique(mark, return_inverse=True)
    own = torch.arange(units.size(0), device=units.device)
    first = own.new_full((units.size(0),), units.size(0)).scatter_reduce(0, group, own, "amin")[group]
    return torch.where((units == units[first]).all(dim=1), first, own)


def _alike(units: Tensor, shape: tuple[int, int, int], tolerance: float) -> Tensor:
    """For each unit the one that stands for a neighbour before it and differs by at most ``tolerance``."""
    t, h, w = shape
    index = torch.arange(t * h * w, device=units.device).view(t, h, w)
    near: dict[int, list[int]] = {}
    for axis in (2, 1, 0):  # left, above, earlier
        after, before = index.narrow(axis, 1, shape[axis] - 1), index.narrow(axis, 0, shape[axis] - 1)
        close = (units[after.flatten()] - units[before.flatten()]).abs().amax(dim=1) <= tolerance
        pairs = zip(after.flatten()[close].tolist(), before.flatten()[close].tolist(), strict=True)
        for later, earlier in pairs:
            near.setdefault(later, []).append(earlier)
    stands = list(range(units.size(0)))
    for unit in sorted(near):
        for earlier in near[unit]:
            root = stands[earlier]
            if root == earlier or bool((units[unit] - units[root]).abs().amax() <= tolerance):
                stands[unit] = root
                break
    return torch.tensor(stands, device=units.device)
