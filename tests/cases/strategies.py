"""A setting of every strategy for models of 3 blocks and 16 patches, and cases of the model laws with them."""

from dataclasses import dataclass, field
from typing import Any

import torch

import tokengraph as tg
from tokengraph.testing import ModelCase

STRATEGIES = {
    "tome": (tg.ToMe(), 3),
    "pitome": (tg.PiToMe(), 3),
    "tofu": (tg.ToFu(until=0), 3),
    "tofu-released": (tg.ToFu(until=0, reduce="released"), 3),
    "mpm": (tg.MPM(layers=(1, 2)), None),
    "g2tm": (tg.G2TM(0.1, layer=1), None),
    "algm": (tg.ALGM(0.1, layers=(1, 2)), None),
    "atc": (tg.ATC(), {1: 0.7, 2: 0.5}),
    "atc-single": (tg.ATC("single"), {2: 0.5}),
    "atc-complete": (tg.ATC("complete"), 3),
    "cubist-merge": (tg.CubistMerge(), {1: 0.5}),
    "dpc-knn": (tg.DPCKNN(), {1: 0.75, 2: 0.5}),
    "k-medoids": (tg.KMedoids(), {1: 0.75, 2: 0.5}),
    "k-medoids-equal": (tg.KMedoids(weight="equal", reduce="mean"), {1: 10, 2: 6}),
    "mctf": (tg.MCTF(), 3),
    "mctf-ahead": (tg.MCTF(ahead=True), 3),
    "mctf-precise": (tg.MCTF(ahead="precise"), {1: 10, 2: 6}),
    "token-transforming": (tg.TokenTransforming(), {1: 10, 2: 6}),
    "grid-tome": (tg.GridToMe(), {1: 0.5}),
    "toma": (tg.ToMA(), {1: 10, 2: 6}),
    "toma-tiles": (tg.ToMA(tiles=(2, 2)), {1: 8}),
    "around-attention": (tg.Around(), {0: 0.5}),
    "around-both": (tg.Around(tg.ToMA(), "both"), 6),
    "around-block": (tg.Around(tg.TopK(score="norm"), "block"), {1: 8, 2: 5}),
    "around-stage": (tg.Around(tg.ToMe(), "stage"), {1: 8, 2: "reconstruct"}),
    "ailurus": (tg.AiluRus(), {1: 0.5}),
    "topk": (tg.TopK(score="norm"), {1: 10, 2: 5}),
    "fuse": (tg.TopK(score="norm", fuse=True), {1: 8, 2: 5}),
    "random": (tg.Random(), 3),
    "gtp": (tg.GTP(), 3),
    "gtp-sparse": (tg.GTP(score="mixed-max", sparsity=0.7), 3),
    "expedite": (tg.Expedite(clusters=(2, 2)), {1: "cluster", 2: "reconstruct"}),
    "dynamicvit": (tg.DynamicViT(layers=[1, 2]), None),
    "dtem": (tg.DTEM(width=8), 3),
    "grid-pool": (tg.GridPool(), {1: 0.5, 3: 0.25}),
    "migration": (tg.TokenMigration(), {1: 0.7, 3: "reconstruct"}),
    "farthest-points": (tg.FarthestPoints(), {1: 0.75, 2: 0.5}),
    "heavy-edges": (tg.HeavyEdges(neighbors=4), {1: 0.75, 2: 0.4}),
    "local-variation": (tg.LocalVariation(neighbors=4, rank=4), {1: 0.5}),
    "modularity": (tg.Modularity(neighbors=4), {1: 0.5}),
    "spectral": (tg.SpectralClustering(neighbors=4), {1: 0.5}),
}
STRATEGIES |= {  # pruning and hybrids that need no class token
    "tps": (tg.TPS(layers=[1, 2]), None),
    "zero-tprune": (tg.ZeroTPrune(), {1: 10, 2: 6}),
    "svit": (tg.SViT(0.5, layers=[1, 2]), None),
    "adavit": (tg.AdaViT(layers=[1, 2], threshold=0.88), None),
    "avit": (tg.AViT(scale=2.0, center=0.5), None),
}
CLASS = {  # for models with a class token
    "topk-class": (tg.TopK(), {1: 10, 2: 5}),
    "etps": (tg.TPS(variant="etps"), {1: 10, 2: 5}),
    "ppt": (tg.PPT(threshold=1e-3), {1: 0.7, 2: 0.5}),
    "ats": (tg.ATS(8, layers=[1, 2]), None),
    "diffrate": (tg.DiffRate(), {1: 10, 2: 5}),
    "idlevit": (tg.IdleViT(0.5), None),
    "evovit": (tg.EvoViT([(1, 2, 0.5), (2, 3, 0.5)]), None),
    "evovit-summary": (tg.EvoViT([(1, 3, 0.5)], summary=True), None),
}


def paired(kinds, strategies, each=2):
    """``(kind, strategy)`` pairs in which every kind meets ``each`` strategies and every strategy ``each`` kinds.

    All products would say the same many times over: a kind and a strategy meet in few places.
    """
    kinds, strategies, pairs = list(kinds), list(strategies), []
    for strategy in strategies:
        while sum(s == strategy for _, s in pairs) < min(each, len(kinds)):
            free = [k for k in kinds if (k, strategy) not in pairs]
            pairs.append((min(free, key=lambda k: sum(one == k for one, _ in pairs)), strategy))
    for kind in kinds:
        while sum(k == kind for k, _ in pairs) < min(each, len(strategies)):
            free = [s for s in strategies if (kind, s) not in pairs]
            pairs.append((kind, min(free, key=lambda s: sum(one == s for _, one in pairs))))
    return pairs


def check_alone(together, alone, **tolerances):
    """Each row of a batch's output is that of its image alone, behind which tokens may be padded."""
    for row, (one,) in zip(together, alone, strict=True):
        torch.testing.assert_close(row[: len(one)], one, **tolerances)


@dataclass(frozen=True)
class Uneven(tg.Select):
    """Another strategy with a budget of its own for each image: brighter images keep more."""

    inner: tg.Select = field(default_factory=tg.ToMe)

    @property
    def merges(self):  # type: ignore[override]
        return self.inner.merges

    def __call__(self, tokens, budget):
        rows = list(tokens.x) if tokens.mask is None else [x[m] for x, m in zip(tokens.x, tokens.mask, strict=True)]
        bright = [int(10 * row.detach().float().abs().mean()) % 4 for row in rows]
        keep = [
            max(self.inner.fewest(len(row)), min(budget + more, len(row)))
            for row, more in zip(rows, bright, strict=True)
        ]
        return self.inner(tokens, keep)


@dataclass(frozen=True)
class StrategyCase(ModelCase):
    """A model with a strategy other than ToMe, which the laws take unless told otherwise."""

    select: tg.Select = tg.ToMe()
    schedule: Any = 3

    def attach(self, model, schedule=2):
        """The schedules of the laws that remove nothing, and this strategy's own instead of the others."""
        torch.manual_seed(3)  # of prediction modules
        given = schedule if schedule in (0, {1: 1.0}) else self.schedule
        return tg.attach(model, self.select, given, adapter=self.adapter)
