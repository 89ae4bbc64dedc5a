"""Maps whose rows, or whose sizes, count by something else than sizes: weight, mass, centers."""

import pickle

import pytest
import torch
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.maps.join import join
from tokengraph.maps.prefix import with_prefix
from tokengraph.maps.raster import in_raster_order

CLUSTER = torch.tensor([0, 1, 0, 2, 1, 1])
WEIGHT = torch.tensor([3.0, 1.0, 1.0, 5.0, 0.0, 2.0])
MASS = torch.tensor([1.0, 2.0, 0.0, 4.0, 0.5, 0.25])
X = torch.tensor([[1.0], [2.0], [5.0], [7.0], [100.0], [8.0]])
SIZE = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
WEIGHED = tg.Assignment(CLUSTER, 3, weight=WEIGHT)
MASSIVE = tg.Assignment(CLUSTER, 3, mass=MASS)
BOTH = tg.Assignment(CLUSTER, 3, weight=WEIGHT, mass=MASS)
MIXED = tg.SoftAssignment(torch.arange(6), CLUSTER, torch.rand(6) + 0.5, 6, 3, mass=MASS)
PAIR = tg.Assignment(torch.tensor([0, 0, 1]), 2, weight=torch.tensor([1.0, 3.0, 1.0]), mass=torch.tensor([2.0, 1, 9]))
EVERY = pytest.mark.parametrize("a", [WEIGHED, MASSIVE, BOTH, MIXED], ids=["weight", "mass", "both", "soft"])


def test_reduce_weighs_rows_by_the_maps_weight_and_adds_sizes_up():
    rows, size = WEIGHED.reduce(X, SIZE)
    assert rows.tolist() == [[2.0], [6.0], [7.0]]
    assert size.tolist() == [4.0, 13.0, 4.0]


def test_reduce_counts_sizes_by_mass_and_rows_by_size():
    rows, size = MASSIVE.reduce(X, SIZE)
    plain, _ = tg.Assignment(CLUSTER, 3).reduce(X, SIZE)
    assert torch.equal(rows, plain)
    assert size.tolist() == [1.0, 2.75, 4.0]


def test_reduce_of_weighted_edges_counts_sizes_by_mass():
    a = tg.SoftAssignment(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.tensor([0.5, 0.5, 1.0]), 2, 2)
    massive = tg.SoftAssignment(a.token, a.cluster, a.weight, 2, 2, mass=torch.tensor([4.0, 8.0]))
    rows, size = massive.reduce(X[:2], SIZE[:2])
    assert torch.equal(rows, a.reduce(X[:2], SIZE[:2])[0])
    assert size.tolist() == [2.0, 10.0]


def test_reduce_takes_the_plain_mean_of_a_cluster_whose_weights_are_zero():
    a = tg.Assignment(torch.tensor([0, 0, 1]), 2, weight=torch.tensor([0.0, 0.0, 3.0]))
    assert a.reduce(X[:3], SIZE[:3])[0].tolist() == [[1.5], [5.0]]


def test_reduce_by_center_takes_its_row_and_adds_sizes_up():
    a = tg.Assignment(CLUSTER, 3, centers=torch.tensor([2, 1, 3]))
    rows, size = a.reduce(X, SIZE, reduce="center")
    assert rows.tolist() == [[5.0], [2.0], [7.0]] and size.tolist() == [4.0, 13.0, 4.0]
    assert a.lift(rows).flatten().tolist() == [5.0, 2.0, 5.0, 7.0, 2.0, 2.0]


def test_reduce_by_center_composes():
    a = tg.Assignment(CLUSTER, 3, centers=torch.tensor([2, 1, 3]))
    b = tg.Assignment(torch.tensor([1, 0, 1]), 2, centers=torch.tensor([1, 2]))
    for ours, theirs in zip(
        a.then(b).reduce(X, SIZE, reduce="center"),
        b.reduce(*a.reduce(X, SIZE, reduce="center"), reduce="center"),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_reduce_by_center_wants_centers():
    with pytest.raises(ValueError, match=r"Expected a map with centers to reduce by 'center' \(got none\)"):
        WEIGHED.reduce(X, reduce="center")


@pytest.mark.parametrize("name", ["weight", "mass"])
def test_a_map_wants_one_number_a_token(name):
    with pytest.raises(ValueError, match=rf"Expected {name} of shape \[6\], one a token \(got \[5\]\)"):
        tg.Assignment(CLUSTER, 3, **{name: torch.ones(5)})
    with pytest.raises(ValueError, match=rf"Expected {name} of shape \[2, 3\], one a token \(got \[3, 2\]\)"):
        tg.Assignment.from_dense(CLUSTER.view(2, 3) * 0, 1, **{name: torch.ones(3, 2)})


@EVERY
@pytest.mark.parametrize(
    "b", [PAIR, tg.Assignment(torch.tensor([1, 0, 0]), 2), BOTH.then(PAIR)], ids=["both", "plain", "composed"]
)
def test_then_reduces_as_the_maps_do_in_turn(a, b):
    if b.num_tokens != 3:
        a, b = (
            tg.Assignment.identity(6).then(a),
            tg.Assignment(torch.tensor([0, 0, 1]), 2, mass=torch.ones(3)).then(
                tg.Assignment(torch.tensor([0, 0]), 1, weight=torch.tensor([1.0, 2.0]))
            ),
        )
    both = a.then(b)
    for ours, theirs in zip(both.reduce(X, SIZE), b.reduce(*a.reduce(X, SIZE)), strict=True):
        assert_close(ours, theirs)
    y = torch.randn(b.num_clusters, 2)
    assert_close(both.lift(y), a.lift(b.lift(y)))


def test_then_weighted_edges_reduces_as_the_maps_do_in_turn():
    soft = tg.SoftAssignment(
        torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 0.25, 0.75]), 3, 2
    )
    for first in (WEIGHED, MASSIVE, BOTH):
        for ours, theirs in zip(first.then(soft).reduce(X, SIZE), soft.reduce(*first.reduce(X, SIZE)), strict=True):
            assert_close(ours, theirs)


@EVERY
def test_with_prefix_keeps_what_patches_become(a):
    whole = with_prefix(a, 1, 2)
    x, size = torch.cat([torch.tensor([[-1.0], [-2.0]]), X]), torch.cat([torch.ones(2), SIZE])
    rows, sizes = whole.reduce(x, size)
    assert rows[:2].tolist() == [[-1.0], [-2.0]] and sizes[:2].tolist() == [1.0, 1.0]
    for ours, theirs in zip((rows[2:], sizes[2:]), a.reduce(X, SIZE), strict=True):
        assert_close(ours, theirs)


def test_with_prefix_keeps_centers_and_compositions():
    a = tg.Assignment(CLUSTER, 3, centers=torch.tensor([2, 1, 3]))
    assert with_prefix(a, 1, 1).reduce(torch.cat([X[:1], X]), reduce="center")[0].flatten().tolist() == [1, 5, 2, 7]
    composed = BOTH.then(PAIR)
    rows, size = with_prefix(composed, 1, 1).reduce(torch.cat([X[:1], X]), torch.cat([torch.ones(1), SIZE]))
    for ours, theirs in zip((rows[1:], size[1:]), composed.reduce(X, SIZE), strict=True):
        assert_close(ours, theirs)


@EVERY
def test_join_reduces_each_image_as_its_own_map_does(a):
    plain, sizes = tg.Assignment(torch.tensor([0, 0, 1, 1]), 2), torch.tensor([1.0, 7.0, 2.0, 3.0])
    for other in (plain, a.then(PAIR), PAIR):
        if isinstance(a, tg.SoftAssignment) and other is PAIR:
            continue
        rows = torch.randn(other.num_tokens, 1)
        size = torch.rand(other.num_tokens) + 0.5 if other is not plain else sizes
        both = join([a, other], [X, rows], [SIZE, size])
        ours = both.reduce(torch.cat([X, rows]), torch.cat([SIZE, size]))
        for whole, one, two in zip(ours, a.reduce(X, SIZE), other.reduce(rows, size), strict=True):
            assert_close(whole, torch.cat([one, two]))


def test_join_refuses_weights_of_hard_clusters_among_weighted_edges():
    with pytest.raises(ValueError, match="Expected hard clusters with weights in all images, or in none"):
        join([WEIGHED, MIXED], [X, X])


@EVERY
def test_copies_reduce_alike(a):
    for b in (
        pickle.loads(pickle.dumps(a)),
        a.to("cpu"),
        pickle.loads(pickle.dumps(a.then(PAIR))),
        a.then(PAIR).to("cpu"),
    ):
        same = a if b.num_clusters == 3 else a.then(PAIR)
        for ours, theirs in zip(b.reduce(X, SIZE), same.reduce(X, SIZE), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("a", [WEIGHED, MASSIVE, BOTH], ids=["weight", "mass", "both"])
def test_pyg_and_back_reduces_alike(a):
    dropping = tg.Assignment(torch.tensor([0, 3, 1, 0, 3, 2]), 3, drops=True, weight=a.weight, mass=a.mass)
    for b in (a, dropping):
        back = tg.Assignment.from_select_output(b.to_select_output())
        for ours, theirs in zip(back.reduce(X, SIZE), b.reduce(X, SIZE), strict=True):
            assert torch.equal(ours, theirs)


def test_from_dense_takes_weight_and_mass_of_a_ragged_batch():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    cluster, weight = torch.tensor([[0, 0, 1], [0, 9, 9]]), torch.tensor([[3.0, 1.0, 1.0], [2.0, 7.0, 7.0]])
    a = tg.Assignment.from_dense(cluster, [2, 1], mask=mask, weight=weight, mass=weight)
    rows, size = a.reduce(torch.tensor([[0.0], [4.0], [5.0], [6.0]]))
    assert rows.tolist() == [[1.0], [5.0], [6.0]] and size.tolist() == [4.0, 1.0, 2.0]


def test_raster_order_renumbers_a_composition():
    a = tg.Assignment(torch.tensor([2, 1, 2, 0, 1, 1]), 3, weight=WEIGHT).then(
        tg.Assignment(torch.tensor([0, 1, 0]), 2)
    )
    assert in_raster_order(a).reduce(X)[0].tolist() == a.reduce(X)[0].tolist()
    flipped = tg.Assignment(torch.tensor([1, 1, 1, 0, 0, 0]), 2, weight=WEIGHT)
    both = flipped.then(tg.Assignment(torch.tensor([0, 1]), 2, mass=torch.tensor([5.0, 7.0])))
    assert in_raster_order(both).reduce(X)[1].tolist() == [7.0, 5.0]


def test_positions_and_patch_counts_know_no_weights():
    assert (
        BOTH.then(PAIR).by_size().reduce(X)[0].tolist()
        == tg.Assignment(CLUSTER, 3).then(tg.Assignment(PAIR.cluster, 2)).reduce(X)[0].tolist()
    )


@EVERY
def test_gradients_reach_weight_mass_rows_and_sizes(a):
    x, size = torch.randn(6, 2, dtype=torch.float64, requires_grad=True), SIZE.double().requires_grad_()
    own = (torch.rand(6, dtype=torch.float64) + 0.5).requires_grad_()

    def run(x, size, own):
        if isinstance(a, tg.SoftAssignment):
            b = tg.SoftAssignment(a.token, a.cluster, own, 6, 3, mass=own)
        else:
            b = tg.Assignment(
                CLUSTER, 3, weight=own if a.weight is not None else None, mass=own if a.mass is not None else None
            )
        return b.reduce(x, size)

    assert torch.autograd.gradcheck(run, (x, size, own))


@EVERY
def test_reduce_compiles_whole(a):
    torch.compiler.reset()
    run = torch.compile(lambda x, s: a.then(PAIR).reduce(x, s), fullgraph=True, backend="eager")
    for ours, theirs in zip(run(X, SIZE), a.then(PAIR).reduce(X, SIZE), strict=True):
        assert_close(ours, theirs)


def test_reduce_with_weights_keeps_half_precision():
    rows, size = BOTH.reduce(X.half(), SIZE)
    assert rows.dtype == torch.float16 and size.dtype == torch.float32
