"""Hooks on the outputs of a transformers vision model: for pooling heads, feature maps and the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import is_a
from tokengraph.adapters.coarse import SITE, CoarseSite, Reader, ours
from tokengraph.adapters.parts.pooling import for_mean, pooled_over
from tokengraph.adapters.transformers.anatomy import BACKBONE, holder_of, model_name
from tokengraph.adapters.transformers.callers import called_by_a_grid_head

FINAL_NORMS = ("layernorm", "norm", "post_layernorm", "layer_norm")

POOLED_BEFORE = (  # classifiers that read the class token, or the pooled output of the inner model
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "ViTMSNForImageClassification",
    "BeitForImageClassification",
    "Data2VecVisionForImageClassification",
    "VivitForVideoClassification",
    "ASTForAudioClassification",
)
HEADS_READ_STATES = ("DPTModel",)  # inner models whose hidden states go to a head that needs the grid


def output_hooks(
    model: nn.Module, core: nn.Module, channels: int, *, mean: bool = True
) -> list[tuple[nn.Module, str, Callable[..., Any]]]:
    """Hooks: heads pool every patch, backbones return full feature maps, ``lift=True`` lifts other outputs.

    Args:
        model: The user's model.
        core: The supported model inside it.
        channels: C.
        mean: False if no classifier averages patches.
    """
    found: list[tuple[nn.Module, str, Callable[..., Any]]] = []
    holder = holder_of(core)
    if is_a(core, *BACKBONE) and holder is not None:
        found.append((holder, "output", lift_hidden_states))
    around = [m for m in model.modules() if m is not core and (is_a(m, *BACKBONE) or hasattr(m, "decode_head"))]
    if any(part is core for m in around for part in m.modules()):
        found.append((core, "output", lift_feature_maps))
    head = getattr(core, "head", None)
    if isinstance(head, nn.Module) and getattr(core, "use_head", True):
        inner = getattr(head, "attention", None)
        by_mask = isinstance(inner, nn.MultiheadAttention)
        found.append((inner, "input", attend_to_what_is_left) if by_mask else (head, "input", lift_head_input))
    if model_name(core) in HEADS_READ_STATES:
        found.append((core, "output", lift_hidden_states))
    found.append((core.embeddings, "input", look_for_a_grid_head))  # type: ignore[arg-type]
    found.append((core, "output", average_output if mean and averages(model, core, channels) else lift_output))
    return found


def averages(model: nn.Module, core: nn.Module, channels: int) -> bool:
    """Returns whether a classifier around ``core`` averages its patches.

    Classifiers of transformers do, except those in ``POOLED_BEFORE``. Other classifiers do if they read twice the
    channels: the class token and the mean.
    """
    for module in model.modules():
        classifier = getattr(module, "classifier", None)
        if module is core or not isinstance(classifier, nn.Module) or all(m is not core for m in module.modules()):
            continue
        name = model_name(module)
        if name is None and getattr(classifier, "in_features", 0) == 2 * channels:
            return True
        if name is not None and name not in POOLED_BEFORE:
            return True
    return False


@ours
def lift_output(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of a model: lifts tokens and hidden states for ``lift=True``, or if a calling head needs it."""
    site: CoarseSite = module.__dict__[SITE]
    if not (site.lift or site.trace.run.whole):
        return output
    return with_tokens(with_whole_states(module, output), lambda tokens: whole_sequence(site.trace, tokens))


@ours
def look_for_a_grid_head(module: nn.Module, args: Any) -> None:
    """Forward pre-hook of the embedding: notes whether a head that needs every patch has called the model."""
    site: CoarseSite = module.__dict__[SITE]
    if not torch.compiler.is_compiling():
        site.trace.run.note_caller(called_by_a_grid_head(module))


@ours
def average_output(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook below a classifier that averages patches: its mean counts every input patch once.

    After merging every patch of ``last_hidden_state`` has its cluster's features, also with ``lift=True``, which lifts
    the hidden states too.
    """
    site: CoarseSite = module.__dict__[SITE]
    if site.lift or site.trace.run.whole:
        output = with_whole_states(module, output)
    return with_tokens(output, lambda tokens: for_mean(site.trace, tokens))


@ours
def lift_head_input(module: nn.Module, args: Any) -> Any:
    """Forward pre-hook of a pooling head: gives it every patch with its cluster's features."""
    site: CoarseSite = module.__dict__[SITE]
    tokens, there = pooled_over(site.trace, args[0])
    if there is not None:
        raise ValueError(
            f"Expected a pooling head with an nn.MultiheadAttention where tokens are masked (got "
            f"{type(module).__name__}). Use a fixed budget, and no strategy that trains."
        )
    return tokens, *args[1:]


@ours
def attend_to_what_is_left(module: nn.Module, args: Any) -> Any:
    """Forward pre-hook of a pooling head's attention: every patch with its cluster's features, or kept tokens."""
    site: CoarseSite = module.__dict__[SITE]
    tokens, there = pooled_over(site.trace, args[1])
    if there is None:
        return args if tokens is args[1] else (args[0], tokens, tokens, *args[3:])
    prefix = there.new_ones(there.size(0), site.trace.num_prefix)
    return args[0], tokens, tokens, torch.cat([prefix, there], dim=1) <= 0


@ours
def lift_hidden_states(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of a backbone's encoder: lifts each of ``hidden_states``, for its feature maps."""
    return with_whole_states(module, output)


@ours
def lift_feature_maps(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of the model in a backbone or a segmenter: lifts each of ``hidden_states``."""
    if isinstance(output, tuple):
        raise ValueError("Expected return_dict=True of a model with feature maps (got False).")
    return lift_hidden_states(module, args, output)


def with_whole_states(module: nn.Module, output: Any) -> Any:
    """Lifts each of the ``hidden_states`` in the output of a model, or of its encoder, to full resolution.

    Tokens that a strategy stored come back with them, since both are from before the final norm. In some models
    transformers replaces the last of them by its normed form, which is lifted without stored tokens.

    Cost: one gather of ``[B, N, C]`` for each hidden state.
    """
    site: CoarseSite = module.__dict__[SITE]
    trace = site.trace
    normed = any(isinstance(getattr(module, name, None), nn.Module) for name in FINAL_NORMS)

    def lifted(states: tuple[Tensor | None, ...], last: Any) -> tuple[Tensor | None, ...]:
        whole = list(states)
        for layer, h in enumerate(states[: trace.depth + 1]):  # None: not asked for
            if h is not None and h.dim() == 3 and trace.lineage(layer).now.width + trace.num_prefix == h.size(1):
                rows = trace.lift(h, layer=layer, replenish=not (normed and h is last))
                whole[layer] = torch.cat([h[:, : trace.num_prefix], rows], dim=1)
        return tuple(whole)

    if isinstance(output, tuple):
        kinds = [isinstance(part, tuple) and len(part) > trace.depth for part in output]
        return tuple(lifted(part, output[0]) if kind else part for part, kind in zip(output, kinds, strict=True))
    if getattr(output, "hidden_states", None) is not None:
        output.hidden_states = lifted(output.hidden_states, getattr(output, "last_hidden_state", None))
    return output


def whole_sequence(trace: Reader, tokens: Tensor) -> Tensor:
    """Lifts ``[B, P+n, C]`` after the last block to ``[B, P+N, C]``; leaves tokens that were lifted before."""
    return trace.lift_sequence(tokens) if tokens.size(1) == trace.num_prefix + trace.lineage().now.width else tokens


def with_tokens(output: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Applies ``function`` to the ``last_hidden_state`` of an output; backbones have none and stay as they are."""
    if isinstance(output, tuple):
        return (function(output[0]), *output[1:]) if isinstance(output[0], Tensor) else output
    if getattr(output, "last_hidden_state", None) is not None:
        output.last_hidden_state = function(output.last_hidden_state)
    return output
