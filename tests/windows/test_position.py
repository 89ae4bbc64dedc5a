"""Relative positions and shift masks of small windows."""

import pytest
import torch
from needs import library

from tokengraph.windows.position import relative_index, resized_bias, shift_mask
from tokengraph.windows.swin2 import small_positions


def block(size=4, **options):
    timm = library("timm")
    made = timm.models.swin_transformer.SwinTransformerBlock(8, (8, 8), 2, window_size=size, **options)
    torch.nn.init.normal_(made.attn.relative_position_bias_table)
    return made.eval()


def test_relative_index_is_that_of_swin():
    assert torch.equal(relative_index(4, 4, "cpu"), block().attn.relative_position_index)


def test_bias_of_the_same_window_is_that_of_swin():
    attn = block().attn
    assert torch.equal(resized_bias(attn.relative_position_bias_table, (4, 4), (4, 4)), attn._get_rel_pos_bias())


def test_bias_is_resized_bilinearly_and_the_parameter_is_not_touched():
    # a table that grows by one a row and by ten a column: 3 x 3 entries to 1 x 3 keep the middle row
    rows, columns = torch.arange(3.0)[:, None], 10 * torch.arange(3.0)[None]
    table = torch.nn.Parameter((rows + columns).reshape(9, 1))
    bias = resized_bias(table, (2, 2), (1, 2))
    assert bias.tolist() == [[[[11.0, 1.0], [21.0, 11.0]]]]
    assert table.shape == (9, 1)
    bias.sum().backward()
    assert table.grad.view(3, 3).tolist() == [[0, 0, 0], [1, 2, 1], [0, 0, 0]]


@pytest.mark.parametrize("shift", [(2, 2), (1, 1), (1, 3)])
def test_shift_mask_is_that_of_swin(shift):
    swin = block(shift_size=shift)
    assert torch.equal(shift_mask((8, 8), (4, 4), shift, torch.zeros(1)), swin.attn_mask)


def test_without_a_shift_there_is_no_mask():
    assert shift_mask((8, 8), (4, 4), (0, 0), torch.zeros(1)) is None


def test_a_small_window_masks_by_its_own_shift():
    # one axis of two windows of 3, rolled by 1: only the last place of the last window came from the other end
    mask = shift_mask((1, 6), (1, 3), (0, 1), torch.zeros(1))
    assert mask[0].tolist() == [[0.0] * 3] * 3
    assert mask[1].tolist() == [[0, 0, -100], [0, 0, -100], [-100, -100, 0]]


def test_shift_mask_has_the_dtype_that_is_asked_for():
    assert shift_mask((4, 4), (2, 2), (1, 1), torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_positions_of_swin_v2_are_its_own_for_whole_windows_and_as_far_apart_as_patches_for_clusters():
    attention = library("timm").models.swin_transformer_v2.WindowAttention(12, (4, 4), 3)
    own = small_positions(attention, (4, 4), (4, 4))
    assert torch.equal(own["relative_coords_table"], attention.relative_coords_table)
    assert torch.equal(own["relative_position_index"], attention.relative_position_index)
    half = small_positions(attention, (4, 4), (2, 2))["relative_coords_table"]
    assert torch.equal(half[0, 1, 2], attention.relative_coords_table[0, 3, 5])  # one cluster is two patches
    assert half.shape == (1, 3, 3, 2)
