"""Columns of a prompt: which hold placeholders, and how inputs lose some of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokengraph.vlm.visual import Visual

FILL = {"labels": -100}  # value of a name's padding columns; zero for other names


def check_prompt(inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns ``input_ids`` and the attention mask, both ``[B, L]``; without a mask one of ones.

    Raises:
        ValueError: If there are no ids, or the shapes do not fit.
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        shape = list(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(
            f"Expected inputs with input_ids [B, L] (got {shape}). Give the processor's output, made with "
            'return_tensors="pt".'
        )
    if mask is None:
        mask = torch.ones_like(ids)
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"Expected attention_mask of shape [B, L] = {list(ids.shape)} (got {shape}). Masks over pairs of tokens "
            "cannot lose columns; leave the mask to the model."
        )
    return ids, mask


def find_placeholders(ids: Tensor, mask: Tensor, token: int, visual: Visual) -> Tensor:
    """Finds the placeholders of one modality: flat indices into ``[B * L]``, one for each row of features.

    Args:
        ids: ``[B, L]``.
        mask: ``[B, L]``, zero at padding.
        token: Id of the placeholder.
        visual: The features.

    Raises:
        ValueError: If prompts have another number of placeholders than there are features, or an image's features
            would end in the middle of another prompt.

    Cost: one host synchronisation on CUDA.
    """
    marked = ids == token
    found = marked.flatten().nonzero().squeeze(1)
    each = marked.sum(dim=1).tolist()
    total = visual.rows.size(0)
    hint = (
        "Make pixels and text by one call of the processor. If a prompt's own text contains the placeholder token, "
        "escape it."
    )
    if found.numel() != total:
        raise ValueError(
            f"Expected {total} placeholders for {total} {visual.modality} features (got {found.numel()}, by prompt "
            f"{each}). {hint}"
        )
    ends, image_ends, end = set(), {0}, 0
    for count in visual.counts:
        end += count
        image_ends.add(end)
    end = 0
    for count in each:
        end += count
        ends.add(end)
    if not ends <= image_ends:
        raise ValueError(
            f"Expected each {visual.modality}'s placeholders in one prompt (got {each} by prompt, for features of "
            f"{visual.counts}). {hint}"
        )
    if bool((mask.flatten()[found] == 0).any()):
        raise ValueError(f"Expected placeholders outside padding (got masked ones). {hint}")
    return found


def positions_in_order(mask: Tensor) -> Tensor:
    """Positions ``[B, L]`` of models that count tokens: from 0 at each prompt's first token; padding has 0."""
    return ((mask != 0).long().cumsum(dim=1) - 1).clamp_min(0)


class Columns:
    """The columns that remain of ``[B, L]`` inputs, laid out anew with padding on the side where it was.

    Args:
        kept: ``[B, L]`` bool, True at columns that remain.
        mask: ``[B, L]``, zero at padding, which never remains; rows of unequal lengths are padded again.

    Cost: one host synchronisation on CUDA, for the length of the longest prompt.
    """

    def __init__(self, kept: Tensor, mask: Tensor) -> None:
        there = kept & (mask != 0)
        counts = there.sum(dim=1)
        self.length = int(counts.max())
        right = bool(((mask[:, :1] != 0) & (mask[:, -1:] == 0)).any())
        # A stable sort of "is there" moves real columns to one end, in their order.
        order = there.long().argsort(dim=1, descending=right, stable=True)
        self.index = order[:, : self.length] if right else order[:, mask.size(1) - self.length :]
        self.valid = there.gather(1, self.index)

    def take(self, name: str, value: Tensor, fill: int | None = None) -> Tensor:
        """Takes the columns of an input ``[B, L, ...]``; padding gets ``fill``, or the name's own value."""
        fill = FILL.get(name, 0) if fill is None else fill
        index = self.index.view(*self.index.shape, *[1] * (value.dim() - 2)).expand(-1, -1, *value.shape[2:])
        valid = self.valid.view(*self.valid.shape, *[1] * (value.dim() - 2))
        return value.gather(1, index).masked_fill(~valid, fill)

    def take_positions(self, positions: Tensor) -> Tensor:
        """Takes the columns of positions ``[B, L]``, or ``[A, B, L]`` with A axes; padding gets 0."""
        if positions.dim() == 2:
            return self.take("position_ids", positions.expand(self.index.size(0), -1))
        axes = [self.take("position_ids", axis.expand(self.index.size(0), -1)) for axis in positions]
        return torch.stack(axes)


def padding_id(ids: Tensor, mask: Tensor, config: Any, placeholders: set[int]) -> int:
    """An id for new padding: the prompts' own, the model's, or any that is no placeholder."""
    own = ids[mask == 0][:1].tolist()
    text = getattr(config, "text_config", None)
    known = [*own, getattr(config, "pad_token_id", None), getattr(text, "pad_token_id", None), 0, 1, 2, 3]
    return next(int(i) for i in known if isinstance(i, int) and i >= 0 and i not in placeholders)
