"""ToMe in windows: clusters take one update."""

import torch

from tokengraph.select.tome import ToMe
from tokengraph.windows.merge import mean_keys, merged_update


def test_tokens_of_a_cluster_take_the_update_of_their_mean():
    # two windows of 1 x 2, each merged to one token
    x = torch.tensor([1.0, 3.0, 10.0, 20.0]).view(1, 1, 4, 1)
    out = merged_update(lambda rows: rows * 2, x, torch.ones(1, 1, 4, 3), ToMe(), (1, 2), 1)
    assert out.flatten().tolist() == [4, 4, 30, 30]


def test_the_most_similar_keys_merge():
    x = torch.tensor([0.0, 2.0, 4.0, 8.0]).view(1, 2, 2, 1)
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [1.0, 0.02]]).view(1, 2, 2, 2)
    out = merged_update(lambda rows: rows, x, keys, ToMe(), (2, 2), 3)
    assert out.flatten().tolist() == [4, 2, 4, 4]


def test_padding_merges_first_and_weighs_nothing():
    # a window of 1 x 4 with 2 real tokens: one merge, that of the padding, leaves both as they are
    x = torch.tensor([1.0, 3.0]).view(1, 1, 2, 1)
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    out = merged_update(lambda rows: rows, x, keys, ToMe(), (1, 4), 3)
    assert out.flatten().tolist() == [1, 3]


def test_a_token_that_merges_with_padding_keeps_its_value():
    x = torch.tensor([7.0]).view(1, 1, 1, 1)
    out = merged_update(lambda rows: rows, x, torch.ones(1, 1, 1, 2), ToMe(), (1, 2), 1)
    assert out.flatten().tolist() == [7]


def test_mean_keys_are_the_middle_third_averaged_over_heads():
    qkv = torch.tensor([[[9.0, 9, 9, 9, 1, 2, 3, 4, 9, 9, 9, 9]]])
    assert mean_keys(qkv, 2).tolist() == [[[2.0, 3.0]]]
    assert mean_keys(qkv, 2, lambda k: -k).tolist() == [[[-2.0, -3.0]]]
