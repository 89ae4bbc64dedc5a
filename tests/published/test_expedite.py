"""Expedite through attach on stock timm models, against vectors of the released code (see reference/expedite)."""

import pytest
import torch
from needs import library
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.testing import tiny_vit

timm = library("timm")

RELEASED = tg.Expedite(inv_temperature=0.02, clusters=(8, 8), normalize="l2", ties="released", empty="zero")


def _toy(vectors, inputs):
    """The toy ViT of the vectors, fed with their tokens instead of an image."""
    state = vectors("expedite", "toy_vit_state")
    model = timm.models.VisionTransformer(
        img_size=128, patch_size=8, embed_dim=48, depth=6, num_heads=4, num_classes=0
    ).eval()
    missing = model.load_state_dict({k: v for k, v in state.items() if k[0] != "_"}, strict=False)
    assert not missing.unexpected_keys and len(missing.missing_keys) == 4  # embeddings, which are not used
    model.patch_embed.register_forward_hook(lambda m, args, out: inputs[:, 1:])
    model.pos_drop.register_forward_pre_hook(lambda m, args: (inputs,))
    return model


def test_the_toy_model_without_clustering_is_reproduced(vectors):
    v = vectors("expedite", "toy_vit_baseline")
    model = _toy(vectors, v["tokens_in"])
    with torch.no_grad():
        out = model.forward_features(torch.zeros(2, 3, 128, 128))
    assert_close(out, torch.cat([v["out_cls"][:, None], v["out_tokens"]], dim=1), rtol=0, atol=5e-5)


def test_the_toy_model_with_clustering_and_reconstruction_is_reproduced(vectors):
    v = vectors("expedite", "toy_vit_c2_r5")
    model = _toy(vectors, v["tokens_in"])
    seen = []
    with tg.attach(model, RELEASED, {3: "cluster"}, lift=True) as handle, torch.no_grad():
        for block in model.blocks:
            block.register_forward_hook(lambda m, args, out: seen.append(out))
        out = model.forward_features(torch.zeros(2, 3, 128, 128))
        for block in model.blocks:
            block._forward_hooks.clear()
    for i in (0, 1, 3, 4, 5):
        assert_close(seen[i], v[f"block{i}_out"], rtol=0, atol=5e-5)
    assert_close(seen[2][:, 1:], v["clustered_before"], rtol=0, atol=5e-5)  # clusters leave the block before
    assert handle.trace.counts == [256, 256, 256, 64, 64, 64, 64]
    assert_close(out[:, 0], v["out_cls"], rtol=0, atol=5e-5)
    assert_close(out[:, 1:], v["out_tokens"], rtol=0, atol=5e-5)


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64)


def _model(**options):
    return tiny_vit(img_size=64, **options)


def test_any_tensor_of_the_clusters_is_reconstructed(images):
    model = _model()
    select = tg.Expedite(clusters=(4, 4))
    with tg.attach(model, select, {1: "cluster"}) as handle, torch.no_grad():
        features = model.forward_features(images)
        logits = features[:, 1:] @ torch.randn(32, 5)
        trace = handle.trace
        assert trace.lift(logits).shape == (2, 64, 5)
        assert trace.as_map(features).shape == (2, 32, 8, 8)
        assert_close(trace.lift(torch.ones(2, 16, 1)), torch.ones(2, 64, 1))


def test_reconstruction_inside_the_model_gives_later_blocks_every_patch(images):
    model = _model()
    with tg.attach(model, tg.Expedite(clusters=(4, 4)), {1: "cluster", 2: "reconstruct"}) as handle, torch.no_grad():
        out = model.forward_features(images)
        assert out.shape == (2, 65, 32)
        assert handle.trace.counts == [64, 16, 64, 64]
        assert torch.equal(handle.trace.lift(out), out[:, 1:])
        maps = model.forward_intermediates(images, intermediates_only=True)
    assert {m.shape for m in maps} == {(2, 32, 8, 8)}


def test_as_many_clusters_as_patches_is_the_plain_model_bit_for_bit(images):
    model = _model()
    with torch.no_grad():
        plain = model(images)
        for schedule in ({1: "cluster"}, {1: "cluster", 2: 1.0}):
            with tg.attach(model, tg.Expedite(clusters=(8, 8)), schedule):
                assert torch.equal(model(images), plain)


@pytest.mark.parametrize("options", [{"class_token": False, "global_pool": "avg"}, {}, {"reg_tokens": 4}], ids=str)
def test_prefix_tokens_pass_through(images, options):
    model = _model(**options)
    seen = []
    with torch.no_grad():
        model.blocks[1].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        model(images)
        with tg.attach(model, tg.Expedite(clusters=(4, 4)), {1: "cluster"}):
            model(images)
    prefix = model.num_prefix_tokens
    assert seen[1].size(1) == prefix + 16
    assert torch.equal(seen[0][:, :prefix], seen[1][:, :prefix])


def test_state_dict_and_repeated_runs_do_not_change(images):
    model = _model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with tg.attach(model, tg.Expedite(clusters=(4, 4)), {1: "cluster", 3: "reconstruct"}), torch.no_grad():
        first, second = model(images), model(images)
    assert torch.equal(first, second)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_images_do_not_see_their_batch(images):
    model = _model()
    with tg.attach(model, tg.Expedite(clusters=(5, 4)), {1: "cluster", 3: "reconstruct"}), torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    assert_close(together, alone)


def test_rectangles_and_other_sizes():
    model = tiny_vit(img_size=(64, 96), dynamic_img_size=True)
    with tg.attach(model, tg.Expedite(), {1: 0.25, 3: "reconstruct"}) as handle, torch.no_grad():
        for size, count in (((64, 96), 24), ((96, 64), 24), ((40, 104), 16)):
            assert model.forward_features(torch.randn(2, 3, *size)).size(1) == 1 + size[0] * size[1] // 64
            assert handle.trace.counts[1] == count


def test_an_image_with_no_more_patches_than_clusters_runs_as_it_is():
    model = tiny_vit(img_size=64, dynamic_img_size=True)
    small = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = model(small)
        with tg.attach(model, tg.Expedite(clusters=(4, 4)), {1: "cluster", 2: "reconstruct"}) as handle:
            assert torch.equal(model(small), plain)
            assert handle.trace.counts == [16, 16, 16, 16]
            model(torch.randn(2, 3, 64, 64))
            assert handle.trace.counts == [64, 16, 64, 64]


def test_a_few_steps_of_training_lower_the_loss_through_clusters_and_back(images):
    model = _model(num_classes=5, class_token=False, global_pool="avg").train()
    with tg.attach(model, tg.Expedite(clusters=(4, 4)), {1: "cluster", 2: "reconstruct"}):
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        losses = []
        for _ in range(20):
            loss = torch.nn.functional.cross_entropy(model(images), torch.tensor([1, 4]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(p.grad is not None for p in model.blocks.parameters())


def test_gradients_are_the_same_under_checkpointing(images):
    grads = []
    for checkpointed in (False, True):
        model = _model(attn_drop_rate=0.2, proj_drop_rate=0.1, drop_path_rate=0.3).train()
        model.set_grad_checkpointing(checkpointed)
        torch.manual_seed(0)
        with tg.attach(model, tg.Expedite(clusters=(4, 4)), {1: "cluster", 3: "reconstruct"}):
            model(images).square().mean().backward()
        grads.append([p.grad for p in model.parameters()])
    for plain, again in zip(*grads, strict=True):
        assert_close(plain, again)


@pytest.mark.slow
def test_compiles_in_one_graph_with_the_eager_result(images):
    model = _model()
    with tg.attach(model, tg.Expedite(clusters=(4, 4)), {1: "cluster", 3: "reconstruct"}), torch.no_grad():
        eager = model(images)
        assert_close(torch.compile(model, fullgraph=True, backend="eager")(images), eager)
        assert_close(torch.export.export(model, (images,)).module()(images), eager)


def test_exports_with_a_batch_that_changes(images):
    model = _model()
    batch = torch.export.Dim("batch", min=2, max=64)
    with tg.attach(model, tg.Expedite(clusters=(4, 4)), {1: "cluster", 3: "reconstruct"}), torch.no_grad():
        exported = torch.export.export(model, (images,), dynamic_shapes={"x": {0: batch}}).module()
        more = torch.randn(5, 3, 64, 64)
        assert_close(exported(more), model(more))


def test_clusters_and_reconstructs_twice_and_before_the_first_block(images):
    model = _model()
    schedule = {0: "cluster", 1: "reconstruct", 2: "cluster", 3: "reconstruct"}
    with tg.attach(model, tg.Expedite(clusters=(4, 4)), schedule) as handle, torch.no_grad():
        assert model.forward_features(images).shape == (2, 65, 32)
        assert handle.trace.counts == [16, 64, 16, 64]
        for layer, count in enumerate(handle.trace.counts):
            ones = torch.ones(2, count, 1)
            assert_close(handle.trace.lift(ones, layer=layer), torch.ones(2, 64, 1))


def test_a_first_run_in_inference_mode_does_not_spoil_training():
    model = tiny_vit(img_size=(56, 72))  # a grid whose tables no other test has made
    with tg.attach(model, tg.Expedite(clusters=(3, 5)), {1: "cluster", 2: "reconstruct"}) as handle:
        images = torch.randn(2, 3, 56, 72)
        with torch.inference_mode():
            model(images)
            handle.trace.as_map()
        model.train()(images).square().mean().backward()
    assert all(p.grad is not None for p in model.blocks.parameters())


def test_half_precision_stays_finite(images):
    model = _model()
    with tg.attach(model, tg.Expedite(clusters=(4, 4)), {1: "cluster", 3: "reconstruct"}), torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(images).isfinite().all()
        assert model.bfloat16()(images.bfloat16()).isfinite().all()


@pytest.mark.parametrize(
    ("select", "schedule", "message"),
    [
        (tg.Expedite(), {1: "cluster"}, "a strategy with its own number of clusters"),
        (tg.Expedite(clusters=(4, 4)), {1: "reconstruct"}, "something to reconstruct"),
        (tg.Expedite(clusters=(4, 4)), {1: "cluster", 2: 8}, "act on the full grid only"),
        (tg.TopK(), {1: 8, 2: "reconstruct"}, "a strategy that can reconstruct"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(select, schedule, message):
    model = _model()
    with pytest.raises(ValueError, match=message):
        tg.attach(model, select, schedule)
    tg.attach(model, "tome", 1).remove()  # nothing was changed


def test_other_strategies_reconstruct_too(images):
    model = _model()
    with tg.attach(model, "dpc-knn", {1: 20, 3: "reconstruct"}) as handle, torch.no_grad():
        assert model.forward_features(images).size(1) == 65
        assert handle.trace.counts == [64, 20, 20, 64]


def test_clusters_know_how_many_patches_they_stand_for(images):
    model = _model()
    with tg.attach(model, tg.Expedite(clusters=(4, 4)), {1: "cluster"}) as handle, torch.no_grad():
        model(images)
        size = handle.trace.size()
    assert size.shape == (2, 16) and size.std() > 0
    assert_close(size.sum(1), torch.full((2,), 64.0))


def test_an_empty_batch_passes_through():
    model = _model()
    with tg.attach(model, tg.Expedite(clusters=(4, 4)), {1: "cluster", 3: "reconstruct"}), torch.no_grad():
        assert model(torch.zeros(0, 3, 64, 64)).shape[0] == 0


def test_a_number_other_than_the_strategys_own_is_refused_at_once():
    with pytest.raises(ValueError, match="leaves the 16 tokens that Expedite is set to make .*got 32"):
        tg.attach(_model(), tg.Expedite(clusters=(4, 4)), {1: 0.5})
