"""DTEM in models: relaxed in training, ToMe on the learned metric in evaluation."""

import pytest
import torch
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.nn.relaxed_merge import relaxed_merge
from tokengraph.testing import make_tokens, tiny_vit

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def attached(model, schedule=3, **options):
    torch.manual_seed(4)
    return tg.attach(model, tg.DTEM(width=8, **options), schedule)


def test_evaluation_is_tome_on_the_metric_of_normed_rows():
    model = tiny_vit()
    handle = attached(model, {2: 9})
    seen = []
    model.blocks[1].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        model(IMAGES)
        metric = model.metric_layers[0](model.blocks[1].norm1(seen[0]))[:, 1:]
        expected = tg.tome(metric, 9, num_prefix=1)
    assert handle.trace.counts == [16, 16, 9, 9]
    assert torch.equal(handle.trace.source().cluster, expected.cluster)


def test_training_follows_the_relaxed_step_from_block_to_block():
    """By hand with the sorted sequence, whose first row stands aside; rows of the run keep their places."""
    model = tiny_vit(class_token=False, global_pool="avg").train()
    handle = attached(model, [4, 3, 0])
    x, size, active = None, None, 17
    with torch.no_grad():
        model(IMAGES)
        state = [handle.trace.state(layer) for layer in (1, 2, 3)]
        with handle.paused():
            start = model.pos_drop(model._pos_embed(model.patch_embed(IMAGES)))
        for layer, r in enumerate((4, 3)):
            block = model.blocks[layer]
            rows = start if x is None else x[:, 1:]
            weight = torch.ones(2, 16) if size is None else size[:, 1:]
            with handle.paused():
                bias = None if size is None else weight.clamp_min(1e-6).log()[:, None, None]
                rows_after = rows + block.attn(block.norm1(rows), attn_mask=bias)
            metric = handle.select.metrics[layer](block.norm1(rows))
            front = [torch.cat([t[:, :1] * 0, t], dim=1) for t in (rows_after, metric, weight)]
            step = relaxed_merge(front[0], front[1], front[2], r, active=active)
            x, size, active = step.x, step.size, step.active
            x = torch.cat([x[:, :1], x[:, 1:] + block.mlp(block.norm2(x[:, 1:]))], dim=1)
    assert [s.relaxed[1] for s in state] == [12, 9, 9] and active == 10
    for s, given in ((state[1], size),):
        assert_close(s.size.gather(1, s.relaxed[0]), given[:, 1:], rtol=0, atol=2e-6)
    assert_close(state[1].size.sum(dim=1), torch.full((2,), 16.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("detach", [True, False])
def test_every_metric_layer_gets_a_gradient(detach):
    model = tiny_vit().train()
    with attached(model, detach=detach) as handle:
        model(IMAGES).square().sum().backward()
        assert handle.trace.counts == [16] * 4
        for layer in handle.select.metrics[:2]:  # nothing follows the last block's step but the class token
            assert layer.weight.grad.isfinite().all() and layer.weight.grad.abs().sum() > 0


def test_checkpointed_blocks_have_the_same_gradients():
    grads = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        model = tiny_vit().train()
        model.set_grad_checkpointing(checkpoint)
        with attached(model):
            model(IMAGES).square().sum().backward()
            grads.append([p.grad for p in model.parameters()])
    for one, other in zip(*grads, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(one, other)


def test_a_few_steps_lower_the_distance_to_the_dense_model():
    model = tiny_vit()
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        dense = model(images)
    with attached(model, 5) as handle:
        optimizer = torch.optim.Adam(handle.select.metrics.parameters(), lr=1e-2)
        model.train()
        lost = []
        for _ in range(25):
            loss = (model(images) - dense).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lost.append(loss.item())
    assert lost[-1] < 0.9 * lost[0]


def test_sizes_weigh_rows_in_a_mean_head_in_training():
    """Where shares all but decide, the mean over tokens by size is near the mean over patches of hard merging."""
    model = tiny_vit(class_token=False, global_pool="avg").train()
    with torch.no_grad(), attached(model, [8, 0, 0]) as handle:
        tokens = model.forward_features(IMAGES)
        pooled = model.pool(tokens)
        size = handle.trace.state().size
    assert_close(pooled, (tokens * size[..., None]).sum(dim=1) / size.sum(dim=1, keepdim=True))


def test_state_dicts_carry_the_layers_and_remove_takes_them_out():
    model = tiny_vit()
    keys = set(model.state_dict())
    handle = attached(model, {1: 8, 2: 5})
    assert set(model.state_dict()) - keys == {f"metric_layers.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")}
    handle.remove()
    assert set(model.state_dict()) == keys
    with torch.no_grad(), tg.attach(model, handle.select, {1: 8, 2: 5}) as again:
        model(IMAGES)
        assert again.trace.counts == [16, 8, 5, 5]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="Expected width and neighbors of at least 1"):
        tg.DTEM(width=0)
    with pytest.raises(ValueError, match="Expected a DTEM after attach or bind"):
        tg.DTEM()(make_tokens(torch.randn(1, 16, 8), (4, 4)), 8)
    bound, _ = tg.DTEM().bind(16, 3)
    with pytest.raises(ValueError, match="Expected 4 metric layers of C=16 .got 3 of C=16"):
        bound.bind(16, 4)
    model = tiny_vit().train()
    with attached(model), pytest.raises(ValueError, match="Expected no attn_mask while the strategy trains"):
        model(IMAGES, attn_mask=torch.zeros(17, 17))


def test_padded_images_train_as_alone():
    x, mask = torch.randn(2, 9, 6), torch.arange(9) < torch.tensor([[9], [6]])
    bound, _ = tg.DTEM(width=4).bind(6, 1, [3])
    tokens = make_tokens(x, (3, 3), mask=mask)
    together = bound.relax(tokens, [6, 4])
    assert together.active == [6, 4] and not together.size[1, 6:].any()
    for b, (n, k) in enumerate(((9, 6), (6, 4))):
        alone = bound.relax(make_tokens(x[b : b + 1, :n], (1, n)), k)
        assert_close(together.x[b, :n], alone.x[0])
        assert_close(together.size[b, :n], alone.size[0])
