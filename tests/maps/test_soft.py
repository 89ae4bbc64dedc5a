import pytest
import torch
from torch.testing import assert_close

from tokengraph import Assignment, SoftAssignment

EDGES = torch.tensor([[0, 0, 1, 2, 3, 4, 1], [1, 2, 3, 0, 4, 1, 1]])
HARD = Assignment(torch.tensor([0, 1, 0, 2, 1]), 3, ptr=torch.tensor([0, 5]), cluster_ptr=torch.tensor([0, 3]))
DROPPING = Assignment(torch.tensor([0, 3, 1, 0, 2]), 3, drops=True)


def make(normalize: bool = True, up: bool = False) -> SoftAssignment:
    """Five tokens, three clusters: token 0 in two clusters, token 3 in none, token 1 twice in the same."""
    token, cluster = torch.tensor([0, 0, 1, 1, 2, 4]), torch.tensor([0, 2, 1, 1, 1, 2])
    back = (torch.tensor([0, 1, 3, 4]), torch.tensor([2, 0, 1, 1]), torch.tensor([2.0, 0.5, 1.0, -1.0]))
    weight = torch.tensor([0.25, 0.75, 0.5, 0.25, 2.0, 1.5])
    return SoftAssignment(token, cluster, weight, 5, 3, normalize, back if up else None)


def second(normalize: bool = True, up: bool = False) -> SoftAssignment:
    token, cluster = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 1])
    back = (torch.tensor([2, 1, 0]), torch.tensor([0, 1, 1]), torch.tensor([1.0, 3.0, 0.5]))
    return SoftAssignment(token, cluster, torch.tensor([1.0, 0.4, 0.6, 0.9]), 3, 2, normalize, back if up else None)


def dense(token, cluster, weight, rows: int, columns: int) -> torch.Tensor:
    return torch.zeros(rows, columns, dtype=weight.dtype).index_put_((token, cluster), weight, accumulate=True)


def down(a: SoftAssignment) -> torch.Tensor:
    return dense(a.token, a.cluster, a.weight, a.num_tokens, a.num_clusters)


def adjacency(index: torch.Tensor, weight: torch.Tensor, nodes: int) -> torch.Tensor:
    return dense(index[0], index[1], weight, nodes, nodes)


# reduce


def test_reduce_averages_by_weight_and_size():
    a, x, size = make(), torch.randn(5, 4), torch.rand(5) + 0.5
    mass = down(a).T * size
    pooled, new_size = a.reduce(x, size)
    assert_close(new_size, mass.sum(1))
    assert_close(pooled, mass @ x / mass.sum(1, keepdim=True))


def test_reduce_without_normalize_adds_up_by_weight_alone():
    a, x, size = make(normalize=False), torch.randn(5, 4), torch.rand(5) + 0.5
    pooled, new_size = a.reduce(x, size)
    assert_close(pooled, down(a).T @ x)
    assert_close(new_size, down(a).T @ size)


@pytest.mark.parametrize("normalize", [True, False])
def test_reduce_without_sizes_equals_sizes_of_one(normalize):
    a, x = make(normalize), torch.randn(5, 4)
    for ours, theirs in zip(a.reduce(x), a.reduce(x, torch.ones(5)), strict=True):
        assert torch.equal(ours, theirs)


def test_reduce_of_a_cluster_without_mass_is_zero():
    a = SoftAssignment(torch.tensor([0]), torch.tensor([0]), torch.tensor([0.0]), 1, 2)
    pooled, size = a.reduce(torch.ones(1, 2))
    assert pooled.tolist() == [[0.0, 0.0], [0.0, 0.0]] and size.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduce_and_lift_keep_half_precision_and_sum_in_float32(dtype):
    tokens = torch.arange(4096)
    a = SoftAssignment(tokens, torch.zeros_like(tokens), torch.ones(4096), 4096, 1, normalize=False)
    pooled, size = a.reduce(torch.ones(4096, 1, dtype=dtype))
    assert pooled.dtype == dtype and pooled.tolist() == [[4096.0]]
    assert size.dtype == torch.float32 and size.tolist() == [4096.0]
    assert a.lift(pooled).dtype == dtype


def test_reduce_by_segments_equals_index_add():
    x, size = torch.randn(5, 4), torch.rand(5)
    for ours, theirs in zip(make().reduce(x, size, backend="segment"), make().reduce(x, size), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("normalize", [True, False])
def test_reduce_passes_gradcheck_for_weight_rows_and_size(normalize):
    a = make(normalize)
    x, size = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64) + 0.5

    def run(weight, x, size):
        return SoftAssignment(a.token, a.cluster, weight, 5, 3, normalize).reduce(x, size)

    inputs = [t.requires_grad_() for t in (a.weight.double(), x, size)]
    assert torch.autograd.gradcheck(run, inputs)


def test_reduce_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"Expected x with 5 rows \(got shape \[3, 2\]\)"):
        make().reduce(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"Expected size of shape \[M=5\] \(got \[6\]\)"):
        make().reduce(torch.zeros(5, 2), torch.ones(6))


# lift


def test_lift_averages_the_rows_of_a_tokens_clusters():
    a, y = make(), torch.randn(3, 4)
    rows = down(a)
    assert_close(a.lift(y), rows / rows.sum(1, keepdim=True).clamp_min(1e-9) @ y)


def test_lift_of_constant_rows_is_constant_where_a_token_has_a_cluster():
    assert_close(make().lift(torch.ones(3, 1)).flatten(), torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0]))


def test_lift_takes_its_own_way_back():
    a, y = make(up=True), torch.randn(3, 4)
    assert_close(a.lift(y), dense(*a.up, 5, 3) @ y)


def test_lift_fills_tokens_that_nothing_reaches():
    fill = -torch.arange(5.0)[:, None]
    assert make().lift(torch.ones(3, 1), fill).flatten().tolist() == [1.0, 1.0, 1.0, -3.0, 1.0]
    assert make(up=True).lift(torch.ones(3, 1), fill).flatten().tolist() == [2.0, 0.5, -2.0, 1.0, -1.0]


def test_lift_passes_gradcheck_for_weight_and_rows():
    a = make()

    def run(weight, y):
        return SoftAssignment(a.token, a.cluster, weight, 5, 3).lift(y)

    inputs = a.weight.double().requires_grad_(), torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, inputs)


def test_lift_refuses_wrong_rows():
    with pytest.raises(ValueError, match=r"Expected y with 3 rows \(got shape \[5, 2\]\)"):
        make().lift(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"Expected fill with 5 rows \(got shape \[1, 2\]\)"):
        make().lift(torch.zeros(3, 2), torch.zeros(1, 2))


# connect


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_connect_equals_the_matrix_product(loops, weighted):
    a, weight = make(), torch.rand(EDGES.size(1)) if weighted else None
    index, summed = a.connect(EDGES, weight, loops=loops)
    full = adjacency(EDGES, torch.ones(EDGES.size(1)) if weight is None else weight, 5)
    expected = down(a).T @ full @ down(a)
    if not loops:
        expected.fill_diagonal_(0.0)
    assert_close(adjacency(index, summed, 3), expected)
    pairs = index.T.tolist()
    assert pairs == sorted(pairs) and len({tuple(p) for p in pairs}) == len(pairs)


def test_connect_counts_with_whole_numbers_as_with_floats():
    index, weight = make().connect(EDGES, torch.full((EDGES.size(1),), 2))
    assert_close(weight, make().connect(EDGES)[1] * 2)
    assert index.dtype == torch.long


def test_connect_of_no_edges_is_no_edges():
    index, weight = make().connect(torch.empty(2, 0, dtype=torch.long))
    assert index.shape == (2, 0) and weight.shape == (0,)


def test_connect_lets_gradients_reach_weights_of_map_and_edges():
    a, weight = make(), torch.ones(EDGES.size(1), requires_grad=True)
    own = a.weight.clone().requires_grad_()
    soft = SoftAssignment(a.token, a.cluster, own, 5, 3)
    soft.connect(EDGES, weight)[1].sum().backward()
    rows = down(a).sum(1)
    assert_close(weight.grad, rows[EDGES[0]] * rows[EDGES[1]])
    assert own.grad[:5].all()  # token 4 has an edge too, but from token 3, which is in no cluster


# from_hard


@pytest.mark.parametrize("hard", [HARD, DROPPING], ids=["hard", "dropping"])
def test_from_hard_does_what_the_hard_map_does(hard):
    soft = SoftAssignment.from_hard(hard)
    x, size, y, fill = torch.randn(5, 4), torch.rand(5) + 0.5, torch.randn(3, 4), torch.randn(5, 4)
    for ours, theirs in zip(soft.reduce(x, size), hard.reduce(x, size), strict=True):
        assert_close(ours, theirs)
    assert torch.equal(soft.lift(y), hard.lift(y)) and torch.equal(soft.lift(y, fill), hard.lift(y, fill))
    for ours, theirs in zip(soft.connect(EDGES), hard.connect(EDGES), strict=True):
        assert_close(ours, theirs)
    assert soft.ptr is hard.ptr and soft.cluster_ptr is hard.cluster_ptr


# then


@pytest.mark.parametrize("normalize", [True, False])
def test_then_reduces_as_both_maps_in_turn(normalize):
    a, b, x, size = make(normalize), second(normalize), torch.randn(5, 4), torch.rand(5) + 0.5
    both, both_size = a.then(b).reduce(x, size)
    turn, turn_size = b.reduce(*a.reduce(x, size))
    assert_close(both, turn)
    assert_close(both_size, turn_size)


@pytest.mark.parametrize("ups", [(False, False), (True, False), (False, True), (True, True)])
def test_then_lifts_as_both_maps_in_turn(ups):
    a, b, y = make(up=ups[0]), second(up=ups[1]), torch.randn(2, 4)
    assert_close(a.then(b).lift(y), a.lift(b.lift(y)))


def test_then_connects_as_both_maps_in_turn():
    a, b = make(), second()
    index, weight = b.connect(*a.connect(EDGES))
    assert_close(adjacency(*a.then(b).connect(EDGES), 2), adjacency(index, weight, 2))


def test_then_is_the_matrix_product_with_each_pair_once():
    both = make().then(second())
    assert_close(down(both), down(make()) @ down(second()))
    pairs = torch.stack([both.token, both.cluster]).T.tolist()
    assert pairs == sorted(pairs) and len({tuple(p) for p in pairs}) == len(pairs)


def test_then_takes_a_hard_map():
    a, b, x = make(), Assignment(torch.tensor([1, 2, 0]), 2, drops=True), torch.randn(5, 4)
    assert_close(a.then(b).reduce(x)[0], b.reduce(*a.reduce(x))[0])
    y = torch.randn(2, 4)
    assert_close(a.then(b).lift(y), a.lift(b.lift(y)))


@pytest.mark.parametrize("first", [True, False])
def test_then_of_an_average_and_a_sum_lifts_but_refuses_to_reduce(first):
    both, y = make(first).then(second(not first)), torch.randn(2, 4)
    assert_close(both.lift(y), make().lift(second().lift(y)))
    with pytest.raises(ValueError, match=r"\(got a composition of both kinds\)\. Reduce by each map in turn"):
        both.reduce(torch.zeros(5, 4))


def test_then_mixes_float64_and_float32():
    a = SoftAssignment(*(make().token, make().cluster, make().weight.double()), 5, 3)
    assert a.then(HARD_ONE).weight.dtype == torch.float64
    assert SoftAssignment.from_hard(HARD).then(second()).weight.dtype == torch.float32


HARD_ONE = Assignment(torch.tensor([0, 0, 0]), 1)


def test_then_lets_gradients_reach_both_weights():
    a, b = make(), second()
    first, other = (m.weight.clone().double().requires_grad_() for m in (a, b))
    x = torch.randn(5, 2, dtype=torch.float64)

    def run(u, v):
        left = SoftAssignment(a.token, a.cluster, u, 5, 3)
        return left.then(SoftAssignment(b.token, b.cluster, v, 3, 2)).reduce(x)[0]

    assert torch.autograd.gradcheck(run, (first, other))


def test_then_refuses_a_map_over_other_clusters():
    with pytest.raises(ValueError, match=r"Expected a map over K=3 clusters \(got one over 5\)"):
        make().then(make())


def test_reduce_lift_and_then_compile_whole():
    def run(x, weight):
        a, b = make(), second()
        both = SoftAssignment(a.token, a.cluster, weight, 5, 3).then(b)
        pooled, size = both.reduce(x)
        return pooled, size, both.lift(pooled)

    torch.compiler.reset()
    arguments = torch.randn(5, 4), make().weight
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    for ours, theirs in zip(compiled(*arguments), run(*arguments), strict=True):
        assert_close(ours, theirs)


# construction


def test_soft_assignment_refuses_edges_of_different_lengths():
    ids = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"of one shape \[E\] \(got \[2\], \[2\], \[1\]\)"):
        SoftAssignment(ids, ids, torch.ones(1), 2, 2)
    with pytest.raises(ValueError, match=r"of one shape \[E\] \(got \[1, 2\], \[1, 2\], \[1, 2\]\)"):
        SoftAssignment(ids[None], ids[None], torch.ones(1, 2), 2, 2)


def test_to_moves_every_tensor_of_the_map():
    a = SoftAssignment.from_hard(HARD).then(second()).to("meta")
    tensors = [a.token, a.cluster, a.weight, a.ptr, *a.up]
    assert {t.device.type for t in tensors} == {"meta"}
    assert (a.num_tokens, a.num_clusters) == (5, 2)


@pytest.mark.parametrize("count", [10, 5000])
def test_reduce_by_edges_behind_each_centers_own_loses_no_digits(count):
    x = torch.full((count + 1, 2), 0.1)
    x[0] = 0.7
    edges = torch.arange(count + 1), torch.zeros(count + 1, dtype=torch.long), torch.ones(count + 1)
    a = SoftAssignment(*edges, count + 1, 1, False, centers=torch.tensor([0]), others=count)
    rows, size = a.reduce(x)
    assert a.adds(x) == (count == 10)
    assert_close(rows, x.double().sum(dim=0, keepdim=True).float(), rtol=2e-7, atol=0.0)
    assert size.item() == count + 1
