"""The product of two sparse matrices."""

import pytest
import torch

from tokengraph.maps import product as module
from tokengraph.maps.product import product


def sparse(rows, columns, entries):
    ids = [torch.randint(0, size, (entries,)) for size in (rows, columns)]
    return *ids, torch.rand(entries, dtype=torch.float64, requires_grad=True)


def dense(matrix, rows, columns):
    row, column, weight = matrix
    return torch.zeros(rows, columns, dtype=weight.dtype).index_put((row, column), weight, accumulate=True)


@pytest.mark.parametrize("entries", [(0, 0), (0, 3), (3, 0), (1, 1), (5, 9), (40, 30)])
@pytest.mark.parametrize("piece", [1, 3, 1000])
@pytest.mark.parametrize("columns", [1, 4, 2000])  # of 2,000 few are met: the summands are sorted instead
def test_product_is_that_of_dense_matrices_with_gradients(entries, piece, columns, monkeypatch):
    monkeypatch.setattr(module, "PIECE", piece)
    a, b = sparse(6, 7, entries[0]), sparse(7, columns, entries[1])
    got, want = product(a, b, 7), dense(a, 6, 7) @ dense(b, 7, columns)
    torch.testing.assert_close(dense(got, 6, columns), want)
    assert torch.stack(got[:2]).tolist() == want.detach().nonzero().T.tolist()  # sorted, each pair once
    for weight in (a[2], b[2]):
        found, right = (torch.autograd.grad(m.square().sum(), weight, allow_unused=True, retain_graph=True)[0]
                        for m in (dense(got, 6, columns), want))  # fmt: skip
        assert (found is None and not right.any()) or torch.allclose(found, right)


def test_product_keeps_sums_that_cancel():
    a = torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([1.0, -1.0])
    b = torch.tensor([0, 1]), torch.tensor([5, 5]), torch.tensor([2.0, 2.0])
    assert [t.tolist() for t in product(a, b, 2)] == [[0], [5], [0.0]]
