"""The contract of attach over timm's VisionTransformer family: tiny configurations of every kind it comes in."""

import copy
import io
import threading

import pytest
import torch
import torch._dynamo.testing
import torch.utils.checkpoint
from torch import nn

import tokengraph as tg
from tokengraph.testing import tiny_vit

try:
    from tokengraph.compat import timm
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

KINDS = {
    "vit": {},
    "deit3_layer_scale": {"init_values": 0.5, "no_embed_class": True},
    "clip_pre_norm": {"pre_norm": True, "norm_layer": nn.LayerNorm},
    "siglip_map_pool": {"class_token": False, "global_pool": "map"},
    "gap": {"class_token": False, "global_pool": "avg", "fc_norm": True},
    "dinov2": {"init_values": 0.5, "img_size": 28, "patch_size": 7},
    "dinov2_registers": {"init_values": 0.5, "reg_tokens": 4, "no_embed_class": True},
    "qk_norm": {"qk_norm": True},
    "avg_with_class_token": {"global_pool": "avg"},
    "drop_path": {"drop_path_rate": 0.2, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1},
    "rectangle": {"img_size": (32, 48)},
}
STRATEGIES = {
    "tome": (tg.ToMe(), 3),
    "dpc-knn": (tg.DPCKNN(), {1: 0.75, 2: 0.5}),
    "ailurus": (tg.AiluRus(), {1: 0.5}),
    "topk": (tg.TopK(score="norm"), {2: 0.5}),
    "fuse": (tg.TopK(score="norm", fuse=True), {1: 8, 2: 5}),
    "random": (tg.Random(), 2),
    "grid-pool": (tg.GridPool(), {1: 0.5, 3: 0.25}),
}


def make(kind: str) -> nn.Module:
    if kind == "deit_distilled":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = timm.models.deit.VisionTransformerDistilled(
                img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4
            )
        return model.eval()
    return tiny_vit(**KINDS[kind])


def images(model: nn.Module, count: int = 2) -> torch.Tensor:
    height, width = model.patch_embed.img_size
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[*KINDS, "deit_distilled"])
def model(request):
    return make(request.param)


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    return STRATEGIES[request.param]


PAIRS = [*((kind, "tome") for kind in [*KINDS, "deit_distilled"]), *(("vit", name) for name in STRATEGIES)]


@pytest.fixture(params=dict.fromkeys(PAIRS), ids="-".join)
def pair(request):
    """Every kind of model with one strategy, and one kind with every strategy: for what is slow."""
    return make(request.param[0]), STRATEGIES[request.param[1]]


def test_attach_with_nothing_removed_is_bit_identical(model):
    x = images(model)
    expected, features = model(x), model.forward_features(x)
    for select, schedule in [("tome", 0), ("dpc-knn", {1: 1.0}), ("topk", [0, 0, 0]) if model.has_class_token else
                             (tg.TopK(score="norm"), [0, 0, 0])]:  # fmt: skip
        with tg.attach(model, select, schedule) as coarse:
            assert torch.equal(model(x), expected)
            assert torch.equal(model.forward_features(x), features)
            assert len(set(coarse.trace.counts)) == 1
            assert any(type(m).__name__.startswith("Coarse") for m in model.modules())


def test_remove_restores_types_outputs_and_hooks(model, strategy):
    x = images(model)
    expected = model(x)
    types = [type(m) for m in model.modules()]
    keys = list(model.state_dict())
    handle = tg.attach(model, *strategy)
    assert list(model.state_dict()) == keys
    assert not torch.equal(model(x), expected)  # the strategy does something
    handle.remove()
    handle.remove()
    assert [type(m) for m in model.modules()] == types
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any("tokengraph" in k for m in model.modules() for k in m.__dict__)
    assert torch.equal(model(x), expected)


def test_attached_model_is_repeatable_and_takes_other_batches(model, strategy):
    x = images(model, 5)
    with tg.attach(model, *strategy):
        first = model(x)
        model(x[:2])
        assert torch.equal(model(x), first)


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


def test_forward_intermediates_gives_maps_at_full_resolution(model, strategy):
    x = images(model)
    grid = model.patch_embed.grid_size
    plain_last, plain = model.forward_intermediates(x, output_fmt="NCHW")
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
    del plain_last


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


def test_state_dict_loads_across_attachment(model):
    x = images(model)
    state = copy.deepcopy(model.state_dict())
    with tg.attach(model, "tome", 3):
        for p in model.parameters():
            nn.init.normal_(p)
        model.load_state_dict(state)
        attached = model(x)
    with tg.attach(model, "tome", 3):
        assert torch.equal(model(x), attached)


def test_deepcopy_and_save_are_independent_of_the_original(model, strategy):
    x = images(model)
    handle = tg.attach(model, *strategy)
    expected = model(x)
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for p in model.parameters():
        nn.init.normal_(p.data)
    model(x)
    handle.remove()
    for other in (twin, loaded):
        assert torch.equal(other(x), expected)
        tg.detach(other)
        assert not any(type(m).__name__.startswith("Coarse") for m in other.modules())
        assert not torch.equal(other(x), expected)


def test_gradients_are_equal_with_and_without_checkpointing(model, strategy):
    x = images(model)
    gradients = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        with tg.attach(model, *strategy):
            torch.manual_seed(0)
            model.zero_grad()
            model(x).square().sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    model.set_grad_checkpointing(False)
    assert len(gradients[0]) > 10
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_segments_of_several_blocks_give_the_plain_gradients(reentrant):
    model = tiny_vit(depth=4)
    a, b = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(3))

    def segment(x, start):
        return model.blocks[start + 1](model.blocks[start](x))

    def features(images, checkpointed):
        x = model._pos_embed(model.patch_embed(images))
        for start in (0, 2):
            run = torch.utils.checkpoint.checkpoint
            x = run(segment, x, start, use_reentrant=reentrant) if checkpointed else segment(x, start)
        return x

    def step(checkpointed):
        model.zero_grad()
        (features(a, checkpointed) - features(b, checkpointed)).square().sum().backward()
        return [p.grad.clone() for p in model.blocks.parameters()]

    with tg.attach(model, "tome", 3):
        for _ in range(3):  # memory of dead tensors is used again
            for plain, again in zip(step(False), step(True), strict=True):
                torch.testing.assert_close(plain, again)


def test_backward_of_a_run_that_is_no_longer_known_is_refused():
    model = tiny_vit()
    model.set_grad_checkpointing(True)
    with tg.attach(model, "tome", 3):
        runs = [model(images(model)).sum() for _ in range(40)]
        runs[-1].backward()
        with pytest.raises(RuntimeError, match="Expected backward to follow its own run"):
            runs[0].backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_gradients_survive_other_runs_before_backward(reentrant):
    model = tiny_vit(depth=4, dynamic_img_size=True)
    a, b = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(3))

    def features(images, checkpointed):
        x = model._pos_embed(model.patch_embed(images))
        for block in model.blocks:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant) if checkpointed else block(x)
        return model.norm(x)

    def step(checkpointed):
        model.zero_grad()
        loss = (features(a, checkpointed) - features(b, checkpointed)).square().sum()
        with torch.no_grad():
            features(torch.randn(1, 3, 48, 48), checkpointed)
        loss.backward()
        return [p.grad.clone() for p in model.blocks.parameters()]

    with tg.attach(model, "tome", 3) as coarse:
        for plain, again in zip(step(False), step(True), strict=True):
            torch.testing.assert_close(plain, again)
        assert coarse.trace.counts[0] == 36  # backward has not written over the last run


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


def test_compiled_model_is_compiled_once_for_each_shape():
    counter = torch._dynamo.testing.CompileCounter()
    model = tiny_vit(dynamic_img_size=True)
    for select, schedule in ((tg.ToMe(), 3), (tg.AiluRus(), {1: 0.5}), (tg.GridPool(), {1: 0.5})):
        torch.compiler.reset()
        counter.clear()
        with tg.attach(model, select, schedule) as coarse, torch.no_grad():
            compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=False)
            for _ in range(3):
                compiled(images(model))
            assert counter.frame_count == 1
            wide = torch.randn(2, 3, 32, 64)
            torch.testing.assert_close(compiled(wide), model(wide))
            assert coarse.trace.counts[0] == 32


@pytest.mark.parametrize("name", ["tome", "ailurus", "grid-pool", "dpc-knn"])
def test_dynamic_shapes_compile_and_a_dynamic_batch_exports(name):
    model = tiny_vit(dynamic_img_size=True)
    torch.compiler.reset()
    with tg.attach(model, *STRATEGIES[name]), torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        for size in ((32, 32), (32, 48), (48, 64)):
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(compiled(x), model(x))
        batch = torch.export.Dim("batch", min=2, max=64)
        program = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
        x = torch.randn(5, 3, 32, 32)
        torch.testing.assert_close(program.module()(x), model(x))


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


def test_compile_fullgraph_gives_the_eager_result(pair):
    model, strategy = pair
    x = images(model)
    torch.compiler.reset()
    with tg.attach(model, *strategy), torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(compiled(x), model(x))  # taking it off takes effect, too


def test_export_gives_the_eager_result(pair):
    model, strategy = pair
    x = images(model)
    with tg.attach(model, *strategy) as coarse, torch.no_grad():
        expected = model(x)
        program = torch.export.export(model, (x,))
        torch.testing.assert_close(program.module()(x), expected)
        torch.testing.assert_close(model(x), expected)
        assert type(coarse.trace.size()) is torch.Tensor


def test_inference_mode_leaves_nothing_that_breaks_training(model, strategy):
    x = images(model)
    from tokengraph.edges.window import _window

    assert callable(_window)
    with tg.attach(model, *strategy):
        with torch.inference_mode():
            model(x)
        model(x).sum().backward()
    assert model.patch_embed.proj.weight.grad.isfinite().all()


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


@pytest.mark.slow
def test_compile_with_inductor_gives_the_eager_result():
    model = tiny_vit()
    x = images(model)
    torch.compiler.reset()
    with tg.attach(model, "tome", 3), torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), expected, rtol=1e-4, atol=1e-5)
