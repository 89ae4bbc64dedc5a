"""attach: what it refuses, and what it leaves behind."""

import copy
import functools

import pytest
import torch
from architectures import from_torchvision
from needs import library
from torch import nn

import tokengraph as tg
from tokengraph.adapters.coarse import KEPT
from tokengraph.adapters.timm.vit import TimmViT
from tokengraph.testing import tiny_vit

timm = library("timm")

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def untouched(model: nn.Module) -> bool:
    return not any("tokengraph" in k for m in model.modules() for k in m.__dict__) and not any(
        type(m).__name__.startswith("Coarse") or m._forward_hooks or m._forward_pre_hooks for m in model.modules()
    )


@pytest.mark.parametrize(
    ("build", "seen"),
    [
        (
            lambda: timm.create_model("swin_tiny_patch4_window7_224"),
            "SwinTransformer with blocks.*SwinTransformerBlock",
        ),
        (lambda: timm.create_model("xcit_nano_12_p16_224"), "Xcit with blocks.*XCABlock"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), "got Sequential"),
    ],
)
def test_attach_refuses_unsupported_families_by_name(build, seen):
    model = build()
    with pytest.raises(ValueError, match=f"Expected a supported model .*{seen}.*Supported: timm VisionTransformer"):
        tg.attach(model, "tome", 8)
    assert untouched(model)


def test_attach_refuses_blocks_without_a_place_between_halves():
    from_timm = timm.models.vision_transformer
    for block in (from_timm.ParallelScalingBlock, from_timm.ResPostBlock):
        model = tiny_vit(block_fn=block)
        with pytest.raises(ValueError, match=f"Expected blocks of class Block .got {block.__name__} at 0"):
            tg.attach(model, "tome", 2)
        assert untouched(model)


def test_attach_refuses_a_second_strategy():
    model = tiny_vit()
    with tg.attach(model, "tome", 2):
        with pytest.raises(ValueError, match="got an attached one.*remove"):
            tg.attach(model, "dpc-knn", {1: 0.5})
        assert model(IMAGES).isfinite().all()
    assert untouched(model)


def test_attach_refuses_two_supported_models_in_one():
    with pytest.raises(ValueError, match="Expected one supported model .got 2 inside"):
        tg.attach(nn.ModuleList([tiny_vit(), tiny_vit()]), "tome", 2)
    with pytest.raises(ValueError, match="nn.DataParallel"):
        tg.attach(nn.DataParallel(tiny_vit()), "tome", 2)
    with pytest.raises(TypeError, match="Expected a model as nn.Module"):
        tg.attach("vit", "tome", 2)


def test_attached_model_refuses_to_be_replicated():
    model = tiny_vit()
    with tg.attach(model, "tome", 2), pytest.raises(RuntimeError, match="DistributedDataParallel"):
        model._replicate_for_data_parallel()


@pytest.mark.parametrize(
    ("select", "schedule", "error", "message"),
    [
        ("tome", {5: 0.5}, ValueError, r"Expected layers in \[0, 3\]"),
        ("tome", {1: 0.25}, ValueError, "Expected keep >= 8 of 16 tokens at layer 1"),
        ("tome", [1, 2], ValueError, "Expected one removal for each of 3 blocks"),
        ("tome", -1, ValueError, "Expected removals >= 0"),
        ("tome", 0.5, TypeError, "Expected a schedule"),
        ("tome", {1: 0}, ValueError, "Expected keep >= 1"),
        ("dpc-knn", {1: 0.25, 2: 0.5}, ValueError, "Expected at most the 4 tokens left at layer 2"),
        ("dpc-knn", {0: 0.5}, ValueError, "Expected layers of at least 1 for DPCKNN"),
        ("ailurus", {1: 0.5, 2: 0.25}, ValueError, "Expected AiluRus to act on the full grid only"),
        ("ailurus", 4, ValueError, "Expected AiluRus to act on the full grid only"),
        ("tomme", 4, ValueError, "Did you mean 'tome'"),
    ],
)
def test_attach_refuses_what_does_not_fit_before_changing_anything(select, schedule, error, message):
    model = tiny_vit()
    with pytest.raises(error, match=message):
        tg.attach(model, select, schedule)
    assert untouched(model)


def test_attach_refuses_class_attention_without_a_class_token():
    with pytest.raises(ValueError, match="Expected a model with a class token"):
        tg.attach(tiny_vit(class_token=False, global_pool="avg"), "topk", {1: 0.5})


def test_attach_checks_the_halves_of_each_block_class(monkeypatch):
    monkeypatch.setattr(TimmViT, "feed", lambda self, block, x: x + block.mlp(block.norm2(x)))  # forgets LayerScale
    model = tiny_vit(init_values=1e-4)
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match="Expected Block to be its two halves.*Nothing changed"):
        tg.attach(model, "tome", 2)
    assert untouched(model)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_attach_undoes_a_swap_that_fails_half_way(monkeypatch):
    model = tiny_vit()
    monkeypatch.setattr(TimmViT, "embedding", lambda self, model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tg.attach(model, "tome", 2)
    assert untouched(model)


def test_context_manager_detaches_after_an_exception():
    model = tiny_vit()
    expected = model(IMAGES)
    with pytest.raises(RuntimeError, match="mine"), tg.attach(model, "tome", 2):
        raise RuntimeError("mine")
    assert untouched(model)
    assert torch.equal(model(IMAGES), expected)


def test_attachment_is_called_like_the_model():
    model = tiny_vit()
    with tg.attach(model, "tome", 2) as coarse:
        assert torch.equal(coarse(IMAGES), model(IMAGES))


def kept_outputs(model: nn.Module) -> list[dict]:
    """What hooks have left on blocks."""
    return [m.__dict__[KEPT] for m in model.modules() if KEPT in m.__dict__]


def test_attached_model_keeps_no_projection_between_runs():
    class Raises(tg.ToMe):
        def __call__(self, tokens, budget):
            raise RuntimeError("in the strategy")

    model, during = tiny_vit(), []
    model.blocks[0].attn.proj.register_forward_hook(lambda *_: during.extend(kept_outputs(model)))
    with tg.attach(model, "tome", 2):
        model(IMAGES)
        assert len(during) == 1 and "qkv" in during[0] and kept_outputs(model) == []
    with tg.attach(model, Raises(), 2):
        with pytest.raises(RuntimeError, match="in the strategy"):
            model(IMAGES)
        assert kept_outputs(model) == []
    with tg.attach(model, "tome", 2):
        model.blocks[1].attn.proj.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(IMAGES)
        assert kept_outputs(model) == []


def test_attach_leaves_blocks_before_the_first_coarsening_alone():
    model = tiny_vit()
    with tg.attach(model, "dpc-knn", {2: 0.5}):
        assert [type(b).__name__ for b in model.blocks] == ["Block", "CoarseBlock", "CoarseBlock"]


def test_placement_before_acts_before_the_block():
    class Before(tg.DPCKNN):
        placement = "before"

    model = tiny_vit()
    with tg.attach(model, Before(), {0: 0.5, 2: 4, 3: 2}) as coarse:
        model(IMAGES)
        assert coarse.trace.counts == [8, 8, 4, 2]
    with tg.attach(model, tg.DPCKNN(), {2: 4}) as after:
        late = model(IMAGES)
        assert after.trace.counts == [16, 16, 4, 4]
    with tg.attach(model, Before(), {2: 4}) as before:  # after block 2 is before block 3
        assert torch.equal(model(IMAGES), late)
        assert before.trace.counts == [16, 16, 4, 4]


def test_proportional_attention_equals_attention_over_the_members():
    """If the members of every cluster are alike, merging them must not change the class token."""
    model = tiny_vit(depth=2, pos_embed="none")
    half = torch.randn(1, 3, 32, 16)
    x = torch.zeros(1, 3, 32, 32)
    x[..., :8], x[..., 8:16] = half[..., :8], half[..., :8]  # patch columns 0 and 1 alike, 2 and 3 alike
    x[..., 16:24], x[..., 24:] = half[..., 8:], half[..., 8:]
    whole = model.forward_features(x)
    if whole.shape[1] == 16:
        pytest.skip("this timm forgets the class token where there is no position embedding")
    expected = whole[:, 0]
    with tg.attach(model, "tome", [8, 0]) as coarse:
        got = model.forward_features(x)[:, 0]
        assert coarse.trace.counts == [16, 8, 8]
        assert coarse.trace.size().tolist() == [[2.0] * 8]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    with tg.attach(model, "tome", [12, 0], prop_attn=False):
        uneven = model.forward_features(x)[:, 0]
    with tg.attach(model, "tome", [12, 0]):
        assert not torch.allclose(model.forward_features(x)[:, 0], uneven)


def test_average_pooling_weighs_tokens_by_the_patches_they_stand_for():
    model = tiny_vit(class_token=False, global_pool="avg")
    with tg.attach(model, "dpc-knn", {3: 5}) as coarse:
        tokens = model.forward_features(IMAGES)
        pooled = model.pool(tokens)
        weight = coarse.trace.size() / 16
        torch.testing.assert_close(pooled, (tokens * weight[..., None]).sum(dim=1))
        assert not torch.allclose(pooled, tokens.mean(dim=1))


def test_pruned_patches_have_no_say_in_average_pooling():
    model = tiny_vit(class_token=False, global_pool="avg")
    with tg.attach(model, tg.TopK(score="norm"), {3: 5}):
        tokens = model.forward_features(IMAGES)
        assert torch.equal(model.pool(tokens), tokens.mean(dim=1))


def test_fused_attention_is_kept(monkeypatch):
    calls = []
    fused = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    model = tiny_vit()
    for select in (tg.ToMe(), tg.TopK()):
        with tg.attach(model, select, 2):
            calls.clear()  # the check at attach time ran the block, too
            model(IMAGES)
        assert len(calls) == 3


def test_detach_without_anything_attached_does_nothing():
    model = tiny_vit()
    tg.detach(model)
    assert untouched(model)


def test_from_model_takes_the_tokens_once_so_many_blocks_are_finished():
    model = tiny_vit(reg_tokens=2)
    graph = tg.TokenGraph.from_model(model, IMAGES, layer=2)
    x = model.norm_pre(model._pos_embed(model.patch_embed(IMAGES)))
    expected = model.blocks[1](model.blocks[0](x))
    assert torch.equal(graph.to_tokens(), expected)
    assert graph.grids == [(4, 4)] * 2 and graph.prefix.shape == (2, 3, 32)
    assert torch.equal(tg.TokenGraph.from_model(model, IMAGES, layer=0).to_tokens(), x)
    last = model.blocks[2](expected)
    for layer in (3, -1):
        assert torch.equal(tg.TokenGraph.from_model(model, IMAGES, layer=layer).to_tokens(), last)
    assert torch.equal(tg.TokenGraph.from_model(model, IMAGES, layer=-4).to_tokens(), x)
    for layer in (4, -5):
        with pytest.raises(ValueError, match=r"Expected a layer in \[0, 3\], finished blocks, or \[-4, -1\]"):
            tg.TokenGraph.from_model(model, IMAGES, layer=layer)


def test_from_model_and_trace_mean_the_same_by_a_layer():
    model = tiny_vit()
    with torch.no_grad(), tg.attach(model, "tome", 0) as handle:
        model(IMAGES)
        for layer in range(4):
            graph = tg.TokenGraph.from_model(model, IMAGES, layer=layer)
            assert handle.trace.as_map(graph.to_tokens(), layer=layer).shape == (2, 32, 4, 4)


def test_from_model_reads_an_attached_model_at_full_resolution_grid():
    model = tiny_vit()
    expected = tg.TokenGraph.from_model(model, IMAGES, layer=1).x
    with tg.attach(model, "dpc-knn", {2: 0.5}):
        assert torch.equal(tg.TokenGraph.from_model(model, IMAGES, layer=1).x, expected)


def test_a_strategy_by_another_reduction_is_used():
    class Largest(tg.DPCKNN):
        reduction = "max"

    model = tiny_vit()
    with tg.attach(model, tg.DPCKNN(), {1: 4}):
        mean = model(IMAGES)
    with tg.attach(model, Largest(), {1: 4}):
        assert not torch.allclose(model(IMAGES), mean)


def test_attach_refuses_a_block_that_stands_in_the_model_twice():
    model = tiny_vit()
    model.blocks[1] = model.blocks[0]
    with pytest.raises(ValueError, match="got a model that uses one block twice"):
        tg.attach(model, "tome", 2)
    assert untouched(model)


def test_attach_refuses_blocks_with_arguments_it_does_not_know():
    class Scaled(timm.models.vision_transformer.Block):
        def forward(self, x, attn_mask=None, is_causal=False, scale=1.0):
            return super().forward(x, attn_mask, is_causal) * scale

    model = tiny_vit(block_fn=Scaled)
    with pytest.raises(TypeError, match="Expected Scaled.forward to take x, attn_mask, is_causal .got scale"):
        tg.attach(model, "tome", 2)
    assert untouched(model)


def test_attached_block_refuses_a_call_of_its_own():
    model = tiny_vit()
    with tg.attach(model, "tome", 2), pytest.raises(RuntimeError, match="Expected block 1 to run as part of its model"):
        model.blocks[1](torch.randn(1, 17, 32))


def test_attached_model_refuses_to_prune_its_layers():
    model = tiny_vit()
    with tg.attach(model, "tome", 2), pytest.raises(RuntimeError, match="Expected a model to prune"):
        model.prune_intermediate_layers([0])


def test_forward_head_of_a_class_token_needs_no_run():
    model = tiny_vit()
    tokens = torch.randn(1, 17, 32)
    expected = model.forward_head(tokens)
    with tg.attach(model, "tome", 2):
        assert torch.equal(model.forward_head(tokens), expected)


def test_attached_model_with_any_schedule_is_saved(tmp_path):
    model = tiny_vit()
    for schedule in (tg.schedule.linear(2), tg.schedule.ratio(0.8), tg.schedule.constant(2)):
        with tg.attach(model, "tome", schedule):
            expected = model(IMAGES)
            torch.save(model, tmp_path / "model.pt")
        assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False)(IMAGES), expected)


@pytest.mark.parametrize("broken", ["dropped", "bool", "raised"])
def test_attention_that_does_not_add_its_mask_is_refused_where_keys_are_weighed(broken):
    model = tiny_vit()
    attention = type(model.blocks[0].attn)

    class Deaf(attention):
        def forward(self, x, attn_mask=None, **options):
            if broken == "raised" and attn_mask is not None:
                raise RuntimeError("no masks here")
            heard = attn_mask.bool() if broken == "bool" and attn_mask is not None else None
            return super().forward(x, attn_mask=heard, **options)

    for block in model.blocks:
        block.attn.__class__ = Deaf
    expected = model(IMAGES)
    with pytest.raises(ValueError, match="to add its mask to the logits"):
        tg.attach(model, "tome", 3)
    assert untouched(model) and torch.equal(model(IMAGES), expected)
    with tg.attach(model, "tome", 3, prop_attn="none"):
        assert model(IMAGES).isfinite().all()


@pytest.mark.parametrize("kind", ["function", "partial"])
def test_blocks_with_a_forward_of_their_own_are_refused(kind):
    """As accelerate's hooks leave them: the class that attach would swap is not what runs."""
    model = tiny_vit()
    plain, block = model(IMAGES), model.blocks[1]
    forward, own = block.forward, type(block)
    block.forward = functools.partial(forward) if kind == "partial" else lambda *args, **kw: forward(*args)
    with pytest.raises(ValueError, match="Expected blocks whose forward is that of their class .*put on block 1"):
        tg.attach(model, "tome", 3)
    assert torch.equal(model(IMAGES), plain) and type(block) is own
    del block.forward
    with tg.attach(model, "tome", 3) as handle:
        model(IMAGES)
        assert handle.trace.counts[-1] < 16


def test_detaching_leaves_no_flags_of_hooks_behind():
    model = tiny_vit()
    model.patch_embed.register_forward_pre_hook(lambda *_: None, with_kwargs=True)  # the user's own stays
    for _ in range(3):
        tg.attach(model, "tome", 1).remove()
    assert len(model.patch_embed._forward_pre_hooks_with_kwargs) == len(model.patch_embed._forward_pre_hooks) == 1
    model(IMAGES)


def test_torch_jit_trace_is_refused():
    model = tiny_vit()
    with tg.attach(model, "tome", 3):
        with pytest.raises(RuntimeError, match="Expected torch.export or torch.compile .got torch.jit.trace"):
            torch.jit.trace(model, IMAGES, check_trace=False)
        model(IMAGES)


def test_copies_of_compiled_blocks_run_their_own_weights():
    torch.compiler.reset()
    model = tiny_vit()
    with tg.attach(model, "tome", 3), torch.no_grad():
        for block in model.blocks:
            block.compile(backend="eager")
        expected, twin = model(IMAGES), copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.zero_()
        torch.testing.assert_close(twin(IMAGES), expected)


@pytest.mark.parametrize("select", ["tome", "topk", "dpc-knn"])
def test_from_model_gives_the_plain_tokens_of_an_attached_model(select):
    for model in (tiny_vit(), from_torchvision()):
        expected = tg.TokenGraph.from_model(model.eval(), IMAGES)
        with tg.attach(model, select, {1: 0.5}) as handle:
            assert torch.equal(tg.TokenGraph.from_model(model, IMAGES).x, expected.x)
            model(IMAGES)
            assert handle.trace.counts[-1] == 8  # what is attached is back
