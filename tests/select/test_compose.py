"""Strategies of parts: every combination that fits holds the laws, and what does not fit says why."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.select.compose import fitting, table
from tokengraph.testing import SELECT_LAWS, make_tokens, tiny_vit

DOCS = Path(__file__).parents[2] / "docs" / "compose.md"
FIT = list(fitting())
SAME_MAP = ("max", "absmax", "mlerp")  # these read the map that "mean" reads
FULL = [  # the less usual parts
    {"score": "received", "graph": "ranked", "reduce": "weighted"},
    {"score": "norm", "graph": "cells", "reduce": "center"},
    {"choose": "mutual-pairs", "score": "norm", "reduce": "center"},
    {"choose": "around-best", "score": "distinct"},
    {"choose": "top-k", "score": "random", "reduce": "fuse"},
]
IMAGES = torch.randn(2, 3, 32, 32)


def made(parts):
    score, graph, choose, reduce = parts
    return tg.compose(score=score, graph=graph, choose=choose, reduce=reduce)


def dense(a):
    """Weights ``[M, K]`` of a map of either kind."""
    soft = tg.SoftAssignment.from_hard(a) if isinstance(a, tg.Assignment) else a
    out = torch.zeros(soft.num_tokens, soft.num_clusters)
    return out.index_put((soft.token, soft.cluster), soft.weight, accumulate=True)


@pytest.mark.parametrize("choose", sorted({parts[2] for parts in FIT}))
def test_every_combination_that_fits_keeps_budget_mass_and_images_apart(choose):
    x = torch.randn(2, 24, 8, generator=torch.Generator().manual_seed(1))
    size = torch.ones(48)
    for parts in (p for p in FIT if p[2] == choose and p[3] not in SAME_MAP):
        select = made(parts)
        a, alone = (select(make_tokens(rows, (4, 6)), 13) for rows in (x, x[1:]))
        each = a.cluster_ptr.diff().tolist()
        assert all(13 <= k <= 24 if select.ragged else k == 13 for k in each), parts
        weights = dense(a)
        assert (weights.sum(dim=0) != 0).all(), f"{parts}: an empty cluster"
        assert_close(weights[24:, each[0] :], dense(alone), msg=lambda m, parts=parts: f"{parts}: {m}")
        assert not weights[24:, : each[0]].any() and not weights[:24, each[0] :].any(), parts
        rows, sizes = a.reduce(x.flatten(0, 1), size, **({"reduce": select.reduction_at(0)} if hard(a) else {}))
        assert rows.isfinite().all(), parts
        if select.merges:
            assert_close(sizes.sum(), torch.tensor(48.0), msg=lambda m, parts=parts: f"{parts}: {m}")


def hard(a):
    return isinstance(a, tg.Assignment)


def laws():
    """Every law for each combination; the quick run compiles the first."""
    for parts in FULL:
        for law in SELECT_LAWS:
            slow = law.__name__ == "compiles_whole" and parts is not FULL[0]
            marks = pytest.mark.slow if slow else ()
            yield pytest.param(parts, law, id=f"{parts}-{law.__name__}", marks=marks)


@pytest.mark.parametrize(("parts", "law"), list(laws()))
def test_all_laws_hold_for_unusual_combinations(parts, law):
    law(tg.compose(**parts))


@pytest.mark.parametrize("parts", [p for p in FIT if p[3] != "max"][::9], ids=str)
def test_combinations_run_in_a_model(parts):
    model, select = tiny_vit(), made(parts)
    with torch.no_grad(), tg.attach(model, select, {2: 9}) as handle:
        out = model(IMAGES)
        assert out.isfinite().all() and handle.trace.counts[1] == 16
        assert (handle.trace.counts[2] == 9) or select.ragged
        with handle.paused():
            assert not torch.equal(model(IMAGES), out) or handle.trace.counts[2] == 16


@pytest.mark.parametrize("parts", list(fitting("around"))[::17], ids=str)
def test_combinations_run_around_attention(parts):
    score, graph, choose, reduce = parts
    model, select = tiny_vit(), tg.compose(score=score, graph=graph, choose=choose, reduce=reduce, place="around")
    with torch.no_grad(), tg.attach(model, select, {0: 9}) as handle:
        assert model(IMAGES).isfinite().all()
        assert handle.trace.counts == [16] * 4 and (handle.trace.counts_inside == [9] * 3 or select.ragged)


@pytest.mark.parametrize(
    ("parts", "strategy"),
    [
        ({}, tg.ToMe()),
        ({"choose": "agglomerate"}, tg.ATC()),
        ({"score": "class", "choose": "top-k"}, tg.TopK()),
        ({"choose": "peaks", "place": "after", "metric": "features"}, tg.DPCKNN(5, reduce="mean")),
        ({"graph": "cells", "metric": "features"}, tg.GridToMe()),
    ],
    ids=lambda value: str(value),
)
def test_parts_of_a_published_method_are_that_method(parts, strategy):
    outputs = []
    for select in (tg.compose(**parts), strategy):
        torch.manual_seed(0)
        model = tiny_vit()
        with torch.no_grad(), tg.attach(model, select, {2: 9}):
            outputs.append(model(IMAGES))
    assert torch.equal(*outputs)


def test_weighted_means_count_by_score_times_size():
    x, size = torch.randn(1, 4, 3), torch.tensor([[1.0, 2.0, 1.0, 3.0]])
    tokens = make_tokens(x, (2, 2))
    tokens.size = size
    score = torch.tensor([[0.5, 1.0, 2.0, 4.0]])
    select = tg.compose(score=lambda tokens: score, choose="around-best", reduce="weighted", metric="features")
    a = select(tokens, 1)
    rows, made = a.reduce(x[0], size[0], reduce=select.reduction_at(0))
    weight = (score * size)[0]
    assert_close(rows[0], (weight[:, None] * x[0]).sum(dim=0) / weight.sum())
    assert made.tolist() == [7.0]


def test_centers_are_the_best_members_by_a_score():
    x = torch.tensor([[[1.0, 0.0], [0.9, 0.0], [0.0, 1.0], [0.0, 0.5]]])
    score = torch.tensor([[0.1, 0.9, 0.3, 0.2]])
    select = tg.compose(score=lambda tokens: score, choose="agglomerate", reduce="center", metric="features")
    a = select(make_tokens(x, (2, 2)), 2)
    assert a.reduce(x[0], reduce="center")[0].tolist() == [[0.9 if v == 0.9 else v for v in x[0, 1].tolist()], [0, 1]]


def test_functions_of_ones_own_take_part():
    model = tiny_vit()
    select = tg.compose(choose=lambda seen, keep: tg.tome(seen.metric, keep, num_prefix=1), reduce="mlerp")
    with torch.no_grad(), tg.attach(model, select, 3) as handle:
        model(IMAGES)
        assert handle.trace.counts == [16, 13, 10, 7]
    with pytest.raises(ValueError, match=r"Expected a score \[B, N\] = \[2, 16\] .got \[2, 16, 8\]"):
        tg.compose(score=lambda tokens: tokens.x, choose="top-k")(make_tokens(torch.randn(2, 16, 8), (4, 4)), 4)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"choose": "kmeans"}, "Expected choose to be one of top-edges"),
        ({"graph": "knn"}, "Expected graph to be 'alternating' or 'ranked' or 'cells' for choose='top-edges'"),
        ({"score": "saliency"}, "Expected score to be one of class"),
        ({"reduce": "median"}, "Expected reduce to be one of absmax"),
        ({"place": "ahead"}, "Expected place to be one of before, inside, after, around"),
        ({"metric": "values"}, "Expected metric to be 'keys' or 'features'"),
        (
            {"score": "norm"},
            "Expected no score for choose='top-edges' on graph='alternating' .* none of these parts reads",
        ),
        ({"graph": "ranked"}, "Expected a score for graph='ranked'"),
        ({"choose": "top-k"}, "Expected a score for choose='top-k'"),
        ({"reduce": "weighted"}, "Expected a score for reduce='weighted' of choose='top-edges'"),
        ({"choose": "top-k", "score": "norm", "reduce": "mean"}, "nothing merges"),
        ({"reduce": "drop"}, "it drops nothing"),
        ({"reduce": "soft"}, "it has no centres"),
        ({"choose": "both-ways", "reduce": "center"}, "Expected a score for reduce='center' of choose='both-ways'"),
        ({"choose": "both-ways", "reduce": "weighted", "score": "distinct"}, "which is negative"),
        ({"score": "class", "choose": "top-k", "place": "around"}, "the block has not run yet"),
        ({"place": "around", "metric": "keys"}, "the block has not run yet"),
        ({"knob": 3}, "Expected no knob for choose='top-edges'"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_with_the_reason(parts, why):
    with pytest.raises(ValueError, match=why):
        tg.compose(**parts)


def test_the_table_of_the_docs_is_current():
    assert table() in DOCS.read_text(encoding="utf-8"), f"put in:\n{table()}"
