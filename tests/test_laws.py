"""Every registered strategy, also with unusual options, against every law."""

import pytest
import torch

import tokengraph as tg
from tokengraph.testing import SELECT_LAWS, check_select, make_tokens

DEFAULTS = [cls() for cls in tg.registry().values() if not cls.learns]
STRATEGIES = [
    *DEFAULTS,
    tg.DPCKNN(k=3, include_self=False, order="score"),
    tg.AiluRus(lam=3, k=9, alpha=0.0),
    tg.AiluRus(lam=1, alpha=1.0, include_self=True),
    tg.AiluRus(lam=500, order="score"),
    tg.ATC("single"),
    tg.ATC("complete"),
    tg.CubistMerge("mean"),
    tg.PiToMe(mode="bsm", margin=0.2),
    tg.ToFu(reduce="released"),
    tg.MCTF(tau=(0.5, 1, 0), bidirectional=False),
    tg.TokenTransforming(scale=3.0, importance="received", topk=4, keep_self=True),
    tg.KMedoids(weight="equal", iterations=1),
    tg.KMedoids(objective="released", reduce="mean"),
    tg.HeavyEdges(weight="one", neighbors=3, normalize=True),
    tg.LocalVariation(neighbors=3, rank=3, sets="neighborhoods"),
    tg.TopK(score="norm"),
    tg.TPS(variant="etps"),
    tg.DiffRate(),
    tg.PPT(threshold=0.0),
    tg.PPT(threshold=1.0, order="score"),
    tg.ATS(official=True),
    tg.EvoViT(summary=True),
    tg.TopK(score="norm", fuse=True),
    tg.TopK(score="class", fuse=True),
    tg.Random(seed=7),
    tg.Expedite(iterations=1, window=3, empty="zero", neighbors=3),
    tg.Expedite(inv_temperature="auto", mode="hard", detach=False),
    tg.GTP(graph="spatial", score="random", scales=False),
    tg.GTP(graph="semantic", score="cls-max", neighbors=3),
    tg.GTP(mode="mean", score="diag-mean"),
    tg.GTP(mode="none", score="cosine-max", order="score"),
]


# Compiled every time, in seconds each: one strategy for each kind of choice (pairs, centers, grids, facilities, scores,
# graphs of a run, stored rows).
COMPILED = {
    "tome", "dpc-knn", "expedite", "toma", "grid-pool", "topk", "gtp", "token-migration", "heavy-edges",
}  # fmt: skip


def pairs():
    """Every law for every strategy; the quick run compiles a few."""
    for select in STRATEGIES:
        for law in SELECT_LAWS:
            quick = select in DEFAULTS and select.name in COMPILED
            slow = law.__name__ == "compiles_whole" and not quick
            marks = pytest.mark.slow if slow else ()
            yield pytest.param(select, law, marks=marks, id=f"{select!r}-{law.__name__}")


@pytest.mark.parametrize(("select", "law"), list(pairs()))
def test_law_holds(select, law):
    law(select)  # raises AssertionError where it is broken


class Careless(tg.Select):
    """Breaks batch independence: the first image decides for all."""

    def __call__(self, tokens, budget):
        score = tokens.x[:1].sum(dim=2).expand(tokens.x.size(0), -1)
        return tg.topk(score, budget)

    merges = False


def test_check_select_names_the_broken_law():
    with pytest.raises(AssertionError, match="breaks the law 'treats_images_alone'"):
        check_select(Careless())


@pytest.mark.parametrize("select", [tg.DPCKNN(), tg.TopK(score="norm")], ids=repr)
def test_strategy_without_a_sequence_order_is_equivariant_to_permutation(select):
    x = torch.randn(2, 48, 16)
    order = torch.randperm(48)
    straight = select(make_tokens(x, (6, 8)), 20).cluster.view(2, -1)[:, order]
    shuffled = select(make_tokens(x[:, order], (6, 8)), 20).cluster.view(2, -1)
    # Same partition: tokens share a cluster in one exactly when they do in the other.
    assert torch.equal(straight[..., None] == straight[:, None], shuffled[..., None] == shuffled[:, None])


class Fresh(tg.DynamicViT):
    """DynamicViT with predictors made for the width of the features, as attach makes them for a model's."""

    name = ""

    def __call__(self, tokens, budget):
        tokens.x = torch.nn.functional.pad(tokens.x, (0, -tokens.x.size(2) % 4))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            bound, _ = tg.DynamicViT(layers=[1], order=self.order).bind(tokens.x.size(2), 2)
        bound.predictors.eval()
        return bound(tokens, budget)


# Its modules have a dtype of their own and follow autocast, as any module does; compile is tested through attach.
LEARNED = [law for law in SELECT_LAWS if law.__name__ not in ("keeps_the_dtype", "ignores_autocast", "compiles_whole")]


@pytest.mark.parametrize("law", LEARNED, ids=lambda law: law.__name__)
@pytest.mark.parametrize("order", ["index", "score"])
def test_law_holds_for_learned_pruning(law, order):
    law(Fresh(order=order))
