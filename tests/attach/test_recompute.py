"""What backward computes again belongs to its own run: whole models under a checkpoint, hooks, compiled blocks."""

import pytest
import torch
from needs import library
from torch.utils.checkpoint import checkpoint

import tokengraph as tg
from tokengraph.testing import tiny_vit

library("timm")

GENERATOR = torch.Generator().manual_seed(0)
SOME, OTHERS, LARGE = (torch.randn(2, 3, size, size, generator=GENERATOR).double() for size in (32, 32, 48))
SETTINGS = {
    "merge": (tg.ToMe(), 3),
    "graph": (tg.GTP(), 3),
    "reconstruct": (tg.Expedite(clusters=(2, 2)), {1: "cluster", 2: "reconstruct"}),
}


def exact_vit(**options):
    """In double precision: a loss that multiplies runs makes much of rounding."""
    return tiny_vit(**options).double()


def gradients(model, run, inputs):
    model.zero_grad()
    loss = 1.0
    for x in inputs:  # every run waits for one backward
        loss = loss * run(x.clone().requires_grad_()).square().sum()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got, wanted):
    assert got.keys() == wanted.keys() and wanted
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_checkpoint_around_the_whole_model(setting, pool, reentrant):
    model = exact_vit(global_pool=pool, num_classes=5, dynamic_img_size=True)
    inputs = (SOME, OTHERS, LARGE) * 4  # more runs than may wait where blocks are checkpointed one by one
    with tg.attach(model, *setting) as handle:
        wanted = gradients(model, model, inputs)
        states = []

        def run(x):
            out = checkpoint(model, x, use_reentrant=reentrant)
            states.append(handle.trace.state())
            return out

        assert_same(gradients(model, run, inputs), wanted)
        assert handle.trace.grid == (6, 6) and handle.trace.counts[0] == 36  # the last run's, not the one of backward
        assert handle.trace.state() is states[-1]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_around_the_last_block_and_the_head(reentrant):
    """The head pools by the run that is computed again, not by the last one."""
    model = exact_vit(global_pool="avg", num_classes=5)

    def run(x, parts):
        x = model.blocks[:2](model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x)))))

        def rest(x):
            return model.forward_head(model.norm(model.blocks[2](x)))

        return checkpoint(rest, x, use_reentrant=reentrant) if parts else rest(x)

    with tg.attach(model, "tome", 3):
        wanted = gradients(model, lambda x: run(x, False), (SOME, OTHERS))
        assert_same(gradients(model, lambda x: run(x, True), (SOME, OTHERS)), wanted)


def test_forward_inside_a_hook_of_backward_is_a_run_of_its_own():
    model, seen = exact_vit(), []
    with tg.attach(model, "tome", 3) as handle:
        with torch.no_grad():
            expected = model(OTHERS)
        out = model(SOME)
        source = handle.trace.source().cluster
        out.register_hook(lambda gradient: seen.append(model(OTHERS).detach()))
        out.sum().backward()
        assert torch.equal(seen[0], expected)
        assert torch.equal(handle.trace.source().cluster, source)


def test_memory_that_is_used_again_is_not_taken_for_the_tokens_that_lay_there():
    model = exact_vit(depth=2)
    with tg.attach(model, "tome", 3) as handle:
        model(SOME)
        recompute = handle.trace.run.recompute
        assert len(recompute._entered) == 2
        model(SOME)  # the first run's tokens are gone, and with them what was kept of them
        assert len(recompute._entered) == 2


def test_blocks_compiled_one_by_one_refuse_to_be_checkpointed():
    torch.compiler.reset()
    model = exact_vit().train()
    with tg.attach(model, "tome", 3):
        wanted = gradients(model, model, (SOME, OTHERS))
        for block in model.blocks:
            block.compile(backend="eager")
        assert_same(gradients(model, model, (SOME, OTHERS)), wanted)
        model.set_grad_checkpointing()
        with pytest.raises(RuntimeError, match="Expected no gradient checkpointing around blocks that are compiled"):
            gradients(model, model, (SOME, OTHERS))


def test_functional_gradients_are_those_of_autograd():
    model = exact_vit(num_classes=5)
    parameters = dict(model.named_parameters())
    with tg.attach(model, "tome", 3):
        wanted = gradients(model, model, (SOME,))

        def loss(values):
            return torch.func.functional_call(model, values, (SOME,)).square().sum()

        got = torch.func.grad(loss)({n: p.detach() for n, p in parameters.items()})
        assert_same({n: g for n, g in got.items() if n in wanted}, wanted)
        model(SOME).sum().backward()  # and it goes on as before


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
def test_layers_of_transformers_compiled_one_by_one_checkpoint_inside():
    """Their checkpoint is part of what is compiled, in newer releases; in older ones they refuse it, too."""
    transformers = library("transformers")
    torch.compiler.reset()
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )
    model = transformers.Dinov2Model(config).double().train()

    def run(x):
        return model(x).last_hidden_state

    with tg.attach(model, "tome", 3):
        wanted = gradients(model, run, (SOME, OTHERS))
        model.gradient_checkpointing_enable({"use_reentrant": False})
        assert_same(gradients(model, run, (SOME, OTHERS)), wanted)
        for layer in model.encoder.layer:
            layer.compile(backend="eager")
        try:
            got = gradients(model, run, (SOME, OTHERS))
        except RuntimeError as error:
            assert "Expected no gradient checkpointing around blocks that are compiled" in str(error)
        else:
            assert_same(got, wanted)


def part(model, x):
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))


def test_segments_that_begin_in_front_of_the_first_attached_block():
    """Such a segment makes the input of the block anew; without the images, all runs must have been of one grid."""
    model = exact_vit(depth=4, num_classes=5, dynamic_img_size=True).train()

    def run(x):
        x = part(model, x)
        return model.forward_head(model.norm(checkpoint(model.blocks, x, use_reentrant=False)))

    with tg.attach(model, "grid-pool", {3: 0.25}):
        wanted = gradients(model, model, (SOME, OTHERS))
        assert_same(gradients(model, run, (SOME, OTHERS)), wanted)
        with pytest.raises(RuntimeError, match="tokens of a recent run"):
            gradients(model, run, (SOME, LARGE))
