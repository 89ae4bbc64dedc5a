"""Plain, windowed and spatial models are attached to by one mechanism: the same guards, the same undo."""

import copy
import functools
import gc
import threading

import pytest
import torch
from needs import library
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import tokengraph as tg
from tokengraph.attach.changes import Change
from tokengraph.testing import tiny_vit

timm = library("timm")

DEPTHS = {"depths": (1, 1, 4, 1), "num_classes": 5}


def swin():
    return timm.models.SwinTransformer(
        img_size=64, patch_size=2, embed_dim=12, num_heads=(1, 2, 3, 3), window_size=4, **DEPTHS
    ).eval()


def convnext():
    return timm.models.ConvNeXt(dims=(8, 8, 16, 16), **DEPTHS).eval()


def sam():
    sizes = {"img_size": 80, "patch_size": 8, "embed_dim": 24, "depth": 6, "num_heads": 3, "window_size": 4}
    rest = {"global_attn_indexes": (2, 5), "use_rel_pos": True, "neck_chans": 8, "num_classes": 5}
    return timm.models.VisionTransformerSAM(**sizes, **rest).eval()


def expedited():
    return tg.WindowCoarsening(tg.Expedite(clusters=(2, 2)), before=1)


def merged():
    return tg.WindowCoarsening("tome", keep=9)


def plain():
    return tg.ToMe()


CASES = {
    "plain": (tiny_vit, plain),
    "sam, expedite": (sam, expedited),
    "sam, tome": (sam, merged),
    "swin, expedite": (swin, expedited),
    "swin, tome": (swin, merged),
    "swin, spatial": (swin, tg.DynamicSpatial),
    "convnext, spatial": (convnext, tg.DynamicSpatial),
}
SWIN = [expedited, merged, tg.DynamicSpatial]


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def put(model, select):
    return tg.attach(model, select, *([3] if isinstance(select, tg.Select) else []))


def holder(model):
    """The module that holds the blocks which change."""
    if hasattr(model, "stages"):
        return model.stages[2]
    return model.layers[2] if hasattr(model, "layers") else model


def images(model, count=1):
    side = 80 if hasattr(model, "neck") else 64 if hasattr(holder(model), "downsample") else 32
    return torch.randn(count, 3, side, side)


def stock(model):
    """Everything that attaching changes."""
    hooks = sum(
        len(getattr(m, name))
        for m in model.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
    )
    return [(name, type(m), sorted(m.__dict__)) for name, m in model.named_modules()], list(model.state_dict()), hooks


@pytest.mark.parametrize("second", SWIN)
@pytest.mark.parametrize("first", SWIN)
def test_an_old_handle_takes_nothing_out_that_is_not_its_own(first, second):
    model = swin()
    old = tg.attach(model, first())
    old.remove()
    new = tg.attach(model, second())
    attached = stock(model)
    old.remove()
    assert stock(model) == attached
    new.remove()


def test_a_handle_leaves_a_copy_of_its_model_alone(case):
    make, select = case
    model = make()
    before, handle = stock(model), put(model, select())
    twin = copy.deepcopy(model)
    attached = stock(twin)
    handle.remove()
    assert stock(model) == before and stock(twin) == attached
    tg.detach(twin)
    assert stock(twin) == before


@pytest.mark.parametrize("kind", ["function", "partial"])
def test_replaced_forwards_are_refused(case, kind):
    make, select = case
    model = make()
    block = holder(model).blocks[1]
    forward = block.forward
    block.forward = functools.partial(forward) if kind == "partial" else lambda *args, **kw: forward(*args, **kw)
    before = stock(model)
    with pytest.raises(ValueError, match="Expected blocks whose forward is that of their class .*put on block 1"):
        put(model, select())
    assert stock(model) == before
    del block.forward
    put(model, select()).remove()


@pytest.mark.parametrize("select", [expedited, tg.DynamicSpatial])
def test_a_replaced_forward_of_a_stage_is_refused_where_the_stage_decides(select):
    model = swin()
    stage = model.layers[2]
    stage.forward = functools.partial(stage.forward)
    with pytest.raises(ValueError, match="Expected a stage whose forward is that of its class .*SwinTransformerStage"):
        tg.attach(model, select())
    tg.attach(model, merged()).remove()  # which changes blocks alone


def test_data_parallel_around_the_model_is_refused(case):
    make, select = case
    for model in (nn.DataParallel(make()), nn.Sequential(nn.DataParallel(make()))):
        before = stock(model)
        with pytest.raises(ValueError, match="Expected a model outside nn.DataParallel"):
            put(model, select())
        assert stock(model) == before


def test_wrapped_blocks_are_refused(case):
    make, select = case
    model = make()
    blocks = holder(model).blocks
    blocks[1] = checkpoint_wrapper(blocks[1])
    with pytest.raises(ValueError, match="Expected blocks that are not wrapped yet .got CheckpointWrapper"):
        put(model, select())


@pytest.mark.parametrize("select", [merged, tg.DynamicSpatial])
def test_what_stands_beside_the_changed_stage_may_be_wrapped_or_replaced(select):
    model = swin()
    model.layers[0] = checkpoint_wrapper(model.layers[0])
    model.layers[1].forward = functools.partial(model.layers[1].forward)
    with tg.attach(model, select()) as handle:
        assert handle(images(model)).isfinite().all()


def test_a_block_that_stands_in_the_model_twice_is_refused(case):
    make, select = case
    model = make()
    blocks = holder(model).blocks
    blocks[1] = blocks[3] if len(blocks) > 3 else blocks[2]
    with pytest.raises(ValueError, match="got a model that uses one block twice"):
        put(model, select())


def test_attaching_a_second_time_is_refused(case):
    make, select = case
    model = make()
    with put(model, select()):
        attached = stock(model)
        with pytest.raises(ValueError, match="Expected a model without a strategy"):
            put(model, select())
        assert stock(model) == attached


def test_a_failure_half_way_leaves_the_model_as_it_was(case, monkeypatch):
    make, select = case
    model = make()
    before = stock(model)
    for failing in range(1, 4):
        calls = []
        swap = Change.apply

        def fail(change, swap=swap, calls=calls, failing=failing):
            calls.append(1)
            swap(change)
            if len(calls) == failing:
                raise ZeroDivisionError

        monkeypatch.setattr(Change, "apply", fail)
        with pytest.raises(ZeroDivisionError):
            put(model, select())
        assert stock(model) == before
        monkeypatch.undo()


def test_a_part_of_the_users_own_survives_the_refusal():
    model = convnext()
    mine = model.stages[2].blocks[2].fast_path = nn.Identity()
    with pytest.raises(ValueError, match="Expected a ConvNeXtBlock without a part called 'fast_path'"):
        tg.attach(model, tg.DynamicSpatial())
    assert model.stages[2].blocks[2].fast_path is mine and "fast_path" not in model.stages[2].blocks[1]._modules


def test_detach_refuses_classes_that_were_swapped_since(case):
    make, select = case
    model = make()
    handle = put(model, select())
    block = holder(model).blocks[1]
    coarse = type(block)
    block.__class__ = type("Sharded", (coarse,), {})
    with pytest.raises(RuntimeError, match="classes have not been swapped since attach .got Sharded"):
        handle.remove()
    block.__class__ = coarse
    handle.remove()


def test_hooks_of_the_user_stay(case):
    make, select = case
    model = make()
    for module in model.modules():
        module.register_forward_pre_hook(lambda *_: None, with_kwargs=False)
        module.register_forward_hook(lambda *_: None)
    before = stock(model)
    put(model, select()).remove()
    assert stock(model) == before


def test_no_tensors_of_past_training_runs_are_kept(case):
    make, select = case
    model = make().train()
    x = images(model)
    with put(model, select()):
        alive = []
        gc.freeze()  # the collector looks at what is made from here on alone; millions of objects take seconds
        try:
            for _ in range(6):
                model(x).square().sum().backward()
                gc.collect()
                alive.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
        finally:
            gc.unfreeze()
    assert alive[5] <= alive[2]


@pytest.mark.parametrize("name", ["plain", "sam, expedite", "swin, expedite", "swin, spatial", "convnext, spatial"])
def test_two_threads_in_one_model_are_refused(name):
    make, select = CASES[name]
    model = make()
    x, errors = images(model), []
    put(model, select())

    def other():
        model(x)

    def run_another(*_):
        if not errors:
            errors.append(None)
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    blocks = holder(model).blocks
    blocks[len(blocks) - 2].register_forward_pre_hook(run_another)
    with pytest.raises(RuntimeError, match="Expected one thread at a time"):
        model(x)
    model(x)
