"""tg.fidelity: the measures that need no labels."""

import pytest
import torch

import tokengraph as tg
from tokengraph.testing import tiny_vit

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_fidelity_of_nothing_removed_is_perfect():
    found = tg.fidelity(tiny_vit(), IMAGES, "tome:0")
    assert (found.images, found.cost, found.agreement, found.kl) == (6, 1.0, 1.0, 0.0)
    assert [found.class_cosine, found.class_worst, found.patch_cosine] == pytest.approx([1, 1, 1])


def test_fidelity_takes_a_handle_and_leaves_it_attached():
    model = tiny_vit()
    with tg.attach(model, tg.ToMe(), 4) as handle:
        found = tg.fidelity(model, IMAGES, handle)
        assert model(IMAGES).shape == (6, 5) and handle.trace.counts == [16, 12, 8, 4]
    assert (
        found == tg.fidelity(model, IMAGES, "tome:4") == tg.fidelity(model, IMAGES, {"strategy": "tome", "schedule": 4})
    )
    assert found.counts == (16, 12, 8, 4) and 0.9 < found.class_cosine < 1 and found.class_worst < found.class_cosine


def test_fidelity_does_not_depend_on_how_images_are_batched():
    whole, parts = (tg.fidelity(tiny_vit(), given, "tome:4") for given in (IMAGES, IMAGES.split(2)))
    assert whole.images == parts.images and whole.kl == pytest.approx(parts.kl, rel=1e-3)
    assert whole.patch_worst == pytest.approx(parts.patch_worst, abs=1e-6)


def test_fidelity_measures_the_cosine_of_final_features():
    model = tiny_vit()
    with torch.no_grad():
        dense = model.forward_features(IMAGES)
        with tg.attach(model, "ailurus", {1: 0.5}) as handle:
            coarse = model.forward_features(IMAGES)
            lifted = handle.trace.lift(coarse)
    cosine = torch.nn.functional.cosine_similarity
    found = tg.fidelity(model, IMAGES, "ailurus:{1: 0.5}")
    assert found.class_cosine == pytest.approx(cosine(dense[:, 0], coarse[:, 0]).mean().item(), abs=1e-5)
    assert found.patch_cosine == pytest.approx(cosine(dense[:, 1:], lifted, dim=2).mean().item(), abs=1e-5)


def test_fidelity_counts_dropped_patches_as_lost_and_stored_ones_not():
    dropped = tg.fidelity(tiny_vit(), IMAGES, "topk:{1: 0.25}")
    assert dropped.patch_cosine < 0.3 and dropped.class_cosine > 0.9
    stored = tg.fidelity(tiny_vit(), IMAGES, "token-migration:{1: 0.5, 2: 0.25}")
    assert stored.patch_cosine > 0.4


def test_fidelity_takes_counts_that_differ_between_images():
    model = tiny_vit()
    handle = tg.attach(model, tg.DynamicViT(0.7, threshold=0.5), {1: 0.7})
    torch.manual_seed(0)
    for parameter in handle.select.modules["score_predictor"].parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    found = tg.fidelity(model, IMAGES, handle)
    counts = handle.trace.counts_per_image(3)
    assert len(set(counts)) > 1 and found.counts[-1] == pytest.approx(sum(counts) / 6)
    assert found.patch_cosine <= 1 and found.cost <= 1.2


@pytest.mark.parametrize("name", sorted(tg.registry()))
def test_fidelity_serves_every_strategy(name):
    schedules = {"dynamicvit": "", "expedite": ":{1: 'cluster', 3: 'reconstruct'},clusters=(2, 2)"}
    schedules |= {"adavit": ",threshold=0.88", "svit": ""}  # their gates decide, not a schedule
    schedules |= {"ats": ":{2: 0.5},samples=8", "avit": ":{1: 0.5},scale=2.0,center=0.5"}  # for an untrained model
    schedules["algm"] = schedules["g2tm"] = ":{2: 0.5},tau=0.1"
    torch.manual_seed(0)  # for gates, which attach makes
    found = tg.fidelity(tiny_vit(), IMAGES[:2], name + schedules.get(name, ":{2: 0.5}"))
    assert 0 < found.cost < 1.3 and 0.5 < found.class_cosine < 1


def test_fidelity_refuses_what_it_cannot_compare():
    model = tiny_vit()
    with tg.attach(model, "tome", 4) as handle, pytest.raises(ValueError, match="Expected the handle of this model"):
        tg.fidelity(tiny_vit(), IMAGES, handle)
    with pytest.raises(ValueError, match="Expected a strategy alone .got 'resolution:24'"):
        tg.fidelity(model, IMAGES, "resolution:24")
    with pytest.raises(ValueError, match="Expected at least one image"):
        tg.fidelity(model, [], "tome:4")
    with pytest.raises(ValueError, match=r"Expected images of shape \[B, 3, H, W\]"):
        tg.fidelity(model, IMAGES[0], "tome:4")
    assert type(model).__name__ == "VisionTransformer"  # nothing stays attached
    handle.remove()
    with pytest.raises(ValueError, match="Expected a handle that is attached"):
        tg.fidelity(model, IMAGES, handle)


class Mine(torch.nn.Module):
    """A model that no adapter in ADAPTERS serves, with a head."""

    def __init__(self):
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.patch_embed, self.encoder = torch.nn.Conv2d(3, 16, 8, 8), torch.nn.TransformerEncoder(layer, 3)
        self.head = torch.nn.Linear(16, 5)

    def forward(self, images):
        return self.head(self.encoder(self.patch_embed(images).flatten(2).transpose(1, 2)).mean(dim=1))


def test_fidelity_of_a_model_of_your_own_has_tokens_and_cost():
    torch.manual_seed(0)
    model = Mine().eval()
    where = tg.adapters.EncoderLayers("encoder", num_prefix=0, grid=(4, 4), embedding="patch_embed")
    with tg.attach(model, "tome", 4, adapter=where) as handle:
        found = tg.fidelity(model, IMAGES, handle)
    assert found.counts == (16, 12, 8, 4) and 0 < found.cost < 1
    assert 0.5 < found.patch_cosine < 1 and found.class_cosine < 1 and found.kl > 0


def test_fidelity_refuses_a_handle_that_is_paused():
    model = tiny_vit()
    handle = tg.attach(model, "tome", 4)
    with handle.paused(), pytest.raises(ValueError, match=r"got one that is paused.*outside of handle.paused\(\)"):
        tg.fidelity(model, IMAGES, handle)
    assert tg.fidelity(model, IMAGES, handle).kl > 0
