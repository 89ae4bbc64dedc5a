"""GTP-ViT through attach on stock timm models, against vectors of the published code (see reference/gtp/README.md)."""

import pytest
import torch
from needs import library
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.testing import tiny_vit

timm = library("timm")


def _model(v):
    model = timm.models.VisionTransformer(img_size=64, patch_size=8, embed_dim=48, depth=4, num_heads=3, num_classes=10)
    model.load_state_dict({k[3:]: t for k, t in v.items() if k.startswith("sd/")}, strict=True)
    return model.eval()


def _by_patch(rows, patches, width=64):
    """Rows in the order of ``patches [B, n]`` put where their patch lies, to compare results of any order."""
    out = torch.zeros(rows.size(0), width, *rows.shape[2:])
    return out.scatter_(1, patches.long().view(*patches.shape, *[1] * (rows.dim() - 2)).expand_as(rows), rows)


def _select(name, order="index"):
    if name == "model_a_spatial":
        return tg.GTP(graph="spatial", alpha=0.1, scales=False, order=order), 4
    return tg.GTP(graph="mixed", neighbors=8, alpha=0.3, sparsity=0.8, scales=True, order=order), [2, 4, 6, 8]


@pytest.mark.parametrize("order", ["index", "score"])
@pytest.mark.parametrize("name", ["model_a_spatial", "model_b_mixed"])
def test_models_of_the_published_code_are_reproduced(vectors, name, order):
    v = vectors("gtp", name)
    model = _model(v)
    seen = {}
    for i, block in enumerate(model.blocks):
        block.norm2.register_forward_pre_hook(lambda m, args, i=i: seen.update({i: args[0]}))
    with tg.attach(model, *_select(name, order)) as handle, torch.no_grad():
        logits = model(v["image"])
        trace = handle.trace
        for i in range(4):
            ancestor = trace.lineage(i + 1).ancestor
            kept = v[f"l{i}_orig_kept"].long()
            assert torch.equal(ancestor.sort(1)[0], kept.sort(1)[0])
            if order == "score":
                assert torch.equal(ancestor, kept)
            ours, theirs = seen[i], v[f"l{i}_x_after_prop"]
            assert_close(ours[:, 0], theirs[:, 0], rtol=0, atol=2e-5)
            assert_close(_by_patch(ours[:, 1:], ancestor), _by_patch(theirs[:, 1:], kept), rtol=0, atol=2e-5)
            if f"l{i}_scales" in v:
                assert_close(_by_patch(trace.size(i + 1), ancestor), _by_patch(v[f"l{i}_scales"][:, 1:], kept))
        for layer, wanted in ((0, v["graph0"]), (1, v["l0_graph"]), (4, v["l3_graph"])):
            kept = torch.arange(64).expand(2, -1) if layer == 0 else v[f"l{layer - 1}_orig_kept"].long()
            _check_graph(trace, layer, wanted, kept)
    assert_close(logits, v["logits"], rtol=0, atol=1e-5)


def _check_graph(trace, layer, wanted, kept):
    graph, count = trace.graph(layer), wanted.size(1)
    patch = trace.lineage(layer).ancestor
    patch = torch.arange(count).expand(2, -1) if patch is None else patch
    image = graph.edge_index[0] // count
    sender, receiver = (patch.flatten()[graph.edge_index[i]] for i in (0, 1))
    ours, theirs = torch.zeros(2, 64, 64), torch.zeros(2, 64, 64)
    ours[image, receiver, sender] = graph.edge_weight
    for b in range(2):
        theirs[b][kept[b][:, None], kept[b][None]] = wanted[b]
    assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_block_of_the_published_code_is_reproduced(vectors):
    v = vectors("gtp", "block_a")
    model = timm.models.VisionTransformer(
        img_size=56, patch_size=8, embed_dim=48, depth=1, num_heads=3, num_classes=0
    ).eval()
    model.blocks[0].load_state_dict({k[3:]: t for k, t in v.items() if k.startswith("sd/")})
    inputs = v["x_in"]
    seen = {}
    model.patch_embed.register_forward_hook(lambda m, args, out: inputs[:, 1:])
    model.pos_drop.register_forward_pre_hook(lambda m, args: (inputs,))
    model.norm.register_forward_pre_hook(lambda m, args: seen.update(out=args[0]))
    with tg.attach(model, tg.GTP(graph="spatial", scales=False), 8) as handle, torch.no_grad():
        model(torch.zeros(2, 3, 56, 56))
        patch = handle.trace.lineage(1).ancestor
    kept = v["index_kept"].long() - 1
    assert torch.equal(patch.sort(1)[0], kept.sort(1)[0])
    assert_close(seen["out"][:, 0], v["x_out"][:, 0], rtol=0, atol=1e-5)
    ours, theirs = _by_patch(seen["out"][:, 1:], patch), _by_patch(v["x_out"][:, 1:], kept)
    assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize(
    "same",
    [
        (tg.GTP(alpha=0.0, scales=False), tg.GTP(mode="none", scales=False)),
        (tg.GTP(alpha=0.0, scales=True), tg.GTP(mode="none", scales=False)),  # scales of one weigh nothing
        (tg.GTP(order="index"), tg.GTP(order="score")),
    ],
    ids=["alpha 0", "alpha 0 with scales", "order"],
)
def test_settings_that_mean_the_same_give_the_same(images, same):
    outs = []
    for select in same:
        model = tiny_vit()
        with tg.attach(model, select, 3), torch.no_grad():
            outs.append(model(images))
    assert_close(*outs, rtol=1e-5, atol=1e-5)


def test_nothing_removed_is_the_plain_model_bit_for_bit(images):
    model = tiny_vit()
    with torch.no_grad():
        plain = model(images)
        with tg.attach(model, tg.GTP(sparsity=0.5), 0):
            assert torch.equal(model(images), plain)


def test_only_layers_that_reduce_leave_their_fused_attention(images, monkeypatch):
    model = tiny_vit()
    opened, plain = [], tg.GTP.edit_attention
    monkeypatch.setattr(tg.GTP, "edit_attention", lambda self, a: opened.append(list(a.shape)) or plain(self, a))
    with torch.no_grad():
        with tg.attach(model, tg.GTP(), [0, 4, 0]):
            model(images)
        assert opened == [[2, 4, 17, 17]]  # the map of the second block only
        with tg.attach(model, tg.GTP(score="cls-mean"), 4):
            model(images)
    assert opened == [[2, 4, 17, 17]]  # one row of it, for the class token, needs no map


@pytest.mark.parametrize(
    "score", ["cls-max", "image-mean", "diag-max", "mixed-mean", "sum-max", "cosine-mean", "random"]
)
def test_images_do_not_see_their_batch(images, score):
    model = tiny_vit()
    with tg.attach(model, tg.GTP(score=score, sparsity=0.7), 4), torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    assert_close(together, alone)


@pytest.mark.parametrize("options", [{"class_token": False, "global_pool": "avg"}, {}, {"reg_tokens": 4}], ids=str)
def test_any_number_of_prefix_tokens_pass_propagation_bit_for_bit(images, options):
    model = tiny_vit(**options)
    prefix, seen = model.num_prefix_tokens, []
    model.blocks[0].attn.fused_attn = False  # as where the map is open
    model.blocks[0].norm2.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        model(images)
        with tg.attach(model, tg.GTP(alpha=0.5), 4) as handle:
            assert model(images).isfinite().all()
    plain, coarse = seen
    assert coarse.size(1) == prefix + 12 and torch.equal(coarse[:, :prefix], plain[:, :prefix])
    assert handle.trace.counts == [16, 12, 8, 4]
    for layer in (1, 2, 3):
        sizes = handle.trace.state(layer).size
        assert (sizes[:, :prefix] == 1).all() and (sizes[:, prefix:] >= 1).all()
        assert (sizes[:, prefix:] > 1).any()


def test_mean_mode_keeps_one_more_token(images):
    model = tiny_vit()
    with tg.attach(model, tg.GTP(mode="mean"), 4) as handle, torch.no_grad():
        assert model(images).isfinite().all()
        assert handle.trace.lift(torch.ones(2, 4, 5)).min() == 1  # every patch has somewhere to come back from
    assert handle.trace.counts == [16, 12, 8, 4]


def test_rectangles_and_other_sizes(images):
    model = tiny_vit(img_size=(32, 48), dynamic_img_size=True)
    with tg.attach(model, tg.GTP(), 3) as handle, torch.no_grad():
        for size in ((32, 48), (48, 32), (8, 64)):
            assert model(torch.randn(2, 3, *size)).isfinite().all()
            graph = handle.trace.graph(0)
            assert graph.num_nodes == 2 * size[0] * size[1] // 64


def test_a_few_steps_of_training_lower_the_loss_through_every_layer(images):
    model = tiny_vit(num_classes=5).train()
    with tg.attach(model, tg.GTP(sparsity=0.8, alpha=0.3), 3):
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        losses = []
        for _ in range(20):
            loss = torch.nn.functional.cross_entropy(model(images), torch.tensor([1, 4]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_backward_works_in_eval_mode_with_sparse_attention(images):
    model = tiny_vit()
    with tg.attach(model, tg.GTP(sparsity=0.5), 3):
        model(images).square().mean().backward()  # published: an error
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_state_dict_is_the_models_own(images):
    model, other = tiny_vit(), tiny_vit(seed=1)
    keys = list(model.state_dict())
    with tg.attach(model, tg.GTP(), 3), torch.no_grad():
        model(images)
        assert list(model.state_dict()) == keys
        model.load_state_dict(other.state_dict(), strict=True)


def test_a_first_run_in_inference_mode_does_not_spoil_training():
    model = tiny_vit(img_size=(56, 72))  # a grid whose tables no other test has made
    with tg.attach(model, tg.GTP(), 5) as handle:
        images = torch.randn(2, 3, 56, 72)
        with torch.inference_mode():
            model(images)
            handle.trace.as_map()
        model.train()(images).square().mean().backward()
    assert all(p.grad is not None for p in model.blocks.parameters())


def test_dropped_patches_leave_no_grid_but_a_semantic_graph_is_possible(images):
    model = tiny_vit(patch_drop_rate=0.5).train()
    with tg.attach(model, tg.GTP(), 3), pytest.raises(ValueError, match="dropped in train mode"):
        model(images)
    with tg.attach(model, tg.GTP(graph="semantic"), [0, 3, 0]) as handle:
        model(images).square().mean().backward()
        assert handle.trace.graph().num_nodes == 2 * 5


@pytest.mark.parametrize(
    "dropout", [{}, {"attn_drop_rate": 0.2, "proj_drop_rate": 0.1, "drop_path_rate": 0.3}], ids=str
)
def test_gradients_are_the_same_under_checkpointing(images, dropout):
    grads = []
    for checkpointed in (False, True):
        model = tiny_vit(**dropout).train()
        model.set_grad_checkpointing(checkpointed)
        torch.manual_seed(0)
        with tg.attach(model, tg.GTP(), 3):
            model(images).square().mean().backward()
        grads.append([p.grad for p in model.parameters()])
    for plain, again in zip(*grads, strict=True):
        assert_close(plain, again)


ALL = tg.GTP(), tg.GTP(graph="spatial", sparsity=0.7), tg.GTP(score="cls-max")


@pytest.mark.slow
@pytest.mark.parametrize("select", ALL, ids=repr)
def test_compiles_in_one_graph_with_the_eager_result(images, select):
    model = tiny_vit()
    with tg.attach(model, select, 3), torch.no_grad():
        eager = model(images)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert_close(compiled(images), eager)
        exported = torch.export.export(model, (images,)).module()
        assert_close(exported(images), eager)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_no_nan(images, dtype):
    model = tiny_vit()
    with tg.attach(model, tg.GTP(sparsity=0.7), 3), torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(images).isfinite().all()
        assert model.to(dtype)(images.to(dtype)).isfinite().all()


def test_the_graph_of_a_strategy_without_one_is_refused(images):
    model = tiny_vit()
    with tg.attach(model, "tome", 3) as handle, torch.no_grad():
        model(images)
        with pytest.raises(ValueError, match="a strategy with a graph"):
            handle.trace.graph(1)


def test_a_class_score_without_a_class_token_is_refused():
    with pytest.raises(ValueError, match="a model with a class token"):
        tg.attach(tiny_vit(class_token=False, global_pool="avg"), tg.GTP(score="cls-mean"), 3)


def test_a_schedule_that_leaves_no_token_is_refused():
    with pytest.raises(ValueError, match="keep >= 1"):
        tg.attach(tiny_vit(), tg.GTP(), {1: 0})


@pytest.mark.slow  # tests/published/test_expedite.py has it for another method
def test_exports_with_a_batch_that_changes(images):
    model = tiny_vit()
    batch = torch.export.Dim("batch", min=2, max=64)
    with tg.attach(model, tg.GTP(), 3), torch.no_grad():
        exported = torch.export.export(model, (images,), dynamic_shapes={"x": {0: batch}}).module()
        more = torch.randn(5, 3, 32, 32)
        assert_close(exported(more), model(more))


def test_nodes_of_the_graph_have_the_tokens_scales(images):
    model = tiny_vit()
    with tg.attach(model, tg.GTP(), 4) as handle, torch.no_grad():
        model(images)
        graph = handle.trace.graph(2)
        assert torch.equal(graph.size.view(2, -1), handle.trace.size(2)) and graph.size.max() > 1


def test_a_mask_of_the_user_behind_a_reduction_is_refused_with_a_way_out(images):
    model = tiny_vit()
    with (
        tg.attach(model, tg.GTP(), 4),
        pytest.raises(ValueError, match="no attn_mask after a reduction .* ToMe or TopK"),
    ):
        model.forward_features(images, attn_mask=torch.zeros(1, 1, 17, 17))
