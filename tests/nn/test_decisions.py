"""Keep decisions: hard forward, soft gradient, cumulative."""

import pytest
import torch
from torch.testing import assert_close

from tokengraph.nn import gumbel_keep


def logp(*keep: float) -> torch.Tensor:
    p = torch.tensor(keep)
    return torch.stack([p, 1 - p], dim=-1).log()


def test_gumbel_keep_without_noise_keeps_what_is_likelier():
    assert gumbel_keep(logp(0.9, 0.4, 0.5), noise=torch.zeros(3, 2)).tolist() == [1.0, 0.0, 1.0]


def test_gumbel_keep_adds_the_noise_to_log_probabilities():
    noise = torch.tensor([[0.0, 5.0], [5.0, 0.0]])
    assert gumbel_keep(logp(0.9, 0.1), noise=noise).tolist() == [0.0, 1.0]


def test_gumbel_keep_is_exactly_zero_or_one():
    keep = gumbel_keep(torch.randn(4, 1000, 2).log_softmax(-1).requires_grad_())
    assert set(keep.flatten().tolist()) == {0.0, 1.0}


def test_gumbel_keep_has_the_gradient_of_the_soft_sample():
    scores, noise, cotangent = torch.randn(2, 5, 2), torch.randn(2, 5, 2), torch.randn(2, 5)
    hard, soft = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    gumbel_keep(hard, noise=noise, tau=0.7).backward(cotangent)
    ((soft + noise) / 0.7).softmax(dim=-1)[..., 0].backward(cotangent)
    assert soft.grad.abs().min() > 0
    assert_close(hard.grad, soft.grad)


def test_gumbel_keep_never_brings_a_dropped_token_back():
    previous = torch.tensor([[1.0, 0.0, 1.0]])
    kept = gumbel_keep(logp(0.9, 0.9, 0.1)[None], previous, noise=torch.zeros(1, 3, 2))
    assert kept.tolist() == [[1.0, 0.0, 0.0]]


def test_gumbel_keep_sends_gradient_to_newly_dropped_tokens_and_none_to_earlier_ones():
    scores, previous = logp(0.9, 0.9, 0.1).requires_grad_(), torch.tensor([1.0, 0.0, 1.0], requires_grad=True)
    gumbel_keep(scores, previous, noise=torch.zeros(3, 2)).sum().backward()
    assert (scores.grad.abs().sum(dim=1) > 0).tolist() == [True, False, True]
    assert previous.grad.tolist() == [1.0, 1.0, 0.0]


def test_gumbel_keep_draws_the_same_from_the_same_generator():
    scores = torch.zeros(2, 50, 2)
    one, two = (gumbel_keep(scores, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, gumbel_keep(scores, generator=torch.Generator().manual_seed(2)))


def test_gumbel_keep_draws_with_the_probabilities_given():
    kept = gumbel_keep(logp(0.8).expand(20000, 2), generator=torch.Generator().manual_seed(0))
    assert abs(float(kept.mean()) - 0.8) < 0.01


def test_at_least_one_keeps_the_best_of_what_was_left_and_nothing_else():
    scores = torch.stack([logp(0.1, 0.3, 0.4), logp(0.1, 0.9, 0.2), logp(0.2, 0.2, 0.1)])
    previous = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    kept = gumbel_keep(scores, previous, noise=torch.zeros(3, 3, 2), at_least_one=True)
    assert kept.tolist() == [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]  # of equals, the lowest index


def test_at_least_one_of_a_flat_batch_looks_at_each_image():
    ptr = torch.tensor([0, 2, 2, 5])
    kept = gumbel_keep(logp(0.1, 0.3, 0.1, 0.9, 0.2), ptr=ptr, noise=torch.zeros(5, 2), at_least_one=True)
    assert kept.tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]


def test_at_least_one_sends_gradient_to_the_token_it_saves():
    scores = logp(0.1, 0.3).requires_grad_()
    kept = gumbel_keep(scores, noise=torch.zeros(2, 2), at_least_one=True)
    kept.sum().backward()
    assert kept.tolist() == [0.0, 1.0]
    assert scores.grad.abs().min() > 0


def test_gumbel_keep_of_no_tokens_is_empty():
    assert gumbel_keep(torch.zeros(2, 0, 2), at_least_one=True).shape == (2, 0)
    assert gumbel_keep(torch.zeros(0, 3, 2), at_least_one=True).shape == (0, 3)


def test_gumbel_keep_of_half_precision_decides_in_float32():
    kept = gumbel_keep(torch.zeros(1, 4, 2, dtype=torch.float16))
    assert kept.dtype == torch.float32


def test_gumbel_keep_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"Expected logp of shape \[..., N, 2\] \(got \[2, 3\]\)"):
        gumbel_keep(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"Expected previous of shape \[3\] \(got \[2\]\)"):
        gumbel_keep(torch.zeros(3, 2), torch.ones(2))
    with pytest.raises(ValueError, match=r"Expected noise of shape \[3, 2\] \(got \[3\]\)"):
        gumbel_keep(torch.zeros(3, 2), noise=torch.ones(3))
    with pytest.raises(ValueError, match=r"Expected tau > 0 \(got tau=0\)"):
        gumbel_keep(torch.zeros(3, 2), tau=0)
    with pytest.raises(ValueError, match="Expected ptr with flat logp"):
        gumbel_keep(torch.zeros(1, 3, 2), ptr=torch.tensor([0, 3]))


def test_gumbel_keep_compiles_to_one_graph():
    def decide(scores: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        return gumbel_keep(scores, previous, noise=torch.zeros_like(scores), at_least_one=True)

    scores, previous = torch.randn(2, 5, 2).log_softmax(dim=-1), torch.ones(2, 5)
    compiled = torch.compile(decide, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(scores, previous), decide(scores, previous))
