"""A server's batches change in size: a model is compiled for the first one, and once more for all others."""

import pytest
import torch
import torch._dynamo.testing
from needs import library
from quick import quick_only
from strategies import CLASS, STRATEGIES

import tokengraph as tg
from tokengraph.testing import tiny_vit

library("timm")


def images(count):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", quick_only(["tome"], ["tome", "topk-class", "gtp", "expedite"]))
def test_changing_batch_sizes_compile_once_for_the_first_and_once_for_all_others(name):
    model, counter = tiny_vit(), torch._dynamo.testing.CompileCounter()
    torch.compiler.reset()
    with tg.attach(model, *(STRATEGIES | CLASS)[name]), torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend=counter)
        for count in (2, 3, 5, 4, 7, 2, 9):
            torch.testing.assert_close(compiled(images(count)), model(images(count)))
    assert counter.frame_count == 2
