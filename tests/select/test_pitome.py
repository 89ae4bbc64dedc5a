"""PiToMe by its properties."""

import pytest
import torch

import tokengraph as tg
from tokengraph import pitome
from tokengraph.flat.memory import set_memory_budget

MODES = pytest.mark.parametrize("mode", ["energy", "bsm"])


def test_equal_tokens_merge_by_index():
    # Ranks are indices: A = 0, 2, B = 1, 3; every token of A goes to the first of B.
    assert pitome(torch.ones(1, 6, 2), 4, margin=0.5).cluster.tolist() == [2, 2, 2, 3, 0, 1]


@MODES
def test_ties_go_to_the_lower_index(vectors, mode):
    v = vectors("merging", "ties")
    for kind in ("signs", "ones"):
        a = pitome(v[kind][None].float(), 24 - 7, margin=-1.0, mode=mode)
        assert a.cluster.tolist() == v[f"pitome_{mode}_{kind}"].tolist()


def test_tokens_that_stand_alone_are_protected_bit_for_bit():
    x = torch.randn(2, 30, 8)
    a = pitome(x, 24, margin=0.3)
    rows, _ = a.reduce(x.flatten(0, 1))
    alone = torch.bincount(a.cluster)[a.cluster] == 1
    assert alone.sum() >= 2 * (30 - 12)
    assert torch.equal(a.lift(rows)[alone], x.flatten(0, 1)[alone])


@MODES
def test_half_of_the_tokens_leave_at_most(mode):
    for tokens in (1, 2, 7, 8):
        a = pitome(torch.randn(2, tokens, 4), 1, margin=0.5, mode=mode)
        assert a.num_clusters == 2 * tg.PiToMe().fewest(tokens) == 2 * (tokens - tokens // 2)
        assert torch.bincount(a.cluster).min() >= 1


@MODES
def test_nothing_to_remove_is_the_identity(mode):
    assert pitome(torch.randn(1, 5, 3), 5, margin=0.5, mode=mode).cluster.tolist() == [0, 1, 2, 3, 4]


@MODES
def test_scaling_keys_changes_nothing(mode):
    x = torch.randn(2, 21, 8)
    scale = torch.rand(2, 21, 1) + 0.5
    plain, scaled = (pitome(t, 15, margin=0.4, mode=mode).cluster for t in (x, x * scale))
    assert torch.equal(plain, scaled)


@MODES
def test_with_a_mask_equals_each_image_alone(mode):
    x, counts, keep = torch.randn(4, 20, 8), [20, 13, 6, 1], [15, 7, 6, 1]
    mask = torch.arange(20) < torch.tensor(counts)[:, None]
    x[~mask] = torch.nan
    whole = pitome(x, keep, margin=0.3, mode=mode, mask=mask)
    parts = [
        pitome(x[b : b + 1, :n], k, margin=0.3, mode=mode) for b, (n, k) in enumerate(zip(counts, keep, strict=True))
    ]
    for b, part in enumerate(parts):
        mine = whole.cluster[whole.ptr[b] : whole.ptr[b + 1]] - whole.cluster_ptr[b]
        assert mine.tolist() == part.cluster.tolist()


def test_energy_in_blocks_equals_in_one_piece():
    from tokengraph.select.parts.scores import energy as module

    x = torch.randn(2, 23, 8)
    whole = module.energy(x, margin=0.5)
    with set_memory_budget(4 * 4 * 2 * 23 * 4):
        torch.testing.assert_close(module.energy(x, margin=0.5), whole)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="Expected mode to be 'energy' or 'bsm' .got 'both'"):
        tg.PiToMe(mode=("energy", "both"))
    with pytest.raises(ValueError, match="Expected mode to be 'energy' or 'bsm' .got 'x'"):
        pitome(torch.ones(1, 2, 2), 1, margin=0.5, mode="x")
    with pytest.raises(ValueError, match="Expected model to be 'deit' or 'mae' .got 'clip'"):
        tg.PiToMe.released("clip")
    with pytest.raises(ValueError, match=r"Expected one mode a block, L=3 .got 12"):
        tg.PiToMe.published().bind(8, 3, 2)


def test_released_settings_take_modes_by_half():
    assert tg.PiToMe.released("deit", 5).mode == ("bsm",) * 3 + ("energy",) * 2
    assert tg.PiToMe.released("mae", 4).mode == ("energy",) * 2 + ("bsm",) * 2
    assert tg.PiToMe.published().prop_attn == "none" and tg.PiToMe().prop_attn is True
