import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from needs import library

import tokengraph as tg
from tokengraph.schedule import constant, linear, powers, ratio, relative, sparing_last, tokens_per_layer
from tokengraph.testing import tiny_vit


def half(tokens: int) -> int:
    """What ToMe can leave in one step."""
    return tokens - tokens // 2


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [
        (0, [196, 196, 196, 196, 196]),
        (13, [196, 183, 170, 157, 144]),
        (constant(13), [196, 183, 170, 157, 144]),
        (60, [196, 136, 76, 16, 1]),
        (1000, [196, 1, 1, 1, 1]),
        ([0, 40, 0, 6], [196, 196, 156, 156, 150]),
        ((1, 2, 3, 4), [196, 195, 193, 190, 186]),
        ({}, [196, 196, 196, 196, 196]),
        ({2: 0.25}, [196, 196, 49, 49, 49]),
        ({2: 50}, [196, 196, 50, 50, 50]),
        ({0: 0.5, 3: 0.25}, [98, 98, 98, 49, 49]),
        ({4: 0.1}, [196, 196, 196, 196, 20]),
        ({1: 1.0, 2: 196, 3: 1000}, [196, 196, 196, 196, 196]),
        ({3: 0.3, 1: 0.7}, [196, 138, 138, 59, 59]),
        (linear(9), [196, 178, 166, 160, 160]),
        (ratio(0.5), [196, 98, 49, 25, 13]),
        (ratio(1.0), [196, 196, 196, 196, 196]),
        (ratio(0.01), [196, 2, 1, 1, 1]),
        (lambda depth, tokens: [tokens // 4] + [0] * (depth - 1), [196, 147, 147, 147, 147]),
    ],
)
def test_tokens_per_layer_works_each_form_out(schedule, counts):
    assert tokens_per_layer(schedule, 4, 196) == counts


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [(60, [196, 136, 76, 38, 19]), ([150, 0, 10, 0], [196, 98, 98, 88, 88]), (ratio(0.5), [196, 98, 49, 25, 13])],
)
def test_tokens_per_layer_cuts_removals_to_what_one_step_can_do(schedule, counts):
    assert tokens_per_layer(schedule, 4, 196, half) == counts


def test_tokens_per_layer_refuses_a_kept_count_that_one_step_cannot_reach():
    assert tokens_per_layer({2: 0.5}, 4, 196, half)[2] == 98
    with pytest.raises(ValueError, match=r"keep >= 98 of 196 tokens at layer 2 \(got keep=49\).*Spread the removal"):
        tokens_per_layer({2: 0.25}, 4, 196, half)


def test_linear_removes_about_as_many_as_constant_and_none_at_the_end():
    for depth in (1, 2, 12, 24):
        removed = linear(8)(depth, 196)
        assert len(removed) == depth and removed == sorted(removed, reverse=True)
        assert abs(sum(removed) - 8 * depth) <= depth / 2
        assert depth == 1 or (removed[0], removed[-1]) == (16, 0)


def test_tokens_per_layer_of_no_blocks_is_the_input():
    assert tokens_per_layer(5, 0, 10) == [10] and tokens_per_layer({0: 0.5}, 0, 10) == [5]


def test_tokens_per_layer_of_no_tokens_stays_empty():
    assert tokens_per_layer(5, 2, 0) == [0, 0, 0] and tokens_per_layer(ratio(0.5), 2, 1) == [1, 1, 1]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (-1, r"removals >= 0 \(got -1\)"),
        ([1, -2, 0, 0], r"removals >= 0 \(got -2\)"),
        ([1, 2, 3], r"one removal for each of 4 blocks \(got 3\)"),
        (lambda depth, tokens: [1], r"one removal for each of 4 blocks \(got 1\)"),
        ({5: 0.5}, r"layers in \[0, 4\] \(got 5\)\. Layer l means: l blocks are finished"),
        ({-1: 0.5}, r"layers in \[0, 4\] \(got -1\)"),
        ({"2": 0.5}, r"layers in \[0, 4\] \(got '2'\)"),
        ({True: 0.5}, r"layers in \[0, 4\] \(got True\)"),
        ({1: 50, 2: 100}, r"at most the 50 tokens left at layer 2 \(got keep=100\)"),
        ({2: 0}, r"keep >= 1 tokens per image \(got keep=0\)"),
        ({2: 1.5}, r"a keep ratio in \(0, 1\] \(got keep=1.5\)"),
        (ratio(0.0), r"a keep ratio in \(0, 1\] \(got keep=0.0\)"),
        (ratio(1.1), r"a keep ratio in \(0, 1\] \(got keep=1.1\)"),
    ],
)
def test_tokens_per_layer_refuses_values_out_of_range(schedule, message):
    with pytest.raises(ValueError, match=message):
        tokens_per_layer(schedule, 4, 196)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (0.5, r"\(got 0.5\)\. For a share kept after layer l write \{l: 0.5\}"),
        (True, r"Expected a schedule: int removed a layer, list, or dict .* \(got True\)"),
        ("13", r"Expected a schedule: int removed a layer, list, or dict .* \(got '13'\)"),
        (None, r"Expected a schedule as int, list, dict or callable \(got NoneType\)"),
        ({3, 4}, r"Expected a schedule as int, list, dict or callable \(got set\)"),
        ([0.5, 0.5, 0.5, 0.5], r"removals as ints \(got 0.5\)\. For shares write a dict"),
        ([True, 0, 0, 0], r"removals as ints \(got True\)"),
        ({2: True}, r"keep as an int or a float ratio \(got True\)"),
    ],
)
def test_tokens_per_layer_refuses_other_kinds(schedule, message):
    with pytest.raises(TypeError, match=message):
        tokens_per_layer(schedule, 4, 196)


@pytest.mark.parametrize("rule", [constant(8), linear(8), ratio(0.7)])
def test_rules_survive_pickling(rule):
    again = pickle.loads(pickle.dumps(rule))
    assert again == rule and again(4, 196) == rule(4, 196)


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [
        (np.int64(13), [196, 183, 170, 157, 144]),
        ([np.int32(1), 2, np.int64(3), 4], [196, 195, 193, 190, 186]),
        ({np.int64(2): np.float32(0.25)}, [196, 196, 49, 49, 49]),
        ({2: np.int64(50)}, [196, 196, 50, 50, 50]),
        (ratio(np.float32(0.5)), [196, 98, 49, 25, 13]),
    ],
)
def test_tokens_per_layer_takes_numpy_numbers_and_gives_ints(schedule, counts):
    got = tokens_per_layer(schedule, 4, 196)
    assert got == counts and {type(n) for n in got} == {int}


@pytest.mark.parametrize("schedule", [np.float64(0.5), np.float32(0.5), np.bool_(True), [np.float32(1.0)] * 4])
def test_tokens_per_layer_refuses_numpy_shares_and_bools_as_removals(schedule):
    with pytest.raises(TypeError, match="Expected (a schedule|removals).*int"):
        tokens_per_layer(schedule, 4, 196)


def test_words_stand_for_the_strategys_own_clusters_and_for_all_tokens():
    schedule = {1: "cluster", 3: "reconstruct", 4: 10}
    assert tokens_per_layer(schedule, 4, 196, clusters=49) == [196, 49, 49, 196, 10]
    assert tokens_per_layer({2: "cluster"}, 3, 40, clusters=49) == [40, 40, 40, 40]


@pytest.mark.parametrize(
    ("schedule", "clusters", "message"),
    [
        ({2: "half"}, None, r"one of cluster, reconstruct, an int or a share \(got 'half' at layer 2\)"),
        ({2: "cluster"}, None, "a strategy with its own number of clusters for 'cluster' at layer 2"),
        ({2: "reconstruct"}, 49, r"something to reconstruct at layer 2 \(got all 196 tokens\)"),
        ({1: "cluster", 2: "reconstruct", 3: "reconstruct"}, 49, "something to reconstruct at layer 3"),
    ],
)
def test_words_out_of_place_are_refused(schedule, clusters, message):
    with pytest.raises(ValueError, match=message):
        tokens_per_layer(schedule, 4, 196, clusters=clusters)


def test_relative_takes_shares_of_the_tokens_that_are_there():
    three = relative({3: 0.7, 9: 0.7, 6: 0.7})
    assert tokens_per_layer(three, 12, 196) == [196] * 3 + [138] * 3 + [97] * 3 + [68] * 4
    assert tokens_per_layer(three, 12, 0) == [0] * 13
    assert three(12, 196) == [0, 0, 58, 0, 0, 41, 0, 0, 29, 0, 0, 0]
    assert pickle.loads(pickle.dumps(three)) == three


def test_relative_raises_where_one_step_cannot_leave_so_few():
    with pytest.raises(ValueError, match=r"Expected keep >= 8 of 16 tokens at layer 2 \(got keep=4\)"):
        tokens_per_layer(relative({2: 0.25}), 3, 16, tg.ToMe().fewest)


def test_relative_refuses_what_is_no_share():
    with pytest.raises(ValueError, match=r"Expected layers of at least 1 \(got 0\)"):
        relative({0: 0.5})
    with pytest.raises(TypeError, match=r"Expected shares as floats in \(0, 1\] \(got 7 at layer 2\)"):
        relative({2: 7})
    with pytest.raises(ValueError, match=r"Expected a keep ratio in \(0, 1\]"):
        relative({2: 1.5})
    with pytest.raises(ValueError, match=r"Expected layers in \[0, 3\] \(got 4\)"):
        tokens_per_layer(relative({4: 0.5}), 3, 16)


@pytest.mark.parametrize(
    ("select", "schedule", "layers"),
    [
        (tg.TopK(), {1: 0.7, 2: 0.7, 3: 0.7}, [2, 3]),
        (tg.TopK(), {1: 8, 2: 0.5}, [2]),
        (tg.TopK(), {1: 400}, [1]),
        (tg.DynamicViT(), {1: 0.7, 2: 0.7}, [2]),
    ],
)
def test_attach_warns_of_schedule_entries_that_remove_nothing(select, schedule, layers):
    library("timm")
    with pytest.warns(UserWarning, match=rf"removes nothing at layers {re.escape(str(layers))}.*relative") as seen:
        tg.attach(tiny_vit(), select, schedule)
    assert seen[0].filename == __file__


@pytest.mark.parametrize(
    "schedule",
    [{1: 1.0}, {1: 0.5, 2: 0.25}, relative({1: 0.7, 2: 0.7}), 3, {1: 0.5, 2: "reconstruct", 3: 0.5}],
)
def test_attach_does_not_warn_where_every_entry_removes_something(schedule):
    library("timm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tg.attach(tiny_vit(), tg.DPCKNN(), schedule)


def test_attach_takes_shares_of_the_tokens_that_are_there():
    library("timm")
    model = tiny_vit()
    with tg.attach(model, tg.DPCKNN(), relative({1: 0.5, 3: 0.5})) as handle:
        model(torch.randn(1, 3, 32, 32))
        assert handle.trace.counts == [16, 8, 8, 4]


def test_ratio_counts_prefix_tokens_where_asked():
    assert tokens_per_layer(ratio(0.9, prefix=1), 2, 196) == [196, 177, 160]  # 197 -> 178 -> 161, with the class token
    assert tokens_per_layer(ratio(0.9), 2, 196) == [196, 177, 160]
    assert tokens_per_layer(ratio(0.5, prefix=1), 2, 4) == [4, 2, 1]
    assert tokens_per_layer(ratio(0.5, prefix=3), 2, 4) == [4, 1, 1]


def test_powers_are_shares_of_the_input_at_their_layers():
    assert tokens_per_layer(powers(0.7, (1, 2, 3)), 4, 64) == [64, 44, 31, 21, 21]
    assert tokens_per_layer(powers(0.25, (2,)), 3, 2) == [2, 2, 1, 1]  # at least one token
    assert pickle.loads(pickle.dumps(powers(0.7, [3, 6]))) == powers(0.7, (3, 6))


def test_powers_refuse_layers_that_do_not_rise_or_that_the_model_lacks():
    for layers in [(3, 2), (0, 1), (2, 2)]:
        with pytest.raises(ValueError, match="Expected rising layers of at least 1"):
            powers(0.7, layers)
    with pytest.raises(ValueError, match=r"Expected layers in \[0, 2\] \(got 3\)"):
        powers(0.7, (3,))(2, 16)
    with pytest.raises(ValueError, match="keep ratio in"):
        powers(1.5, (3,))


def test_sparing_last_removes_nothing_behind_the_last_block():
    assert tokens_per_layer(sparing_last(3), 4, 16) == [16, 13, 10, 7, 7]
    assert tokens_per_layer(sparing_last([1, -1, 2]), 3, 16) == [16, 15, 16, 16]
    assert tokens_per_layer(sparing_last([1, 2, (-1, 2)]), 3, 16) == [16, 15, 13, 16]
    assert sparing_last({1: 8}) == {1: 8}
