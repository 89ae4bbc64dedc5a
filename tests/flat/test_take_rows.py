"""Rows taken by index, where they lie behind others."""

import torch

from tokengraph.flat.layout import take_rows


def test_take_rows_of_a_slice_are_those_of_its_copy():
    x = torch.arange(24.0).view(2, 4, 3)[:, 1:]
    index = torch.tensor([[2, 0], [1, 1]])
    assert not x.is_contiguous()
    assert torch.equal(take_rows(x, index), take_rows(x.contiguous(), index))
    assert take_rows(x, index)[0].tolist() == [[9.0, 10.0, 11.0], [3.0, 4.0, 5.0]]
