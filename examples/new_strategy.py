"""A new strategy in one file: k-means on the tokens, usable by name on graphs and inside models."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.io.photo import load_photo, normalize
from tokengraph.select.tokens import Tokens, clamp_budget


@dataclass(frozen=True)
class KMeans(tg.Select):
    """Lloyd's algorithm, started from evenly spaced tokens; it needs neither a model nor a grid."""

    name: ClassVar[str] = "k-means"
    placement: ClassVar[str] = "after"  # after a block, on its output
    rounds: int = 4

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> tg.Assignment:
        x = tokens.x.detach().float()  # [B, N, C]
        # Images of one batch may differ in tokens; rows where the mask is False are padding.
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if tokens.mask is None else tokens.mask
        keep = clamp_budget(budget, x, tokens.mask)  # at most an image's tokens; raises for a budget of 0
        counts = mask.sum(dim=1, keepdim=True)  # [B, 1]
        made = torch.as_tensor(keep, device=x.device).expand(x.size(0))[:, None]  # clusters of each image, [B, 1]
        most = keep if isinstance(keep, int) else max(keep)
        number = torch.arange(most, device=x.device)  # [K]
        used = number < made  # [B, K]
        step = (counts - 1) / (made - 1).clamp_min(1)
        centers = torch.where(used, (number * step).round().long(), -1)  # [B, K], evenly spaced tokens
        place = torch.arange(x.size(1), device=x.device)
        is_center = place[:, None] == centers[:, None]  # [B, N, K]
        own = torch.where(is_center.any(dim=2), is_center.int().argmax(dim=2), -1)
        middle = is_center.float().transpose(1, 2) @ x
        for _ in range(self.rounds):
            far = (x[:, :, None] - middle[:, None]).square().sum(dim=3).masked_fill(~used[:, None], torch.inf)
            cluster = torch.where(own >= 0, own, far.argmin(dim=2))  # centers keep their own cluster
            member = F.one_hot(cluster, most).to(x.dtype) * mask[..., None]
            middle = member.transpose(1, 2) @ x / member.sum(dim=1).clamp_min(1)[..., None]
        return tg.Assignment.from_dense(cluster, keep, mask=tokens.mask)


torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
images = normalize(load_photo(size=224), model)
graph = tg.TokenGraph.from_model(model, images, layer=2)
full = model.forward_features(images)[:, 1:].detach()
for name in ("grid-pool", "k-means", "dpc-knn"):
    coarse, assignment = tg.coarsen(graph, name, 49)
    on_graph = F.cosine_similarity(assignment.lift(coarse.x), graph.x).mean()
    with torch.no_grad(), tg.attach(model, name, {2: 49}, lift=True) as handle:
        in_model = F.cosine_similarity(model.forward_features(images)[:, 1:], full, dim=2).mean()
    print(f"{name}: tokens {handle.trace.counts[-1]}, cosine on the graph {on_graph:.3f}, in the model {in_model:.3f}")
