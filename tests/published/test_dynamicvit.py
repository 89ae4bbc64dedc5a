"""DynamicViT through attach on stock timm models, against vectors of the published code."""

import copy

import pytest
import torch
from needs import library
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.losses import DynamicViTLoss
from tokengraph.testing import tiny_vit

timm = library("timm")


def _attached(vectors, **options):
    v = vectors("dynamicvit", "dyvit64_eval")
    model = timm.models.VisionTransformer(
        img_size=64, patch_size=8, embed_dim=48, depth=6, num_heads=3, num_classes=10
    ).eval()
    select = tg.DynamicViT(layers=[1, 3], ratios=[0.7, 0.5], **options)
    handle = tg.attach(model, select)
    model.load_state_dict({k[3:]: t for k, t in v.items() if k.startswith("sd.")}, strict=True)
    return model, handle, v


def _error(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("order", ["index", "score"])
def test_evaluation_of_the_published_code_is_reproduced(vectors, order):
    model, handle, v = _attached(vectors, order=order)
    seen = []
    for i in (1, 3):
        model.blocks[i].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        tokens = model.forward_features(v["image"])
        logits = model.forward_head(tokens)
    trace = handle.trace
    assert trace.counts == [64, 44, 44, 32, 32, 32, 32]
    for stage, layer in enumerate((1, 3)):
        patch, theirs = trace.lineage(layer).ancestor, v[f"keep_abs_{stage}"]
        assert torch.equal(patch.sort(1)[0], theirs.sort(1)[0])
        if order == "score":
            assert torch.equal(patch, theirs)
            assert _error(seen[stage], v[f"tokens_{stage}"]) < 2e-5
    if order == "score":
        assert _error(tokens, v["final_tokens"]) < 2e-5
    assert _error(logits, v["logits"]) < 2e-5


@pytest.mark.parametrize("official", [True, False])
def test_training_of_the_published_code_is_reproduced_with_gradients(vectors, official):
    t = vectors("dynamicvit", "dyvit64_train")
    model, handle, v = _attached(vectors, official=official)
    model.train()
    handle.select.noise = [t["noise_0"], t["noise_1"]]
    tokens = model.forward_features(t["image"])
    logits = model.forward_head(tokens)
    for ours, stage in zip(handle.trace.decisions, (0, 1), strict=True):
        assert torch.equal(ours.detach(), t[f"decision_{stage}"])
    assert _error(logits, t["logits"]) < 2e-5 and _error(tokens[:, 1:], t["features"]) < 2e-5
    criterion = DynamicViTLoss([0.7, 0.5], official=True)  # divides by 3 although there are 2 stages
    teacher = v["teacher_logits"], v["teacher_tokens"]
    loss, parts = criterion(logits, t["labels"], handle.trace.decisions, tokens=tokens[:, 1:], teacher=teacher)
    assert _error(loss, t["loss"]) < 2e-5
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert _error(parameter.grad, t[f"grad.{name}"]) < (2e-4 if official else 2e-3), name


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


def test_predictors_live_in_the_model_and_leave_with_remove():
    model = tiny_vit()
    before = set(model.state_dict())
    handle = tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2]))
    added = set(model.state_dict()) - before
    assert {k.split(".")[0] for k in added} == {"score_predictor"} and len(added) == 2 * 10
    names = {n for n, _ in model.named_parameters()}
    assert "score_predictor.1.out_conv.4.weight" in names
    handle.remove()
    assert set(model.state_dict()) == before and not hasattr(model, "score_predictor")


def test_trained_predictors_can_be_attached_again(images):
    model = tiny_vit()
    handle = tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2]))
    with torch.no_grad():
        first = model(images)
        handle.remove()
        tg.attach(model, handle.select)
        assert torch.equal(model(images), first)


def test_copies_and_saved_models_have_predictors_of_their_own(images, tmp_path):
    model = tiny_vit()
    tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2]))
    torch.save(model, tmp_path / "model.pt")
    for twin in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        with torch.no_grad():
            assert torch.equal(twin(images), model(images))
            for p in twin.score_predictor.parameters():
                p.add_(torch.randn_like(p))
            twin(images)
            assert not torch.equal(twin(images), model(images))


def test_training_and_evaluation_agree_for_the_same_decisions(images):
    model = tiny_vit(num_classes=5)
    handle = tg.attach(model, tg.DynamicViT(layers=[1, 2], ratios=[0.5, 0.25]))
    with torch.no_grad():
        pruned = model(images)
        noise = []
        for layer in (1, 2):  # noise that draws the tokens that evaluation has kept
            kept = torch.zeros(2, 16).scatter_(1, handle.trace.lineage(layer).ancestor, 1.0)
            noise.append(torch.stack([kept, 1 - kept], dim=2) * 1e4)
        handle.select.noise = noise
        masked = model.train()(images)
    assert_close(masked, pruned, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}])
def test_pooled_and_registered_models_agree_too(images, options):
    model = tiny_vit(num_classes=5, **options)
    handle = tg.attach(model, tg.DynamicViT(layers=[1], ratios=[0.5]))
    with torch.no_grad():
        pruned = model(images)
        kept = torch.zeros(2, 16).scatter_(1, handle.trace.lineage(1).ancestor, 1.0)
        handle.select.noise = [torch.stack([kept, 1 - kept], dim=2) * 1e4]
        assert_close(model.train()(images), pruned, rtol=1e-5, atol=1e-5)


def test_gradients_reach_newly_dropped_tokens_but_not_those_dropped_before(images):
    model = tiny_vit().train()
    handle = tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2]))
    out = model(images)
    first, second = handle.trace.decisions
    for d in (first, second):
        d.retain_grad()
    out.square().sum().backward()
    dropped = (first == 0) & (second == 0)
    assert ((first == 0) & (first.grad != 0)).any()
    logp_gone = model.score_predictor[1].out_conv[4].weight.grad
    assert logp_gone is not None and logp_gone.abs().sum() > 0
    assert dropped.any()


def test_keep_all_tokens_is_the_plain_model_bit_for_bit(images):
    model = tiny_vit()
    with torch.no_grad():
        plain = model(images)
        with tg.attach(model, tg.DynamicViT(1.0, layers=[1, 2])):
            assert torch.equal(model(images), plain)


def test_counts_are_floors_of_shares_of_the_input():
    model = timm.create_model("deit_tiny_patch16_224")
    handle = tg.attach(model, tg.DynamicViT(0.7))
    assert [handle.trace.counts[i] for i in (3, 4, 7, 10)] == [137, 137, 96, 67]
    handle.remove()
    assert tg.attach(model, tg.DynamicViT(), {2: 0.5}).trace.counts[2] == 98


def test_a_threshold_keeps_what_is_likely_and_images_differ_like_one_at_a_time():
    model = tiny_vit(img_size=64)
    images = torch.randn(4, 3, 64, 64) * torch.tensor([0.2, 1.0, 3.0, 10.0]).view(4, 1, 1, 1)
    handle = tg.attach(model, tg.DynamicViT(layers=[1, 2], threshold=0.5))
    with torch.no_grad():
        for p in model.score_predictor.parameters():
            p.add_(torch.randn_like(p) * 0.3)
        together = model(images)
        counts = handle.trace.counts_per_image()
        alone, each = [], []
        for image in images:
            alone.append(model(image[None]))
            each += handle.trace.counts_per_image()
    assert counts == each and len(set(counts)) > 1
    assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_threshold_that_nothing_meets_keeps_the_best(images):
    model = tiny_vit()
    handle = tg.attach(model, tg.DynamicViT(layers=[1], threshold=0.999, min_keep=3))
    with torch.no_grad():
        model(images)
    assert handle.trace.counts_per_image() == [3, 3]


@pytest.mark.slow
def test_compiles_in_one_graph_in_evaluation(images):
    model = tiny_vit()
    with tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2])), torch.no_grad():
        eager = model(images)
        assert_close(torch.compile(model, fullgraph=True, backend="eager")(images), eager)
        assert_close(torch.export.export(model, (images,)).module()(images), eager)


def test_checkpointed_training_has_the_gradients_of_plain_training(images):
    grads = []
    for checkpointed in (False, True):
        model = tiny_vit().train()
        model.set_grad_checkpointing(checkpointed)
        torch.manual_seed(3)
        handle = tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2]))
        torch.manual_seed(4)
        out = model(images)
        (out.square().mean() + handle.trace.decisions[-1].mean()).backward()
        grads.append([p.grad for p in model.parameters()])
    for plain, again in zip(*grads, strict=True):
        assert_close(plain, again)


def test_half_precision_trains_without_nan(images):
    model = tiny_vit(num_classes=5).train()
    handle = tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images).float().square().mean()
    (loss + handle.trace.decisions[-1].mean()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert loss.isfinite()


def test_an_image_that_keeps_nothing_stays_finite(images):
    model = tiny_vit(num_classes=5).train()
    handle = tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2]))
    nothing = torch.tensor([-1e4, 1e4]).expand(2, 16, 2)
    handle.select.noise = [nothing, nothing]
    out = model(images)
    assert out.isfinite().all() and handle.trace.decisions[0].sum() == 0
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("select", "schedule", "message"),
    [
        (tg.DynamicViT(layers=[3]), None, r"layers in \[1, 2\]"),
        (tg.DynamicViT(), {1: 8}, r"a schedule \{layer: share\}"),
        (tg.DynamicViT(), 4, r"a schedule \{layer: share\}"),
        ("tome", None, "a schedule for ToMe"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(select, schedule, message):
    model = tiny_vit()
    with pytest.raises(ValueError, match=message):
        tg.attach(model, select, schedule)
    assert not hasattr(model, "score_predictor")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, r"shares in \(0, 1\]"),
        ({"ratios": [-0.1]}, r"shares in \(0, 1\]"),
        ({"layers": [0, 2]}, "ascending layers"),
        ({"layers": [2], "ratios": [0.5, 0.2]}, "one ratio a layer"),
        ({"threshold": 1.5}, r"threshold in \(0, 1\)"),
        ({"min_keep": 0}, "min_keep >= 1"),
        ({"gradient_cap": 0.5}, "gradient_cap >= 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tg.DynamicViT(**options)


def test_a_mask_of_the_user_is_refused_while_decisions_are_drawn(images):
    model = tiny_vit().train()
    tg.attach(model, tg.DynamicViT(0.5, layers=[1]))
    with pytest.raises(ValueError, match="no attn_mask while the strategy trains"):
        model.forward_features(images, attn_mask=torch.zeros(1, 1, 17, 17))


def test_a_dropped_token_affects_no_other_and_never_returns(images):
    model = tiny_vit().train()
    handle = tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2]))
    torch.manual_seed(2)
    model(images)
    first, second = handle.trace.decisions
    assert (second <= first).all() and (first == 0).any() and (first == 1).any()
    # With decisions held fixed, what a dropped token holds changes nothing elsewhere: neither output nor gradient.
    noise = [torch.stack([d, 1 - d], dim=2).detach() * 1e4 for d in (first, second)]
    handle.select.noise = noise
    dropped = torch.cat([torch.zeros(2, 1), 1 - first.detach()], dim=1).bool()
    outs, bump = [], torch.zeros(2, 17, 32, requires_grad=True)
    hook = model.blocks[1].register_forward_pre_hook(lambda m, args: (args[0] + bump,))
    for _ in range(2):
        out = model.forward_features(images)
        outs.append(out.detach())
        (gradient,) = torch.autograd.grad(out[~dropped].square().sum(), bump)
        bump = torch.where(dropped[..., None], torch.randn(2, 17, 32) * 100, 0.0).requires_grad_()
    hook.remove()
    assert torch.equal(outs[0][~dropped], outs[1][~dropped]) and not torch.equal(*outs)
    assert (gradient[dropped] == 0).all() and (gradient[~dropped] != 0).any()


def test_decisions_follow_the_random_state(images):
    model = tiny_vit().train()
    handle = tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2]))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model(images)
        drawn.append(torch.stack(handle.trace.decisions))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert set(drawn[0].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_images_are_what_they_are_alone(count):
    model, images = tiny_vit(num_classes=5), torch.randn(count, 3, 32, 32)
    with tg.attach(model, tg.DynamicViT(0.6, layers=[1, 2])), torch.no_grad():
        assert_close(model(images), torch.cat([model(image[None]) for image in images]))


def test_predictors_follow_the_device_dtype_and_mode_of_the_model():
    model = tiny_vit().double().train()
    handle = tg.attach(model, tg.DynamicViT(0.5, layers=[1]))
    parameter = next(handle.select.predictors.parameters())
    assert parameter.dtype == torch.float64 and handle.select.predictors.training
    model.eval()
    assert not handle.select.predictors.training
    handle.remove()
    model = tiny_vit()
    for p in model.parameters():
        p.requires_grad_(False)
    handle = tg.attach(model, tg.DynamicViT(0.5, layers=[1]))
    assert all(p.requires_grad for p in handle.select.predictors.parameters())
