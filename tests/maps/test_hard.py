import pytest
import torch
from torch.testing import assert_close
from torch_geometric.nn.pool.select import SelectOutput, SelectTopK

from tokengraph import Assignment, SoftAssignment
from tokengraph.maps.pool import REDUCTIONS

HARD = Assignment(torch.tensor([0, 1, 0, 2, 1, 1]), 3, centers=torch.tensor([2, 1, 3]))
DROPPING = Assignment(torch.tensor([0, 3, 1, 0, 3, 2]), 3, drops=True, centers=torch.tensor([0, 2, 5]))
MAPS = pytest.mark.parametrize("a", [HARD, DROPPING], ids=["hard", "dropping"])


@pytest.mark.parametrize(
    ("a", "text"),
    [
        (HARD, "Assignment(tokens=6, clusters=3)"),
        (DROPPING, "Assignment(tokens=6, clusters=3, drops=True)"),
        (Assignment.from_dense(torch.tensor([[0, 1], [0, 0]]), [2, 1]), "Assignment(tokens=4, clusters=3, images=2)"),
        (SoftAssignment.from_hard(HARD), "SoftAssignment(tokens=6, clusters=3)"),
    ],
)
def test_a_map_shows_its_numbers(a, text):
    assert repr(a) == text


def matrix(a: Assignment) -> torch.Tensor:
    """The 0/1 matrix of the map, ``[M, K]``; dropped tokens have an empty row."""
    return torch.nn.functional.one_hot(a.cluster, a.num_clusters + 1)[:, : a.num_clusters].float()


def dense_adjacency(edge_index: torch.Tensor, weight: torch.Tensor, nodes: int) -> torch.Tensor:
    return torch.zeros(nodes, nodes).index_put_(tuple(edge_index), weight, accumulate=True)


def compiled(function):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="eager")


# reduce


def test_reduce_averages_the_rows_of_a_cluster():
    x, size = Assignment(torch.tensor([0, 0, 1]), 2).reduce(torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 7.0]]))
    assert x.tolist() == [[2.0, 4.0], [5.0, 7.0]]
    assert size.tolist() == [2.0, 1.0]


def test_reduce_weights_rows_by_size():
    x, size = Assignment(torch.tensor([0, 0, 1]), 2).reduce(
        torch.tensor([[1.0], [4.0], [5.0]]), torch.tensor([1.0, 2, 7])
    )
    assert x.tolist() == [[3.0], [5.0]]
    assert size.tolist() == [3.0, 7.0]


@MAPS
def test_reduce_equals_the_matrix_form_of_its_docstring(a):
    s, x, size = matrix(a), torch.randn(6, 4), torch.rand(6) + 0.5
    pooled, new_size = a.reduce(x, size)
    assert_close(new_size, s.T @ size)
    assert_close(pooled, (s.T @ (size[:, None] * x)) / (s.T @ size)[:, None])


@MAPS
def test_reduce_by_sum_ignores_sizes_in_the_rows(a):
    x, size = torch.randn(6, 4), torch.rand(6)
    pooled, new_size = a.reduce(x, size, reduce="sum")
    assert_close(pooled, matrix(a).T @ x)
    assert_close(new_size, matrix(a).T @ size)


@MAPS
def test_reduce_by_max_takes_the_largest_entry_of_each_channel(a):
    x = torch.randn(6, 4) - 5  # all negative: an empty start value must not win
    expected = torch.stack([x[a.cluster == k].amax(dim=0) for k in range(3)])
    assert torch.equal(a.reduce(x, reduce="max")[0], expected)


@MAPS
def test_reduce_by_mlerp_has_the_mean_direction_and_the_largest_norm(a):
    x, size = torch.randn(6, 4), torch.rand(6) + 0.5
    pooled, _ = a.reduce(x, size, reduce="mlerp")
    mean, _ = a.reduce(x, size)
    largest = torch.stack([x[a.cluster == k].norm(dim=1).amax() for k in range(3)])
    assert_close(pooled.norm(dim=1), largest)
    assert_close(torch.nn.functional.normalize(pooled, dim=1), torch.nn.functional.normalize(mean, dim=1))


def test_reduce_by_mlerp_of_opposite_rows_is_zero_and_has_a_finite_gradient():
    x = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], requires_grad=True)
    pooled, _ = Assignment(torch.tensor([0, 0]), 1).reduce(x, reduce="mlerp")
    assert pooled.tolist() == [[0.0, 0.0]]
    pooled.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("reduce", "expected"), [("mean", [2.0, 5.0]), ("sum", [4.0, 5.0]), ("max", [3.0, 5.0]), ("mlerp", [3.0, 5.0])]
)
def test_reduce_takes_one_number_a_token(reduce, expected):
    pooled, _ = Assignment(torch.tensor([0, 0, 1]), 2).reduce(torch.tensor([1.0, 3.0, 5.0]), reduce=reduce)
    assert pooled.tolist() == expected


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_reduce_takes_rows_of_any_shape_but_mlerp_flattens_their_norm(reduce):
    x = torch.randn(6, 2, 3)
    pooled, _ = HARD.reduce(x, reduce=reduce)
    flat, _ = HARD.reduce(x.flatten(1), reduce=reduce)
    assert_close(pooled.flatten(1), flat)


@MAPS
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_reduce_without_sizes_equals_sizes_of_one(a, reduce):
    x = torch.randn(6, 4)
    for ours, theirs in zip(a.reduce(x, reduce=reduce), a.reduce(x, torch.ones(6), reduce=reduce), strict=True):
        assert torch.equal(ours, theirs)


def test_reduce_conserves_mass():
    x, size = torch.randn(6, 4), torch.rand(6) + 0.5
    pooled, new_size = HARD.reduce(x, size)
    assert_close(new_size.sum(), size.sum())
    assert_close((new_size[:, None] * pooled).sum(0), (size[:, None] * x).sum(0))


def test_reduce_loses_exactly_the_mass_of_dropped_tokens():
    size = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    assert DROPPING.reduce(torch.zeros(6, 1), size)[1].tolist() == [9.0, 4.0, 32.0]


def test_reduce_keeps_dropped_infinities_out():
    x = torch.ones(6, 2)
    x[1], x[4] = torch.inf, torch.nan
    assert DROPPING.reduce(x)[0].tolist() == [[1.0, 1.0]] * 3


@pytest.mark.parametrize("reduce", ["mean", "sum", "max", "mlerp"])  # nothing is the center of no token
def test_reduce_gives_zeros_to_a_cluster_without_tokens(reduce):
    pooled, size = Assignment(torch.tensor([0, 2]), 3).reduce(torch.tensor([[-1.0], [-2.0]]), reduce=reduce)
    assert pooled.tolist() == [[-1.0], [0.0], [-2.0]]
    assert size.tolist() == [1.0, 0.0, 1.0]


def test_reduce_of_sizes_that_are_zero_is_finite():
    pooled, size = Assignment(torch.tensor([0, 0]), 1).reduce(torch.ones(2, 2), torch.zeros(2))
    assert pooled.tolist() == [[0.0, 0.0]] and size.tolist() == [0.0]


def test_reduce_copies_lone_tokens_exactly():
    x, size = torch.randn(50, 7), torch.rand(50) * 100
    assert torch.equal(Assignment.identity(50).reduce(x, size)[0], x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_reduce_and_lift_keep_half_precision(dtype, reduce):
    pooled, size = HARD.reduce(torch.randn(6, 4).to(dtype), reduce=reduce)
    assert pooled.dtype == HARD.lift(pooled).dtype == dtype
    assert size.dtype == torch.float32


@pytest.mark.parametrize("backend", ["index_add", "segment"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduce_sums_half_precision_in_float32(dtype, backend):
    # In the dtype itself 4096 ones stop at 2048 (float16) or 256 (bfloat16).
    a = Assignment(torch.zeros(4096, dtype=torch.long), 1)
    ones = torch.ones(4096, 1, dtype=dtype)
    assert a.reduce(ones, reduce="sum", backend=backend)[0].tolist() == [[4096.0]]
    assert a.reduce(ones, backend=backend)[0].tolist() == [[1.0]]


@pytest.mark.parametrize("dtype", [torch.long, torch.bfloat16, torch.float16])
def test_reduce_gives_float32_sizes_whatever_comes_in(dtype):
    _, size = Assignment(torch.tensor([0, 0]), 1).reduce(torch.ones(2, 1), torch.tensor([256, 1]).to(dtype))
    assert size.dtype == torch.float32 and size.tolist() == [257.0]


def test_reduce_keeps_float64_rows_in_float64():
    a = Assignment(torch.tensor([0, 0, 1]), 2)
    x = torch.tensor([[1.0], [1.0 + 2**-40], [2.0]], dtype=torch.float64)
    assert a.reduce(x)[0].tolist() == [[1.0 + 2**-41], [2.0]]


@MAPS
@pytest.mark.parametrize("reduce", ["mean", "sum", "mlerp"])
def test_reduce_passes_gradcheck(a, reduce):
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    size = (torch.rand(6, dtype=torch.float64) + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, s: a.reduce(x, s, reduce=reduce), (x, size))


@MAPS
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_reduce_gives_dropped_tokens_a_zero_gradient(a, reduce):
    x = torch.randn(6, 3, requires_grad=True)
    a.reduce(x, torch.rand(6) * 1e3, reduce=reduce)[0].square().sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[a.cluster == 3].eq(0).all() and x.grad[a.cluster != 3].any()


@MAPS
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_reduce_by_segments_equals_index_add(a, reduce):
    x, size = torch.randn(6, 4), torch.rand(6)
    segments = a.reduce(x, size, reduce=reduce, backend="segment")
    for ours, theirs in zip(segments, a.reduce(x, size, reduce=reduce, backend="index_add"), strict=True):
        assert_close(ours, theirs)


@MAPS
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_reduce_and_lift_compile_whole(a, reduce):
    def run(x, size):
        pooled, new_size = a.reduce(x, size, reduce=reduce)
        return pooled, new_size, a.lift(pooled, fill=x)

    arguments = torch.randn(6, 4), torch.rand(6)
    for ours, theirs in zip(compiled(run)(*arguments), run(*arguments), strict=True):
        assert_close(ours, theirs)


def test_from_dense_compiles_whole():
    def run(cluster, x):
        return Assignment.from_dense(cluster, 2, drops=True).reduce(x)[0]

    arguments = torch.tensor([[0, 1, -1], [1, 1, 0]]), torch.randn(6, 2)
    assert_close(compiled(run)(*arguments), run(*arguments))


def test_reduce_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"Expected x with 6 rows \(got shape \[5, 2\]\)\. Rows are flat"):
        HARD.reduce(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"Expected size of shape \[M=6\] \(got \[6, 1\]\)"):
        HARD.reduce(torch.zeros(6, 2), torch.ones(6, 1))
    known = "mean, sum, max, absmax, mlerp, center, released-mlerp"
    with pytest.raises(ValueError, match=rf"Expected reduce to be one of {known} \(got 'avg'\)"):
        HARD.reduce(torch.zeros(6, 2), reduce="avg")
    with pytest.raises(ValueError, match=r"Expected backend to be one of auto, index_add, segment \(got 'csr'\)"):
        HARD.reduce(torch.zeros(6, 2), backend="csr")


@pytest.mark.parametrize("dtype", [torch.long, torch.uint8, torch.bool])
@pytest.mark.parametrize("reduce", ["mean", "mlerp"])
def test_reduce_refuses_means_of_whole_numbers(dtype, reduce):
    with pytest.raises(TypeError, match=rf"floating-point x to take a {reduce} of \(got {dtype}\)\. Convert"):
        HARD.reduce(torch.ones(6, 2, dtype=dtype), reduce=reduce)


def test_reduce_adds_up_and_compares_whole_numbers():
    x = torch.arange(6)
    assert HARD.reduce(x, reduce="sum")[0].tolist() == [2, 10, 3]
    assert HARD.reduce(x, reduce="max")[0].tolist() == [2, 5, 3]


# lift


@MAPS
def test_lift_equals_the_matrix_form(a):
    y = torch.randn(3, 4)
    assert torch.equal(a.lift(y), matrix(a) @ y)


@MAPS
def test_reduce_undoes_lift(a):
    y, size = torch.randn(3, 4), torch.rand(6) + 0.5
    assert_close(a.reduce(a.lift(y), size)[0], y)


def test_lift_fills_dropped_tokens_from_the_table():
    fill = -torch.arange(6.0)[:, None]
    lifted = DROPPING.lift(torch.tensor([[10.0], [20.0], [30.0]]), fill)
    assert lifted.flatten().tolist() == [10.0, -1.0, 20.0, 10.0, -4.0, 30.0]


def test_lift_takes_the_fill_in_the_dtype_of_the_rows():
    lifted = DROPPING.lift(torch.zeros(3, 1, dtype=torch.bfloat16), torch.ones(6, 1))
    assert lifted.dtype == torch.bfloat16 and lifted.flatten().tolist() == [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]


@MAPS
def test_lift_passes_gradcheck(a):
    y = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    fill = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(a.lift, (y,))
    if a.drops:
        assert torch.autograd.gradcheck(a.lift, (y, fill))


def test_lift_refuses_wrong_rows():
    with pytest.raises(ValueError, match=r"Expected y with 3 rows \(got shape \[6, 2\]\)"):
        HARD.lift(torch.zeros(6, 2))
    with pytest.raises(ValueError, match=r"Expected fill with 6 rows \(got shape \[3, 2\]\)"):
        DROPPING.lift(torch.zeros(3, 2), torch.zeros(3, 2))


# connect

EDGES = torch.tensor([[0, 0, 1, 2, 3, 4, 5, 5, 2], [1, 2, 4, 0, 5, 1, 3, 5, 1]])


@MAPS
@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_connect_equals_the_matrix_product(a, loops, weighted):
    weight = torch.rand(EDGES.size(1)) if weighted else None
    index, summed = a.connect(EDGES, weight, loops=loops)
    adjacency = dense_adjacency(EDGES, torch.ones(EDGES.size(1)) if weight is None else weight, 6)
    expected = matrix(a).T @ adjacency @ matrix(a)
    if not loops:
        expected.fill_diagonal_(0.0)
    assert_close(dense_adjacency(index, summed, 3), expected)


@MAPS
def test_connect_names_each_pair_once_and_in_order(a):
    index, _ = a.connect(EDGES)
    pairs = index.T.tolist()
    assert pairs == sorted(pairs) and len({tuple(p) for p in pairs}) == len(pairs)


def test_connect_keeps_the_direction_of_edges():
    index, weight = Assignment(torch.tensor([0, 1, 1]), 2).connect(torch.tensor([[0, 0], [1, 2]]))
    assert index.tolist() == [[0], [1]] and weight.tolist() == [2.0]


def test_connect_of_no_edges_is_no_edges():
    index, weight = HARD.connect(torch.empty(2, 0, dtype=torch.long))
    assert index.shape == (2, 0) and weight.shape == (0,)


def test_connect_lets_gradients_reach_the_weights():
    weight = torch.ones(EDGES.size(1), requires_grad=True)
    HARD.connect(EDGES, weight, loops=False)[1].sum().backward()
    outside = HARD.cluster[EDGES[0]] != HARD.cluster[EDGES[1]]
    assert weight.grad.tolist() == outside.float().tolist()


# then

SECOND = Assignment(torch.tensor([1, 0, 1]), 2)
SECOND_DROPPING = Assignment(torch.tensor([2, 0, 1]), 2, drops=True)


@MAPS
@pytest.mark.parametrize("b", [SECOND, SECOND_DROPPING], ids=["hard", "dropping"])
def test_then_reduces_as_both_maps_in_turn(a, b):
    x, size = torch.randn(6, 4), torch.rand(6) + 0.5
    both, both_size = a.then(b).reduce(x, size)
    turn, turn_size = b.reduce(*a.reduce(x, size))
    assert_close(both, turn)
    assert_close(both_size, turn_size)


@MAPS
@pytest.mark.parametrize("b", [SECOND, SECOND_DROPPING], ids=["hard", "dropping"])
def test_then_lifts_and_connects_as_both_maps_in_turn(a, b):
    y = torch.randn(2, 4)
    assert torch.equal(a.then(b).lift(y), a.lift(b.lift(y)))
    index, weight = b.connect(*a.connect(EDGES))
    both_index, both_weight = a.then(b).connect(EDGES)
    assert torch.equal(both_index, index)
    assert_close(both_weight, weight)


@MAPS
@pytest.mark.parametrize("b", [SECOND, SECOND_DROPPING], ids=["hard", "dropping"])
def test_then_says_whether_mass_may_be_lost(a, b):
    assert a.then(b).lossy == (a.lossy or b.lossy)


def test_then_carries_pointers_and_centers():
    a = Assignment.from_dense(torch.tensor([[0, 0, 1], [1, 0, 1]]), 2, centers=torch.tensor([[1, 2], [1, 0]]))
    b = Assignment.from_dense(torch.tensor([[0, 0], [0, 0]]), 1, centers=torch.tensor([[1], [0]]))
    both = a.then(b)
    assert both.ptr.tolist() == [0, 3, 6] and both.cluster_ptr.tolist() == [0, 1, 2]
    assert both.centers.tolist() == [2, 4]


def test_then_is_associative():
    a, b, c = (Assignment(torch.randint(0, k, (n,)), k) for n, k in ((20, 9), (9, 5), (5, 2)))
    assert torch.equal(a.then(b).then(c).cluster, a.then(b.then(c)).cluster)


def test_then_with_the_identity_changes_nothing():
    assert torch.equal(Assignment.identity(6).then(DROPPING).cluster, DROPPING.cluster)
    assert torch.equal(DROPPING.then(Assignment.identity(3)).cluster, DROPPING.cluster)


@MAPS
def test_then_takes_a_soft_map(a):
    soft = SoftAssignment(
        torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 0, 1]), torch.tensor([1.0, 1.0, 0.25, 0.75]), 3, 2
    )
    x, size = torch.randn(6, 4), torch.rand(6) + 0.5
    both, both_size = a.then(soft).reduce(x, size)
    turn, turn_size = soft.reduce(*a.reduce(x, size))
    assert_close(both, turn)
    assert_close(both_size, turn_size)


def test_then_refuses_a_map_over_other_clusters():
    with pytest.raises(ValueError, match=r"Expected a map over K=3 clusters \(got one over 6\)"):
        HARD.then(HARD)


# from_dense


def test_from_dense_shifts_each_image():
    a = Assignment.from_dense(torch.tensor([[0, 1, 0], [1, 1, 0]]), 2)
    assert a.cluster.tolist() == [0, 1, 0, 3, 3, 2]
    assert (a.num_clusters, a.drops) == (4, False)
    assert a.ptr.tolist() == [0, 3, 6] and a.cluster_ptr.tolist() == [0, 2, 4]


def test_from_dense_puts_dropped_tokens_of_all_images_in_one_bin():
    a = Assignment.from_dense(torch.tensor([[0, -1, 0], [-1, 1, 0]]), 2, drops=True)
    assert a.cluster.tolist() == [0, 4, 0, 4, 3, 2]
    assert a.drops


def test_from_dense_takes_a_count_for_each_image():
    a = Assignment.from_dense(torch.tensor([[0, 0, 0], [1, 2, 0]]), [1, 3])
    assert a.cluster.tolist() == [0, 0, 0, 2, 3, 1]
    assert a.num_clusters == 4 and a.cluster_ptr.tolist() == [0, 1, 4]


def test_from_dense_leaves_padding_out():
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    a = Assignment.from_dense(torch.tensor([[1, 0, 0], [0, -1, 0], [0, 0, 0]]), [2, 1, 0], mask=mask, drops=True)
    assert a.cluster.tolist() == [1, 0, 2, 3, 2]
    assert a.ptr.tolist() == [0, 2, 5, 5] and a.cluster_ptr.tolist() == [0, 2, 3, 3]


def test_from_dense_numbers_centers_over_the_batch():
    cluster = torch.tensor([[0, 1, 1], [0, 0, 1]])
    assert Assignment.from_dense(cluster, 2, centers=torch.tensor([[0, 2], [1, 2]])).centers.tolist() == [0, 2, 4, 5]


def test_from_dense_skips_padding_and_spare_places_in_centers():
    mask = torch.tensor([[True, False, True], [True, True, True]])
    centers = torch.tensor([[2, 0], [0, 1]])
    a = Assignment.from_dense(torch.tensor([[0, 0, 0], [0, 1, 1]]), [1, 2], mask=mask, centers=centers)
    assert a.cluster.tolist() == [0, 0, 1, 2, 2]
    assert a.centers.tolist() == [1, 2, 3]


def test_from_dense_of_a_ragged_batch_equals_each_image_alone():
    counts, keeps = [4, 0, 7, 1], [2, 0, 3, 1]
    dense = torch.zeros(4, 7, dtype=torch.long)
    mask = torch.arange(7) < torch.tensor(counts)[:, None]
    for b, (n, k) in enumerate(zip(counts, keeps, strict=True)):
        dense[b, :n] = torch.arange(n) % max(k, 1)
    a = Assignment.from_dense(dense, keeps, mask=mask)
    x, size = torch.randn(12, 5), torch.rand(12)
    pooled, _ = a.reduce(x, size)
    for b, k in enumerate(keeps):
        rows = slice(*a.ptr[b : b + 2].tolist())
        alone = Assignment(dense[b, : counts[b]], k).reduce(x[rows], size[rows])[0]
        assert_close(pooled[slice(*a.cluster_ptr[b : b + 2].tolist())], alone)


def test_from_dense_refuses_flat_clusters():
    with pytest.raises(ValueError, match=r"Expected cluster of shape \[B, N\] \(got \[3\]\)"):
        Assignment.from_dense(torch.tensor([0, 1, 0]), 2)


def test_from_dense_refuses_counts_that_do_not_fit_the_images():
    with pytest.raises(ValueError, match=r"Expected one number of clusters an image, B=2 \(got 1\)"):
        Assignment.from_dense(torch.tensor([[0, 1, 0], [0, 0, 0]]), [2])


def test_from_dense_refuses_a_mask_of_another_shape():
    with pytest.raises(
        ValueError, match=r"Expected mask of shape \[2, 3\] and dtype bool \(got \[2, 2\], torch.bool\)"
    ):
        Assignment.from_dense(torch.tensor([[0, 1, 0], [0, 0, 0]]), 2, mask=torch.ones(2, 2, dtype=torch.bool))


# construction


@pytest.mark.parametrize("cluster", [torch.tensor([[0, 1]]), torch.tensor([0.0, 1.0]), torch.tensor([0, 1]).int()])
def test_assignment_refuses_what_is_no_flat_int64(cluster):
    with pytest.raises(ValueError, match=r"Expected cluster of shape \[M\] and dtype int64 .*Assignment.from_dense"):
        Assignment(cluster, 2)


def test_identity_keeps_every_token():
    a = Assignment.identity(3, ptr=torch.tensor([0, 1, 3]))
    assert (a.cluster.tolist(), a.num_clusters, a.lossy) == ([0, 1, 2], 3, False)
    assert a.centers.tolist() == [0, 1, 2] and a.cluster_ptr.tolist() == [0, 1, 3]


def test_to_moves_every_tensor_of_the_map():
    a = Assignment.from_dense(torch.tensor([[0, 0]]), 1, centers=torch.tensor([[0]])).to("meta")
    assert {t.device.type for t in (a.cluster, a.ptr, a.cluster_ptr, a.centers)} == {"meta"}
    assert (a.num_clusters, a.drops) == (1, False)


# PyG's SelectOutput


@MAPS
def test_select_output_round_trip_gives_the_same_map(a):
    back = Assignment.from_select_output(a.to_select_output())
    assert (back.cluster.tolist(), back.num_clusters, back.drops) == (a.cluster.tolist(), a.num_clusters, a.drops)


def test_to_select_output_leaves_dropped_tokens_out():
    output = DROPPING.to_select_output()
    assert output.node_index.tolist() == [0, 2, 3, 5] and output.cluster_index.tolist() == [0, 1, 0, 2]
    assert (output.num_nodes, output.num_clusters) == (6, 3)


def test_to_select_output_works_in_pyg_pooling():
    from torch_geometric.nn.aggr import MeanAggregation

    output, x = HARD.to_select_output(), torch.randn(6, 4)
    pooled = MeanAggregation()(x[output.node_index], output.cluster_index, dim_size=output.num_clusters)
    assert_close(HARD.reduce(x)[0], pooled)


def test_to_select_output_works_in_pyg_connect():
    from torch_geometric.nn.pool.connect import FilterEdges

    output = DROPPING.to_select_output()
    kept = SelectOutput(output.node_index[[0, 1, 3]], 6, output.cluster_index[[0, 1, 3]], 3)
    ours = Assignment.from_select_output(kept)
    edge_index = torch.tensor([[0, 2, 5, 1], [2, 5, 0, 0]])
    theirs = FilterEdges()(kept, edge_index, torch.ones(4))
    assert torch.equal(ours.connect(edge_index)[0], theirs.edge_index)


def test_from_select_output_reads_pyg_top_k():
    x = torch.randn(7, 4)
    output = SelectTopK(4, ratio=3)(x)
    a = Assignment.from_select_output(output)
    assert (a.num_clusters, a.drops) == (3, True)
    assert torch.equal(a.reduce(x)[0], x[output.node_index])


def test_from_select_output_refuses_a_node_in_several_clusters():
    output = SelectOutput(torch.tensor([0, 0, 1]), 3, torch.tensor([0, 1, 1]), 2)
    with pytest.raises(ValueError, match=r"at most one cluster \(got 1 nodes in several\)\. Build a SoftAssignment"):
        Assignment.from_select_output(output)


@pytest.mark.parametrize(
    ("cluster", "counts", "options"),
    [
        ([[0, 1], [-1, 0]], 2, {}),
        ([[0, 1], [2, 0]], 2, {}),
        ([[0, 1], [1, 0]], [2, 1], {}),
        ([[0, 1], [-2, 0]], 2, {"drops": True}),
    ],
)
def test_from_dense_refuses_numbers_that_would_go_to_another_image(cluster, counts, options):
    with pytest.raises(ValueError, match=r"Expected clusters in \[0, K=.* in each image \(got"):
        Assignment.from_dense(torch.tensor(cluster), counts, **options)


def test_from_dense_asks_nothing_of_padding():
    mask = torch.tensor([[True, True], [True, False]])
    assert Assignment.from_dense(torch.tensor([[0, 1], [0, 99]]), [2, 1], mask=mask).cluster.tolist() == [0, 1, 2]


@pytest.mark.parametrize("backend", ["auto", "index_add", "segment"])
@pytest.mark.parametrize("grad", [False, True])
def test_reduce_of_many_equal_rows_is_the_row(backend, grad):
    a = Assignment(torch.zeros(10_000, dtype=torch.long), 1)
    x = torch.tensor([[1.0, 0.37]]).repeat(10_000, 1).requires_grad_(grad)
    for map_ in (a, SoftAssignment.from_hard(a)):
        assert_close(map_.reduce(x, backend=backend)[0], x[:1], rtol=2e-7, atol=0.0)
    assert_close(a.reduce(x, reduce="sum", backend=backend)[0], 1e4 * x[:1], rtol=2e-7, atol=0.0)
