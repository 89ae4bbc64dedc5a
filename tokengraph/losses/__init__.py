"""Losses that train token pruning: shares of kept tokens, costs, distillation from a teacher with all tokens."""

from tokengraph.losses.dynamicvit import (
    OFFICIAL_STAGES,
    WEIGHTS,
    DynamicViTLoss,
    Outputs,
    Teacher,
    distillation_loss,
    ratio_loss,
    teacher_outputs,
    token_distillation_loss,
)
from tokengraph.losses.idle_cut import IdleCutLoss
from tokengraph.losses.ponder import PonderLoss
from tokengraph.losses.rates import DiffRateLoss
from tokengraph.losses.share import ShareLoss

__all__ = [
    "OFFICIAL_STAGES",
    "WEIGHTS",
    "DiffRateLoss",
    "DynamicViTLoss",
    "IdleCutLoss",
    "Outputs",
    "PonderLoss",
    "ShareLoss",
    "Teacher",
    "distillation_loss",
    "ratio_loss",
    "teacher_outputs",
    "token_distillation_loss",
]
