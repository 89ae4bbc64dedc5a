"""The sums of ONNX files are the operators that they replace."""

import pytest
import torch

from tokengraph.io.onnx_sums import index_add, index_put


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize("alpha", [1, 0.5])
def test_index_add_is_that_of_torch(dim, alpha):
    x = torch.arange(24.0).view(2, 3, 4)
    index = torch.tensor([0, 1, 0, 1, 1])
    shape = list(x.shape)
    shape[dim] = 5
    source = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(8).round()
    wanted = torch.index_add(x, dim, index, source, alpha=alpha)
    assert torch.equal(index_add(x, dim, index, source, alpha=alpha), wanted)


def test_index_add_of_one_axis_and_of_none_are_those_of_torch():
    index = torch.tensor([1, 1, 0])
    for x, source in (
        (torch.zeros(2), torch.tensor([1.0, 2.0, 4.0])),
        (torch.zeros(2, 0), torch.zeros(3, 0)),
        (torch.zeros(2, dtype=torch.long), torch.tensor([1, 2, 4])),
    ):
        assert torch.equal(index_add(x, 0, index, source), torch.index_add(x, 0, index, source))
    x = torch.tensor(1.0)
    assert index_add(x, 0, torch.tensor([0, 0]), torch.tensor([2.0, 3.0])) == 6.0


@pytest.mark.parametrize(
    ("indices", "shape"),
    [
        (([0, -1, 0],), (3, 3, 4)),
        (([0, 1, 0], [2, -1, 2]), (3, 4)),
        ((None, [2, 2, 0]), (2, 3, 4)),
        ((None, [2, 2, 0], [3, 3, -1]), (2, 3)),
        (([1, 1, 0], None, [3, 3, 0]), (3, 3)),
        (([[0], [1]], [2, 2, 0]), (2, 3, 4)),
        (([1, 1],), ()),
        (([1, 1],), (4,)),
    ],
)
def test_index_put_that_accumulates_is_that_of_torch(indices, shape):
    x = torch.arange(24.0).view(2, 3, 4)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(8).round()
    indices = [None if index is None else torch.tensor(index) for index in indices]
    wanted = torch.ops.aten.index_put(x, indices, values, True)
    assert torch.equal(index_put(x, indices, values, True), wanted)


def test_index_put_without_rows_that_share_an_index_stays_as_it_is():
    x = torch.zeros(2, 3)
    assert index_put(x, [torch.tensor([0])], torch.ones(1, 3)) is NotImplemented
    assert index_put(x, [torch.tensor([True, False])], torch.ones(1, 3), True) is NotImplemented
