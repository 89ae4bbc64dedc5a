"""Groups of four patches: a hook makes each group equal, a strategy merges it. Exact merging then changes nothing."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch

import tokengraph as tg
from tokengraph.adapters import find_adapter


@dataclass(frozen=True)
class Fours(tg.Select):
    """Merges patches 0 to 3, 4 to 7, and so on."""

    def __call__(self, tokens, budget):
        count = tokens.x.size(1)
        cluster = torch.arange(count).expand(tokens.x.size(0), -1) * budget // count
        return tg.Assignment.from_dense(cluster, budget)


@contextmanager
def fours_made_equal(model):
    """Groups of four patches become equal as they come into the first layer."""
    core, adapter = find_adapter(model)
    prefix = adapter.num_prefix(core)

    def equal(module, args):
        x = adapter.patches_last(module, args[0]).clone()
        groups = x[:, prefix:].unflatten(1, (-1, 4))
        x[:, prefix:] = groups.mean(dim=2, keepdim=True).expand_as(groups).flatten(1, 2)
        return adapter.stock_order(module, x), *args[1:]

    hook = adapter.blocks(core)[0].register_forward_pre_hook(equal)
    yield
    hook.remove()
