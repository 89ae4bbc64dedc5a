import torch

from tokengraph.flat.layout import Layout, pad, spread

RAGGED = Layout.of(2, 3, (2, 1), torch.device("cpu"))


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


def test_layout_of_equal_images_shares_the_tokens_out():
    layout = Layout.of(2, 6, None, torch.device("cpu"))
    assert (layout.images, layout.width, layout.counts, layout.valid) == (2, 3, None, None)
    assert layout.each == (3, 3)


def test_layout_of_counts_is_as_wide_as_the_largest_image():
    assert (RAGGED.width, RAGGED.each) == (2, (2, 1))
    assert RAGGED.valid.tolist() == [[True, True], [True, False]]


def test_padded_puts_zeros_behind_and_flat_takes_them_off():
    rows = RAGGED.padded(torch.tensor([[1.0], [2.0], [3.0]]))
    assert rows.tolist() == [[[1.0], [2.0]], [[3.0], [0.0]]]
    assert RAGGED.flat(rows + 1).tolist() == [[2.0], [3.0], [4.0]]


def test_flat_and_padded_of_equal_images_copy_nothing():
    layout, x = Layout(2, 2), torch.arange(8.0).view(2, 2, 2)
    assert layout.flat(x).data_ptr() == x.data_ptr() == layout.padded(layout.flat(x)).data_ptr()


def test_with_prefix_counts_tokens_in_front_of_each_image():
    layout = RAGGED.with_prefix(1)
    assert (layout.width, layout.each) == (3, (3, 2))
    assert layout.valid.tolist() == [[True, True, True], [True, True, False]]
    assert layout.flat(torch.tensor([[0, 1, 2], [3, 4, 5]])).tolist() == [0, 1, 2, 3, 4]
    assert RAGGED.with_prefix(0) is RAGGED


def test_pairs_are_one_where_all_images_are_alike():
    assert list(Layout(3, 5).pairs(2)) == [(2, 5)]
    assert list(Layout(2, 5).pairs([2, 3])) == [(2, 5), (3, 5)]
    assert list(RAGGED.pairs(1)) == [(1, 2), (1, 1)]


def test_spread_gives_rows_and_numbers_their_places_and_gradients_back():
    valid = torch.tensor([[True, False], [True, True]])
    for rows in (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]])):
        rows.requires_grad_()
        out = spread(rows, valid)
        assert torch.equal(out[valid], rows) and (out[~valid] == 0).all()
        (out * 2).sum().backward()
        assert (rows.grad == 2).all()
