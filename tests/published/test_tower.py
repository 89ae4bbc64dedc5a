"""Selections at a tower's output, fixed matrices and SPViT's selector against vectors (see reference/pruning)."""

import json

import pytest
import torch
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.nn.selector import MultiheadSelector, package
from tokengraph.select.prune_merge import prune_merge_matrices, segment_matrices


@pytest.mark.parametrize("official", [True, False])
def test_visionzip_gives_the_published_tokens(vectors, official):
    v = vectors("pruning", "visionzip")
    x = v["hidden"][:, 1:]
    d, c = int(v["dominant"]), int(v["contextual"])
    a = tg.visionzip(x, v["attn"][:, :, 0, 1:], v["keys"][:, 1:], d, c, official=official)
    rows = a.reduce(x.flatten(0, 1))[0].view(2, d + c, -1)
    assert_close(rows, v["out" if official else "own_mean_out"][:, 1:], rtol=0, atol=2e-6)
    assert a.lift(rows.flatten(0, 1)).isfinite().all()


def test_visionzip_counts_and_edges():
    x = torch.randn(2, 12, 4)
    score = torch.rand(2, 12)
    assert tg.visionzip(x, score, x, 12, 3).cluster.tolist() == list(range(24))
    assert tg.visionzip(x, score, x, 8, 40).num_clusters == 24  # no more merged ones than others
    assert tg.visionzip(x, score, x, 0, 3).num_clusters == 6
    assert tg.visionzip(x, score, x, 3, 0).lossy
    same = torch.ones(1, 9, 2)
    assert_close(tg.visionzip(same, torch.ones(1, 9), same, 3, 2).reduce(same[0])[0], torch.ones(5, 2))
    mask = torch.arange(12) < torch.tensor([[12], [7]])
    a = tg.visionzip(x, score, x, 3, 2, mask=mask)
    alone = tg.visionzip(x[1:, :7], score[1:, :7], x[1:, :7], 3, 2)
    assert torch.equal(a.cluster[12:] - 5, alone.cluster)
    with pytest.raises(ValueError, match="together 1"):
        tg.visionzip(x, score, x, 0, 0)


def test_prumerge_gives_the_published_tokens(vectors):
    v = vectors("pruning", "prumerge")
    x, ratio = v["hidden"][:, 1:], float(v["ratio"])
    a = tg.prumerge(x, v["q"], v["keys"], ratio, int(v["neighbours"]), order="score", official=True)
    rows = a.reduce(x.flatten(0, 1))[0].view(2, 13, -1)
    assert_close(rows, v["out"], rtol=0, atol=2e-6)
    kept = a.centers.view(2, 13)[:, :12] - torch.tensor([[0], [48]])
    assert torch.equal(kept, v["kept"].long())


def test_prumerge_keeps_outliers_of_each_image(vectors):
    v = vectors("pruning", "prumerge")
    x = v["hidden"][:, 1:]
    a = tg.prumerge(x, v["q"], v["keys"], order="score", official=True)
    first = v["adaptive_out_image0"][0]
    assert_close(a.reduce(x.flatten(0, 1))[0][: len(first)], first, rtol=0, atol=2e-6)
    assert list(a.counts) == v["adaptive_counts_per_image"].tolist()


def test_prumerge_means_and_edges():
    x, k = torch.randn(2, 10, 4), torch.randn(2, 11, 6)
    a = tg.prumerge(x, k, k, 0.3, 4)
    rows = a.reduce(torch.ones(20, 3))[0]
    assert_close(rows, torch.ones(8, 3))
    assert tg.prumerge(x, k, k, 0.2, plus=True).num_clusters >= 2 * 3
    assert tg.prumerge(x[:, :1], k[:, :2], k[:, :2], 1.0).num_clusters == 2
    with pytest.raises(ValueError, match=r"Expected ratio in \(0, 1\]"):
        tg.prumerge(x, k, k, 0.0)
    with pytest.raises(ValueError, match=r"Expected keys \[B, 1\+N, D\]"):
        tg.prumerge(x, k, k[:, 1:])


def test_fastv_keeps_the_best_of_one_row_for_each_image():
    attention = torch.rand(2, 3, 5, 8)
    a = tg.fastv(attention, 3)
    assert torch.equal(a.cluster, tg.topk(attention[:, :, -1].mean(dim=1), 3).cluster)
    whole = tg.fastv(attention, 3, query=None)
    assert torch.equal(whole.cluster, tg.topk(attention.mean(dim=(1, 2)), 3).cluster)
    with pytest.raises(ValueError, match=r"Expected attention of shape \[B, H, Q, N\]"):
        tg.fastv(attention[0], 3)


def test_prune_and_merge_matrices_are_the_published_ones(vectors):
    v = vectors("pruning", "prune_merge")
    how = json.loads(v["config"])
    m = prune_merge_matrices(v["rank"], how["keep"], how["prune"], official=True)
    assert_close(m.merge, v["merge"], rtol=1e-5, atol=1e-6)
    assert_close(m.recover, v["recover"], rtol=1e-4, atol=1e-5)
    assert torch.equal(m.mask, v["mask"])
    merged = m.merge @ v["x"]
    assert_close(merged, v["merged"], rtol=0, atol=1e-5)
    out = m.recover @ merged + (1 - m.mask)[:, None] * v["x"]
    assert_close(out, v["identity_body_out"], rtol=0, atol=1e-5)


def test_segment_matrices_are_the_published_ones(vectors):
    v = vectors("pruning", "prune_merge")
    m = segment_matrices(v["rank"], 14, json.loads(v["config"])["prune"], official=True)
    assert_close(m.merge, v["segmenter_merge"], rtol=1e-5, atol=1e-6)
    assert_close(m.recover, v["segmenter_recover"], rtol=1e-4, atol=1e-5)


def test_default_matrices_are_means_and_run_as_a_strategy(vectors):
    rank = vectors("pruning", "prune_merge")["rank"][:16]
    m = prune_merge_matrices(rank, 6, 3, num_prefix=0)
    assert_close(m.merge.sum(dim=1), torch.ones(len(m.merge)))
    assert prune_merge_matrices(rank, 16, num_prefix=0).merge.equal(torch.eye(16))
    one = segment_matrices(rank, 6, num_prefix=0).merge
    assert_close(one.sum(dim=1), torch.ones(6))
    assert ((one > 0).sum(dim=0) == 1).all()
    graph = tg.TokenGraph.from_tokens(torch.randn(2, 16, 4), (4, 4))
    assert tg.coarsen(graph, tg.FromMatrix(one.t().contiguous()), 6).graph.num_nodes == 12


def test_the_selector_and_its_package_are_the_published_ones(vectors):
    v = vectors("pruning", "spvit_select")
    selector = MultiheadSelector(24, 3, shared=True)
    names = {"in_conv.0.": "heads.0.in_conv.", "out_conv.0.": "heads.0.out_conv."}
    own = {}
    for k, t in v.items():
        if k.startswith("sd/"):
            k = k[3:]
            for old, new in names.items():
                k = new + k[len(old) :] if k.startswith(old) else k
            own[k] = t
    selector.load_state_dict(own)
    with torch.no_grad():
        log = selector(v["x"], v["policy"])
        assert_close(log, v["weighted_log"], rtol=1e-5, atol=1e-6)
        assert_close(selector.probability(v["x"], v["policy"]), v["weighted_probability"], rtol=1e-5, atol=1e-6)
        found = package(v["x"], v["weighted_probability"][..., 0], v["dropped_now"], official=True)
    assert_close(found, v["package"], rtol=1e-5, atol=2e-6)
    mean = package(torch.ones(1, 4, 3), torch.rand(1, 4), torch.ones(1, 4))
    assert_close(mean, torch.ones(1, 3))
    apart = MultiheadSelector(24, 3)
    assert len(apart.heads) == 3
    with pytest.raises(ValueError, match="Expected heads that divide the channels"):
        MultiheadSelector(24, 5)


def test_towers_without_tokens_give_empty_maps_or_say_what_is_missing():
    x, keys = torch.zeros(2, 0, 4), torch.zeros(2, 1, 4)
    assert tg.prumerge(x, keys, keys).num_clusters == 0
    assert tg.visionzip(x, x[..., 0], x, 3, 1).num_clusters == 0
    with pytest.raises(ValueError, match=r"Expected query to be one of 0 rows of attention \(got -1\)"):
        tg.fastv(torch.zeros(1, 2, 0, 0), 1)


def test_prumerge_gives_equal_neighbours_to_the_lower_index():
    k = torch.ones(1, 7, 4)
    a = tg.prumerge(torch.ones(1, 6, 4), k, k, ratio=0.2, neighbours=2)
    assert a.token[a.cluster == 0].tolist() == [0, 1, 2]
