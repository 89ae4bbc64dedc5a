"""timm's ViT compiled and exported: how often it is compiled, shapes that change, export of every kind."""

import pytest
import torch
import torch._dynamo.testing
from needs import library
from quick import quick_only
from strategies import STRATEGIES
from timm_cases import VIT, make_vit

import tokengraph as tg
from tokengraph.testing import tiny_vit

library("timm")


def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", quick_only(["tome"], ["tome", "ailurus", "grid-pool"]))
def test_compiled_model_is_compiled_once_for_each_shape(name):
    counter = torch._dynamo.testing.CompileCounter()
    model = tiny_vit(dynamic_img_size=True)
    torch.compiler.reset()
    with tg.attach(model, *STRATEGIES[name]) as coarse, torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=False)
        for _ in range(3):
            compiled(images())
        assert counter.frame_count == 1
        wide = torch.randn(2, 3, 32, 64)
        torch.testing.assert_close(compiled(wide), model(wide))
        assert coarse.trace.counts[0] == 32


@pytest.mark.parametrize("name", quick_only(["tome"], ["tome", "ailurus", "grid-pool", "dpc-knn"]))
def test_dynamic_shapes_compile(name):
    model = tiny_vit(dynamic_img_size=True)
    torch.compiler.reset()
    with tg.attach(model, *STRATEGIES[name]), torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        for size in ((32, 32), (48, 64)):
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("name", quick_only(["tome"], ["tome", "ailurus", "grid-pool", "dpc-knn"]))
def test_a_dynamic_batch_exports(name):
    model = tiny_vit()
    with tg.attach(model, *STRATEGIES[name]), torch.no_grad():
        batch = torch.export.Dim("batch", min=2, max=64)
        program = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
        x = torch.randn(5, 3, 32, 32)
        torch.testing.assert_close(program.module()(x), model(x))


def test_a_compiled_model_notices_that_the_strategy_was_taken_off():
    model = tiny_vit()
    torch.compiler.reset()
    with tg.attach(model, "tome", 3), torch.no_grad():
        expected = model(images())
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images()), expected)
    torch.testing.assert_close(compiled(images()), model(images()))
    assert not torch.allclose(compiled(images()), expected)


@pytest.mark.parametrize("kind", quick_only(["dinov2_registers"], [*VIT, "deit_distilled"]))
def test_export_gives_the_eager_result(kind):
    model = make_vit(kind)
    x = torch.randn(2, 3, *model.patch_embed.img_size)
    with tg.attach(model, "tome", 3) as coarse, torch.no_grad():
        expected = model(x)
        program = torch.export.export(model, (x,))
        torch.testing.assert_close(program.module()(x), expected)
        torch.testing.assert_close(model(x), expected)
        assert type(coarse.trace.size()) is torch.Tensor


@pytest.mark.slow
def test_compile_with_inductor_gives_the_eager_result():
    model = tiny_vit()
    x = images()
    torch.compiler.reset()
    with tg.attach(model, "tome", 3), torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), expected, rtol=1e-4, atol=1e-5)
