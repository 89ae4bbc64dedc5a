"""A new strategy in one file: k-means on the tokens, usable by name on graphs and inside models."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.io.photo import load_photo, normalize
from tokengraph.select.tokens import Tokens


@dataclass(frozen=True)
class KMeans(tg.Select):
    """Lloyd's algorithm from evenly spaced tokens; needs neither a model nor a grid."""

    name: ClassVar[str] = "k-means"
    placement: ClassVar[str] = "after"  # after a block, on its output
    rounds: int = 4

    def __call__(self, tokens: Tokens, budget: int) -> tg.Assignment:
        x = tokens.x.detach().float()  # [B, N, C]
        centers = torch.linspace(0, x.size(1) - 1, budget).round().long().to(x.device)
        middle = x[:, centers]
        for _ in range(self.rounds):
            cluster = torch.cdist(x, middle).argmin(dim=2)
            cluster[:, centers] = torch.arange(budget, device=x.device)  # so that none runs empty
            member = F.one_hot(cluster, budget).to(x.dtype)
            middle = member.transpose(1, 2) @ x / member.sum(dim=1)[..., None]
        return tg.Assignment.from_dense(cluster, budget)


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
