"""SigLIP 2 NaFlex under a strategy: masks of padding, gradients, learned pruning, graphs, what is refused.

The laws that every model keeps are in ``test_architectures.py``.
"""

import pytest
import torch
from naflex_cases import SHAPES, attach, batch, make, run
from needs import library
from torch.testing import assert_close

import tokengraph as tg

library("transformers")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("train", [False, True])
def test_nothing_removed_is_bit_identical_for_padded_patches(train, implementation):
    model = make(train=train, attn_implementation=implementation, attention_dropout=0.1)
    inputs = batch()

    def outputs():
        torch.manual_seed(7)
        out = run(model, inputs)
        return out.last_hidden_state, out.pooler_output

    plain = outputs()
    with tg.attach(model, "tome", 0) as handle:
        assert all(map(torch.equal, outputs(), plain))
        assert handle.trace.counts == [16] * 4 and handle.trace.counts_per_image() == [16, 10, 9, 7]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_masks_of_any_dtype_mean_the_same(dtype):
    model = make()
    with tg.attach(model, "tome", 3):
        wanted = run(model, batch()).pooler_output
        assert_close(run(model, batch(dtype=dtype)).pooler_output, wanted)


def test_masks_that_say_something_else_are_refused():
    model, inputs = make(), batch()
    holes = inputs["pixel_attention_mask"].clone()
    holes[1, 3] = 0
    with tg.attach(model, "tome", 3) as handle:
        for mask in (holes, None, torch.ones(4, 20)):
            with pytest.raises(ValueError, match=r"a mask of the first H \* W patches of each image, \[16, 10, 9, 7\]"):
                run(model, {**inputs, "pixel_attention_mask": mask})
        full = batch([(4, 4), (2, 8)], 16)
        run(model, {**full, "pixel_attention_mask": None})
        assert handle.trace.counts_per_image() == [7, 7]


@pytest.mark.parametrize("strategy", ["tome", "dpc-knn", "topk", "gtp"])
def test_gradients_are_those_of_the_images_alone(strategy):
    grads = []
    for together in (True, False):
        model = make(train=True)
        with attach(model, strategy):
            for shapes in [SHAPES] if together else [[s] for s in SHAPES]:
                model(**batch(shapes)).pooler_output.square().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert_close(grad, grads[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compiled_it_gives_the_eager_result():
    model = make()
    with attach(model, "tome") as handle, torch.no_grad():
        inputs, other = batch(), batch(SHAPES[::-1], 18)
        eager, second = model(**inputs).pooler_output, model(**other).pooler_output
        torch.compiler.reset()
        compiled = torch.compile(model, backend="eager")
        assert_close(compiled(**inputs).pooler_output, eager)
        assert handle.trace.counts_per_image(0) == [16, 10, 9, 7]
        assert_close(compiled(**other).pooler_output, second)


def test_a_bfloat16_model_gives_bfloat16():
    model, inputs = make().bfloat16(), batch()
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    with tg.attach(model, "tome", 3):
        assert run(model, inputs).pooler_output.dtype == torch.bfloat16


def test_learned_pruning_trains_on_what_is_there():
    for implementation in ("sdpa", "eager"):
        model = make("Siglip2ForImageClassification", train=True, attn_implementation=implementation)
        with tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2])) as handle:
            handle.select.noise = [torch.randn(4, 20, 2, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
            inputs = batch()
            out = model(**inputs, labels=torch.tensor([0, 1, 2, 3]))
            valid = handle.trace.valid(0)
            decisions = handle.trace.decisions
            assert valid.sum(1).tolist() == [16, 10, 9, 7] and len(decisions) == 2
            assert all((d[~valid] == 0).all() and 0 < d.sum() < 42 for d in decisions)
            loss = out.loss + tg.losses.ratio_loss(
                [d[valid] for d in decisions], [0.5, 0.25], ptr=torch.tensor([0, 16, 26, 35, 42])
            )
            loss.backward()
            grads = [p.grad for p in model.vision_model.score_predictor.parameters()]
            assert all(g is not None and g.isfinite().all() for g in grads) and any(g.abs().sum() > 0 for g in grads)
            noise = handle.select.noise
            for b, shape in enumerate(SHAPES):  # the same image with the same noise, alone
                handle.select.noise = [n[b : b + 1] for n in noise]
                with torch.no_grad():
                    alone = model(**batch([shape])).logits[0]
                assert_close(alone, out.logits[b], rtol=1e-4, atol=1e-4)


def test_a_graph_is_made_of_images_of_their_own_shapes():
    model = make()
    graph = tg.TokenGraph.from_model(model, batch(), layer=2)
    assert graph.counts == [16, 10, 9, 7] and graph.grids == SHAPES
    alone = tg.TokenGraph.from_model(model, batch(SHAPES[1:2], 30), layer=2)
    assert_close(graph.split()[1].x, alone.x, rtol=1e-4, atol=1e-4)
    assert graph.connect_grid(4).split()[1].edge_index.size(1) == 2 * (5 + 2 * 4)
    with pytest.raises(TypeError, match="Expected a mapping with pixel_values"):
        tg.TokenGraph.from_model(model, batch()["pixel_values"])
    with pytest.raises(ValueError, match="Expected a layer"):
        tg.TokenGraph.from_model(model, batch(), layer=9)


def test_what_needs_a_class_token_is_refused_and_changes_nothing():
    model = make()
    for select in (tg.TopK(), tg.GTP(score="cls-mean")):
        with pytest.raises(ValueError, match="a model with a class token"):
            tg.attach(model, select, 3)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_strategy_of_ones_own_gets_masks_and_budgets():
    seen = []

    class Brightest(tg.Select):
        merges = False

        def __call__(self, tokens, budget):
            seen.append((tokens.mask.sum(1).tolist(), budget, tokens.grid, tokens.pos.shape))
            return tg.topk(tokens.x.sum(dim=2), budget, mask=tokens.mask)

    model = make()
    with tg.attach(model, Brightest(), {1: 0.5}) as handle:
        run(model, batch())
        assert handle.trace.counts_per_image() == [8, 5, 5, 4]
    assert seen == [([16, 10, 9, 7], [8, 5, 5, 4], None, (4, 20, 2))]
