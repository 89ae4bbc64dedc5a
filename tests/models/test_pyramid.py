"""The integral pyramid: dense maps after any pruning, and no mixing between units."""

import pytest
import torch
from torch.testing import assert_close

from tokengraph.models import FastITPNPyramid, TokenGathering, TokenMigration, fast_itpn_pyramid

LEVELS = ("C2", "C3", "C4")


def pyramid(**options) -> FastITPNPyramid:
    torch.manual_seed(0)
    model = FastITPNPyramid(24, (1, 1, 3), 3, img_size=64, fpn_dim=16, **options).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("keep", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("gathering", [None, TokenGathering(window=2)])
def test_maps_are_dense_and_contiguous_whatever_left(keep, gathering):
    model = pyramid(migration=TokenMigration({1: keep, 2: keep}), gathering=gathering,
                    levels=("P2", "P3", "P4", "P5", "P6"))  # fmt: skip
    maps = model(torch.randn(2, 3, 64, 128))
    assert [tuple(m.shape) for m in maps] == [(2, 16, 64 // s, 128 // s) for s in model.strides]
    assert all(m.is_contiguous() and torch.isfinite(m).all() and m.ne(0).any(dim=1).all() for m in maps)
    assert (model.channels, model.strides, model.size_divisibility) == ([16] * 5, [4, 8, 16, 32, 64], 64)


def test_the_levels_of_the_stem_are_bit_equal_with_and_without_migration():
    model, images = pyramid(levels=LEVELS), torch.randn(2, 3, 64, 64)
    plain = model(images)
    model.migration = TokenMigration({1: 0.5})
    maps, record = model.forward_pyramid(images)
    assert torch.equal(maps[0], plain[0]) and torch.equal(maps[1], plain[1])
    assert not torch.equal(maps[2], plain[2])
    assert torch.equal(maps[2].flatten(2).transpose(1, 2), record.table)
    assert (model.channels, model.strides) == ([6, 12, 24], [4, 8, 16])


def test_maps_move_with_the_units_of_their_input():
    model = pyramid()
    rows = [torch.randn(1, 4 * s, 5 * s, c) for s, c in ((4, 6), (2, 12), (1, 24))]
    moved = model.top_down(*(r.roll((s, 3 * s), dims=(1, 2)) for r, s in zip(rows, (4, 2, 1), strict=True)))
    for out, plain, s in zip(moved, model.top_down(*rows), (4, 2, 1), strict=True):
        assert_close(out, plain.roll((s, 3 * s), dims=(1, 2)))


def test_the_stem_sees_one_unit_at_a_time():
    model, images = pyramid(), torch.randn(1, 3, 64, 64)
    unit = model.forward_stem(images[..., 16:32, 32:48])
    for whole, alone, s in zip(model.forward_stem(images), unit, (4, 2, 1), strict=True):
        assert_close(whole[:, s : 2 * s, 2 * s : 3 * s], alone)


def test_coarse_levels_are_every_other_place():
    p4, p5, p6 = pyramid(levels=("P4", "P5", "P6"))(torch.randn(1, 3, 64, 64))
    assert torch.equal(p5, p4[..., ::2, ::2]) and torch.equal(p6, p4[..., ::4, ::4])


def test_all_parts_of_the_pyramid_are_trained():
    model = pyramid(migration=TokenMigration({1: 0.5})).train()
    torch.stack([m.square().mean() for m in model(torch.randn(1, 3, 64, 64))]).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_feature_info_speaks_as_timm_does():
    info = pyramid(levels=("C2", "P3", "P5")).feature_info
    assert (info.channels(), info.reduction(), info.module_name()) == ([6, 16, 16], [4, 8, 32], ["C2", "P3", "P5"])
    assert info[1] == {"num_chs": 16, "reduction": 8, "module": "P3"}


def test_the_pyramid_compiles_to_one_graph():
    model = pyramid(migration=TokenMigration({1: 0.5}), gathering=TokenGathering(window=2))
    images = torch.randn(1, 3, 64, 64)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        for out, plain in zip(compiled(images), model(images), strict=True):
            assert_close(out, plain)


def test_sizes_and_levels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"multiples of 32 for P5 \(got 48 x 64\)"):
        pyramid()(torch.randn(1, 3, 48, 64))
    with pytest.raises(ValueError, match=r"levels among C2, .* \(got \['P1'\]\)"):
        pyramid(levels=("P1",))
    with pytest.raises(ValueError, match="from fine to coarse"):
        pyramid(levels=("P3", "P2"))
    with pytest.raises(ValueError, match=r"a size among tiny, .* \(got 'huge'\)"):
        fast_itpn_pyramid("huge")
