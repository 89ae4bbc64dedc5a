"""Evaluation of the sparsified stage: counts, independence, compile."""

import pytest
import torch
from needs import library
from quick import quick_only
from spatial_cases import FAMILIES, images, positions, stage_of
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.nn.slow_fast import split_by_mask
from tokengraph.spatial import DynamicSpatial


def test_everything_slow_is_the_dense_network_bit_for_bit(tiny):
    model, x = tiny(), images()
    with torch.no_grad():
        dense = model(x)
        with tg.attach(model, DynamicSpatial(ratios=[1.0, 1.0])) as handle:
            assert torch.equal(model(x), dense)
            assert handle.trace.counts == [[positions(model)] * 2] * 2


def test_everything_slow_by_threshold_is_the_dense_network(tiny, lively):
    model, x = tiny(), images()
    with torch.no_grad():
        dense = model(x)
        handle = lively(tg.attach(model, DynamicSpatial(0.7, threshold=1e-9)))
        assert_close(model(x), dense)
    assert handle.trace.counts == [[positions(model)] * 2] * 3


def test_counts_are_the_published_floors(tiny):
    model = tiny()
    handle = tg.attach(model, DynamicSpatial(0.7))
    model(images())
    expected = [int(positions(model) * ratio) for ratio in (0.7, 0.7 - 0.2, 0.7 - 0.4)]
    assert handle.trace.counts == [[k, k] for k in expected]
    assert [int(196 * r) for r in DynamicSpatial(0.7).ratios] == [137, 97, 58]


@pytest.mark.parametrize("options", [{}, {"threshold": 0.5}])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_images_are_what_they_are_alone(tiny, lively, count, options):
    model, x = tiny(), images(count)
    handle = lively(tg.attach(model, DynamicSpatial(0.7, **options)))
    with torch.no_grad():
        together, masks = model(x), torch.cat(handle.trace.masks, dim=2)
        for i in range(count):
            assert_close(model(x[i : i + 1])[0], together[i])
            assert torch.equal(torch.cat(handle.trace.masks, dim=2)[0], masks[i])


def test_a_batch_without_images_gives_none(tiny, lively):
    model = tiny()
    try:
        plain = model(images()[:0])
    except RuntimeError:
        pytest.skip("the plain model takes no such batch")
    with torch.no_grad():
        lively(tg.attach(model, DynamicSpatial(0.7)))
        assert model(images()[:0]).shape == plain.shape


def test_a_threshold_lets_images_differ(tiny, lively):
    model = tiny()
    handle = lively(tg.attach(model, DynamicSpatial(0.7, threshold=0.5)))
    model(images(4))
    probability = handle.trace.scores[0][..., 0].exp()
    assert torch.equal(handle.trace.masks[0].flatten(1), probability >= 0.5)
    assert len(set(handle.trace.counts[0] + handle.trace.counts[1] + handle.trace.counts[2])) > 1


def test_a_fast_position_can_become_slow_again(tiny, lively):
    model = tiny()
    handle = lively(tg.attach(model, DynamicSpatial(ratios=[0.3, 0.5, 0.7])))
    model(images())
    first, second, third = handle.trace.masks
    assert (second & ~first).any() and (third & ~second).any()


def test_any_map_size_works(tiny, lively):
    options = {"strict_img_size": False} if "swin" in tiny.__name__ else {}
    model, x = tiny(**options), images(2, 72, 104)
    with torch.no_grad():
        dense = model(x)
        handle = lively(tg.attach(model, DynamicSpatial(0.7, threshold=1e-9)))
        assert_close(model(x), dense)
        handle.select.threshold = None
        out = model(x)
    height, width = handle.trace.grid
    assert height * width not in (16, 64) and out.isfinite().all()
    assert handle.trace.counts[0] == [int(height * width * 0.7)] * 2
    assert handle.trace.masks[0].shape == (2, height, width)


def test_gradients_flow_in_evaluation_too(tiny, lively):
    model, x = tiny(), images().requires_grad_()
    lively(tg.attach(model, DynamicSpatial(0.7)))
    grads = []
    for checkpointed in (False, True):
        model.set_grad_checkpointing(checkpointed)
        grads += torch.autograd.grad(model(x).square().mean(), x)
    assert grads[0].any()
    assert_close(*grads)


def test_a_model_in_half_precision_keeps_its_dtype(tiny):
    model = tiny().bfloat16()
    handle = tg.attach(model, DynamicSpatial(0.7))
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert model(images().bfloat16()).dtype == torch.bfloat16 and handle.trace.scores[0].dtype == torch.float32


@pytest.mark.parametrize("tiny", quick_only(["swin"], FAMILIES), indirect=True)
def test_compile_has_no_graph_break_in_evaluation(tiny, lively):
    model, x = tiny(), images()
    handle = lively(tg.attach(model, DynamicSpatial(0.7)))
    with torch.no_grad():
        out, masks = model(x), handle.trace.masks
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_close(compiled(x), out)
    assert all(torch.equal(a, b) for a, b in zip(handle.trace.masks, masks, strict=True))


@pytest.mark.parametrize("tiny", quick_only(["convnext"], FAMILIES), indirect=True)
def test_export_gives_the_same(tiny, lively):
    model, x = tiny(), images()
    lively(tg.attach(model, DynamicSpatial(0.7)))
    with torch.no_grad():
        assert_close(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_an_image_that_is_not_finite_leaves_its_batch_mates_alone(tiny, lively, threshold):
    model, x = tiny(), images()
    lively(tg.attach(model, DynamicSpatial(0.7, threshold=threshold)))
    with torch.no_grad():
        expected = model(x)
        x[0] = torch.nan
        assert_close(model(x)[1:], expected[1:])


def test_feature_maps_of_all_stages_keep_their_shapes(tiny, lively):
    model, x = tiny(), images()
    dense = model.forward_intermediates(x, intermediates_only=True)
    lively(tg.attach(model, DynamicSpatial(0.7)))
    ours = model.forward_intermediates(x, intermediates_only=True)
    assert [m.shape for m in ours] == [m.shape for m in dense]
    assert torch.equal(ours[1], dense[1]) and not torch.equal(ours[2], dense[2])


def test_each_path_runs_on_its_own_positions_only(tiny, lively):
    model, rows = tiny(), []
    handle = lively(tg.attach(model, DynamicSpatial(0.7)))
    channels = 16 if "convnext" in tiny.__name__ else 48
    for block in stage_of(model).blocks[1:]:
        fast = block.fast_path if "convnext" in tiny.__name__ else block.fastmlp.fc1
        for path in (block.mlp.fc1, fast):
            path.register_forward_hook(lambda m, args, out: rows.append(args[0].numel() // channels))
    model(images())
    slow = [sum(counts) for counts in handle.trace.counts]
    assert rows == [n for k in slow for n in (k, 2 * positions(model) - k)]


def test_selection_leaves_spatial_mixing_of_its_block_alone(tiny, lively):
    model, x, seen = tiny(), images(), []
    block = stage_of(model).blocks[1]
    mixing = block.conv_dw if "convnext" in tiny.__name__ else block.attn
    mixing.register_forward_hook(lambda m, args, out: seen.append(out))
    dense = model(x)
    lively(tg.attach(model, DynamicSpatial(0.7)))
    assert not torch.equal(model(x), dense)
    assert torch.equal(*seen)


@pytest.mark.parametrize("conv", [False, True])
def test_a_response_norm_takes_lengths_over_the_slow_positions_of_each_image(conv, lively):
    """A block's update of the slow positions is its own MLP on a map of these positions alone."""
    model = (
        library("timm").models.ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 8, 16, 16), use_grn=True, conv_mlp=conv).eval()
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    lively(tg.attach(model, DynamicSpatial(ratios=[0.5], layers=[1])))
    block, x = model.stages[2].blocks[1], torch.randn(2, 16, 3, 4)
    mask = torch.rand(2, 3, 4) < 0.5
    mixed = block.conv_dw(x).permute(0, 2, 3, 1)
    with torch.no_grad():
        got = block(x, split_by_mask(mask)).permute(0, 2, 3, 1) - x.permute(0, 2, 3, 1)
        for image in range(2):
            rows = mixed[image][mask[image]].view(1, 1, -1, 16)  # a map of one row
            assert_close(got[image][mask[image]], block.slow(rows)[0, 0])


def test_an_image_without_slow_positions_has_finite_gradients(lively):
    model = library("timm").models.ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 8, 16, 16), use_grn=True)
    lively(tg.attach(model, DynamicSpatial(ratios=[0.5], layers=[1])))
    block, x = model.stages[2].blocks[1], torch.randn(2, 16, 3, 4, requires_grad=True)
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[1, 0, 0] = True
    block(x, split_by_mask(mask)).sum().backward()
    o1, o2 = block(x, mask.float(), x)
    (o1.sum() + o2.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in [x, *block.parameters()])
