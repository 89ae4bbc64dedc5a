"""The norm of a token's features as its score."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.segment import as_type


def feature_norm(x: Tensor) -> Tensor:
    """Returns the L2 norm of each token of ``x [B, N, C]``, ``[B, N]`` float32."""
    return torch.linalg.vector_norm(as_type(x, torch.float32), dim=2)
