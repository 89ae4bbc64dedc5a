"""Blocks of nn.MultiheadAttention under a strategy: a user's own encoders, and open_clip.

The laws that every model keeps are in ``test_architectures.py``.
"""

import contextlib

import pytest
import torch
from multihead_cases import KINDS, STRATEGIES, Own, attach, blocks, images, make, run
from strategies import paired
from torch.testing import assert_close

import tokengraph as tg


@pytest.fixture(name="images")
def two_images():
    return images()


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_removed_is_bit_identical_on_torchs_fast_path_and_beside_it(kind, grad, train, images):
    model = make(kind).train(train)

    def ran():
        torch.manual_seed(7)
        with contextlib.nullcontext() if grad else torch.no_grad():
            return model(images).detach()

    plain = ran()
    for name in ("tome", "topk", tg.GTP(sparsity=0.5)):
        with attach(model, kind, name, 0):
            assert torch.equal(ran(), plain)


@pytest.mark.parametrize(("kind", "strategy"), paired(KINDS, STRATEGIES))
def test_every_strategy_runs_and_treats_images_alone(kind, strategy, images):
    model = make(kind)
    with attach(model, kind, *STRATEGIES[strategy]) as handle:
        out = run(model, images)
        assert_close(out, torch.cat([run(model, image[None]) for image in images]), rtol=1e-4, atol=1e-4)
        assert min(handle.trace.counts + handle.trace.counts_inside) < 16


@pytest.mark.parametrize("strategy", ["tome", "topk", "gtp-sparse", "dynamicvit"])
@pytest.mark.parametrize("kind", ["own_sequence_first", "own_relu"])
def test_fast_path_and_order_of_axes_change_nothing(kind, strategy, images):
    model, other = make(kind), make("own" if kind == "own_sequence_first" else kind)
    if kind == "own_sequence_first":
        model = Own(batch_first=False)
        model.load_state_dict(other.state_dict())
        model.eval()
    outs = []
    for each, fast in ((model, True), (other, False)):
        torch.manual_seed(3)
        with attach(each, kind, *STRATEGIES[strategy]):
            torch.backends.mha.set_fastpath_enabled(fast)
            try:
                outs.append(run(each, images))
            finally:
                torch.backends.mha.set_fastpath_enabled(True)
    assert_close(*outs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_the_open_map(kind, images):
    seen = []

    class Spy(tg.Select):
        merges, needs_map = False, False

        def __call__(self, tokens, budget):
            stats = tokens.attention
            seen.append((stats.rows(0, 3), stats.column_sums(), stats.diagonal()))
            return tg.topk(tokens.x.sum(dim=2), budget)

    class Open(Spy):
        needs_map = True

    for select in (Spy(), Open()):
        model = make(kind)
        with attach(model, kind, select, {2: 12}):
            run(model, images)
    for ours, theirs in zip(*seen, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_tokens_are_gone_for_the_stock_layers_behind(kind, images):
    model = make(kind)
    with attach(model, kind, tg.TopK(score="norm"), {1: 7}) as handle:
        out = run(model, images)
        patch = handle.trace.lineage(1).ancestor
    held = []
    hook = blocks(model)[0].register_forward_hook(lambda m, args, o: held.append(o))
    run(model, images)
    hook.remove()
    first = isinstance(model, Own) and not model.batch_first
    whole = held[0].transpose(0, 1) if first else held[0]
    for b in range(2):  # by hand, one image at a time
        x = torch.cat([whole[b, :1], whole[b, 1:][patch[b]]])[None]
        with torch.no_grad():
            for block in blocks(model)[1:]:
                x = block(x.transpose(0, 1)).transpose(0, 1) if first else block(x)
            wanted = (
                model.head(model.encoder.norm(x)[:, 0]) if isinstance(model, Own) else model._pool(x)[0] @ model.proj
            )
        assert_close(out[b], wanted[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", ["tome", "gtp-sparse", "dynamicvit"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_under_bfloat16_autocast_stays_finite(kind, strategy, images):
    model = make(kind).train()
    with attach(model, kind, *STRATEGIES[strategy]):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(images).float().square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
