"""What reduced prompts must equal: the whole prompt with the removed keys masked, built by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tokengraph.vlm.families.find import find_base, find_family

TYPES = {"mm_token_type_ids": 0, "moe_mm_token_type_ids": 0}


def whole_positions(case: Any, inputs: dict[str, Any]) -> Tensor:
    """Positions of the whole prompt, by the model's own function or counted by hand."""
    base = find_base(case.model)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if hasattr(base, "get_rope_index"):
        return find_family(base).positions(base, inputs, ids, mask, (ids == case.image).long())
    return torch.stack([torch.cat([row[row == 0], torch.arange(int(row.sum()))]) for row in mask])


def kept_columns(case: Any, inputs: dict[str, Any], record: Any) -> Tensor:
    """Mask ``[B, L]`` of the columns that remain, padding excluded."""
    found = (inputs["input_ids"] == case.image).flatten().nonzero().squeeze(1)
    mask = inputs["attention_mask"].clone()
    first = 0
    for image in record.images:
        gone = torch.ones(image.count, dtype=torch.bool)
        gone[image.stands] = False
        mask.view(-1)[found[first : first + image.count][gone]] = 0
        first += image.count
    return mask


def masked_logits(case: Any, inputs: dict[str, Any], mask: Tensor, **more: Any) -> list[Tensor]:
    """Logits of the whole prompt at columns that remain, with all other keys masked; one tensor a prompt."""
    given = {name: value for name, value in inputs.items() if name != "attention_mask"}
    logits = case.model(**{**given, **more}, attention_mask=mask, position_ids=whole_positions(case, inputs)).logits
    return [row[there.bool()] for row, there in zip(logits, mask, strict=True)]


def real_logits(case: Any, reduced: dict[str, Any]) -> list[Tensor]:
    """Logits of the shorter prompt without its padding."""
    logits = case.model(**reduced).logits
    return [row[there.bool()] for row, there in zip(logits, reduced["attention_mask"], strict=True)]


def direct(reduced: dict[str, Any]) -> dict[str, Any]:
    """The inputs; skips the test if this version of the model takes embeddings in place of a prompt and features."""
    if "inputs_embeds" in reduced:
        pytest.skip("these transformers give the model embeddings")
    return reduced


def generated_by_hand(case: Any, reduced: dict[str, Any], steps: int, banned: list[int]) -> Tensor:
    """Greedy tokens of a run without any cache."""
    now, tokens = dict(direct(reduced)), []
    for _ in range(steps):
        logits = case.model(**now, use_cache=True).logits[:, -1]  # the cache is thrown away
        logits[:, banned] = -torch.inf
        new = logits.argmax(dim=-1, keepdim=True)
        tokens.append(new)
        now["input_ids"] = torch.cat([now["input_ids"], new], dim=1)
        now["attention_mask"] = torch.cat([now["attention_mask"], torch.ones_like(new)], dim=1)
        now["position_ids"] = torch.cat([now["position_ids"], now["position_ids"][..., -1:] + 1], dim=-1)
        types = {"token_type_ids": case.suffix_type, **TYPES}
        for name in types.keys() & now.keys():
            now[name] = torch.cat([now[name], torch.full_like(now[name][:, :1], types[name])], dim=1)
    return torch.cat(tokens, dim=1)
