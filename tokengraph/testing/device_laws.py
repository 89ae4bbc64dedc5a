"""Laws of a device: strategies and kNN backends give there what they give on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.testing import assert_close

from tokengraph.edges.knn import knn_neighbors
from tokengraph.maps.hard import Assignment
from tokengraph.select.base import Select
from tokengraph.select.tokens import Tokens
from tokengraph.testing.choice_laws import GRID, budgets, features
from tokengraph.testing.tokens import make_tokens

ALIKE = 0.95  # share of pairs of tokens on which CPU and device agree: rounding may turn near ties around


def _choose(select: Select, device: torch.device) -> tuple[Tokens, int, object]:
    x = features()
    keep = min(budgets(select, x.size(1)), key=lambda k: abs(k - x.size(1) // 2))
    tokens = make_tokens(x.to(device), GRID)
    return tokens, keep, select(tokens, keep)


def chooses_alike(select: Select, device: torch.device) -> None:
    """Tokens share a cluster on the device exactly when they do on the CPU, near ties apart."""
    here, there = (_choose(select, d)[2] for d in (torch.device("cpu"), device))
    if not isinstance(here, Assignment) or not isinstance(there, Assignment):
        return
    assert there.cluster.device.type == device.type, f"a map on {there.cluster.device}"
    together = [a.cluster.cpu().view(3, -1) for a in (here, there)]
    pairs = [(c[..., None] == c[:, None]) for c in together]
    share = float((pairs[0] == pairs[1]).float().mean())
    assert share >= ALIKE, f"{share:.3f} of all pairs of tokens as on the CPU"


def reduces_and_lifts(select: Select, device: torch.device) -> None:
    """On the device mass is conserved or declared lossy, and what is lifted reduces to itself."""
    tokens, _, chosen = _choose(select, device)
    rows = tokens.x.flatten(0, 1)
    y, size = chosen.reduce(rows)  # type: ignore[attr-defined]
    assert y.device.type == device.type and bool(torch.isfinite(y).all()), "rows elsewhere, or not finite"
    if isinstance(chosen, Assignment) and not chosen.drops:
        assert_close(size.sum().cpu(), torch.tensor(float(len(rows))))
    lifted = chosen.lift(y)  # type: ignore[attr-defined]
    assert lifted.shape == rows.shape and bool(torch.isfinite(lifted).all()), "a lift of another shape"


def runs_in_half_precision(select: Select, device: torch.device) -> None:
    """bfloat16 tokens on the device give bfloat16 clusters, all finite."""
    x = features().to(device, torch.bfloat16)
    keep = min(budgets(select, x.size(1)), key=lambda k: abs(k - x.size(1) // 2))
    y = select(make_tokens(x, GRID), keep).reduce(x.flatten(0, 1))[0]
    assert y.dtype == torch.bfloat16 and bool(torch.isfinite(y).all()), f"{y.dtype}, or not finite"


DEVICE_LAWS: list[Callable[[Select, torch.device], None]] = [chooses_alike, reduces_and_lifts, runs_in_half_precision]


def connects_alike(backend: str, device: torch.device) -> None:
    """A kNN backend finds on the device the neighbours of plain torch on the CPU, ties and images included."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(-8, 9, (2, 64, 16), generator=generator).float()  # whole numbers: exact distances, with ties
    for k in (1, 8):
        wanted = _neighbors(whole, k, "torch")
        found = _neighbors(whole.to(device), k, backend).cpu()
        assert torch.equal(found, wanted), f"other neighbours for k={k}"


def _neighbors(x: Tensor, k: int, backend: str) -> Tensor:
    found = knn_neighbors(x, k, backend=backend)
    return found[0] if isinstance(found, tuple) else found
