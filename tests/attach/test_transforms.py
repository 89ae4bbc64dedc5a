"""Second derivatives and ``torch.func`` through an attached model, for every strategy.

With the plain kernel of attention: the fused ones of PyTorch have no second derivative, in plain models either.
"""

from dataclasses import dataclass

import pytest
import torch
from strategies import CLASS, STRATEGIES
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import tokengraph as tg
from tokengraph.testing import tiny_vit

SETTINGS = {**STRATEGIES, **CLASS}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TANGENT = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def plain_attention():
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture(params=[name for name, (select, _) in SETTINGS.items() if not select.ragged])
def fixed(request):
    return with_strategy(request.param)


@pytest.fixture(params=SETTINGS)
def model(request):
    return with_strategy(request.param)


def with_strategy(name):
    torch.manual_seed(3)  # of prediction modules
    model = tiny_vit().requires_grad_(False)
    tg.attach(model, *SETTINGS[name])
    return model


def loss(model, x):
    return model(x).square().sum()


def test_every_strategy_is_tried():
    assert {type(select) for select, _ in SETTINGS.values()} >= set(tg.registry().values())


def test_a_gradient_penalty_has_gradients(model):
    x = IMAGES.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(model, x), x, create_graph=True)
    (second,) = torch.autograd.grad((first * TANGENT).sum(), x)
    with forward_ad.dual_level():  # the same product of the Hessian, by a tangent through the first gradient
        dual = forward_ad.make_dual(IMAGES.clone().requires_grad_(), TANGENT)
        (of_dual,) = torch.autograd.grad(loss(model, dual), dual, create_graph=True)
        wanted = forward_ad.unpack_dual(of_dual).tangent
    torch.testing.assert_close(second, wanted, atol=2e-3 * second.abs().max().item(), rtol=1e-3)


@pytest.mark.parametrize("name", SETTINGS)
def test_lifted_features_have_second_derivatives(name):
    model = tiny_vit()
    with tg.attach(model, *SETTINGS[name], lift=True):
        x = IMAGES.clone().requires_grad_()
        (first,) = torch.autograd.grad(model.forward_features(x).square().sum(), x, create_graph=True)
        first.square().sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad != 0).any()


def test_grad_and_jvp_give_what_backward_gives(model):
    x = IMAGES.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(model, x), x)
    torch.testing.assert_close(grad(lambda z: loss(model, z))(IMAGES), wanted, atol=1e-4, rtol=1e-3)
    _, along = jvp(lambda z: loss(model, z), (IMAGES,), (TANGENT,))
    torch.testing.assert_close(along, (wanted * TANGENT).sum(), atol=1e-4, rtol=1e-3)


def test_vmap_over_images_gives_what_the_batch_gives(fixed):
    wanted = fixed(IMAGES)
    torch.testing.assert_close(vmap(lambda image: fixed(image[None])[0])(IMAGES), wanted)


def test_gradients_of_single_images_are_those_of_a_loop(fixed):
    model = fixed
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def of(weights, image):
        return functional_call(model, weights, (image[None],)).square().sum()

    each = vmap(grad(of), (None, 0))(weights, IMAGES)
    for i, image in enumerate(IMAGES):
        for name, wanted in grad(of)(weights, image).items():
            torch.testing.assert_close(each[name][i], wanted, atol=1e-4, rtol=1e-3)


def test_a_model_works_as_before_after_a_transform(fixed):
    model, wanted = fixed, fixed(IMAGES)
    vmap(grad(lambda image: loss(model, image[None])))(IMAGES)
    assert torch.equal(model(IMAGES), wanted)


@pytest.mark.parametrize(
    ("select", "schedule"),
    [
        (tg.DynamicViT(layers=[1], threshold=0.4), None),
        *((select, schedule) for select, schedule in SETTINGS.values() if select.ragged),
        ("uneven", {1: 0.5}),
    ],
)
def test_a_choice_that_reads_numbers_is_refused_under_vmap(select, schedule):
    @dataclass(frozen=True)
    class Uneven(tg.ToMe):
        def __call__(self, tokens, budget):
            return super().__call__(tokens, [budget + int(x.mean() > 0) for x in tokens.x])

    name = "Uneven" if select == "uneven" else type(select).__name__
    model = tiny_vit()
    with tg.attach(model, Uneven() if select == "uneven" else select, schedule):
        wanted = model(IMAGES)
        with pytest.raises(ValueError, match=rf"reads no numbers under torch.func.vmap \(got {name}, .* fixed budget"):
            vmap(lambda image: model(image[None])[0])(IMAGES)
        assert torch.equal(model(IMAGES), wanted)
