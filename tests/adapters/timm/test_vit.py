"""timm's VisionTransformer under a strategy: features, maps at full resolution, training, other sizes.

The laws that every model keeps are in ``test_architectures.py``.
"""

import copy
import threading

import pytest
import torch
from needs import library
from strategies import STRATEGIES, paired
from timm_cases import VIT, make_vit
from torch import nn

import tokengraph as tg
from tokengraph.testing import tiny_vit

timm = library("timm")


def images(model, count=2):
    height, width = model.patch_embed.img_size
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


KINDS = [*VIT, "deit_distilled"]
NAMES = ["tome", "dpc-knn", "ailurus", "topk", "fuse", "random", "grid-pool"]
PAIRS = pytest.mark.parametrize(("model", "strategy"), paired(KINDS, NAMES), indirect=True)


@pytest.fixture(params=KINDS)
def model(request):
    return make_vit(request.param)


@pytest.fixture
def strategy(request):
    return STRATEGIES[request.param]


def test_features_are_bit_identical_while_nothing_is_removed(model):
    x = images(model)
    expected, features = model(x), model.forward_features(x)
    for select, schedule in (("tome", 0), ("dpc-knn", {1: 1.0}), (tg.TopK(score="norm"), [0, 0, 0])):
        with tg.attach(model, select, schedule):
            assert torch.equal(model(x), expected)
            assert torch.equal(model.forward_features(x), features)
            assert any(type(m).__name__.startswith("Coarse") for m in model.modules())


@PAIRS
def test_attached_model_is_repeatable_and_takes_other_batches(model, strategy):
    x = images(model, 5)
    with tg.attach(model, *strategy):
        first = model(x)
        model(x[:2])
        assert torch.equal(model(x), first)


@PAIRS
def test_attached_model_gives_an_image_the_same_alone_and_among_others(model, strategy):
    x = images(model, 4)
    with tg.attach(model, *strategy) as coarse:
        together = model(x)
        clusters = coarse.trace.source(3)
        alone = model(x[2:3])
        own = coarse.trace.source(3)
    torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-5)
    k, kept = own.num_clusters, own.num_tokens
    if isinstance(own, tg.Assignment):
        mine = clusters.cluster.view(4, kept)[2]
        assert torch.equal(torch.where(mine == clusters.num_clusters, k, mine - 2 * k), own.cluster)


@PAIRS
def test_trace_lifts_to_every_patch(model, strategy):
    x = images(model)
    height, width = model.patch_embed.grid_size
    with tg.attach(model, *strategy) as coarse:
        tokens = model.forward_features(x)
        assert tokens.size(1) == model.num_prefix_tokens + coarse.trace.counts[-1]
        lifted = coarse.trace.lift(tokens)
        assert lifted.shape == (2, height * width, tokens.size(2))
        assert coarse.trace.as_map(tokens).shape == (2, tokens.size(2), height, width)
        assert torch.equal(coarse.trace.as_map(tokens).flatten(2).transpose(1, 2), lifted)
        if strategy[0].merges:
            assert coarse.trace.size().sum(dim=1).tolist() == [height * width] * 2


@PAIRS
def test_forward_intermediates_gives_maps_at_full_resolution(model, strategy):
    x = images(model)
    grid = model.patch_embed.grid_size
    _, plain = model.forward_intermediates(x, output_fmt="NCHW")
    with tg.attach(model, *strategy) as coarse:
        last, maps = model.forward_intermediates(x, output_fmt="NCHW")
        assert [tuple(m.shape) for m in maps] == [(2, 32, *grid)] * 3
        assert last.size(1) == model.num_prefix_tokens + coarse.trace.counts[-1]
        assert torch.equal(maps[2], coarse.trace.as_map())
        some = model.forward_intermediates(
            x, indices=[0, 2], output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True, norm=True
        )
        some = [s[0] if isinstance(s, tuple) else s for s in some]
        assert [tuple(s.shape) for s in some] == [(2, grid[0] * grid[1], 32)] * 2
        early = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
        assert torch.equal(early[0], maps[0])
        as_dict = model.forward_intermediates(x, output_dict=True)
        assert torch.equal(as_dict["image_intermediates"][1], maps[1])
    untouched = next(i for i, n in enumerate(coarse.trace.plan[1:]) if n < coarse.trace.plan[0])
    for i in range(untouched):  # blocks before the first coarsening are the plain model's
        assert torch.equal(maps[i], plain[i])


@PAIRS
def test_attach_lift_returns_full_sequences(model, strategy):
    x = images(model)
    shape = model.forward_features(x).shape
    with tg.attach(model, *strategy, lift=True) as coarse:
        tokens = model.forward_features(x)
        assert tokens.shape == shape
        assert torch.equal(coarse.trace.size(0), torch.ones(2, shape[1] - model.num_prefix_tokens))
        assert model(x).isfinite().all()
        full, _ = model.forward_intermediates(x)
        assert full.shape == shape


def test_two_threads_in_one_model_are_refused():
    model = tiny_vit()
    waiting, go = threading.Event(), threading.Event()
    failed = []

    def pause(*_):
        if threading.current_thread() is not threading.main_thread():
            waiting.set()
            go.wait(10)

    def other():
        try:
            with torch.no_grad():
                model(images(model))
        except RuntimeError as error:
            failed.append(str(error))

    with tg.attach(model, "tome", 3):
        hook = model.blocks[1].norm1.register_forward_hook(pause)
        thread = threading.Thread(target=other)
        thread.start()
        waiting.wait(10)
        with torch.no_grad():
            model(images(model))
        go.set()
        thread.join()
        hook.remove()
    assert failed and "Expected one thread at a time" in failed[0]


def test_forward_intermediates_takes_timms_positional_arguments(model):
    x = images(model)
    mask = torch.zeros(1, 1, 1, model.num_prefix_tokens + model.patch_embed.num_patches)
    mask[..., -1] = -1.0
    arguments = ([1], False, True, True, "NLC", True, False, mask)
    expected = model.forward_intermediates(x, *arguments)
    early, _ = model.forward_intermediates(x, [0], stop_early=True)
    with tg.attach(model, "tome", 0):
        assert torch.equal(model.forward_intermediates(x, *arguments)[0], expected[0])
        assert torch.equal(model.forward_intermediates(x, [0], stop_early=True)[0], early)


@PAIRS
def test_empty_batch_gives_an_empty_result(model, strategy):
    x = images(model)[:0]
    expected = model(x)
    with tg.attach(model, *strategy):
        assert model(x).shape == expected.shape


def test_train_mode_lowers_a_loss(model):
    x, target = images(model, 4), torch.tensor([0, 1, 2, 3])
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    losses = []
    with tg.attach(model, "tome", 3):
        for step in range(12):
            torch.manual_seed(step % 2)
            out = model(x)
            loss = nn.functional.cross_entropy(out[0] if isinstance(out, tuple) else out, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-2:]) < sum(losses[:2])


@PAIRS
def test_autocast_and_half_precision_run(model, strategy):
    x = images(model)
    with tg.attach(model, *strategy) as coarse:
        expected, counts = model(x), coarse.trace.counts
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = model(x)
        assert cast.isfinite().all() and coarse.trace.counts == counts
        assert coarse.trace.size().dtype == torch.float32
        half = copy.deepcopy(model).bfloat16()
        assert half(x.bfloat16()).dtype == torch.bfloat16
    assert (cast.float() - expected).abs().max() < 0.5 * expected.abs().max()


def test_dynamic_image_size_takes_other_grids():
    model = tiny_vit(dynamic_img_size=True)
    with tg.attach(model, tg.AiluRus(), {2: 0.25}) as coarse:
        model(torch.randn(2, 3, 40, 64))
        assert coarse.trace.counts == [40, 40, 10, 10]
        assert coarse.trace.as_map().shape == (2, 32, 5, 8)
        model(torch.randn(1, 3, 32, 32))
        assert coarse.trace.counts == [16, 16, 4, 4]


def test_wrapped_model_is_found():
    wrapper = nn.ModuleDict({"backbone": tiny_vit(), "neck": nn.Linear(4, 4)})
    with tg.attach(wrapper, "tome", 2) as coarse:
        wrapper["backbone"](torch.randn(1, 3, 32, 32))
        assert coarse.trace.counts == [16, 14, 12, 10]
    assert type(wrapper["backbone"]) is timm.models.vision_transformer.VisionTransformer
