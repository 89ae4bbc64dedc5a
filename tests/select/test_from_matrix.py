"""Strategies of a user's own weights."""

import pytest
import torch
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.testing import SELECT_LAWS, check_select, make_tokens, tiny_vit

IMAGES = torch.randn(2, 3, 32, 32)


def near(tokens, keep):
    """Softmax to the first tokens of each image."""
    unit = torch.nn.functional.normalize(tokens.x.float(), dim=2)
    logits = 10 * unit @ unit[:, :keep].transpose(1, 2)
    return logits.softmax(dim=2)


def own(tokens, keep):
    """Tokens go round the clusters, each with one weight."""
    place = torch.arange(tokens.x.size(1)) % keep
    return torch.nn.functional.one_hot(place, keep).to(tokens.x).expand(tokens.x.size(0), -1, -1)


LEFT_OUT = {"keeps_all_when_asked", "takes_padding"}  # a softmax mixes all; columns depend on the largest budget


@pytest.mark.parametrize("law", [law for law in SELECT_LAWS if law.__name__ not in LEFT_OUT], ids=lambda f: f.__name__)
def test_weights_of_ones_own_hold_the_laws(law):
    law(tg.FromMatrix(own, lossless=True))


def test_a_function_makes_the_weights_for_each_budget():
    model = tiny_vit()
    with torch.no_grad(), tg.attach(model, tg.FromMatrix(near, lossless=True), {1: 9, 2: 4}) as handle:
        model(IMAGES)
        assert handle.trace.counts == [16, 9, 4, 4]
        assert_close(handle.trace.size().sum(dim=1), torch.full((2,), 16.0))
        assert_close(handle.trace.lift(torch.ones(2, 4, 1)), torch.ones(2, 16, 1))


def test_a_fixed_matrix_is_x_times_w():
    weights, x = torch.rand(16, 5), torch.randn(2, 16, 8)
    a = tg.FromMatrix(weights, normalize=False)(make_tokens(x, (4, 4)), 5)
    rows, size = a.reduce(x.flatten(0, 1))
    assert_close(rows.view(2, 5, 8), weights.T @ x)
    assert_close(size.view(2, 5), weights.sum(dim=0).expand(2, -1))
    mean = tg.FromMatrix(weights)(make_tokens(x, (4, 4)), 5).reduce(x.flatten(0, 1))[0]
    assert_close(mean.view(2, 5, 8), (weights / weights.sum(dim=0)).T @ x)


def test_gradients_reach_the_weights_in_a_model():
    weights = torch.rand(16, 6, requires_grad=True)
    model = tiny_vit()
    with tg.attach(model, tg.FromMatrix(weights), {1: "cluster"}) as handle:
        model(IMAGES).square().sum().backward()
        assert handle.trace.counts == [16, 6, 6, 6]
    assert weights.grad is not None and weights.grad.abs().sum() > 0


def test_a_fixed_matrix_around_each_block():
    model = tiny_vit()
    select = tg.Around(tg.FromMatrix(torch.rand(16, 6), lossless=True), "attention")
    with torch.no_grad(), tg.attach(model, select, {0: "cluster"}) as handle:
        model(IMAGES)
        assert handle.trace.counts_inside == [6, 6, 6]


def test_what_does_not_fit_is_refused():
    x = make_tokens(torch.randn(2, 16, 8), (4, 4))
    with pytest.raises(ValueError, match=r"Expected weights of shape \[B, N, keep\] = \[2, 16, 4\] .got \[2, 9, 4\]"):
        tg.FromMatrix(torch.rand(9, 4))(x, 4)
    with pytest.raises(TypeError, match=r"Expected weights as a Tensor \[N, M\] or a function of .*got \[3\]"):
        tg.FromMatrix(torch.rand(3))
    with pytest.raises(ValueError, match="Expected placement in before, inside, after"):
        tg.FromMatrix(near, placement="ahead")
    with pytest.raises(ValueError, match="set to make"):
        tg.attach(tiny_vit(), tg.FromMatrix(torch.rand(16, 6)), {1: 5})


def test_check_select_takes_it():
    check_select(tg.FromMatrix(near, lossless=True), without=[*LEFT_OUT, "compiles_whole"])
