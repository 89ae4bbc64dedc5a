import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tokengraph import grid_graph, knn_graph
from tokengraph import optional as probe
from tokengraph.edges import grid_positions, knn_extension, knn_neighbors, knn_torch
from tokengraph.flat.memory import set_memory_budget

REACH = {"squared": torch.inf}  # from where on the stub kernel sees nothing


def kernel(x, y, ptr_x, ptr_y, k, cosine, num_workers):
    """What pyg-lib documents for its ``knn``: rows ``(query in y, found in x)``; its CUDA kernel has a limited reach.

    Among equals it prefers the last one, so that every tie has to be put right.
    """
    assert not cosine and x.dtype == y.dtype == torch.float32 and x.is_contiguous()
    edges = []
    for b in range(ptr_x.numel() - 1):
        near, far = (slice(*p[b : b + 2].tolist()) for p in (ptr_x, ptr_y))
        distance = (y[far, None] - x[None, near]).square().sum(2)
        order = distance.flip(1).argsort(dim=1, stable=True)[:, :k]
        found = x[near].size(0) - 1 - order
        query = torch.arange(distance.size(0))[:, None].expand_as(found)
        seen = distance.gather(1, found) < REACH["squared"]
        edges.append(torch.stack([query[seen] + far.start, found[seen] + near.start]))
    return torch.cat(edges, dim=1)


@pytest.fixture
def stub_module(monkeypatch):
    """A module ``pyg_lib`` in place of a real one, if there is any; its operators are not there."""
    module = ModuleType("pyg_lib")
    module.__version__ = "0.5.0"
    monkeypatch.setitem(sys.modules, "pyg_lib", module)
    probe._probe.cache_clear()
    yield module
    probe._probe.cache_clear()


@pytest.fixture
def pyg_lib(stub_module, monkeypatch):
    """The operator ``torch.ops.pyg.knn`` by the stub kernel."""
    if hasattr(torch.ops.pyg, "knn"):
        monkeypatch.setattr(torch.ops.pyg, "knn", kernel)
        yield
        return
    library = torch.library.Library("pyg", "FRAGMENT")
    library.define(
        "knn(Tensor x, Tensor y, Tensor? ptr_x, Tensor? ptr_y, int k, bool cosine, int num_workers) -> Tensor"
    )
    library.impl("knn", kernel, "CPU")
    yield
    library._destroy()


@pytest.fixture(params=["torch", "torch-cluster", "pyg-lib"])
def backend(request):
    if request.param == "pyg-lib":
        request.getfixturevalue("pyg_lib")
    elif request.param == "torch-cluster" and probe.load("torch-cluster") is None:
        pytest.skip("needs torch-cluster")
    return request.param


def oracle(x: torch.Tensor, k: int, cosine: bool = False, loop: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Neighbours and weights of one image ``[N, C]`` by sorting all distances in float64, ties by index."""
    x = x.double()
    if cosine:
        distance = -F.cosine_similarity(x[:, None], x[None], dim=2)
    else:
        distance = (x[:, None] - x[None]).norm(dim=2)
    ranked = distance.clone()
    ranked.fill_diagonal_(-torch.inf if loop else torch.inf)
    near = ranked.argsort(dim=1, stable=True)[:, :k]
    weight = distance.gather(1, near)
    return near, -weight if cosine else weight


def lattice(side: int) -> torch.Tensor:
    return grid_positions((side, side))[torch.randperm(side * side)]


# against the oracle


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("loop", [False, True])
def test_knn_graph_equals_sorting_all_distances(backend, cosine, loop):
    x = torch.randn(3, 40, 9)
    edges, weight = knn_graph(x, 6, cosine=cosine, loop=loop, backend=backend)
    for b in range(3):
        near, expected = oracle(x[b], 6, cosine, loop)
        own = slice(240 * b, 240 * (b + 1))
        assert edges[0, own].view(40, 6).sub(40 * b).tolist() == near.tolist()
        assert_close(weight[own].view(40, 6).double(), expected, atol=2e-3 if loop else 1e-5, rtol=1e-5)
    assert edges[1].tolist() == [i for i in range(120) for _ in range(6)]


def test_knn_graph_of_a_literal_line():
    edges, weight = knn_graph(torch.tensor([[0.0], [1.0], [3.0], [7.0]]), 2)
    assert edges.tolist() == [[1, 2, 0, 2, 1, 0, 2, 1], [0, 0, 1, 1, 2, 2, 3, 3]]
    assert weight.tolist() == [1.0, 3.0, 1.0, 2.0, 2.0, 3.0, 4.0, 6.0]


@pytest.mark.parametrize("shape", ["flat", "batched", "ptr"])
def test_knn_graph_takes_one_image_in_any_form(backend, shape):
    x = torch.randn(20, 5)
    forms = {"flat": {"x": x}, "batched": {"x": x[None]}, "ptr": {"x": x, "ptr": torch.tensor([0, 20])}}
    edges, weight = knn_graph(k=4, backend=backend, **forms[shape])
    near, expected = oracle(x, 4)
    assert edges[0].view(20, 4).tolist() == near.tolist()
    assert_close(weight.view(20, 4).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_knn_graph_searches_in_float32_or_wider(dtype):
    x = torch.randn(30, 8).to(dtype)
    edges, weight = knn_graph(x, 5)
    assert edges[0].view(30, 5).tolist() == oracle(x, 5)[0].tolist()
    assert weight.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_knn_graph_of_half_precision_is_that_of_its_float32_copy(backend, dtype):
    x = torch.randn(2, 30, 8).to(dtype)
    for ours, theirs in zip(knn_graph(x, 5, backend=backend), knn_graph(x.float(), 5, backend=backend), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("cosine", [False, True])
def test_knn_graph_ignores_autocast(cosine):
    x = torch.randn(2, 50, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = knn_graph(x, 5, cosine=cosine)
    for ours, theirs in zip(inside, knn_graph(x, 5, cosine=cosine), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("scale", "offset"), [(1e5, 0.0), (1.0, 1e4), (1e5, 1e4), (1e-5, 0.0), (1e12, 0.0)])
def test_knn_graph_stands_large_scales_and_offsets(backend, scale, offset):
    x = torch.randn(2, 64, 16) * scale + offset
    edges, weight = knn_graph(x, 5, backend=backend)
    for b in range(2):
        near, expected = oracle(x[b], 5)
        assert edges[0].view(2, 64, 5)[b].sub(64 * b).tolist() == near.tolist()
        assert_close(weight.view(2, 64, 5)[b].double(), expected, atol=0, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_knn_graph_by_cosine_does_not_see_the_scale(scale):
    x = torch.randn(30, 4)
    assert torch.equal(knn_graph(x * scale, 3, cosine=True)[0], knn_graph(x, 3, cosine=True)[0])


def test_knn_graph_by_cosine_stays_between_minus_one_and_one(backend):
    x = torch.randn(40, 3)
    weight = knn_graph(torch.cat([x, -3 * x, 2 * x]), 119, cosine=True, backend=backend)[1]
    assert weight.min() >= -1 and weight.max() <= 1
    assert weight.min() < -0.999 and weight.max() > 0.999


def test_knn_graph_by_cosine_gives_zero_vectors_cosine_zero(backend):
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.9, 0.5], [-1.0, 0.1]])
    neighbors, weight = knn_neighbors(x, 3, cosine=True, backend=backend)
    assert neighbors.tolist()[1:] == [[2, 0, 3], [1, 0, 3], [0, 2, 1]]
    assert_close(weight[0], torch.zeros(3), atol=1e-6, rtol=0)
    assert_close(weight[1, 1], torch.tensor(0.0), atol=1e-6, rtol=0)


# equal tokens and ties


def test_knn_graph_of_equal_tokens_takes_the_lowest_other_indices(backend):
    edges, weight = knn_graph(torch.full((2, 6, 3), 0.37), 2, backend=backend)
    expected = [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]]
    assert edges[0].view(2, 6, 2).tolist() == [expected, [[i + 6 for i in row] for row in expected]]
    assert edges.shape == (2, 24) and weight.tolist() == [0.0] * 24


@pytest.mark.parametrize("loop", [False, True])
def test_knn_graph_of_duplicates_never_loses_the_right_self(backend, loop):
    x = torch.randn(7, 4)[torch.arange(35) % 7]
    neighbors, _ = knn_neighbors(x, 3, loop=loop, backend=backend)
    own = torch.arange(35)
    if loop:
        assert torch.equal(neighbors[:, 0], own)
    else:
        assert (neighbors != own[:, None]).all()
    assert neighbors.tolist() == oracle(x, 3, loop=loop)[0].tolist()


@pytest.mark.parametrize("k", [1, 3, 6, 24])
@pytest.mark.parametrize("loop", [False, True])
def test_knn_graph_breaks_ties_by_the_lower_index(backend, k, loop):
    x = lattice(5)
    assert knn_neighbors(x, k, loop=loop, backend=backend)[0].tolist() == oracle(x, k, loop=loop)[0].tolist()


def test_knn_graph_of_grid_positions_is_the_grid(backend):
    inner = [i for i in range(36) if 0 < i // 6 < 5 and 0 < i % 6 < 5]
    neighbors, _ = knn_neighbors(grid_positions((6, 6)), 4, backend=backend)
    edges = grid_graph((6, 6), 4)
    assert neighbors[inner].tolist() == [edges[0, edges[1] == i].tolist() for i in inner]


def test_lowest_takes_the_lower_index_of_equals():
    value, index = knn_torch.lowest(torch.tensor([[2.0, 1.0, 2.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0, 3.0]]), 3)
    assert value.tolist() == [[1.0, 1.0, 2.0], [3.0, 3.0, 3.0]]
    assert index.tolist() == [[1, 3, 0], [0, 1, 2]]


# all backends alike


@pytest.mark.parametrize("name", ["torch-cluster", "pyg-lib"])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("loop", [False, True])
def test_backends_give_the_same_edges(name, cosine, loop, request):
    if name == "pyg-lib":
        request.getfixturevalue("pyg_lib")
    elif probe.load(name) is None:
        pytest.skip(f"needs {name}")
    x = torch.randn(90, 6)
    ptr = torch.tensor([0, 40, 40, 43, 44, 90])
    for form in ({"x": x.view(2, 45, 6)}, {"x": x, "ptr": ptr}):
        ours = knn_graph(k=5, cosine=cosine, loop=loop, backend=name, **form)
        theirs = knn_graph(k=5, cosine=cosine, loop=loop, backend="torch", **form)
        assert torch.equal(ours[0], theirs[0])
        assert_close(ours[1], theirs[1], atol=1e-2 if loop else 1e-5, rtol=1e-5)


def test_stub_kernel_speaks_as_torch_cluster_does():
    torch_cluster = pytest.importorskip("torch_cluster")
    x, y = torch.randn(20, 3), torch.randn(15, 3)
    ptr_x, ptr_y = torch.tensor([0, 12, 20]), torch.tensor([0, 5, 15])
    batch_x, batch_y = (torch.arange(2).repeat_interleave(p.diff()) for p in (ptr_x, ptr_y))
    theirs = torch_cluster.knn(x, y, 4, batch_x, batch_y)
    ours = kernel(x, y, ptr_x, ptr_y, 4, False, 1)
    assert sorted(ours.T.tolist()) == sorted(theirs.T.tolist())


@pytest.mark.parametrize("k", [5, 29])
def test_knn_graph_finds_what_a_kernel_of_limited_reach_loses(pyg_lib, monkeypatch, k):
    x = torch.randn(30, 4) * 1e5
    monkeypatch.setitem(REACH, "squared", 1e10)
    assert kernel(x, x, torch.tensor([0, 30]), torch.tensor([0, 30]), 7, False, 1).size(1) < 30 * 7
    assert torch.equal(knn_graph(x, k, backend="pyg-lib")[0], knn_graph(x, k)[0])


def test_knn_graph_of_many_neighbours_works_on_cpu(backend):
    x = torch.randint(-50, 50, (200, 3)).float()  # whole numbers: no two distances differ by rounding alone
    assert knn_neighbors(x, 150, backend=backend)[0].tolist() == oracle(x, 150)[0].tolist()


def test_knn_extension_refuses_more_neighbours_than_the_cuda_kernel_holds(pyg_lib):
    on_cuda = SimpleNamespace(is_cuda=True)
    with pytest.raises(ValueError, match=r"Expected k <= 98 for pyg-lib on CUDA \(got k=99\)\. Use backend='torch'"):
        knn_extension.search("pyg-lib", on_cuda, [200], 99, loop=False)


def test_knn_graph_names_what_an_old_pyg_lib_lacks(stub_module):
    if hasattr(torch.ops.pyg, "knn"):
        pytest.skip("this pyg-lib has it")
    with pytest.raises(ImportError, match=r"Expected pyg-lib >= 0.6, which has knn \(got 0.5.0\)"):
        knn_graph(torch.randn(5, 2), 2, backend="pyg-lib")


@pytest.mark.parametrize("name", ["torch-cluster", "pyg-lib"])
def test_knn_graph_says_why_a_named_backend_is_not_there(name, monkeypatch):
    monkeypatch.setattr(probe, "_probe", lambda name: (None, "broken: OSError: undefined symbol"))
    with pytest.raises(ImportError, match=rf"Expected {name} to be usable \(got broken: OSError: undefined symbol\)"):
        knn_graph(torch.randn(5, 2), 2, backend=name)


def test_knn_graph_of_a_ragged_batch_equals_each_image_alone(backend):
    counts = [9, 25, 0, 12, 25]
    ptr = torch.tensor([0, *counts]).cumsum(0)
    x = torch.randn(int(ptr[-1]), 5)
    neighbors, weight = knn_neighbors(x, 6, ptr=ptr, backend=backend)
    for start, stop in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        if start < stop:
            own = slice(start, stop)
            alone, alone_weight = knn_neighbors(x[own], 6, backend=backend)
            assert torch.equal(neighbors[own] - start, alone)
            assert_close(weight[own], alone_weight)


def test_knn_graph_of_an_image_does_not_depend_on_its_mates():
    x = torch.randn(5, 49, 33)
    neighbors, weight = knn_neighbors(x, 6)
    for b in range(5):
        alone, alone_weight = knn_neighbors(x[b], 6)
        assert torch.equal(neighbors.view(5, 49, 6)[b] - 49 * b, alone)
        assert_close(weight.view(5, 49, 6)[b], alone_weight)


def test_knn_graph_connects_small_images_fully(backend):
    x, ptr = torch.randn(10, 3), torch.tensor([0, 1, 3, 10])
    edges, weight = knn_graph(x, 4, ptr=ptr, backend=backend)
    assert torch.bincount(edges[1], minlength=10).tolist() == [0, 1, 1] + [4] * 7
    assert edges[:, :2].tolist() == [[2, 1], [1, 2]]
    assert weight.isfinite().all()


@pytest.mark.parametrize(("cosine", "missing"), [(False, torch.inf), (True, -torch.inf)])
def test_knn_neighbors_marks_missing_neighbours(backend, cosine, missing):
    x, ptr = torch.randn(6, 3), torch.tensor([0, 2, 6])
    neighbors, weight = knn_neighbors(x, 3, ptr=ptr, cosine=cosine, backend=backend)
    assert neighbors[:2].tolist() == [[1, -1, -1], [0, -1, -1]]
    assert weight[:2, 1:].tolist() == [[missing] * 2] * 2
    assert (neighbors[2:] >= 2).all() and weight[2:].isfinite().all()


def test_knn_graph_with_loops_counts_the_token_itself(backend):
    edges, weight = knn_graph(torch.randn(7, 3), 1, loop=True, backend=backend)
    assert edges.tolist() == [list(range(7)), list(range(7))] and weight.tolist() == [0.0] * 7
    assert knn_graph(torch.randn(7, 3), 7, loop=True, backend=backend)[0].size(1) == 49


def test_knn_graph_takes_all_others_as_neighbours(backend):
    neighbors, _ = knn_neighbors(torch.randn(8, 3), 7, backend=backend)
    assert neighbors.sort(dim=1).values.tolist() == [[j for j in range(8) if j != i] for i in range(8)]


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("budget", [1, 5 * 4 * 30, 2000])
def test_knn_torch_in_chunks_equals_the_whole(loop, budget):
    x, ptr = torch.randn(60, 7), torch.tensor([0, 20, 50, 60])
    forms = ({"x": x.view(2, 30, 7)}, {"x": x, "ptr": ptr})
    whole = [knn_neighbors(k=4, loop=loop, **form) for form in forms]
    for form, (neighbors, weight) in zip(forms, whole, strict=True):
        with set_memory_budget(budget):
            again, again_weight = knn_neighbors(k=4, loop=loop, **form)
        assert torch.equal(again, neighbors)
        assert_close(again_weight, weight)


def test_knn_graph_compiles_whole():
    torch.compiler.reset()
    x = torch.randn(2, 20, 4)
    compiled = torch.compile(lambda x: knn_graph(x, 3), fullgraph=True, backend="eager")
    for ours, theirs in zip(compiled(x), knn_graph(x, 3), strict=True):
        assert_close(ours, theirs)


def test_knn_graph_leaves_its_input_alone(backend):
    x = torch.randn(2, 10, 3)
    before = x.clone()
    knn_graph(x, 3, cosine=True, backend=backend)
    knn_graph(x.requires_grad_(), 3, backend=backend)
    assert torch.equal(x, before)


# refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 12}, r"Expected 1 <= k < N=12 neighbours \(got k=12\)"),
        ({"k": 13, "loop": True}, r"Expected 1 <= k <= N=12 neighbours \(got k=13\)"),
        ({"k": 0}, r"Expected k >= 1 \(got k=0\)"),
        ({"k": 5, "ptr": torch.tensor([0, 5, 10, 12])}, r"Expected 1 <= k < N=5 neighbours \(got k=5\)"),
        ({"k": 2, "ptr": torch.tensor([0, 8, 5, 12])}, r"ptr to rise from 0 to M=12 \(got \[0, 8, 5, 12\]\)"),
        ({"k": 2, "ptr": torch.tensor([0, 5, 11])}, r"ptr to rise from 0 to M=12 \(got \[0, 5, 11\]\)"),
        ({"k": 2, "ptr": torch.tensor([1, 5, 12])}, r"ptr to rise from 0 to M=12 \(got \[1, 5, 12\]\)"),
        (
            {"k": 2, "ptr": torch.tensor([0.0, 12.0])},
            r"ptr of shape \[B\+1\] and dtype int64 \(got \[2\], torch.float32\)",
        ),
        (
            {"k": 2, "ptr": torch.tensor([[0, 12]])},
            r"ptr of shape \[B\+1\] and dtype int64 \(got \[1, 2\], torch.int64\)",
        ),
        ({"k": 2, "backend": "faiss"}, r"one of auto, torch, torch-cluster, pyg-lib \(got 'faiss'\)"),
    ],
)
def test_knn_graph_refuses_values_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        knn_graph(torch.randn(12, 3), **arguments)


@pytest.mark.parametrize(
    ("x", "ptr", "message"),
    [
        (torch.zeros(4), None, r"x of shape \[M, C\] or \[B, N, C\] \(got \[4\]\)"),
        (torch.zeros(2, 2, 4, 1), None, r"x of shape \[M, C\] or \[B, N, C\] \(got \[2, 2, 4, 1\]\)"),
        (torch.zeros(2, 6, 3), torch.tensor([0, 12]), r"x of shape \[M, C\] \(got \[2, 6, 3\]\)"),
        (torch.zeros(0, 3), None, r"Expected 1 <= k < N=0 neighbours \(got k=2\)"),
        (torch.zeros(0, 6, 3), None, r"Expected 1 <= k < N=0 neighbours \(got k=2\)"),
        (torch.zeros(0, 3), torch.tensor([0]), r"Expected 1 <= k < N=0 neighbours \(got k=2\)"),
        (torch.zeros(1, 3), None, r"Expected 1 <= k < N=1 neighbours \(got k=2\)"),
    ],
)
def test_knn_graph_refuses_shapes_that_do_not_fit(x, ptr, message):
    with pytest.raises(ValueError, match=message):
        knn_graph(x, 2, ptr=ptr)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_knn_graph_refuses_what_is_not_finite(value, backend):
    x = torch.randn(2, 6, 3)
    x[0, 2, 1] = x[1, 5] = value
    with pytest.raises(ValueError, match=r"Expected finite tokens \(got NaN or infinity in 2 rows\)"):
        knn_graph(x, 2, backend=backend)


def test_knn_graph_refuses_other_kinds():
    with pytest.raises(TypeError, match=r"Expected floating-point x \(got torch.int64\)"):
        knn_graph(torch.zeros(5, 2, dtype=torch.long), 2)
    with pytest.raises(TypeError, match=r"Expected k to be an int \(got 2.0\)"):
        knn_graph(torch.zeros(5, 2), 2.0)
    with pytest.raises(TypeError, match=r"Expected x to be a Tensor \(got list\)"):
        knn_graph([[0.0, 1.0]], 2)


def test_knn_graph_by_default_needs_no_extension(monkeypatch):
    monkeypatch.setattr(probe, "_probe", lambda name: (None, "not installed"))
    assert knn_graph(torch.tensor([[0.0], [1.0], [5.0]]), 1)[0].tolist() == [[1, 0, 1], [0, 1, 2]]


@pytest.mark.parametrize("width", [64, 67, 196, 1027])
def test_lowest_of_long_rows_is_a_stable_sort(width):
    torch.manual_seed(0)
    score = torch.randint(0, 40, (2, 5, width)).float()
    score[0, 0, 3:] = torch.inf
    score[1, 1] = 1.0
    value, index = knn_torch.lowest(score, 3)
    exact, place = score.sort(dim=-1, stable=True)
    assert torch.equal(value, exact[..., :3])
    assert torch.equal(index, place[..., :3])
