"""Embeddings of a shorter prompt, for transformers whose models take no encoder outputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokengraph.vlm.families.base import Family

IN_RUNS = ("smolvlm", "modernvbert")  # with an inputs_merger, models take encoder outputs in runs of patch_size tokens


def check_runs_on_features(model: Any) -> None:
    """Raises ValueError if the model cannot be called without pixels."""
    forward = getattr(model, "_orig_mod", model).forward
    needed = [
        name
        for name, p in inspect.signature(forward).parameters.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and name not in ("input_ids", "self")
    ]
    if needed and not hasattr(model, "get_base_model"):
        raise ValueError(
            f"Expected a model that runs on encoded images (got {type(model).__name__}, whose forward needs "
            f"{', '.join(needed)}). Reduce inside its vision tower with tokengraph.attach."
        )


def takes_encoder_outputs(model: Any, base: Any, deep: bool) -> bool:
    """Returns whether the model's forward takes ``mm_encoder_outputs`` of any length.

    Raises:
        ValueError: If it does not and its language layers add DeepStack features, which then cannot reach them.
    """
    forward = getattr(model, "_orig_mod", model).forward
    if "mm_encoder_outputs" in inspect.signature(forward).parameters or _inner_takes(model, base):
        return getattr(base.config, "model_type", "") not in IN_RUNS or not hasattr(base, "inputs_merger")
    if deep:
        raise ValueError(
            f"Expected transformers from 5.18 on for {type(base).__name__}, whose language layers add DeepStack "
            "features (got a version whose models take no mm_encoder_outputs). Update transformers."
        )
    return False


def _inner_takes(model: Any, base: Any) -> bool:
    """Returns whether a wrapper such as PEFT's passes all arguments on to a model that takes them."""
    names = inspect.signature(model.forward).parameters.values()
    passes = any(p.kind is p.VAR_KEYWORD for p in names)
    wrapped = not any(p.name == "input_ids" for p in names) or hasattr(model, "get_base_model")
    return passes and wrapped and "mm_encoder_outputs" in inspect.signature(base.forward).parameters


def with_embeddings(base: Any, family: Family, ids: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
    """Embeds a prompt and puts visual features at its placeholders.

    Args:
        base: The model without its language head.
        family: Its family.
        ids: The shorter prompt, ``[B, L]``.
        rows: For each modality its features, ``[K, C]``.

    Returns:
        ``inputs_embeds``, ``[B, L, C]``.
    """
    tokens = {modality: family.token(base, modality) for modality in rows}
    text = ids
    for token in tokens.values():
        text = text.masked_fill(text == token, 0)  # some placeholders are outside the vocabulary
    embeds = base.get_input_embeddings()(text)
    for modality, features in rows.items():
        there = (ids == tokens[modality])[..., None].expand_as(embeds)
        embeds = embeds.masked_scatter(there, features.to(embeds))
    return embeds
