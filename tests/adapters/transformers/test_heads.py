"""Heads of transformers over coarse tokens: averages and attention over patches as if each had its cluster's features.

An image's pooled features depend neither on other images of the batch nor on dropped tokens.
"""

import pytest
import torch
from architectures import SIZES, spread
from needs import library
from strategies import Uneven
from torch.testing import assert_close

import tokengraph as tg

transformers = library("transformers")

TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 30}
TWO = {"text_config": TEXT, "vision_config": SIZES}
AVERAGES = {  # name: config, its options, where the model inside is, the channels of the classifier's input to compare
    "SiglipForImageClassification": ("SiglipConfig", TWO, "vision_model", slice(None)),
    "CLIPForImageClassification": ("CLIPConfig", TWO, "vision_model", slice(None)),
    "IJepaForImageClassification": ("IJepaConfig", SIZES, "ijepa", slice(None)),
    "Dinov2ForImageClassification": ("Dinov2Config", SIZES, "dinov2", slice(32, None)),
    "Dinov2WithRegistersForImageClassification": (
        "Dinov2WithRegistersConfig",
        SIZES | {"num_register_tokens": 3},
        "dinov2_with_registers",
        slice(32, None),
    ),
}
CLASS_TOKEN = {  # classifiers of the class token
    "ViTForImageClassification": ("ViTConfig", SIZES),
    "DeiTForImageClassification": ("DeiTConfig", SIZES),
    "ViTMSNForImageClassification": ("ViTMSNConfig", SIZES),
}


def make(name, config, options):
    return spread(lambda: getattr(transformers, name)(getattr(transformers, config)(num_labels=5, **options)))


def head():
    return spread(lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES)))


def averaged(model):
    """Runs the model on images; returns the input of its classifier."""
    seen = []
    hook = model.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))

    def run(images):
        model(images)
        return seen.pop()

    return run, hook


@pytest.fixture
def images():
    scale = torch.tensor([0.1, 1.0, 3.0, 10.0]).view(4, 1, 1, 1)
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * scale


@pytest.fixture(params=AVERAGES)
def classifier(request):
    """A classifier that averages, its model inside, and the channels of the average."""
    config, options, inside, where = AVERAGES[request.param]
    model = make(request.param, config, options)
    return model, getattr(model, inside), where


def normed(core, tokens):
    """As the classifier gets them: CLIP's final norm applies to the class token only."""
    norm = next((getattr(core, n) for n in ("layernorm", "post_layernorm") if hasattr(core, n)), None)
    return tokens if "CLIP" in type(core).__name__ else norm(tokens)


@pytest.mark.parametrize("schedule", [3, {1: 9, 2: 5}], ids=str)
def test_the_average_is_over_patches_with_their_clusters_features(classifier, schedule, images):
    model, core, where = classifier
    run, _ = averaged(model)
    for lift in (False, True):
        with tg.attach(model, "tome", schedule, lift=lift) as handle, torch.no_grad():
            got = run(images)
            tokens = normed(core, handle.trace.output)
            lifted = handle.trace.lift(tokens).mean(dim=1)
            plain = tokens[:, handle.trace.num_prefix :].mean(dim=1)
        assert_close(got[:, where], lifted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(lifted, plain, rtol=1e-3, atol=1e-4)  # it does matter


@pytest.mark.parametrize("inner", [tg.TopK(score="norm"), tg.ToMe()], ids=repr)
def test_an_average_of_images_that_differ_is_that_of_each_alone(classifier, inner, images):
    model = classifier[0]
    with tg.attach(model, Uneven(inner), {1: 9, 2: 5}) as handle, torch.no_grad():
        together = model(images).logits
        assert len(set(handle.trace.counts_per_image())) > 1
        alone = torch.cat([model(image[None]).logits for image in images])
    assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_what_learned_pruning_drops_in_training_is_not_averaged_and_decisions_get_a_gradient(classifier, images):
    model, core, where = classifier
    run, _ = averaged(model.train())
    torch.manual_seed(0)
    with tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2])) as handle:
        got = run(images)[:, where]
        trace = handle.trace
        tokens = normed(core, trace.output)[:, trace.num_prefix :]
        decision = trace.decisions[-1]
        kept = (tokens * decision[..., None]).sum(1) / decision.sum(1, keepdim=True).clamp_min(1)  # perhaps none
        assert 0 < decision.sum() < decision.numel()
        assert_close(got, kept, rtol=1e-4, atol=1e-5)
        grad = torch.autograd.grad(got.square().sum(), decision)[0]
        assert grad.isfinite().all() and grad.abs().sum() > 0


@pytest.mark.parametrize("name", AVERAGES | CLASS_TOKEN)
def test_classifiers_without_removal_are_bit_identical_and_outputs_in_a_tuple_the_same(name, images):
    model = make(name, *(AVERAGES | CLASS_TOKEN)[name][:2])
    with torch.no_grad():
        plain = model(images).logits
        with tg.attach(model, "tome", 0):
            assert torch.equal(model(images).logits, plain)
        with tg.attach(model, "tome", 3):
            assert torch.equal(model(images, return_dict=False)[0], model(images).logits)
        assert torch.equal(model(images).logits, plain)


@pytest.mark.parametrize("inner", [tg.TopK(score="norm"), tg.ToMe()], ids=repr)
def test_a_pooling_head_attends_to_the_tokens_of_the_image_alone(inner, images):
    model = head()
    with tg.attach(model, Uneven(inner), {1: 9, 2: 5}) as handle, torch.no_grad():
        together = model(images).pooler_output
        assert len(set(handle.trace.counts_per_image())) > 1
        alone = torch.cat([model(image[None]).pooler_output for image in images])
    assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_pooling_head_attends_to_each_patch_and_in_training_to_what_is_kept(images):
    model = head()
    model = getattr(model, "vision_model", model)
    with tg.attach(model, "tome", 3) as handle, torch.no_grad():
        got = model(images).pooler_output
        rows = handle.trace.lift(model.post_layernorm(handle.trace.output))
    with torch.no_grad():
        assert_close(got, model.head(rows), rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    with tg.attach(model.train(), tg.DynamicViT(0.5, layers=[1])) as handle, torch.no_grad():
        got = model(images).pooler_output
        assert handle.trace.decisions[-1].sum(dim=1).min() > 0
        rows, keep = model.post_layernorm(handle.trace.output), handle.trace.decisions[-1] > 0
    with torch.no_grad():
        wanted = torch.cat([model.head(row[own][None]) for row, own in zip(rows, keep, strict=True)])
    assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_pooling_head_without_an_attention_of_its_own_says_that_it_takes_no_mask(images):
    model = head()
    model = getattr(model, "vision_model", model)
    model.head = torch.nn.Identity()
    with tg.attach(model, Uneven(tg.TopK(score="norm")), {1: 9, 2: 5}), torch.no_grad():
        with pytest.raises(ValueError, match="a pooling head with an nn.MultiheadAttention .*Identity"):
            model(images)


def test_several_class_tokens_are_counted_and_feature_maps_around_the_model_are_whole(images):
    if not hasattr(transformers, "PixioBackbone"):
        pytest.skip("this transformers has no Pixio")
    config = transformers.PixioConfig(**SIZES, n_cls_tokens=3, out_features=["stage1", "stage3"])
    model = spread(lambda: transformers.PixioBackbone(config))
    with torch.no_grad():
        plain = model(images).feature_maps
        with tg.attach(model, "tome", 3) as handle:
            maps = model(images).feature_maps
            assert handle.trace.num_prefix == 3 and handle.trace.counts == [16, 13, 10, 7]
    assert [m.shape for m in maps] == [p.shape for p in plain]


def test_feature_maps_of_a_rotary_backbone_are_whole(images):
    config = transformers.DINOv3ViTConfig(**SIZES, num_register_tokens=2, out_features=["stage1", "stage3"])
    model = spread(lambda: transformers.AutoBackbone.from_config(config))
    with torch.no_grad():
        plain = model(images).feature_maps
        if not hasattr(model, "model"):
            pytest.skip("this transformers has a backbone that runs its layers itself, and is refused")
        with tg.attach(model, "tome", 0):
            assert all(map(torch.equal, model(images).feature_maps, plain))
        with tg.attach(model, "tome", 3) as handle:
            maps = model(images).feature_maps
            wanted = handle.trace.as_map(model.norm(handle.trace.output))
    assert [m.shape for m in maps] == [p.shape for p in plain]
    assert_close(maps[-1], wanted, rtol=1e-4, atol=1e-5)
