import torch

from tokengraph.flat.layout import pad


def test_pad_puts_zeros_behind_each_image():
    dense, mask = pad(torch.tensor([[1.0], [2.0], [3.0]]), [1, 0, 2])
    assert dense.tolist() == [[[1.0], [0.0]], [[0.0], [0.0]], [[2.0], [3.0]]]
    assert mask.tolist() == [[True, False], [False, False], [True, True]]


def test_pad_is_undone_by_its_mask():
    x = torch.randn(9, 2, 3)
    dense, mask = pad(x, [4, 2, 3])
    assert torch.equal(dense[mask], x)


def test_pad_takes_one_number_a_row():
    dense, _ = pad(torch.tensor([5, 6, 7]), [2, 1])
    assert dense.tolist() == [[5, 6], [7, 0]] and dense.dtype == torch.long


def test_pad_of_no_tokens_is_empty():
    dense, mask = pad(torch.zeros(0, 3), [0, 0])
    assert dense.shape == (2, 0, 3) and mask.shape == (2, 0)
