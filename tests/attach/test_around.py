"""Fewer tokens inside a module, a block or a stage, and all of them behind it."""

import pytest
import torch
from needs import library
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.schedule import tokens_around
from tokengraph.testing import tiny_vit

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def inputs(model):
    """What comes to each block in the runs that follow."""
    seen = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    return seen


@pytest.mark.parametrize("span", ["attention", "mlp", "both"])
def test_modules_run_on_reduced_rows_of_their_norms(span):
    """By hand, with the maps of the run, in a model with LayerScale and a distillation token."""
    model = tiny_vit(init_values=0.3, reg_tokens=1)
    seen = inputs(model)
    with torch.no_grad(), tg.attach(model, tg.Around(tg.ToMe(), span, sizes=False), {1: 9}) as handle:
        model.forward_features(IMAGES)
        trace = handle.trace
        assert trace.counts == [16] * 4 and trace.counts_inside == [16, 9, 9]
        a, x = trace.inside(1), seen[1]
        with handle.paused():
            block = model.blocks[1]

            def on_clusters(norm, module, x):
                rows = norm(x)
                merged = a.reduce(rows[:, 2:].flatten(0, 1))[0].view(2, 9, -1)
                out = module(torch.cat([rows[:, :2], merged], dim=1))
                return torch.cat([out[:, :2], a.lift(out[:, 2:].flatten(0, 1)).view(2, 16, -1)], dim=1)

            attn, mlp = (lambda r: block.ls1(block.attn(r))), (lambda r: block.ls2(block.mlp(r)))
            x = x + (on_clusters(block.norm1, attn, x) if span != "mlp" else attn(block.norm1(x)))
            x = x + (on_clusters(block.norm2, mlp, x) if span != "attention" else mlp(block.norm2(x)))
        assert_close(seen[2], x)


def test_attention_inside_weighs_clusters_by_size():
    """Equal tokens that merge around attention change nothing, as long as their keys weigh by their number."""
    images = IMAGES[..., :1].expand(-1, -1, -1, 32)
    outputs = []
    for sizes in (True, False, None):
        torch.manual_seed(1)
        model = tiny_vit()
        torch.nn.init.zeros_(model.pos_embed)
        with torch.no_grad():
            if sizes is None:
                outputs.append(model(images))
                continue
            with tg.attach(model, tg.Around(tg.GridToMe((1, 4)), sizes=sizes), {0: 4}):
                outputs.append(model(images))
    assert_close(outputs[0], outputs[2])
    assert not torch.allclose(outputs[1], outputs[2])


@pytest.mark.parametrize("reduction", ["prune", "merge"])
def test_tokens_that_do_not_take_part_in_a_block_pass_it_bit_for_bit(reduction):
    model = tiny_vit()
    seen = inputs(model)
    select = tg.TopK(score="norm") if reduction == "prune" else tg.ToMe()
    with torch.no_grad(), tg.attach(model, tg.Around(select, "block"), {1: 10}) as handle:
        model(IMAGES)
        a = handle.trace.inside(1)
        inner = a.reduce(seen[1][:, 1:].flatten(0, 1))[0].view(2, 10, -1)
        sizes = torch.bincount(a.cluster, minlength=20)[:20].float().view(2, 10)
        mask = torch.cat([torch.zeros(2, 1), sizes.log()], dim=1)[:, None, None]
        with handle.paused():
            out = model.blocks[1](torch.cat([seen[1][:, :1], inner], dim=1), attn_mask=mask)
    lone = (sizes == 1).flatten()
    rows = out[:, 1:].flatten(0, 1)
    after = seen[2][:, 1:].flatten(0, 1)
    kept = a.cluster < 20
    for m in lone.nonzero()[:, 0].tolist():
        assert_close(after[a.cluster == m][0], rows[m])
    if reduction == "prune":
        assert torch.equal(after[~kept], seen[1][:, 1:].flatten(0, 1)[~kept]) and (~kept).sum() == 12
    else:  # members of one cluster get one change
        change = after - seen[1][:, 1:].flatten(0, 1)
        assert_close(change, a.lift(rows - inner.flatten(0, 1)))


def test_a_stage_is_its_blocks_on_fewer_tokens():
    """Two blocks of pruned tokens in a row: what leaves idles, and comes back as it left."""
    model = tiny_vit(depth=4)
    seen = inputs(model)
    select = tg.Around(tg.TopK(score="norm"), "stage")
    schedule = {1: 6, 2: ("reconstruct", 9), 4: "reconstruct"}
    with torch.no_grad(), tg.attach(model, select, schedule) as handle:
        model(IMAGES)
        assert handle.trace.counts == [16, 6, 9, 9, 16]
        out = handle.trace.output
        idle = [handle.trace.lineage(layer).source.cluster == 2 * n for layer, n in ((1, 6), (2, 9))]
    assert seen[1].shape[1] == 7 and seen[2].shape[1] == 10 and out.shape[1] == 17
    model.blocks[0]._forward_pre_hooks.clear()
    with torch.no_grad():
        start = model.blocks[0](seen[0])
    never = (idle[0] & idle[1]).view(2, 16)
    assert never.any() and torch.equal((out[:, 1:] == start[:, 1:]).all(dim=2), never)


def test_blocks_that_idle_equal_stages_of_one_block():
    outputs = []
    for span, schedule in (("block", {1: 7, 2: "reconstruct"}), ("stage", {1: 7, 2: "reconstruct"})):
        torch.manual_seed(0)
        model = tiny_vit()
        with torch.no_grad(), tg.attach(model, tg.Around(tg.TopK(score="norm"), span), schedule):
            outputs.append(model(IMAGES))
    assert_close(*outputs)


def test_masks_of_the_user_follow_the_tokens_inside():
    """A mask that bars no patch from all queries: constant rows of a mask change nothing."""
    model = tiny_vit()
    x = torch.randn(2, 17, 32)
    with torch.no_grad(), tg.attach(model, tg.Around(tg.ToMe(), "attention"), 5) as handle:
        model(IMAGES)
        plain = model.blocks[0](x)
        model(IMAGES)
        masked = model.blocks[0](x, attn_mask=torch.full((17, 17), 0.25))
        assert handle.trace.run.inner[0] is not None
    assert_close(plain, masked)


@pytest.mark.parametrize("span", ["attention", "both", "block", "stage"])
def test_checkpointing_gives_the_same_gradients(span):
    grads = []
    for checkpoint in (False, True):
        torch.manual_seed(2)
        model = tiny_vit()
        model.set_grad_checkpointing(checkpoint)
        with tg.attach(model, tg.Around(tg.ToMe(), span), {1: 8, 2: "reconstruct"}):
            model(IMAGES).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(g is not None and g.isfinite().all() for g in grads[0])
    for one, other in zip(*grads, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("span", ["attention", "mlp", "both", "block"])
def test_images_of_several_grids_are_as_alone(span):
    """NaFlex images in one batch, padded: each with its own counts inside."""
    import naflex_cases

    library("transformers")
    model = naflex_cases.make()
    batch = naflex_cases.batch(width=16)
    with torch.no_grad(), tg.attach(model, tg.Around(tg.ToMe(), span), {0: 0.6}):
        together = model(**batch).last_hidden_state
        for i in range(len(together)):
            alone = model(**{k: v[i : i + 1] for k, v in batch.items()}).last_hidden_state
            there = batch["pixel_attention_mask"][i].bool()
            assert_close(together[i][there], alone[0][there], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("span", ["attention", "block"])
def test_thresholds_act_around_their_layers(span):
    model = tiny_vit()
    images = torch.cat([IMAGES[:1], torch.zeros(1, 3, 32, 32)])
    torch.nn.init.zeros_(model.pos_embed)
    with torch.no_grad(), tg.attach(model, tg.Around(tg.MPM(layers=(1,)), span)) as handle:
        out = model(images)
        inner = handle.trace.run.inner
    assert inner[0] is None and inner[2] is None and len(set(inner[1].lineage.now.each)) == 2
    with torch.no_grad(), tg.attach(model, tg.Around(tg.MPM(layers=(1,)), span)):
        assert_close(model(images[:1]), out[:1])


def test_nothing_to_remove_is_bit_identical_and_hooks_leave():
    model = tiny_vit()
    with torch.no_grad():
        plain = model(IMAGES)
        for schedule in (0, {1: 1.0}):
            with tg.attach(model, tg.Around(), schedule):
                assert torch.equal(model(IMAGES), plain)
        with tg.attach(model, tg.Around(), 4):
            assert not torch.equal(model(IMAGES), plain)
        assert torch.equal(model(IMAGES), plain)
    assert not any(m._forward_hooks for m in model.modules())


def test_other_image_sizes_have_counts_of_their_own():
    model = tiny_vit(dynamic_img_size=True)
    with torch.no_grad(), tg.attach(model, tg.Around(), {0: 0.5}) as handle:
        assert handle.trace.counts_inside == [8, 8, 8]
        model(torch.randn(1, 3, 48, 48))
        assert handle.trace.counts == [36] * 4 and handle.trace.counts_inside == [18, 18, 18]


def test_a_block_without_a_map_inside_is_named():
    model = tiny_vit()
    with torch.no_grad(), tg.attach(model, tg.Around(), {1: 8}) as handle:
        model(IMAGES)
        with pytest.raises(ValueError, match=r"Expected a block that ran around fewer tokens .*got block 0"):
            handle.trace.inside(0)


@pytest.mark.parametrize("select", [tg.TopK(score="class"), tg.MCTF()])
def test_strategies_that_need_a_map_are_refused(select):
    with pytest.raises(ValueError, match="Expected a strategy around a module to read features alone"):
        tg.attach(tiny_vit(), tg.Around(select), {1: 8})


@pytest.mark.parametrize("select", [tg.DynamicViT(), tg.GTP(), tg.TokenMigration(), tg.Around(), tg.MCTF(ahead=True)])
def test_strategies_with_a_way_of_their_own_are_refused(select):
    with pytest.raises(ValueError, match="Expected a strategy that chooses clusters by the tokens it sees alone"):
        tg.Around(select)


def test_an_unknown_span_is_refused():
    with pytest.raises(ValueError, match="Expected span to be one of attention, mlp, both, block, stage .got 'heads'"):
        tg.Around(span="heads")


def test_a_block_whose_norm_is_elsewhere_is_refused():
    model = tiny_vit()
    adapter = type(tg.attach(model, "tome", 1).trace.run.plans.request.adapter)
    tg.detach(model)

    class Odd(adapter):
        def norms(self, block):
            return block.norm2, block.norm2

    with pytest.raises(ValueError, match="Expected the attention half of Block to read the output of its norm"):
        tg.attach(model, tg.Around(), 4, adapter=Odd())


def test_tokens_around_counts_each_block_by_itself():
    assert tokens_around([1, 5, 0], 3, 9) == [8, 4, 9]
    assert tokens_around({0: 4, 1: 0.9, 2: ("reconstruct", 5)}, 3, 9) == [4, 9, 5]
    assert tokens_around({1: "cluster"}, 2, 9, clusters=4) == [9, 4]
    assert tokens_around(99, 2, 9, lambda n: n - n // 2) == [5, 5]
    with pytest.raises(ValueError, match=r"Expected layers in \[0, 2\]"):
        tokens_around({3: 4}, 3, 9)
    with pytest.raises(ValueError, match="Expected keep >= 5 of 9 tokens at layer 1"):
        tokens_around({1: 3}, 3, 9, lambda n: n - n // 2)
    with pytest.raises(ValueError, match="Expected an int, a share or 'reconstruct'"):
        tokens_around({1: "cluster"}, 3, 9)
