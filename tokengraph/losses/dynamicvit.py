"""Losses that train token pruning: the share of kept tokens, and distillation from a teacher with all tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.flat.segment import segment_sum, wide
from tokengraph.kinds import explain_kinds, explains
from tokengraph.nn.modes import in_eval

WEIGHTS = {"classification": 1.0, "ratio": 2.0, "distillation": 0.5, "token": 0.5}
OFFICIAL_STAGES = 3  # the published loss always divides by this
Outputs = tuple[Tensor, Tensor | None]  # logits and tokens
Teacher = nn.Module | Outputs


@explains
def ratio_loss(
    decisions: Sequence[Tensor],
    ratios: Sequence[float],
    *,
    per: str = "graph",
    ptr: Tensor | None = None,
    divisor: int | None = None,
) -> Tensor:
    r"""Computes the squared distance of the share of kept tokens from its target, averaged over stages.

    .. math:: \frac{1}{S} \sum_s \frac{1}{B} \sum_b \big(\bar{d}_{sb} - \rho_s\big)^2 \;\text{(graph)}, \qquad
              \frac{1}{S} \sum_s \big(\tfrac{1}{B} \sum_b \bar{d}_{sb} - \rho_s\big)^2 \;\text{(batch)}

    Args:
        decisions: Cumulative masks of the S stages over all patch tokens of the input, each ``[B, N]``, or ``[M]`` with
            ``ptr``.
        ratios: Their targets, each in (0, 1].
        per: ``"graph"``: each image should meet the target; ``"batch"``: the mean over the batch should, so that
            images may differ. Images have equal weight in this mean, also if their sizes differ; images without
            tokens are ignored.
        ptr: First token of each image, ``[B+1]``.
        divisor: Replaces S; the published code always divides by 3.

    Returns:
        A scalar in float32 or wider.

    Raises:
        ValueError: If a ratio is outside (0, 1], or the numbers of ratios and decisions differ.

    Cost: one pass over the masks; no host synchronisation.

    Source: Rao et al., *DynamicViT*, NeurIPS 2021. Differs: any number of stages and any sizes.
    """
    _check_ratios(ratios)
    if len(decisions) != len(ratios):
        raise ValueError(f"Expected one decision per ratio, S={len(ratios)} (got {len(decisions)}).")
    _check_choice("per", per, ("graph", "batch"))
    terms = []
    for decision, ratio in zip(decisions, ratios, strict=True):
        share, real = _image_means(decision, torch.ones_like(decision, dtype=torch.bool), ptr)
        images = real.sum().clamp_min(1)
        if per == "graph":
            terms.append(torch.where(real, share - ratio, 0.0).square().sum() / images)
        else:
            terms.append((share.sum() / images - ratio).square() * real.any())
    return torch.stack(terms).sum() / (len(terms) if divisor is None else divisor)


@explains
def token_distillation_loss(
    tokens: Tensor,
    teacher_tokens: Tensor,
    keep: Tensor | None = None,
    *,
    kind: str = "mse",
    per: str = "batch",
    ptr: Tensor | None = None,
) -> Tensor:
    """Computes the distance of the kept tokens from the teacher's.

    Args:
        tokens: ``[B, N, C]``, or ``[M, C]`` flat; after the final LayerNorm, or logits of each token (``"kl"``).
        teacher_tokens: The teacher's tokens, of the same shape. They get no gradient.
        keep: The last mask, ``[B, N]`` or ``[M]``; tokens above 0.5 count. ``None``: all count. It gets no gradient.
        kind: ``"mse"``: squared error, mean over channels; ``"kl"``: KL divergence from the teacher's softmax.
        per: ``"batch"``: mean over all kept tokens of the batch; ``"graph"``: mean over the kept tokens of each image,
            then over images that keep any, so that the weight of an image does not depend on the rest of the batch.
        ptr: First token of each image of a flat batch, ``[B+1]``; ``per="graph"`` reads it.

    Returns:
        A scalar in float32 or wider; 0 if no token is kept.

    Raises:
        ValueError: If shapes do not fit.

    Cost: one pass over the tokens; no host synchronisation.

    Source: Rao et al., *DynamicViT*, NeurIPS 2021. Differs: mean over channels, as its code does.
    """
    if tokens.shape != teacher_tokens.shape:
        raise ValueError(
            f"Expected tokens and teacher_tokens of one shape (got {list(tokens.shape)}, "
            f"{list(teacher_tokens.shape)}). Leave prefix tokens out of both."
        )
    if keep is not None and keep.shape != tokens.shape[:-1]:
        raise ValueError(f"Expected keep of shape {list(tokens.shape[:-1])} (got {list(keep.shape)}).")
    _check_choice("kind", kind, ("mse", "kl"))
    _check_choice("per", per, ("graph", "batch"))
    with torch.autocast(tokens.device.type, enabled=False):
        ours, theirs = tokens.to(wide(tokens)), teacher_tokens.detach().to(wide(tokens))
        error = (ours - theirs).square().mean(dim=-1) if kind == "mse" else _divergence(ours, theirs)
    kept = torch.ones_like(error, dtype=torch.bool) if keep is None else keep.detach() > 0.5
    if per == "batch":
        return torch.where(kept, error, 0.0).sum() / kept.sum().clamp_min(1)
    mean, real = _image_means(error, kept, ptr)
    return mean.sum() / real.sum().clamp_min(1)


@explains
def distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    r"""Computes the mean over images of :math:`\mathrm{KL}(\text{teacher} \,\Vert\, \text{student})`.

    Both are ``[B, classes]``; the result is a scalar in float32 or wider. The teacher gets no gradient.

    Raises:
        ValueError: If shapes differ.

    Source: Rao et al., *DynamicViT*, NeurIPS 2021, by its code, where the teacher comes first (paper: student first).
    """
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f"Expected logits and teacher_logits of one shape (got {list(logits.shape)}, {list(teacher_logits.shape)})."
        )
    with torch.autocast(logits.device.type, enabled=False):
        divergence = _divergence(logits.to(wide(logits)), teacher_logits.detach().to(wide(logits)))
    return divergence.sum() / max(divergence.numel(), 1)


@explain_kinds
class DynamicViTLoss(nn.Module):
    r"""The training loss of DynamicViT, :math:`L = L_{cls} + 2 L_{ratio} + 0.5 L_{KL} + 0.5 L_{token}`.

    Args:
        ratios: Share of patch tokens to keep after each stage, each in (0, 1].
        weights: Changes these weights by name: ``classification``, ``ratio``, ``distillation``, ``token``. A term of
            weight 0 is not computed.
        classification: Loss of ``(logits, target)``; ``None``: cross-entropy, with class ids or soft targets.
        per: See :func:`ratio_loss`.
        token: ``"mse"`` or ``"kl"``; see :func:`token_distillation_loss`.
        token_per: ``"batch"``: the token term is a mean over all kept tokens of the batch, as published; ``"graph"``:
            images have equal weight in it. With ``per="graph"`` too, and if every image keeps a token, the loss is a
            mean over images: then the mean over DDP processes of equal batch size equals the loss of one process.
        official: Divide the ratio term by 3 for any number of stages, as the published code does.

    Raises:
        ValueError: If a ratio is outside (0, 1], or the name of a weight or a choice is unknown.

    Source: Rao et al., *DynamicViT*, NeurIPS 2021, and its code. Differs: see the parts' functions.
    """

    def __init__(
        self,
        ratios: Sequence[float],
        *,
        weights: Mapping[str, float] | None = None,
        classification: Callable[[Tensor, Tensor], Tensor] | None = None,
        per: str = "graph",
        token: str = "mse",
        token_per: str = "batch",
        official: bool = False,
    ) -> None:
        super().__init__()
        _check_ratios(ratios)
        _check_choice("per", per, ("graph", "batch"))
        _check_choice("token_per", token_per, ("graph", "batch"))
        _check_choice("token", token, ("mse", "kl"))
        for name in weights or ():
            _check_choice("names of weights", name, tuple(WEIGHTS))
        self.ratios = tuple(ratios)
        self.weights = WEIGHTS | dict(weights or {})
        self.classification = _cross_entropy if classification is None else classification
        self.per, self.token, self.token_per, self.official = per, token, token_per, official

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        decisions: Sequence[Tensor],
        *,
        tokens: Tensor | None = None,
        teacher: Teacher | None = None,
        x: Tensor | None = None,
        ptr: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum, and a dict of its terms, unweighted and detached.

        Args:
            logits: ``[B, classes]``.
            target: Class ids ``[B]`` or soft targets ``[B, classes]``.
            decisions: Cumulative masks of the stages, each ``[B, N]``, or ``[M]`` with ``ptr``.
            tokens: The student's patch tokens after the final LayerNorm, ``[B, N, C]`` or ``[M, C]``.
            teacher: ``(logits, tokens)``, or a module; ``None`` leaves out the terms that need a teacher.
            x: Images for a teacher that is a module; see :func:`teacher_outputs`.
            ptr: First token of each image of a flat batch, ``[B+1]``.

        Raises:
            ValueError: If an argument that a term needs is missing.
        """
        terms = {}
        if self.weights["classification"]:
            terms["classification"] = self.classification(logits, target)
        if self.weights["ratio"]:
            divisor = OFFICIAL_STAGES if self.official else None
            terms["ratio"] = ratio_loss(decisions, self.ratios, per=self.per, ptr=ptr, divisor=divisor)
        if teacher is not None:
            terms |= self._from_teacher(logits, decisions, tokens, _outputs(teacher, x), ptr)
        total = sum(
            (self.weights[name] * term for name, term in terms.items()), logits.new_zeros((), dtype=wide(logits))
        )
        return total, {name: term.detach() for name, term in terms.items()}

    def _from_teacher(
        self, logits: Tensor, decisions: Sequence[Tensor], tokens: Tensor | None, teacher: Outputs, ptr: Tensor | None
    ) -> dict[str, Tensor]:
        their_logits, their_tokens = teacher
        terms = {}
        if self.weights["distillation"]:
            terms["distillation"] = distillation_loss(logits, their_logits)
        if self.weights["token"]:
            if tokens is None or their_tokens is None:
                who = "student" if tokens is None else "teacher"
                raise ValueError(f"Expected tokens of the {who} (got none). Without them, set weights={{'token': 0}}.")
            theirs = their_tokens.flatten(0, 1) if tokens.dim() < their_tokens.dim() else their_tokens
            terms["token"] = token_distillation_loss(
                tokens, theirs, decisions[-1], kind=self.token, per=self.token_per, ptr=ptr
            )
        return terms


@explains
@torch.no_grad()
def teacher_outputs(teacher: nn.Module, x: Tensor) -> Outputs:
    """Runs a teacher in eval mode without gradient, and restores its mode.

    A module with ``forward_features`` and ``forward_head`` (timm) gives logits ``[B, classes]`` and patch tokens after
    the final norm ``[B, N, C]``. Other modules must return ``(logits, tokens)``, or only logits.
    """
    with in_eval(teacher):
        if hasattr(teacher, "forward_features") and hasattr(teacher, "forward_head"):
            features = teacher.forward_features(x)  # type: ignore[operator]
            prefix = int(getattr(teacher, "num_prefix_tokens", 0))
            return teacher.forward_head(features), features[:, prefix:]  # type: ignore[operator]
        out = teacher(x)
        return (out, None) if isinstance(out, Tensor) else (out[0], out[1])


def _outputs(teacher: Teacher, x: Tensor | None) -> Outputs:
    """Returns the given outputs of a teacher, or runs the teacher on ``x``."""
    if not isinstance(teacher, nn.Module):
        return teacher
    if x is None:
        raise ValueError("Expected the images x for a teacher that is a module (got none).")
    return teacher_outputs(teacher, x)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.to(wide(logits))
        return F.cross_entropy(logits, target.to(logits.dtype) if target.is_floating_point() else target)


def _divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """Computes KL(softmax of ``theirs`` || softmax of ``ours``) over the last dimension."""
    return F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True).sum(dim=-1)


def _image_means(values: Tensor, counted: Tensor, ptr: Tensor | None) -> tuple[Tensor, Tensor]:
    """Averages the counted values of each image to ``[B]`` (0 if it has none); also returns True where it has any."""
    values = torch.where(counted, values.to(wide(values)), 0.0)
    if ptr is None:
        if values.dim() != 2:
            raise ValueError(f"Expected masks of shape [B, N], or [M] with ptr (got {list(values.shape)} without).")
        total, count = values.sum(dim=1), counted.sum(dim=1)
    else:
        image = torch.repeat_interleave(ptr.diff(), output_size=values.size(0))
        total, count = (segment_sum(v, image, ptr.numel() - 1) for v in (values, counted.to(values.dtype)))
    return total / count.clamp_min(1), count > 0


def _check_ratios(ratios: Sequence[float]) -> None:
    if not ratios:
        raise ValueError("Expected at least one ratio (got none).")
    if bad := [ratio for ratio in ratios if not 0 < ratio <= 1]:
        raise ValueError(f"Expected ratios in (0, 1] (got {bad[0]}).")


def _check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"Expected {what} to be one of {', '.join(known)} (got {value!r}).")
