"""Blocks compiled by their halves: once for all blocks, batch sizes and image sizes; the same results as before."""

import copy
import pickle

import pytest
import torch
import torch._dynamo.testing
from architectures import cases
from gradients import parameter_gradients
from needs import library
from quick import quick_only
from strategies import CLASS, STRATEGIES

import tokengraph as tg
from tokengraph.testing import tiny_vit

library("timm")
KINDS = [
    ("timm", "vit_base_patch16_224"),
    ("timm", "eva02_tiny_patch14_224"),
    ("timm", "beit_base_patch16_224"),
    ("timm", "naflexvit_base_patch16_gap"),
    ("transformers", "ViTModel"),
    ("transformers", "DINOv3ViTModel"),
    ("transformers", "CLIPVisionModel"),
    ("transformers", "BeitModel"),
    ("torchvision", "VisionTransformer (vit_b_16, ...)"),
    ("open_clip", "VisionTransformer"),
    ("torch", "nn.TransformerEncoder, by adapter="),
]
SHAPES = ((2, 32, 32), (3, 32, 32), (5, 32, 48), (2, 64, 32), (7, 48, 48))


def images(count, height=32, width=32):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()


@pytest.fixture
def counter():
    return torch._dynamo.testing.CompileCounter()


def test_compile_blocks_compiles_no_more_for_other_batches_and_image_sizes(counter):
    model = tiny_vit(dynamic_img_size=True, depth=6)
    with tg.attach(model, "tome", 2) as coarse, torch.no_grad():
        expected = [model(images(*shape)) for shape in SHAPES]
        tg.compile_blocks(coarse, backend=counter, fullgraph=True)
        for shape, out in zip(SHAPES, expected, strict=True):
            torch.testing.assert_close(model(images(*shape)), out)
        assert counter.frame_count == 3  # attention without and with a bias by size, and the MLP
        model(images(1))
        assert counter.frame_count == 6  # one image is another case
        for shape in ((1, 48, 32), (4, 64, 64), (1, 64, 64)):
            model(images(*shape))
        assert counter.frame_count == 6


def test_compile_blocks_of_two_models_do_not_share_a_limit(counter):
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    with config.patch({limit: 3}):  # as many as one model of mixed lengths needs
        for _ in range(4):
            with tg.attach(tiny_vit(), "tome", 3) as coarse, torch.no_grad():
                tg.compile_blocks(coarse, backend=counter, fullgraph=True)
                coarse(images(2))
    assert counter.frame_count == 3 * 4


ALL = STRATEGIES | CLASS
AROUND = {name for name, (select, _) in ALL.items() if select.placement == "around"}


@pytest.mark.parametrize("name", quick_only(["mctf-ahead", "expedite", "idlevit"], sorted(ALL)))
def test_compile_blocks_changes_no_strategy(name):
    model, x = tiny_vit(), images(2)
    with tg.attach(model, *ALL[name]) as coarse, torch.no_grad():
        expected = model(x)
        if name in AROUND:
            with pytest.raises(ValueError, match="Expected a strategy that acts between the halves of blocks"):
                tg.compile_blocks(coarse, backend="eager")
            return
        tg.compile_blocks(coarse, backend="eager")
        for _ in range(2):
            torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("place", quick_only([], sorted(KINDS)), ids="-".join)
def test_compile_blocks_serves_every_family(place):
    case = cases()[place]
    model = case.make()
    with case.attach(model, {1: 0.7, 2: 0.5}) as coarse, torch.no_grad():
        expected = case.run(model)
        tg.compile_blocks(coarse, backend="eager")
        for ours, theirs in zip(case.run(model), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_compile_blocks_takes_blocks_in_front_too_and_remove_undoes_it(counter):
    model, x = tiny_vit(depth=6), images(2)
    with torch.no_grad():
        plain, kinds = model(x), [type(block) for block in model.blocks]
        coarse = tg.attach(model, tg.TopK(score="norm"), {5: 0.5})
        expected = model(x)
        tg.compile_blocks(coarse, backend=counter, fullgraph=True)
        torch.testing.assert_close(model(x), expected)
        assert counter.frame_count == 2 and coarse.trace.counts == [16] * 5 + [8, 8]
        with coarse.paused():
            assert torch.equal(model(x), plain)
        torch.testing.assert_close(model(x), expected)
        coarse.remove()
        assert torch.equal(model(x), plain)
        assert [type(block) for block in model.blocks] == kinds
        assert counter.frame_count == 2


def test_compile_blocks_twice_takes_the_last_options(counter):
    model = tiny_vit()
    with tg.attach(model, "tome", 3) as coarse, torch.no_grad():
        assert tg.compile_blocks(coarse, backend="eager") is coarse
        tg.compile_blocks(coarse, backend=counter)
        model(images(2))
    assert counter.frame_count == 3


def test_copies_of_a_model_with_compiled_blocks_are_not_compiled(counter):
    model, x = tiny_vit(), images(2)
    with tg.attach(model, "tome", 3) as coarse, torch.no_grad():
        tg.compile_blocks(coarse, backend=counter)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            out = twin(x)
            assert counter.frame_count == 0
            torch.testing.assert_close(out, model(x))
            counter.clear()
            torch.compiler.reset()


@pytest.mark.parametrize("checkpointing", quick_only([True], [False, True]))
def test_compiled_blocks_have_the_gradients_of_the_others(checkpointing):
    model, x = tiny_vit(), images(2)
    model.set_grad_checkpointing(checkpointing)
    model.train()

    with tg.attach(model, "tome", 3) as coarse:
        expected = parameter_gradients(model, x)
        tg.compile_blocks(coarse, backend="aot_eager")
        for ours, theirs in zip(parameter_gradients(model, x), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_compile_blocks_leaves_hooks_of_the_user_alone(counter):
    model, seen = tiny_vit(), []
    with tg.attach(model, "tome", 3) as coarse, torch.no_grad():
        tg.compile_blocks(coarse, backend=counter)
        model.blocks[0].attn.qkv.register_forward_hook(lambda *_: seen.append(1))
        expected = model(images(2))
        assert seen == [1]
        torch.testing.assert_close(model(images(2)), expected)
        assert seen == [1, 1]


def test_compile_blocks_refuses_what_it_cannot_compile():
    model = tiny_vit()
    coarse = tg.attach(model, "tome", 3)
    with pytest.raises(TypeError, match="Expected options backend, mode, fullgraph or options .got dynamic"):
        tg.compile_blocks(coarse, dynamic=False)
    coarse.remove()
    with pytest.raises(ValueError, match="Expected a handle that is still attached"):
        tg.compile_blocks(coarse)
    with pytest.raises(TypeError, match="Expected the handle of a strategy in a plain ViT .got Block"):
        tg.compile_blocks(model.blocks[0])


@pytest.mark.slow
def test_compile_blocks_with_inductor_gives_the_eager_result():
    model = tiny_vit(dynamic_img_size=True)
    with tg.attach(model, "tome", 3) as coarse, torch.no_grad():
        expected = [model(images(*shape)) for shape in SHAPES]
        tg.compile_blocks(coarse)
        for shape, out in zip(SHAPES, expected, strict=True):
            torch.testing.assert_close(model(images(*shape)), out, rtol=1e-4, atol=1e-5)
