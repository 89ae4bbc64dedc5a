"""GTP against vectors computed with its published code (see tests/reference/gtp/README.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tokengraph import TokenGraph
from tokengraph.attention.stats import AttentionStats
from tokengraph.select.gtp.gtp import gtp, propagate
from tokengraph.select.parts.graphs.propagation import PropagationGraph, propagation_graph
from tokengraph.select.parts.scores.attention import gtp_score, sparsify

HERE = Path(__file__).parents[2] / "reference" / "gtp"
SHARED = Path(__file__).parents[4] / "shared" / "reference" / "gtp"  # files too large for the repository
STANDARDS = {
    "CLSAttnMean": "cls-mean", "CLSAttnMax": "cls-max", "IMGAttnMean": "image-mean", "IMGAttnMax": "image-max",
    "DiagAttnMean": "diag-mean", "DiagAttnMax": "diag-max", "MixedAttnMean": "mixed-mean",
    "MixedAttnMax": "mixed-max", "SumAttnMax": "sum-max", "CosSimMean": "cosine-mean", "CosSimMax": "cosine-max",
}  # fmt: skip


def load(name: str) -> dict[str, torch.Tensor]:
    path = HERE / f"{name}.npz"
    if not path.exists():
        path = SHARED / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"needs {name}.npz of the reference vectors, which is too large for the repository")
    with np.load(path, allow_pickle=False) as file:
        return {k: torch.from_numpy(file[k]) for k in file.files if file[k].dtype.kind in "fi"}


def dense(graph: PropagationGraph) -> torch.Tensor:
    """Weights as ``[B, receiver, sender]``."""
    n = graph.patches
    out = torch.zeros(graph.images, n, n)
    return out.index_put((graph.receiver // n, graph.receiver % n, graph.sender % n), graph.weight, accumulate=True)


def sparse(weight: torch.Tensor) -> PropagationGraph:
    """The graph of dense weights ``[B, receiver, sender]``."""
    n = weight.size(1)
    image, receiver, sender = weight.nonzero().unbind(1)
    index = torch.stack([sender, receiver]) + image * n
    return PropagationGraph.from_edges(torch.zeros(*weight.shape[:2], 1), index, weight[image, receiver, sender])


def kept_of(assignment, images: int, first: int = 1) -> torch.Tensor:
    """Kept tokens of each image, counted from ``first``."""
    local = assignment.centers.view(images, -1) % (assignment.num_tokens // images)
    return local + first


KEYS = [
    *(f"{tag}_Spatial" for tag in ("cls", "nocls")),
    *(f"{tag}_Semantic_k{k}" for tag in ("cls", "nocls") for k in (1, 4, 8)),
    *(f"{tag}_Mixed_k{k}" for tag in ("cls", "nocls") for k in (1, 8)),
]


@pytest.mark.parametrize("key", KEYS)
def test_propagation_graph_is_the_published_one(key):
    vectors = load("graphs")
    tag, kind, *k = key.split("_")
    # Without a class token the published code has one neighbour more than asked for.
    neighbors = int(k[0][1:]) + (tag == "nocls") if k else 8
    got = dense(propagation_graph(vectors["feat"], (14, 14), graph=kind.lower(), neighbors=neighbors))
    assert torch.equal(got > 0, vectors[f"{key}_adj"].expand(2, -1, -1) > 0)
    assert_close(got, vectors[f"{key}_norm"].expand(2, -1, -1), rtol=0, atol=1e-6)


def test_every_published_graph_is_compared():
    assert {k.removesuffix("_adj") for k in load("graphs") if k.endswith("_adj")} == set(KEYS)


@pytest.mark.parametrize("standard", STANDARDS)
def test_scores_and_selection_are_the_published_ones(standard):
    vectors = load("select_cls")
    score = gtp_score(AttentionStats.from_map(vectors["attn"], 1), STANDARDS[standard])
    assert_close(score, vectors[f"{standard}_score"], rtol=1e-5, atol=0)
    check_selection(score, standard, vectors)


def test_a_score_of_ones_own_selects_as_published():
    vectors = load("select_cls")
    check_selection(vectors["Random_score"], "Random", vectors)


def check_selection(score, standard, vectors):
    for removed in (1, 5, 8):
        stored = vectors[f"{standard}_p{removed}_kept"].long()
        kept = kept_of(gtp(score, 49 - removed, mode="none"), 2)
        assert torch.equal(kept, stored.sort(dim=1).values)
        by_score = kept_of(gtp(score, 49 - removed, mode="none", order="score"), 2)
        assert torch.equal(by_score, stored)
        everyone = torch.cat([kept, vectors[f"{standard}_p{removed}_prop"].long()], dim=1)
        assert torch.equal(everyone.sort(dim=1).values, torch.arange(1, 50).expand(2, -1))


@pytest.mark.parametrize("tag", ["cls", "nocls"])
@pytest.mark.parametrize("removed", [1, 5, 8, 20])
def test_propagation_is_the_published_one(tag, removed):
    vectors, prefix = load("propagate"), int(tag == "cls")
    x, scales = vectors["x"][:, prefix:], vectors["scales"][:, prefix:]
    weight = vectors[f"weight_{tag}"]
    graph, name = sparse(weight), f"{tag}_p{removed}"
    kept = vectors[f"{name}_kept"].long() - prefix
    score = torch.zeros(2, kept.size(1) + removed).scatter_(1, kept, torch.arange(kept.size(1), 0, -1.0).expand(2, -1))
    for alpha in (0.1, 0.4):
        stored = f"{name}_a{alpha}"
        assignment = gtp(score, kept.size(1), graph, alpha=alpha, order="score")
        assert torch.equal(kept_of(assignment, 2, 0), kept)
        for y, s in (
            propagate(x, kept, graph, size=scales, alpha=alpha),
            assignment.reduce(x.flatten(0, 1), scales.flatten()),
        ):
            y, s = y.view(2, -1, 16), s.view(2, -1)
            for given in ("s0", "s1"):  # the features do not depend on the scales
                assert_close(y, vectors[f"{stored}_{given}_x"][:, prefix:], rtol=0, atol=1e-5)
            assert_close(s, vectors[f"{stored}_s1_scales"][:, prefix:], rtol=0, atol=1e-5)
    left = TokenGraph.from_propagation(graph, kept)
    rows = torch.zeros(2, kept.size(1), kept.size(1))
    rows[left.batch[left.edge_index[0]], left.edge_index[1] % rows.size(1), left.edge_index[0] % rows.size(1)] = (
        left.edge_weight
    )
    assert torch.equal(rows, vectors[f"{name}_weight"])  # never normalised again
    assert_close(propagate(x, kept, mode="none")[0], vectors[f"{name}_None_x"][:, prefix:], rtol=0, atol=0)
    mean, s = propagate(x, kept, size=scales, mode="mean")
    assert_close(mean, vectors[f"{name}_Mean_x"][:, prefix:], rtol=0, atol=1e-5)
    gone = torch.ones_like(scales).scatter_(1, kept, 0.0)
    assert_close(s[:, -1], (scales * gone).sum(1) / removed)


def test_one_block_selects_and_propagates_as_published():
    vectors = load("block_a")
    stats = AttentionStats.from_map(vectors["attn"], 1)
    score = gtp_score(stats)
    assert_close(score, vectors["score"], rtol=1e-5, atol=0)
    graph = sparse(vectors["weight_in"])
    spatial = propagation_graph(vectors["x_in"][:, 1:], (7, 7), graph="spatial")
    assert_close(dense(spatial), vectors["weight_in"], rtol=0, atol=1e-6)
    x = vectors["x_after_attn"]
    for g in (graph, spatial):
        assignment = gtp(score, 41, g, alpha=0.1, order="score")
        assert torch.equal(kept_of(assignment, 2), vectors["index_kept"].long())
        y = assignment.reduce(x[:, 1:].flatten(0, 1))[0].view(2, 41, -1)
        assert_close(y, vectors["x_after_prop"][:, 1:], rtol=0, atol=1e-5)
    left = TokenGraph.from_propagation(spatial, vectors["index_kept"].long() - 1)
    assert left.num_edges == int((vectors["weight_out"] != 0).sum())


@pytest.mark.parametrize("model", ["model_a_spatial", "model_b_mixed"])
def test_whole_schedules_in_patch_ids_lead_to_the_published_tokens(model):
    vectors = load(model)
    mixed = model.startswith("model_b")
    graph = propagation_graph(vectors["tokens0"][:, 1:], (8, 8), graph="mixed" if mixed else "spatial")
    assert_close(dense(graph), vectors["graph0"].expand(2, -1, -1), rtol=0, atol=1e-6)
    patch, scales = torch.arange(64).expand(2, -1), torch.ones(2, 64)
    for layer in range(4):
        score = vectors[f"l{layer}_score"]
        if layer:  # columns stand in the published order of the layer before
            stored = vectors[f"l{layer - 1}_orig_kept"].long()
            score = torch.zeros(2, 64).scatter_(1, stored, score).gather(1, patch)
        want = vectors[f"l{layer}_orig_kept"].long()
        assignment = gtp(score, want.size(1), graph, alpha=0.3 if mixed else 0.1, patch=patch)
        scales = assignment.reduce(torch.zeros(scales.numel(), 1), scales.flatten())[1].view(2, -1)
        patch = patch.gather(1, kept_of(assignment, 2, 0))
        assert torch.equal(patch, want.sort(dim=1).values)
        if mixed:
            stored = vectors[f"l{layer}_scales"][:, 1:].gather(1, want.argsort(dim=1))
            assert_close(scales, stored, rtol=0, atol=1e-5)
    left = TokenGraph.from_propagation(graph, patch)
    assert left.num_edges == int((vectors["l3_graph"] != 0).sum())


def test_sparsify_cuts_as_many_entries_as_the_published_model_in_its_four_layers():
    for side, cut in ((65, 844), (63, 793), (59, 696), (53, 561)):
        attention = torch.randn(1, 2, side, side).softmax(dim=-1)
        zeros = (sparsify(attention, 0.8) == 0).flatten(2).sum(dim=2)
        assert zeros.tolist() == [[cut - 1, cut - 1]]
