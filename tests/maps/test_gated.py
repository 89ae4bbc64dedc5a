"""Maps that multiply rows by a factor."""

import pytest
import torch
from torch.testing import assert_close

from tokengraph.maps.gated import Gated
from tokengraph.maps.hard import Assignment
from tokengraph.maps.prefix import with_prefix

CLUSTER, GATE = torch.tensor([0, 0, 1, 2]), torch.tensor([1.0, 3.0, 0.5, 2.0])


def test_reduce_multiplies_rows_and_leaves_sizes():
    x, size = Gated(CLUSTER[:3], 2, gate=GATE[:3]).reduce(torch.tensor([[1.0], [2.0], [4.0]]))
    assert x.tolist() == [[3.5], [2.0]] and size.tolist() == [2.0, 1.0]


def test_gradients_reach_the_gate():
    gate = GATE.clone().requires_grad_()
    Gated(CLUSTER, 3, gate=gate).reduce(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))[0].sum().backward()
    assert gate.grad.tolist() == [0.5, 1.0, 3.0, 4.0]


def test_reduce_keeps_the_dtype():
    assert Gated(CLUSTER, 3, gate=GATE).reduce(torch.ones(4, 2, dtype=torch.bfloat16))[0].dtype == torch.bfloat16


def test_then_reduces_step_by_step():
    first, second = Gated(CLUSTER, 3, gate=GATE), Gated(torch.tensor([0, 1, 1]), 2, gate=torch.tensor([2.0, 1.0, 3.0]))
    x = torch.randn(4, 3)
    for a, b in ((first, second), (first, Assignment(torch.tensor([0, 1, 1]), 2)), (Assignment(CLUSTER, 3), second)):
        pooled, size = b.reduce(*a.reduce(x))
        both = a.then(b)
        assert_close(both.reduce(x)[0], pooled)
        assert_close(both.reduce(x)[1], size)
        assert_close(both.lift(pooled), a.lift(b.lift(pooled)))


def test_by_size_and_plain_have_no_gate():
    a = Gated(CLUSTER, 3, gate=GATE)
    x = torch.randn(4, 2)
    for plain in (a.by_size(), a.plain):
        assert type(plain) is Assignment
        assert_close(plain.reduce(x)[0], Assignment(CLUSTER, 3).reduce(x)[0])


def test_prefix_tokens_have_a_gate_of_one():
    a = Gated(torch.tensor([0, 0, 1, 1]), 2, gate=GATE)  # two images of two tokens
    whole = with_prefix(a, 2, 1)
    x = torch.tensor([[7.0], [1.0], [2.0], [9.0], [3.0], [4.0]])
    assert whole.reduce(x)[0].flatten().tolist() == [7.0, 3.5, 9.0, 4.75]


def test_a_gate_is_checked():
    with pytest.raises(ValueError, match=r"Expected gate of shape \[M\] \(got None\)"):
        Gated(CLUSTER, 3)
    with pytest.raises(ValueError, match=r"Expected gate of shape \[4\], one a token \(got \[2\]\)"):
        Gated(CLUSTER, 3, gate=torch.ones(2))
