import pytest
import torch
from needs import library
from torch.testing import assert_close
from torch_geometric.data import Batch

import tokengraph as tg
from tokengraph import Assignment, SoftAssignment, TokenGraph, coarsen, hierarchy
from tokengraph.testing import tiny_vit

INSIDE = (tg.PPT, tg.ATS, tg.DiffRate, tg.EvoViT, tg.IdleViT, tg.ZeroTPrune)  # they read attention
OPTIONS = {  # of strategies whose defaults read attention, or more patches or likeness than these graphs have
    tg.ALGM: [tg.ALGM(0.1)],
    tg.AViT: [tg.AViT(scale=4.0, center=0.0)],
    tg.AiluRus: [tg.AiluRus(lam=8)],
    tg.CubistMerge: [tg.CubistMerge("mean")],
    tg.G2TM: [tg.G2TM(0.1)],
    tg.GTP: [tg.GTP(graph="semantic", neighbors=2, score="random")],
    tg.KMedoids: [tg.KMedoids(weight="equal", reduce="mean")],
    tg.ToFu: [tg.ToFu(reduce="mean")],
    tg.TokenTransforming: [tg.TokenTransforming(importance="norm")],
    tg.TopK: [tg.TopK(score="norm"), tg.TopK(score="norm", fuse=True)],
} | dict.fromkeys(INSIDE, [])
WITHOUT_A_MODEL = [each for cls in tg.registry().values() if not cls.learns for each in OPTIONS.get(cls, [cls()])]
STRATEGIES = [select for select in WITHOUT_A_MODEL if not select.ragged]
RAGGED = [select for select in WITHOUT_A_MODEL if select.ragged]  # by thresholds
EACH = pytest.mark.parametrize("select", STRATEGIES, ids=repr)
# Those that can coarsen what is coarse already: AiluRus and Expedite want the full grid.
AGAIN = pytest.mark.parametrize("select", [s for s in STRATEGIES if not s.needs_grid], ids=repr)


def grids(*shapes: tuple[int, int], num_prefix: int = 0) -> TokenGraph:
    sets = [torch.randn(num_prefix + h * w, 6) for h, w in shapes]
    return TokenGraph.from_tokens(sets, shapes, num_prefix=num_prefix)


def weights(a: Assignment | SoftAssignment) -> torch.Tensor:
    """The matrix of a map, ``[M, K]``."""
    soft = SoftAssignment.from_hard(a) if isinstance(a, Assignment) else a
    out = torch.zeros(a.num_tokens, a.num_clusters)
    return out.index_put_((soft.token, soft.cluster), soft.weight, accumulate=True)


def adjacency(graph: TokenGraph) -> torch.Tensor:
    out = torch.zeros(graph.num_nodes, graph.num_nodes)
    return out.index_put_(tuple(graph.edge_index), graph.edge_weight, accumulate=True)


def part(a: Assignment | SoftAssignment, b: int) -> list[list]:
    """The map of image b alone, in that image's own numbers."""
    first, start, stop = int(a.ptr[b]), int(a.cluster_ptr[b]), int(a.cluster_ptr[b + 1])
    if isinstance(a, Assignment):
        own = a.cluster[first : int(a.ptr[b + 1])]
        return [torch.where(own == a.num_clusters, stop - start, own - start).tolist(), []]
    own = (a.token >= first) & (a.token < int(a.ptr[b + 1]))
    order = a.token[own].argsort()
    return [(t[own][order] - shift).tolist() for t, shift in ((a.token, first), (a.cluster, start), (a.weight, 0))]


# one step


@pytest.mark.parametrize("select", RAGGED, ids=repr)
def test_coarsen_by_a_threshold_keeps_what_each_image_has_of_its_own_but_no_fewer_than_asked(select):
    graph = grids((4, 4), (3, 5), (4, 4), (0, 0), (1, 6)).connect_knn(3)
    coarse, a = coarsen(graph, select, 0.5)
    assert all(k <= n <= full for k, n, full in zip([8, 8, 8, 0, 3], coarse.counts, graph.counts, strict=True))
    assert sum(coarse.counts) < graph.num_nodes and torch.bincount(a.cluster).min() == 1
    assert_close(adjacency(coarse), (weights(a).T @ adjacency(graph) @ weights(a)).fill_diagonal_(0.0))
    for b, alone in enumerate(graph.split()):
        single, own = coarsen(alone, select, 0.5)
        assert part(a, b) == part(own, 0)
        assert_close(coarse.x[coarse.batch == b], single.x)
    coarse, a = coarsen(graph, select, 1.0)
    assert torch.equal(coarse.x, graph.x) and a.cluster.tolist() == list(range(53))


@EACH
def test_coarsen_averages_features_and_positions_and_adds_up_sizes(select):
    graph = grids((4, 4), (4, 4))
    graph.size = torch.rand(32) + 0.5
    coarse, a = coarsen(graph, select, 9)
    assert coarse.counts == [9, 9] and coarse.batch.tolist() == [0] * 9 + [1] * 9
    mass = weights(a).T * graph.size
    assert_close(coarse["size"], mass.sum(1))
    assert_close(coarse.pos, mass @ graph.pos / mass.sum(1, keepdim=True))
    if isinstance(a, Assignment) and a.weight is not None:  # rows are means by weights of the map's own
        mass = weights(a).T * a.weight
    if not (isinstance(a, SoftAssignment) and not a.normalize):
        assert_close(coarse.x, mass @ graph.x / mass.sum(1, keepdim=True))
    if not a.lossy:
        assert_close(coarse["size"].sum(), graph["size"].sum())


@EACH
def test_coarsen_sums_edges_between_clusters_and_leaves_loops_out(select):
    graph = grids((4, 5), (4, 5)).connect_knn(4)
    coarse, a = coarsen(graph, select, 11)
    expected = weights(a).T @ adjacency(graph) @ weights(a)
    assert_close(adjacency(coarse), expected.fill_diagonal_(0.0))
    assert torch.equal(*coarse.batch[coarse.edge_index])


@EACH
def test_coarsen_gives_an_image_the_same_clusters_alone_and_in_any_batch(select):
    graph = grids((4, 4), (3, 5), (4, 4), (1, 6))
    coarse, a = coarsen(graph, select, 0.6)
    for b, alone in enumerate(graph.split()):
        single, own = coarsen(alone, select, 0.6)
        *mine, weight = part(a, b)
        *theirs, alone_weight = part(own, 0)
        assert mine == theirs  # features are far from ties; weights round by the kernel that a batch takes
        assert_close(torch.tensor(weight), torch.tensor(alone_weight))
        rows = coarse.batch == b
        assert_close(coarse.x[rows], single.x)
        assert_close(coarse.pos[rows], single.pos)


@EACH
def test_coarsen_of_pyg_batch_equals_the_graph_of_all(select):
    graph = grids((4, 4), (3, 5), num_prefix=1).connect_grid()
    batch = Batch.from_data_list(graph.split())
    for key in ("x", "pos", "batch", "ptr", "edge_index", "edge_weight", "prefix"):
        assert torch.equal(coarsen(batch, select, 8).graph[key], coarsen(graph, select, 8).graph[key]), key


@EACH
def test_coarsen_gives_an_empty_image_no_clusters(select):
    empty = [(0, 0), (4, 4), (0, 0), (3, 4)]
    graph = grids(*empty)
    for keep, counts in ((9, [0, 9, 0, 9]), (0.5, [0, 8, 0, 6])):
        coarse, a = coarsen(graph, select, keep)
        assert coarse.counts == counts
        assert a.lift(coarse.x).shape == (28, 6)


@EACH
def test_coarsen_of_nothing_is_nothing(select):
    coarse, a = coarsen(grids((0, 0), (0, 0)), select, 3)
    assert coarse.counts == [0, 0] and (a.num_tokens, a.num_clusters) == (0, 0)


@EACH
def test_coarsen_keeps_at_most_what_an_image_has(select):
    graph = grids((2, 3), (2, 5))
    coarse, a = coarsen(graph, select, 8)
    assert coarse.counts == [6, 8]
    assert part(a, 0)[0] == list(range(6)) or isinstance(a, SoftAssignment)
    assert torch.equal(coarse.x[:6], graph.x[:6])


@EACH
def test_coarsen_of_all_tokens_changes_nothing(select):
    graph = grids((3, 4)).connect_grid()
    for keep in (12, 1000, 1.0):
        coarse, a = coarsen(graph, select, keep)
        assert torch.equal(coarse.x, graph.x) and torch.equal(a.lift(coarse.x), graph.x)
        assert torch.equal(adjacency(coarse), adjacency(graph))


@EACH
def test_coarsen_numbers_centers_over_the_batch(select):
    _, a = coarsen(grids((4, 4), (3, 5), (4, 4)), select, 0.6)
    if isinstance(a, Assignment) and a.centers is not None:
        assert torch.equal(a.cluster[a.centers], torch.arange(a.num_clusters))


@pytest.mark.parametrize(("keep", "counts"), [(3, [3, 3]), (0.5, [6, 2]), (0.01, [1, 1]), (1, [1, 1]), (1.0, [12, 4])])
def test_coarsen_keeps_a_count_or_a_share_rounded_up(keep, counts):
    assert coarsen(grids((3, 4), (1, 4)), "dpc-knn", keep).graph.counts == counts


@EACH
def test_coarsen_leaves_its_input_alone(select):
    graph = grids((4, 4)).connect_grid()
    before = {k: v.clone() for k, v in graph.to_dict().items() if isinstance(v, torch.Tensor)}
    coarsen(graph, select, 9)
    assert all(torch.equal(graph[k], v) for k, v in before.items()) and graph.grid == (4, 4)


@EACH
def test_coarsen_lets_gradients_reach_the_features(select):
    graph = grids((4, 4))
    graph.x.requires_grad_()
    coarse, a = coarsen(graph, select, 9)
    (a.lift(coarse.x) * torch.rand(16, 6)).sum().backward()
    assert graph.x.grad.isfinite().all() and graph.x.grad.any()


def test_coarsen_keeps_prefix_grid_and_dtype():
    graph = TokenGraph.from_tokens(torch.randn(2, 1 + 12, 6).bfloat16(), (3, 4), num_prefix=1)
    coarse, _ = coarsen(graph, "grid-pool", 4)
    assert torch.equal(coarse.prefix, graph.prefix) and coarse.grid == (3, 4)
    assert coarse.x.dtype == torch.bfloat16 and coarse["size"].dtype == coarse.pos.dtype == torch.float32
    assert coarse.to_tokens().shape == (2, 1 + 4, 6)


def test_coarsen_takes_along_what_stands_at_the_graph_but_not_at_nodes_or_edges():
    graph = grids((3, 4)).connect_knn(2)
    graph.y, graph.label, graph.edge_attr = torch.tensor([7]), torch.zeros(12), torch.zeros(24, 3)
    coarse, _ = coarsen(graph, "dpc-knn", 4)
    assert coarse.y.tolist() == [7]
    assert "label" not in coarse.keys() and "edge_attr" not in coarse.keys()
    assert coarse.validate()


def test_coarsen_counts_edges_without_weights():
    graph = grids((1, 4))
    graph.edge_index = torch.tensor([[0, 1, 0, 2], [2, 3, 1, 0]])
    coarse, _ = coarsen(graph, "grid-pool", 2)
    assert coarse.edge_index.tolist() == [[0, 1], [1, 0]] and coarse.edge_weight.tolist() == [2.0, 1.0]


def test_coarsen_takes_a_graph_built_field_by_field():
    coarse, a = coarsen(TokenGraph(x=torch.randn(6, 3)), "dpc-knn", 2)
    assert coarse.counts == [2] and a.ptr.tolist() == [0, 6]


def test_coarsen_without_a_grid_serves_strategies_that_need_none():
    graph = TokenGraph.from_tokens(torch.randn(2, 9, 4))
    assert coarsen(graph, "tome", 5).graph.counts == [5, 5]
    with pytest.raises(ValueError, match=r"Expected tokens with positions \(got tokens without a grid\)"):
        coarsen(graph, "grid-pool", 5)
    with pytest.raises(ValueError, match=r"Expected one full patch grid"):
        coarsen(graph, "ailurus", 5)


def test_coarsen_leaves_what_one_step_of_the_strategy_must_leave_where_it_is_told_to_clamp():
    assert coarsen(grids((3, 5), (1, 4)), "tome", 1, clamp=True).graph.counts == [8, 2]
    assert hierarchy(grids((3, 5)), "tome", [1, 0.25], clamp=True).graphs[-1].counts == [4]


@pytest.mark.parametrize(("select", "keep"), [("tome", 0.25), ("tome", 3), ("token-migration", 0.25)])
def test_coarsen_and_attach_give_one_answer_to_fewer_tokens_than_a_step_can_leave(select, keep):
    graph = TokenGraph.from_tokens(torch.randn(2, 16, 4), grid=(4, 4))
    message = r"Expected keep >= 8 of 16 tokens .*\(got keep="
    with pytest.raises(ValueError, match=message + r".*hierarchy.*clamp=True"):
        coarsen(graph, select, keep)
    with pytest.raises(ValueError, match=message):
        hierarchy(graph, select, [keep])
    library("timm")
    with pytest.raises(ValueError, match=message):
        tg.attach(tiny_vit(), select, {2: keep})
    assert hierarchy(graph, "tome", [0.5, 0.5]).graphs[-1].counts == [4, 4]


def test_coarsen_groups_images_by_grid_as_well_as_by_count():
    graph = grids((2, 6), (3, 4))
    _, a = coarsen(graph, "grid-pool", 4)
    assert part(a, 0) == part(coarsen(graph.split()[0], "grid-pool", 4).assignment, 0)
    assert part(a, 1) == part(coarsen(graph.split()[1], "grid-pool", 4).assignment, 0)
    assert part(a, 0) != part(a, 1)


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        (0, ValueError, r"keep >= 1 tokens per image \(got keep=0\)"),
        (-2, ValueError, r"keep >= 1 tokens per image \(got keep=-2\)"),
        (0.0, ValueError, r"a keep ratio in \(0, 1\] \(got keep=0.0\)"),
        (1.5, ValueError, r"a keep ratio in \(0, 1\] \(got keep=1.5\)\. Give a count as an int"),
        (torch.nan, ValueError, r"a keep ratio in \(0, 1\] \(got keep=nan\)"),
        (True, TypeError, r"keep as an int or a float ratio \(got True\)"),
        ("half", TypeError, r"keep as an int or a float ratio \(got 'half'\)"),
    ],
)
@pytest.mark.parametrize("shape", [(3, 4), (0, 0)])
def test_coarsen_refuses_budgets_out_of_range(keep, error, message, shape):
    with pytest.raises(error, match=message):
        coarsen(grids(shape), "dpc-knn", keep)


def test_coarsen_refuses_what_is_not_finite():
    graph = grids((3, 4))
    graph.x[3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"Expected finite tokens \(got NaN or infinity in 1 rows\)"):
        coarsen(graph, "dpc-knn", 4)


def test_coarsen_refuses_unsorted_images():
    graph = grids((1, 2), (1, 2))
    graph.batch = torch.tensor([0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"Expected a sorted batch vector \(got one that decreases\)"):
        coarsen(graph, "dpc-knn", 1)


def test_coarsen_refuses_strategies_that_need_a_model():
    with pytest.raises(
        ValueError, match=r"Expected tokens with class attention \(got tokens outside a model's block\)"
    ):
        coarsen(grids((3, 4)), "topk", 4)
    with pytest.raises(ValueError, match=r"Expected a strategy name \(got 'tomme'\)\. Did you mean 'tome'\?"):
        coarsen(grids((3, 4)), "tomme", 4)


class Mixed(tg.Select):
    """A soft map with its own way back for images of four tokens, a hard map for others."""

    def __call__(self, tokens, budget):
        hard = tg.topk(tokens.x[..., 0], budget)
        if tokens.x.size(1) != 4:
            return hard
        soft = SoftAssignment.from_hard(hard)
        return SoftAssignment(**{**soft.__dict__, "up": (soft.token, soft.cluster, 2 * soft.weight)})


def test_coarsen_lays_hard_and_soft_maps_together():
    graph = grids((1, 4), (1, 5), (1, 4))
    coarse, a = coarsen(graph, Mixed(), 2)
    y = torch.randn(6, 3)
    for b, alone in enumerate(graph.split()):
        own = coarsen(alone, Mixed(), 2)
        assert_close(coarse.x[coarse.batch == b], own.graph.x)
        assert_close(a.lift(y)[graph.batch == b], own.assignment.lift(y[2 * b : 2 * b + 2]))


class Unlike(tg.Select):
    """Averages some images, adds others up."""

    def __call__(self, tokens, budget):
        soft = SoftAssignment.from_hard(tg.topk(tokens.x[..., 0], budget))
        return SoftAssignment(**{**soft.__dict__, "normalize": tokens.x.size(1) == 4})


def test_coarsen_refuses_to_average_some_images_and_add_others_up():
    assert coarsen(grids((1, 4), (1, 4)), Unlike(), 2).graph.counts == [2, 2]
    with pytest.raises(ValueError, match=r"every image's map to average, or every one to add up \(got a mixture\)"):
        coarsen(grids((1, 4), (1, 5)), Unlike(), 2)


# level by level


@AGAIN
def test_hierarchy_levels_are_coarsenings_of_one_another(select):
    graph = grids((4, 4), (3, 5)).connect_grid()
    levels = hierarchy(graph, select, [0.6, 7, 5])
    assert len(levels.graphs) == 4 and len(levels.assignments) == 3
    assert levels.graphs[0] is graph
    assert [g.counts for g in levels.graphs] == [[16, 15], [10, 9], [7, 7], [5, 5]]
    for fine, coarse, a in zip(levels.graphs, levels.graphs[1:], levels.assignments, strict=False):
        assert (a.num_tokens, a.num_clusters) == (fine.num_nodes, coarse.num_nodes)
        again = coarsen(fine, select, coarse.counts[0]).graph
        assert coarse.counts == [10, 9] or torch.equal(again.x, coarse.x)


@AGAIN
def test_hierarchy_lift_goes_through_every_level(select):
    levels = hierarchy(grids((4, 4), (3, 5)), select, [10, 7, 5])
    first, second, third = levels.assignments
    y = torch.randn(10, 3)
    assert_close(levels.lift(y), first.lift(second.lift(third.lift(y))))
    assert_close(levels.lift(y, to=1), second.lift(third.lift(y)))
    assert_close(levels.lift(y, level=3, to=2), third.lift(y))
    assert_close(levels.lift(torch.ones(14, 3), level=2), first.lift(second.lift(torch.ones(14, 3))))


@AGAIN
def test_hierarchy_between_reduces_as_every_level_in_turn(select):
    levels = hierarchy(grids((4, 4), (3, 5)), select, [10, 7, 5])
    x, size = levels.between(3).reduce(levels.graphs[0].x, levels.graphs[0]["size"])
    assert_close(x, levels.graphs[3].x)
    assert_close(size, levels.graphs[3]["size"])


@AGAIN
def test_hierarchy_carries_edges_down(select):
    levels = hierarchy(grids((4, 4)).connect_grid(), select, [10, 7])
    for fine, coarse, a in zip(levels.graphs, levels.graphs[1:], levels.assignments, strict=False):
        s = weights(a)
        assert_close(adjacency(coarse), (s.T @ adjacency(fine) @ s).fill_diagonal_(0.0))
    s = weights(levels.between(2))
    if ((s > 0).sum(dim=1) > 1).any():
        return  # a loop left out on the first level would have spread over several clusters of the second
    assert_close(adjacency(levels.graphs[2]), (s.T @ adjacency(levels.graphs[0]) @ s).fill_diagonal_(0.0))


def test_hierarchy_of_ailurus_has_one_level():
    graph = grids((4, 4))
    assert hierarchy(graph, "ailurus", [8]).graphs[1].counts == [8]
    with pytest.raises(ValueError, match=r"Expected one full patch grid.* Use DPCKNN there"):
        hierarchy(graph, "ailurus", [8, 4])


def test_hierarchy_of_no_steps_is_the_graph():
    graph = grids((4, 4))
    levels = hierarchy(graph, "tome", [])
    assert levels.graphs == [graph] and levels.assignments == []


@pytest.mark.parametrize(("level", "to"), [(0, 0), (1, 1), (1, 2), (3, 0), (-4, 0), (2, -1), (7, 0)])
def test_between_refuses_levels_that_are_not_there(level, to):
    levels = hierarchy(grids((4, 4)), "dpc-knn", [8, 4])
    with pytest.raises(ValueError, match=r"Expected 0 <= to < level < 3 \(got level=-?\d, to=-?\d\)"):
        levels.between(level, to)


def test_between_takes_hard_and_soft_levels():
    graph = grids((1, 6))
    levels = hierarchy(graph, Mixed(), [4, 2])
    assert isinstance(levels.assignments[0], Assignment) and isinstance(levels.assignments[1], SoftAssignment)
    y = torch.randn(2, 3)
    assert_close(levels.lift(y), levels.assignments[0].lift(levels.assignments[1].lift(y)))


def test_coarsen_takes_a_budget_for_each_image():
    graph = TokenGraph.from_tokens(torch.randn(3, 8, 4), (2, 4))
    coarse, assignment = coarsen(graph, "dpc-knn", [5, 3, 0.25])
    assert coarse.counts == [5, 3, 2] and assignment.counts == (5, 3, 2)
    alone = TokenGraph.from_tokens(graph.x.view(3, 8, 4)[1:2], (2, 4))
    assert torch.equal(coarse.x[5:8], coarsen(alone, "dpc-knn", 3).graph.x)
    assert coarsen(graph, "dpc-knn", (8, 9, 1.0)).graph.counts == [8, 8, 8]


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        ([5, 3], ValueError, "Expected one budget an image, B=3 .got 2."),
        ([5, 3, 0], ValueError, "Expected keep >= 1 tokens per image"),
        ([5, 3, "2"], TypeError, "Expected keep as an int or a float ratio .got '2'"),
        ("half", TypeError, "Expected keep as an int or a float ratio .got 'half'"),
    ],
)
def test_coarsen_refuses_budgets_that_do_not_fit_the_images(keep, error, message):
    with pytest.raises(error, match=message):
        coarsen(TokenGraph.from_tokens(torch.randn(3, 8, 4), (2, 4)), "dpc-knn", keep)


class _Returns(tg.Select):
    """Returns what ``make`` gives; ``name`` stays empty, so that no lookup finds it."""

    def __init__(self, make):
        self.make = make

    def __call__(self, tokens, budget):
        return self.make(tokens)


@pytest.mark.parametrize("counts", [(4, 4), (4, 6)])
def test_coarsen_says_what_a_strategy_must_return(counts):
    graph = TokenGraph.from_tokens([torch.randn(n, 3) for n in counts])
    with pytest.raises(TypeError, match=r"Expected a strategy to return an Assignment .*got Tensor.*from_dense"):
        tg.coarsen(graph, _Returns(lambda tokens: tokens.x), 2)


@pytest.mark.parametrize("counts", [(4, 4), (4, 6)])
def test_coarsen_takes_maps_that_do_not_say_where_images_begin(counts):
    graph = TokenGraph.from_tokens([torch.randn(n, 3) for n in counts])
    halves = _Returns(
        lambda tokens: tg.Assignment(torch.arange(tokens.x[..., 0].numel()) // 2, tokens.x[..., 0].numel() // 2)
    )
    coarse, assignment = tg.coarsen(graph, halves, 2)
    assert coarse.counts == [n // 2 for n in counts]
    assert assignment.cluster.tolist() == [i // 2 for i in range(sum(counts))]
