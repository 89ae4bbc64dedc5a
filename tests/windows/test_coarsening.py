"""WindowCoarsening attached to stock models: the laws."""

import copy
import io

import pytest
import torch
from quick import quick_only
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.attach.attach import detach
from tokengraph.select.expedite.expedite import Expedite
from tokengraph.windows import WindowCoarsening

SMALL = Expedite(clusters=(3, 3), inv_temperature=0.5)
KINDS = {
    "expedite": WindowCoarsening(SMALL, before=1),
    "expedite-until": WindowCoarsening(SMALL, before=1, until=3),
    "expedite-ignore": WindowCoarsening(SMALL, before=1, padding="ignore"),
    "cubist-merge": WindowCoarsening("cubist-merge", keep=9, before=1),
    "tome": WindowCoarsening("tome", keep=9),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request):
    return request.param


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize(
    "select",
    [
        WindowCoarsening(Expedite(clusters=(4, 4))),
        WindowCoarsening("expedite", keep=1.0, before=0),
        WindowCoarsening("cubist-merge", keep=1.0, before=0),
        WindowCoarsening("tome", keep=16),
    ],
)
def test_nothing_removed_is_bit_identical(tiny, images, select):
    model = tiny()
    x = images(model)
    dense = model(x)
    with tg.attach(model, select) as handle:
        assert torch.equal(handle(x), dense)


def test_something_removed_changes_the_output_and_remove_restores_the_stock_model(tiny, images, kind):
    model = tiny()
    x, keys, classes = images(model), list(model.state_dict()), [type(m) for m in model.modules()]
    dense, weights = model(x), copy.deepcopy(model.state_dict())
    handle = tg.attach(model, kind)
    assert handle(x).shape == dense.shape and not torch.allclose(handle(x), dense, atol=1e-5)
    assert list(model.state_dict()) == keys
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    handle.remove()
    handle.remove()
    assert [type(m) for m in model.modules()] == classes and hooks(model) == 0
    assert not any("_tokengraph" in m.__dict__ for m in model.modules())
    assert torch.equal(model(x), dense)


def test_an_image_is_what_it_is_alone(tiny, images, kind):
    # in float64: another batch size rounds otherwise, and in float32 the other of two pairs nearly as similar may merge
    model = tiny().double()
    x = images(model, 3).double()
    with tg.attach(model, kind) as handle:
        together = handle(x)
        for i in range(3):
            assert_close(handle(x[i : i + 1]), together[i : i + 1])


@pytest.mark.parametrize("side", [16, 24, 72])
def test_images_of_other_sizes_are_served_with_padding(sam, kind, side):
    # 2, 3 and 9 patches a side, in windows of 4
    model, x = sam().double(), torch.randn(2, 3, side, side, dtype=torch.float64)
    with tg.attach(model, kind) as handle:
        features = model.forward_features(x)
        assert features.shape == (2, 8, side // 8, side // 8)
        assert_close(model.forward_features(x[1:]), features[1:])
        assert torch.isfinite(handle(x)).all()


def test_a_swin_stage_whose_map_no_window_divides_is_served(swin, kind):
    # the third stage has 7 x 7 positions in windows of 4, shifted by 2
    model, x = (
        swin(img_size=56, always_partition=True, strict_img_size=False).double(),
        torch.randn(2, 3, 56, 56).double(),
    )
    dense = model.forward_features(x)
    with tg.attach(model, kind) as handle:
        features = model.forward_features(x)
        assert features.shape == dense.shape and not torch.allclose(features, dense, atol=1e-5)
        assert_close(model.forward_features(x[1:]), features[1:])
        assert torch.isfinite(handle(x)).all()


def test_the_record_has_the_stitched_grid(sam, swin):
    handle = tg.attach(sam(), KINDS["expedite"])
    assert handle.trace.grid is None
    handle(torch.randn(1, 3, 80, 80))
    # 10 patches a side are 3 windows of 4, padded, of 3 clusters each
    assert (handle.trace.grid, handle.trace.coarse_grid) == ((10, 10), (9, 9))
    handle = tg.attach(swin(), KINDS["expedite"])
    handle(torch.randn(1, 3, 64, 64))
    assert (handle.trace.grid, handle.trace.coarse_grid) == ((8, 8), (6, 6))


@pytest.mark.parametrize("until", [3, None])
def test_the_record_counts_tokens_after_each_block(tiny, until):
    model = tiny()
    with tg.attach(model, WindowCoarsening(SMALL, before=1, until=until)) as handle:
        with pytest.raises(RuntimeError, match="Expected a run of the model that makes clusters"):
            _ = handle.trace.counts
        handle(torch.randn(2, 3, 80, 80) if hasattr(model, "neck") else torch.randn(2, 3, 64, 64))
        (h, w), (a, b), depth = handle.trace.grid, handle.trace.coarse_grid, handle.trace.depth
        last = until or depth
        assert handle.trace.counts == [h * w] * 2 + [a * b] * (last - 2) + [h * w] * (depth + 1 - last)


def test_the_record_lays_maps_of_clusters_out_at_full_resolution(sam):
    model, made = sam(), []
    model.blocks[2].register_forward_hook(lambda m, args, out: made.append(out))
    with tg.attach(model, WindowCoarsening(SMALL, before=1, until=5)) as handle:
        maps = model.forward_intermediates(torch.randn(1, 3, 80, 80), indices=[2], intermediates_only=True)
        record = handle.trace
        assert made[0].shape == (1, 9, 9, 24) and torch.equal(record.as_map(made[0]), maps[0])
        full = torch.randn(1, 10, 10, 24)
        assert torch.equal(record.as_map(full), full.permute(0, 3, 1, 2))
        assert torch.equal(record.as_map(full.flatten(1, 2)), full.permute(0, 3, 1, 2))
        with pytest.raises(ValueError, match=r"Expected maps of \(9, 9\) clusters or \(10, 10\) tokens"):
            record.as_map(full[:, 1:])


def test_a_record_of_tome_has_no_clusters_to_tell_of(sam):
    with tg.attach(sam(), KINDS["tome"]) as handle:
        handle(torch.randn(1, 3, 80, 80))
        with pytest.raises(RuntimeError, match="ToMe in windows merges within each block"):
            _ = handle.trace.counts


@pytest.mark.parametrize("index", [0, 2, 5])
def test_global_blocks_see_the_stitched_grid_and_blocks_outside_see_the_map(sam, index):
    model, shapes = sam(), []
    tg.attach(model, WindowCoarsening(SMALL, before=1, until=5))
    model.blocks[index].attn.register_forward_pre_hook(lambda m, args: shapes.append(tuple(args[0].shape)))
    model(torch.randn(1, 3, 80, 80))
    # 0: 9 windows of the full map; 2: global, clustered; 5: global, restored
    assert shapes == [{0: (9, 4, 4, 24), 2: (1, 9, 9, 24), 5: (1, 10, 10, 24)}[index]]


def test_windowed_blocks_run_on_small_windows(sam, swin):
    for model, attn, expected in (
        (sam(), lambda m: m.blocks[1].attn, (9, 3, 3, 24)),
        (swin(), lambda m: m.layers[2].blocks[1].attn, (4, 9, 48)),
    ):
        shapes = []
        with tg.attach(model, KINDS["expedite"]) as handle:
            hook = attn(model).register_forward_pre_hook(lambda m, args: shapes.append(tuple(args[0].shape)))  # noqa: B023
            handle(torch.randn(1, 3, *[80 if hasattr(model, "neck") else 64] * 2))
            hook.remove()
        assert shapes == [expected]


def test_a_shifted_block_keeps_opposite_borders_apart(swin):
    model = swin()
    tg.attach(model, KINDS["expedite"])
    block, x = model.layers[2].blocks[1], torch.randn(1, 6, 6, 48, requires_grad=True)
    assert block.shift_size == (2, 2)
    # small windows of 3 are shifted by 1: position (0, 0) shares a window with (5, 5) after the roll, behind the mask
    block(x)[0, 0, 0].sum().backward()
    assert x.grad[0, 5, 5].abs().max() < 1e-6 < x.grad[0, 0, 0].abs().max()


@pytest.mark.parametrize("side", [56, 64])
def test_merging_in_a_shifted_block_reads_the_keys_of_every_position(swin, monkeypatch, side):
    model, seen = swin(img_size=side, always_partition=True), {}

    def spy(mlp, x, keys, *args):
        seen["keys"] = keys
        return torch.zeros_like(x)

    tg.attach(model, KINDS["tome"])
    monkeypatch.setattr("tokengraph.windows.swin.merged_update", spy)
    block, x = model.layers[2].blocks[1], torch.randn(2, side // 8, side // 8, 48)
    block(x)
    assert block.shift_size == (2, 2)
    keys = block.attn.qkv(block.norm1(x))[..., 48:96].unflatten(3, (3, 16)).mean(dim=3)
    assert_close(seen["keys"], keys)


@pytest.mark.parametrize("norm", [False, True])
def test_intermediate_maps_are_at_full_resolution(sam, kind, norm):
    model, x = sam(), torch.randn(2, 3, 72, 72)
    with tg.attach(model, kind):
        last, maps = model.forward_intermediates(x, norm=norm)
        assert [tuple(m.shape) for m in maps] == [(2, 8 if norm else 24, 9, 9)] * 6
        assert torch.equal(last, model.forward_features(x))
        early = model.forward_intermediates(x, [1], norm, stop_early=True)
        assert torch.equal(early[1][0], maps[1]) and early[0].shape == last.shape
        # a run that stops before the clustering must forget the run before it
        first = model.forward_intermediates(x, [0], norm, stop_early=True, intermediates_only=True)
        assert torch.equal(first[0], maps[0])


def test_a_map_as_small_as_its_clusters_is_still_restored(sam):
    # 3 x 3 patches, padded to one window of 4 x 4, become 3 x 3 clusters
    model, x = sam(), torch.randn(1, 3, 24, 24)
    tg.attach(model, WindowCoarsening(SMALL, before=1))
    maps = model.forward_intermediates(x, [1], intermediates_only=True)
    assert maps[0].shape == (1, 24, 3, 3)
    clusters = []
    model.blocks[1].register_forward_hook(lambda m, args, out: clusters.append(out))
    model.forward_intermediates(x, [1], intermediates_only=True)
    assert clusters[0].shape == (1, 3, 3, 24) and not torch.allclose(clusters[0].permute(0, 3, 1, 2), maps[0])


def test_copies_and_saved_models_are_attached_too(tiny, images, kind):
    model = tiny()
    x = images(model)
    out = tg.attach(model, kind)(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), out)
        detach(other)
        assert hooks(other) == 0 and not any("_tokengraph" in m.__dict__ for m in other.modules())
    assert torch.equal(model(x), out)


def test_gradient_checkpointing_gives_the_same_gradients_also_with_another_run_between(tiny, images, kind):
    model = tiny()
    x = images(model)
    tg.attach(model, kind)
    model(x).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    out = model(x)
    model(x + 1)
    out.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, wanted[name], msg=name)


def test_autocast_runs_in_bfloat16(tiny, images, kind):
    model = tiny()
    x = images(model)
    with tg.attach(model, kind) as handle, torch.autocast("cpu", torch.bfloat16):
        out = handle(x)
    assert out.dtype == torch.bfloat16 and torch.isfinite(out).all()


def test_float64_models_stay_in_float64(tiny, images, kind):
    model = tiny().double()
    with tg.attach(model, kind) as handle:
        assert handle(images(model).double()).dtype == torch.float64


COMPILED = quick_only([KINDS["expedite"]], KINDS.values())


@pytest.mark.parametrize("tiny", quick_only(["sam", "swin2"], ["sam", "swin", "swin2"]), indirect=True)
@pytest.mark.parametrize("kind", COMPILED, indirect=True, ids=KINDS)
def test_evaluation_compiles_as_one_graph(tiny, images, kind):
    torch._dynamo.reset()
    model = tiny().double()  # see above
    x = images(model).double()
    tg.attach(model, kind)
    with torch.no_grad():
        assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


def test_training_reaches_every_parameter(tiny, images, kind):
    model = tiny().train()
    tg.attach(model, kind)
    model(images(model)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_model_on_the_meta_device_is_attached(weightless):
    for name in ("samvit_base_patch16", "swin_large_patch4_window12_384"):
        with tg.attach(weightless(name), WindowCoarsening(Expedite(clusters=(8, 8)))) as handle:
            assert handle.plan.window in ((14, 14), (12, 12)) and handle.plan.keep == 64


@pytest.mark.parametrize(("depth", "select", "first"), [(12, "expedite", 4), (18, "expedite", 6), (12, "tome", 0)])
def test_the_first_block_is_a_third_of_the_way_for_expedite(depth, select, first):
    plan = WindowCoarsening(select, keep=81).plan((12, 12), depth)
    assert (plan.before, plan.until, plan.keep) == (first, depth, 81)


def test_without_clusters_expedite_takes_the_largest_grid():
    assert WindowCoarsening("expedite", keep=70).plan((14, 14), 12).clusters == (8, 8)
