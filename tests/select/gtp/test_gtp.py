"""GTP's step and strategy: which tokens stay, which features they receive, and what differs from the published code."""

import os

import pytest
import torch
from torch.testing import assert_close

from tokengraph.attention.stats import AttentionStats
from tokengraph.maps.hard import Assignment
from tokengraph.select.base import registry
from tokengraph.select.gtp.gtp import DEIT_B, GTP, gtp, propagate
from tokengraph.select.parts.graphs.propagation import PropagationGraph, propagation_graph
from tokengraph.select.parts.scores.attention import SCORES
from tokengraph.select.tokens import Tokens
from tokengraph.testing import SELECT_LAWS, make_tokens

KINDS = ["spatial", "semantic", "mixed"]
VARIANTS = [
    GTP(),
    GTP(graph="spatial", scales=False, order="score"),
    GTP(graph="semantic", neighbors=3, score="cosine-max"),
    GTP(neighbors=0, score="sum-max", include_self=False),
    GTP(mode="none", score="cls-mean"),
    GTP(mode="mean", score="diag-max"),
    GTP(score="random", seed=3),
    GTP.published(8),
]


def weights(graph):
    """``[B, receiver, sender]``."""
    n = graph.patches
    out = torch.zeros(graph.images, n, n)
    return out.index_put((graph.receiver // n, graph.receiver % n, graph.sender % n), graph.weight, accumulate=True)


def by_hand(x, size, kept, patch, graph, alpha):
    """One step with dense matrices, image by image."""
    rows, scales = [], []
    for b in range(x.size(0)):
        stay = kept[b].tolist()
        gone = [t for t in range(x.size(1)) if t not in stay]
        part = alpha * weights(graph)[b][patch[b, stay]][:, patch[b, gone]]
        rows.append(x[b, stay] + part @ x[b, gone])
        scales.append(size[b, stay] + part @ size[b, gone])
    return torch.stack(rows), torch.stack(scales)


# ---- laws -----------------------------------------------------------------------------------------------------------


def laws():
    """Compiling takes seconds: the quick run compiles the published form, and tests/test_laws.py others."""
    for select in VARIANTS:
        for law in SELECT_LAWS:
            slow = law.__name__ == "compiles_whole"  # tests/test_laws.py compiles the default every time
            marks = pytest.mark.slow if slow else ()
            yield pytest.param(select, law, id=f"{law.__name__}-{select!r}", marks=marks)


@pytest.mark.parametrize(("select", "law"), list(laws()))
def test_law_holds(select, law):
    law(select)


def test_gtp_is_found_by_lying_in_the_folder():
    assert registry()["gtp"] is GTP


# ---- the step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.7])
def test_gtp_over_a_schedule_is_dense_algebra_in_patch_ids(kind, alpha):
    x, size = torch.randn(3, 20, 6), torch.rand(3, 20) + 0.5
    graph = propagation_graph(x, (4, 5), graph=kind, neighbors=4)
    patch = torch.arange(20).expand(3, -1)
    for keep in (16, 11, 5, 1):
        assignment = gtp(torch.rand(patch.shape), keep, graph, alpha=alpha, patch=patch)
        kept = assignment.centers.view(3, keep) - torch.arange(3)[:, None] * patch.size(1)
        assert torch.equal(kept, kept.sort(dim=1).values)
        expected = by_hand(x, size, kept, patch, graph, alpha)
        got = assignment.reduce(x.flatten(0, 1), size.flatten())
        for ours, theirs in zip(got, expected, strict=True):
            assert_close(ours.view_as(theirs), theirs)
        for ours, theirs in zip(propagate(x, kept, graph, size=size, alpha=alpha, patch=patch), expected, strict=True):
            assert_close(ours, theirs)
        (x, size), patch = expected, patch.gather(1, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_shapes_give_the_same_map_as_live_edges(kind):
    x = torch.randn(2, 20, 6)
    graph = propagation_graph(x, (4, 5), graph=kind, neighbors=4)
    patch = torch.stack([torch.randperm(20)[:13] for _ in range(2)])
    score, rows = torch.rand(2, 13), torch.randn(26, 6)

    def run(score, rows, patch):
        assignment = gtp(score, 8, graph, alpha=0.5, patch=patch)
        return *assignment.reduce(rows), assignment.lift(torch.ones(16, 1)), assignment.token

    torch.compiler.reset()
    fixed = torch.compile(run, fullgraph=True, backend="eager")(score, rows, patch)
    live = run(score, rows, patch)
    for ours, theirs in zip(fixed[:3], live[:3], strict=True):
        assert_close(ours, theirs)
    slots = 2 * 5 * 8 if kind == "spatial" else graph.weight.numel()
    assert fixed[3].numel() == 16 + slots
    assert set(fixed[3].tolist()) == set(live[3].tolist())  # a token without receivers has no edge in either


def test_an_unused_slot_of_a_token_that_overflowed_spoils_nobody():
    graph = PropagationGraph.from_edges(torch.zeros(1, 4, 1), torch.tensor([[0], [1]]))
    x = torch.tensor([[1.0], [2.0], [torch.inf], [4.0]])

    def run(score):
        return gtp(score, 2, graph, alpha=1.0).reduce(x)[0]

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert compiled(torch.tensor([[4.0, 3.0, 2.0, 1.0]])).flatten().tolist() == [1.0, 2.0]


def test_a_token_hands_on_to_who_listens_and_to_nobody_else():
    # The cycle 0 -> 1 -> 2 -> 0 with weights 1: what 0 has goes to 1; 2, to whom 0 listens, gets nothing.
    graph = PropagationGraph.from_edges(torch.zeros(1, 3, 1), torch.tensor([[0, 1, 2], [1, 2, 0]]))
    x = torch.tensor([[[100.0], [1.0], [2.0]]])
    y, s = propagate(x, torch.tensor([[1, 2]]), graph, alpha=0.5)
    assert y.flatten().tolist() == [51.0, 2.0] and s.tolist() == [[1.5, 1.0]]


def test_gtp_keeps_the_lower_index_of_equals():
    score = torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0]])
    assert gtp(score, 3, mode="none").centers.tolist() == [0, 1, 4]
    assert gtp(score, 3, mode="none", order="score").centers.tolist() == [1, 4, 0]


def test_outputs_do_not_depend_on_the_order_of_kept_tokens():
    x = torch.randn(2, 20, 6)
    graph = propagation_graph(x, (4, 5), neighbors=4)
    score = torch.rand(2, 20)
    a, b = (gtp(score, 12, graph, order=o) for o in ("index", "score"))
    back = b.centers.view(2, 12).argsort(dim=1) + torch.tensor([[0], [12]])
    assert torch.equal(a.centers, b.centers[back.flatten()])
    assert_close(a.reduce(x.flatten(0, 1))[0], b.reduce(x.flatten(0, 1))[0][back.flatten()])
    assert_close(a.lift(torch.ones(24, 1)), b.lift(torch.ones(24, 1)))


def test_permuting_tokens_with_their_patches_permutes_nothing_but_the_order():
    x, score = torch.randn(1, 20, 6), torch.rand(1, 20)
    graph = propagation_graph(x, (4, 5), neighbors=4)
    order = torch.randperm(20)
    straight = gtp(score, 12, graph, order="score").reduce(x[0])[0]
    shuffled = gtp(score[:, order], 12, graph, patch=order[None], order="score").reduce(x[0, order])[0]
    assert_close(straight, shuffled)


def test_scales_add_up_as_stated_and_fall_for_no_survivor():
    x, size = torch.randn(2, 20, 6), torch.rand(2, 20) + 0.5
    graph = propagation_graph(x, (4, 5), neighbors=4)
    assignment = gtp(torch.rand(2, 20), 12, graph, alpha=0.3)
    new = assignment.reduce(x.flatten(0, 1), size.flatten())[1]
    assert (new >= size.flatten()[assignment.centers]).all()
    gone = torch.ones(40).scatter_(0, assignment.centers, 0.0) > 0
    handed = assignment.weight[24:] @ size.flatten()[assignment.token[24:]]
    assert_close(new.sum(), size.sum() - size.flatten()[gone].sum() + handed)


def test_features_do_not_depend_on_scales_and_scale_linearly():
    x = torch.randn(2, 20, 6)
    graph = propagation_graph(x, (4, 5), neighbors=4)
    kept = torch.arange(0, 20, 2).expand(2, -1)
    plain = propagate(x, kept, graph)[0]
    assert torch.equal(propagate(x, kept, graph, size=torch.rand(2, 20))[0], plain)
    assert_close(propagate(2 * x + 1, kept, graph)[0], 2 * plain + propagate(torch.ones_like(x), kept, graph)[0])


def test_gradients_are_the_weights_of_the_graph():
    x = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    graph = propagation_graph(x, (2, 3), neighbors=2)
    kept = torch.tensor([[0, 4, 5]])
    jacobian = torch.autograd.functional.jacobian(lambda t: propagate(t, kept, graph, alpha=0.3)[0][..., 0].sum(1), x)
    expected = 1.0 * torch.isin(torch.arange(6), kept) + 0.3 * weights(graph)[0][kept[0]].sum(dim=0) * ~torch.isin(
        torch.arange(6), kept
    )
    assert_close(jacobian[0, 0, :, 0], expected.double())
    assert torch.autograd.gradcheck(lambda t: propagate(t, kept, graph, alpha=0.3)[0], x)
    assignment = gtp(torch.rand(1, 6), 3, graph, alpha=0.3)
    assert torch.autograd.gradcheck(lambda t: assignment.lift(assignment.reduce(t[0])[0]), x)


def test_half_precision_stays_finite_and_keeps_its_dtype():
    x = torch.randn(1, 12, 8).half() * 1e4
    graph = propagation_graph(x, (3, 4), neighbors=3)
    y, s = propagate(x, torch.arange(6)[None], graph)
    assert y.dtype == torch.float16 and y.isfinite().all() and s.dtype == torch.float32


# ---- the way back ---------------------------------------------------------------------------------------------------


def test_tokens_that_left_come_back_as_the_weighted_mean_of_their_receivers():
    edges = torch.tensor([[0, 0, 1], [2, 3, 0]])  # 0 hands on to 2 and 3; 1 only to 0, who leaves as well
    graph = PropagationGraph.from_edges(torch.zeros(1, 4, 1), edges, torch.tensor([0.1, 0.3, 1.0]))
    assignment = gtp(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 2, graph)
    y = torch.tensor([[4.0], [8.0]])
    assert_close(assignment.lift(y), torch.tensor([[7.0], [0.0], [4.0], [8.0]]))
    fill = torch.full((4, 1), -1.0)
    assert_close(assignment.lift(y, fill), torch.tensor([[7.0], [-1.0], [4.0], [8.0]]))


def test_mean_mode_keeps_one_token_less_and_the_mean_of_the_rest_behind():
    x, size = torch.tensor([[1.0], [2.0], [4.0], [8.0]]), torch.tensor([1.0, 2.0, 3.0, 5.0])
    assignment = gtp(torch.tensor([[3.0, 1.0, 2.0, 0.0]]), 3, mode="mean")
    y, s = assignment.reduce(x, size)
    assert y.flatten().tolist() == [1.0, 4.0, 5.0] and s.tolist() == [1.0, 3.0, 3.5]
    assert assignment.lift(y).flatten().tolist() == [1.0, 5.0, 4.0, 5.0]
    assert assignment.centers.tolist() == [0, 2, 1]  # of those that leave, the best stands for the mean
    assert gtp(torch.tensor([[3.0, 1.0, 2.0, 0.0]]), 1, mode="mean").reduce(x, size)[0].tolist() == [[3.75]]


def test_scales_go_with_plain_pruning():
    assignment = gtp(torch.tensor([[3.0, 1.0, 2.0]]), 2, mode="none")
    y, s = assignment.reduce(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 3.0]))
    assert y.flatten().tolist() == [1.0, 4.0] and s.tolist() == [1.0, 3.0]
    assert assignment.lift(y).flatten().tolist() == [1.0, 0.0, 4.0]


@pytest.mark.parametrize("mode", ["propagate", "none", "mean"])
def test_nothing_to_remove_changes_nothing(mode):
    x = torch.randn(2, 6, 3)
    graph = propagation_graph(x, (2, 3), neighbors=2)
    for keep in (6, 9):
        assignment = gtp(torch.rand(2, 6), keep, graph, mode=mode)
        assert torch.equal(assignment.reduce(x.flatten(0, 1))[0], x.flatten(0, 1))
        assert assignment.num_clusters == 12
    y, s = propagate(x, torch.arange(6).expand(2, -1), graph, mode=mode)
    assert torch.equal(y, x) and torch.equal(s, torch.ones(2, 6))


def test_alpha_zero_is_plain_pruning():
    x, score = torch.randn(2, 20, 6), torch.rand(2, 20)
    graph = propagation_graph(x, (4, 5), neighbors=4)
    a, b = gtp(score, 12, graph, alpha=0.0), gtp(score, 12, mode="none")
    for ours, theirs in zip(a.reduce(x.flatten(0, 1)), b.reduce(x.flatten(0, 1)), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(a.lift(torch.ones(24, 1)), b.lift(torch.ones(24, 1)))


# ---- the strategy ---------------------------------------------------------------------------------------------------


def test_strategy_remembers_the_graph_of_the_input_and_looks_patches_up():
    first = make_tokens(torch.randn(2, 20, 8), (4, 5))
    select = GTP(neighbors=3, alpha=0.4)
    graph = select.begin(first)
    patch = torch.stack([torch.randperm(20)[:13].sort().values for _ in range(2)])
    attention = torch.randn(2, 3, 14, 14).softmax(dim=-1)
    later = Tokens(torch.randn(2, 13, 8), None, (4, 5), False, layer=3, num_prefix=1,
                   attention=AttentionStats.from_map(attention, 1), patch=patch, memory=graph)  # fmt: skip
    got = select(later, 9)
    score = attention.diagonal(dim1=2, dim2=3).amax(1)[:, 1:] * attention.sum(dim=2).amax(1)[:, 1:]
    expected = gtp(score, 9, graph, alpha=0.4, patch=patch)
    assert torch.equal(got.token, expected.token) and torch.equal(got.weight, expected.weight)
    later.memory = None
    with pytest.raises(ValueError, match="Expected the full patch grid for graph='mixed'"):
        select(later, 9)
    assert GTP(graph="semantic", neighbors=3)(later, 9).num_clusters == 18  # of the tokens at hand


def test_strategy_connects_everyone_where_there_are_fewer_tokens_than_neighbours():
    graph = GTP(graph="semantic").begin(make_tokens(torch.randn(1, 4, 8), (2, 2)))
    assert torch.equal(weights(graph)[0] > 0, ~torch.eye(4, dtype=torch.bool))


def test_strategy_says_what_it_reads():
    assert GTP().needs_map and not GTP().needs_class_token
    assert {s for s in SCORES if not GTP(score=s).needs_map} == {"cls-mean", "cls-max"}
    assert not GTP(score="random").needs_map and GTP(score="random", sparsity=0.9).needs_map
    assert GTP(score="cls-max").needs_class_token and GTP(score="cls-max", sparsity=0.5).needs_map
    assert GTP().weighs and not GTP(scales=False).weighs and not GTP.merges
    assert GTP(mode="mean").begin(make_tokens(torch.randn(1, 4, 8), (2, 2))) is None


def test_random_scores_draw_all_tokens_anew_in_each_layer_without_touching_any_generator():
    x, state = torch.randn(2, 20, 8), torch.random.get_rng_state()
    kept = [GTP(score="random", mode="none")(Tokens(x, layer=layer), 10).centers for layer in (0, 1)]
    assert not torch.equal(*kept) and kept[0].max() >= 30
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(kept[0], GTP(score="random", mode="none", seed=1)(Tokens(x, layer=0), 10).centers)


def test_strategy_edits_attention_only_where_it_is_to_be_sparse():
    attention = torch.randn(1, 2, 6, 6).softmax(dim=-1)
    assert GTP().edit_attention(attention) is attention
    assert (GTP(sparsity=0.5).edit_attention(attention) == 0).flatten(2).sum(2).tolist() == [[17, 17]]


def test_published_settings_are_those_of_the_authors_table():
    assert GTP.published(8) == GTP("mixed", 8, 0.1, "mixed-max", 0.6, True)
    assert (GTP.published(4).sparsity, GTP.published(4).alpha) == (1.0, 0.4)
    assert list(DEIT_B) == list(range(1, 15))
    for removed in (0, 15, 2.5):
        with pytest.raises(ValueError, match="Expected 1 <= removed <= 14"):
            GTP.published(removed)


def test_cost_counts_the_map_and_what_is_handed_on():
    # ViT-S: 6 heads; 8 tokens leave, each with 8 neighbours on the grid and 8 semantic ones at most.
    cost = GTP().cost(196, 188, 384)
    assert cost.flops == 6 * 196**2 + 2 * 8 * 16 * 384
    assert GTP(graph="spatial").cost(196, 188, 384).flops == 6 * 196**2 + 2 * 8 * 8 * 384
    assert GTP(mode="none", score="random").cost(196, 188, 384).flops == 2 * 196 * 384


def test_an_empty_batch_passes():
    for select in (GTP(neighbors=2), GTP(mode="mean")):
        assignment = select(make_tokens(torch.zeros(0, 12, 8), (3, 4)), 5)
        assert assignment.num_tokens == assignment.num_clusters == 0
        assert assignment.reduce(torch.zeros(0, 8))[0].shape == (0, 8)


def test_composes_with_a_hard_map():
    x = torch.randn(1, 12, 4)
    first = gtp(torch.rand(1, 12), 6, propagation_graph(x, (3, 4), neighbors=2), alpha=0.5)
    second = Assignment(torch.tensor([0, 0, 1, 1, 2, 2]), 3)
    lifted = first.then(second).lift(torch.ones(3, 1))
    assert_close(lifted, first.lift(torch.ones(6, 1)))


def test_no_file_appears_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    GTP.published(8)(make_tokens(torch.randn(1, 20, 8), (4, 5)), 12)
    assert os.listdir(tmp_path) == []  # published: a file that every layer appends to


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graph": "knn"}, "Expected graph to be one of spatial, semantic, mixed"),
        ({"neighbors": -1}, "Expected neighbors >= 0"),
        ({"alpha": -0.1}, "Expected a finite alpha >= 0"),
        ({"alpha": float("nan")}, "Expected a finite alpha >= 0"),
        ({"score": "mixed"}, "Expected score to be one of .*random"),
        ({"sparsity": 0.0}, r"Expected sparsity in \(0, 1\]"),
        ({"sparsity": 1.5}, r"Expected sparsity in \(0, 1\]"),
        ({"mode": "GraphProp"}, "Expected mode to be one of propagate, none, mean"),
        ({"order": "random"}, "Expected order"),
    ],
)
def test_strategy_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        GTP(**options)


def test_strategy_refuses_options_of_another_kind():
    with pytest.raises(TypeError, match="Expected alpha of (GTP|gtp) as float"):
        GTP(alpha="0.1")
    with pytest.raises(TypeError, match="Expected neighbors to be an int"):
        GTP(neighbors=1.5)


def test_strategy_refuses_tokens_it_cannot_serve():
    x = torch.randn(2, 12, 8)
    with pytest.raises(ValueError, match="Expected equal numbers of tokens in all images"):
        GTP(score="random")(Tokens(x, grid=(3, 4), mask=torch.ones(2, 12, dtype=torch.bool)), 5)
    with pytest.raises(ValueError, match="Expected equal numbers of tokens in all images and one budget"):
        GTP(score="random")(Tokens(x, grid=(3, 4)), [5, 6])
    with pytest.raises(ValueError, match="Expected the full patch grid for graph='spatial'"):
        GTP(graph="spatial", score="random")(Tokens(x), 5)
    with pytest.raises(ValueError, match="Expected tokens with attention for score='mixed-max'"):
        GTP()(Tokens(x, grid=(3, 4)), 5)
    none = AttentionStats.from_map(torch.rand(2, 1, 12, 12))
    with pytest.raises(ValueError, match="Expected attention of a class token"):
        GTP(score="cls-mean")(Tokens(x, grid=(3, 4), attention=none), 5)


def test_gtp_refuses_shapes_that_do_not_fit():
    x = torch.randn(2, 12, 8)
    graph = propagation_graph(x, (3, 4), neighbors=2)
    score = torch.rand(2, 12)
    with pytest.raises(ValueError, match="Expected a graph for mode='propagate'"):
        gtp(score, 5)
    with pytest.raises(TypeError, match=r"Expected graph as a PropagationGraph \(got tuple\)"):
        gtp(score, 5, graph.edges())  # what gtp_graph returns
    with pytest.raises(ValueError, match=r"Expected size of shape \[B, N\] = \[2, 12\] \(got \[2, 3\]\)"):
        propagate(x, torch.arange(3).expand(2, -1), graph, size=torch.ones(2, 3))
    with pytest.raises(ValueError, match="Expected a graph of B=1 images"):
        gtp(score[:1], 5, graph)
    with pytest.raises(ValueError, match=r"Expected patch \[B, N=9\], as the graph has n=12 patches"):
        gtp(score[:, :9], 5, graph)
    with pytest.raises(ValueError, match=r"Expected patch of shape \[B, N\] = \[2, 12\]"):
        gtp(score, 5, graph, patch=torch.zeros(2, 9, dtype=torch.long))
    with pytest.raises(ValueError, match=r"Expected score of shape \[B, N\]"):
        gtp(score[0], 5, graph)
    with pytest.raises(ValueError, match="Expected keep >= 1"):
        gtp(score, 0, graph)
    with pytest.raises(ValueError, match="Expected one budget for all images"):
        gtp(score, [5, 6], graph)
    with pytest.raises(ValueError, match="Expected finite scores"):
        gtp(score * torch.nan, 5, graph)
    for count in (0, 13):
        with pytest.raises(ValueError, match=r"Expected kept of shape \[B=2, 1 <= K <= N=12\]"):
            propagate(x, torch.zeros(2, count, dtype=torch.long), graph)
