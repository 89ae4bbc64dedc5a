"""Cached tables: built once, and constants to torch.compile."""

import pytest
import torch

from tokengraph.flat.tables import table

BUILT = []


@table()
def evens(count):
    BUILT.append(count)
    return torch.arange(count) * 2.0


@table()
def odds(count):
    return torch.arange(count) * 2 + 1


def test_a_table_is_built_once_for_each_key():
    BUILT.clear()
    assert evens(3) is evens(3) and evens(3).tolist() == [0, 2, 4]
    assert evens(2).tolist() == [0, 2] and BUILT == [3, 2]


def test_a_table_built_in_inference_mode_serves_training():
    evens.cache_clear()
    with torch.inference_mode():
        evens(4)
    weight = torch.ones(4, requires_grad=True)
    (weight * evens(4)).sum().backward()
    assert weight.grad.tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_several_tables_and_keys_compile_into_one_graph(backend):
    def run(x):
        return x + evens(3) + odds(3) + (evens(1) + evens(2)).sum()

    torch.compiler.reset()
    assert torch.compile(run, fullgraph=True, backend=backend)(torch.zeros(3)).tolist() == [3, 7, 11]
