"""Maps are cut into windows and joined again."""

import torch

from tokengraph.windows.grid import real, split, stitch


def test_split_puts_the_windows_of_an_image_in_row_major_order():
    x = torch.arange(8.0).view(1, 2, 4, 1)
    windows, cut = split(x, (2, 2))
    assert windows[..., 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert cut.cells == (1, 2) and not cut.padded


def test_split_pads_at_the_bottom_and_on_the_right():
    windows, cut = split(torch.ones(1, 1, 3, 1), (2, 2), value=9.0)
    assert windows[..., 0].tolist() == [[1, 1, 9, 9], [1, 9, 9, 9]]
    assert real(cut, "cpu").tolist() == [[True, True, False, False], [True, False, False, False]]


def test_join_undoes_split():
    x = torch.randn(3, 5, 7, 2)
    assert torch.equal(stitch(*split(x, (2, 3))), x)


def test_join_with_another_window_makes_a_smaller_map():
    _, cut = split(torch.zeros(1, 4, 4, 1), (2, 2))
    assert stitch(torch.arange(4.0).view(4, 1, 1), cut, window=(1, 1))[0, ..., 0].tolist() == [[0, 1], [2, 3]]


def test_windows_that_fit_have_no_padding():
    assert real(split(torch.zeros(2, 4, 4, 1), (2, 2))[1], "cpu") is None


def test_padding_is_known_for_every_image():
    assert real(split(torch.zeros(2, 1, 1, 1), (1, 2))[1], "cpu").tolist() == [[True, False]] * 2
