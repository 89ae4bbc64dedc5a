import pytest
import torch
from torch.testing import assert_close

from tokengraph import optional as probe
from tokengraph.flat.segment import row_norm, segment_max, segment_sum, weighted_sum

X = torch.tensor([[1.0, -1.0], [2.0, -2.0], [4.0, -4.0], [8.0, -8.0]])
INDEX = torch.tensor([2, 0, 2, 0])
BACKENDS = pytest.mark.parametrize("backend", ["index_add", "segment", "segment without torch-scatter"])


@pytest.fixture
def name(backend, monkeypatch):
    """The backend's name; torch-scatter is used where it is installed, or hidden."""
    if backend.endswith("without torch-scatter"):
        monkeypatch.setattr(probe, "load", lambda name: None)
    elif backend == "segment" and probe.load("torch-scatter") is None:
        pytest.skip("needs torch-scatter")
    return backend.split()[0]


@BACKENDS
def test_segment_sum_adds_rows_of_one_index(name):
    assert segment_sum(X, INDEX, 4, backend=name).tolist() == [[10.0, -10.0], [0.0, 0.0], [5.0, -5.0], [0.0, 0.0]]


@BACKENDS
def test_segment_sum_takes_one_number_a_row(name):
    assert segment_sum(X[:, 0], INDEX, 3, backend=name).tolist() == [10.0, 0.0, 5.0]


@BACKENDS
def test_segment_sum_of_no_rows_is_zeros(name):
    assert segment_sum(X[:0], INDEX[:0], 2, backend=name).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@BACKENDS
def test_segment_sum_widens_half_precision_and_keeps_float64(name):
    assert segment_sum(X.bfloat16(), INDEX, 3, backend=name).dtype == torch.float32
    assert segment_sum(X.double(), INDEX, 3, backend=name).dtype == torch.float64


@BACKENDS
def test_segment_sum_passes_gradcheck(name):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: segment_sum(x, INDEX, 3, backend=name), (x,))


@BACKENDS
def test_segment_sum_leaves_its_input_alone(name):
    x = X.clone()
    segment_sum(x, INDEX, 3, backend=name)
    assert torch.equal(x, X)


def test_segment_sum_uses_torch_scatter_where_it_is_there(monkeypatch):
    calls = []

    class Scatter:
        @staticmethod
        def segment_csr(x, bounds, reduce):
            calls.append((x.tolist(), bounds.tolist(), reduce))
            return "summed"

    monkeypatch.setattr(probe, "load", lambda name: Scatter if name == "torch-scatter" else None)
    assert segment_sum(X[:, 0], INDEX, 4, backend="segment") == "summed"
    assert calls == [([2.0, 8.0, 1.0, 4.0], [0, 2, 2, 4, 4], "sum")]


def test_segment_sum_by_segments_compiles_whole():
    torch.compiler.reset()
    run = torch.compile(lambda x: segment_sum(x, INDEX, 3, backend="segment"), fullgraph=True, backend="eager")
    assert_close(run(X), segment_sum(X, INDEX, 3))


def test_segment_sum_refuses_an_unknown_backend():
    with pytest.raises(ValueError, match=r"one of auto, index_add, segment \(got 'scatter'\)"):
        segment_sum(X, INDEX, 3, backend="scatter")


def test_segment_max_takes_the_largest_and_zeros_where_nobody_is():
    assert segment_max(-X, INDEX, 4).tolist() == [[-2.0, 8.0], [0.0, 0.0], [-1.0, 4.0], [0.0, 0.0]]


def test_segment_max_takes_one_number_a_row():
    assert segment_max(X[:, 1], INDEX, 3).tolist() == [-2.0, 0.0, -1.0]


def test_row_norm_takes_rows_of_any_shape_in_float32():
    assert row_norm(torch.tensor([[3.0, 4.0], [0.0, -2.0]])).tolist() == [5.0, 2.0]
    assert row_norm(torch.tensor([-3.0, 2.0])).tolist() == [3.0, 2.0]
    assert row_norm(torch.full((1, 2, 2), 300.0, dtype=torch.float16)).tolist() == [600.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weighted_sum_without_gradients_equals_the_sum_of_weighted_rows(dtype):
    x, weight, index = torch.randn(50, 7).to(dtype), torch.rand(50), torch.randint(0, 9, (50,))
    index[index == 4] = 5  # no token has this row's index
    wide = torch.promote_types(dtype, torch.float32)
    expected = segment_sum(x.to(wide) * weight.to(wide)[:, None], index, 9)
    got = weighted_sum(x, weight, index, 9)
    torch.testing.assert_close(got, expected)
    assert got[4].tolist() == [0.0] * 7
    with_grad = weighted_sum(x.to(wide).requires_grad_(), weight, index, 9)
    assert with_grad.requires_grad
    torch.testing.assert_close(with_grad, expected)


@pytest.mark.parametrize("source", [None, torch.tensor([3, 0, 2, 2, 1])])
def test_weighted_sum_can_be_differentiated_twice(source):
    x, weight = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    index = torch.tensor([2, 0, 0, 3, 2])

    def run(x, weight):
        return weighted_sum(x, weight, index, 4, source=source)

    inputs = x.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_weighted_sum_of_edges_has_the_gradients_of_the_plain_form():
    x, weight = torch.randn(30, 4), torch.rand(90)
    source, index = torch.randint(0, 30, (90,)), torch.randint(0, 9, (90,))
    grads = []
    for backend in ("auto", "index_add"):
        inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
        weighted_sum(*inputs, index, 9, source=source, backend=backend).square().sum().backward()
        grads.append([t.grad for t in inputs])
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected)
