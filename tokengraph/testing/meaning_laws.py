"""The laws of meaning: they check the values that a coarsened model computes, not only that it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tokengraph.adapters import find_adapter
from tokengraph.attach.attach import attach
from tokengraph.attention.stats import AttentionStats
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.select.tokens import Tokens
from tokengraph.testing.model_case import ModelCase


def group_of(count: int) -> Tensor:
    """Returns groups of 1, 2, 3, ... neighbours, ``[N]`` int64: 0 1 1 2 2 2 3 ... Unequal sizes reveal lost weights."""
    sizes = torch.arange(1, count + 1)
    return torch.repeat_interleave(sizes - 1, sizes)[:count]


@dataclass(frozen=True)
class Groups(Select):
    """Merges each group of :func:`group_of` in two steps: first its even and its odd tokens, then both halves.

    The maps are ``SoftAssignment`` with weights 1, because soft maps of two steps are not composed to one.
    """

    reads: ClassVar[str] = "nothing"

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> SoftAssignment:
        """Maps the tokens to groups, and ignores the budget."""
        width, mask = tokens.x.size(1), tokens.mask
        counts = [width] * tokens.x.size(0) if mask is None else mask.sum(dim=1).tolist()
        rows, made = [], []
        for count in counts:
            cluster = torch.arange(count)  # after the second block there is nothing more to merge
            if tokens.layer < 2:
                cluster = self._halves(count) if tokens.layer == 0 else self._wholes(count)
            rows.append(torch.nn.functional.pad(cluster, (0, width - count)))
            made.append(int(cluster.max()) + 1)
        given = made[0] if len(set(made)) == 1 else made
        dense = torch.stack(rows).to(tokens.x.device)
        return SoftAssignment.from_hard(Assignment.from_dense(dense, given, mask=mask))

    @staticmethod
    def _halves(count: int) -> Tensor:
        return (2 * group_of(count) + torch.arange(count) % 2).unique(return_inverse=True)[1]

    @classmethod
    def _wholes(cls, halves: int) -> Tensor:
        count = halves
        while int(cls._halves(count).max()) + 1 < halves:
            count += 1
        half, group = cls._halves(count), group_of(count)
        return torch.zeros(halves, dtype=torch.long).scatter(0, half, group)


@contextmanager
def _equal_groups(case: ModelCase, model: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    """Inside the context, patch tokens at the first block equal the first token of their group."""
    prefix, blocks = case.prefix, case.blocks(model)
    adapter = find_adapter(model, case.adapter)[1]

    def change(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook: gives each patch token the features of the first token of its group."""
        name = None if args else next(k for k, v in kwargs.items() if isinstance(v, Tensor))
        x = args[0] if name is None else kwargs[name]
        given, x = x, adapter.patches_last(block, case.images_first(x))
        group = group_of(x.size(1) - prefix)
        first = torch.searchsorted(group, group)
        x = adapter.stock_order(block, torch.cat([x[:, :prefix], x[:, prefix:][:, first]], dim=1))
        x = x if x.shape == given.shape else x.transpose(0, 1)
        return ((x, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: x})

    def look(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append(adapter.patches_last(block, case.images_first(output[0] if isinstance(output, tuple) else output)))

    hooks = [blocks[0].register_forward_pre_hook(change, with_kwargs=True), blocks[-1].register_forward_hook(look)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def changes_nothing_by_merging_equal_tokens(case: ModelCase) -> None:
    """If patches of a group are equal, merging each group changes neither outputs nor lifted features.

    Models whose attention distinguishes equal tokens by position (rotary, relative bias) are skipped.
    """
    plain, model = case.make(), case.make()
    seen: list[Tensor] = []
    with torch.no_grad(), _equal_groups(case, plain, seen):
        wanted = case.run(plain)
    features, prefix = seen[-1], case.prefix
    adapter, block = find_adapter(plain, case.adapter)[1], case.blocks(plain)[0]

    def ordered(tokens: Tensor) -> Tensor:
        return adapter.patches_last(block, tokens)

    patches = features[:, prefix:]
    group = group_of(patches.size(1))
    if not torch.allclose(patches, patches[:, torch.searchsorted(group, group)], rtol=1e-3, atol=1e-3):
        return
    with torch.no_grad(), _equal_groups(case, model, []):
        with attach(model, Groups(), {1: 0.7, 2: 0.4}, adapter=case.adapter) as handle:
            got, trace = case.run(model), handle.trace
            assert trace.output is not None and trace.counts[-1] < trace.counts[0], "nothing was merged"
            _close(trace.lift(trace.output), patches * trace.valid(0)[..., None], "lifted features")
            for ours, theirs in zip(got, wanted, strict=True):
                if ours.shape != theirs.shape:  # tokens; the coarsened model returns fewer
                    ours, theirs = ordered(ours), ordered(theirs)
                    ours, theirs = trace.lift(ours[:, prefix:] if _whole(ours, trace) else ours), theirs[:, prefix:]
                    theirs = theirs * trace.valid(0)[..., None]
                _close(ours, theirs, "the output")


def _whole(tokens: Tensor, trace: Any) -> bool:
    return tokens.size(1) == trace.num_prefix + trace.counts[-1]


def _close(ours: Tensor, theirs: Tensor, what: str) -> None:
    scale = float(theirs.abs().max())
    assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * scale, msg=lambda m: f"{what} changed. {m}")


@dataclass(frozen=True)
class _Reader(Select):
    """Stores the attention statistics of a block, from projections or from its map, and merges neighbours."""

    open: bool = False
    seen: list[Any] = field(default_factory=list, compare=False)

    @property
    def reads(self) -> str:  # type: ignore[override]
        return "map" if self.open else "keys"

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> SoftAssignment:
        self.seen.append((tokens.attention, tokens.mask))
        return Groups()(tokens, budget)


def reads_the_attention_of_its_block(case: ModelCase) -> None:
    """Keys, attention rows, column sums and diagonal that a strategy reads are those of the block's own map."""
    for schedule in ({1: 0.7}, {1: 0.7, 2: 0.4}):  # the second block weights keys by sizes
        found = []
        for opened in (False, True):
            reader, model = _Reader(opened), case.make()
            with attach(model, reader, schedule, adapter=case.adapter), torch.no_grad():
                case.run(model)
            found.append(reader.seen[-1])
        (read, mask), (opened, _) = found
        assert isinstance(read, AttentionStats) and opened.attention is not None
        if read.attention is None and len(schedule) == 1:  # averaged rotary tables shorten keys
            _check_keys(read.heads_of_keys().float(), read._queries_keys()[1].float())
        count = read.tokens
        valid = torch.ones(opened.attention.size(0), count, dtype=torch.bool)
        if mask is not None:
            valid[:, read.num_prefix :] = mask
        ours, theirs = (s.rows(0, count).transpose(1, 2)[valid] for s in (read, opened))
        assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=lambda m: f"another attention than the block's. {m}")
        if mask is None:
            for name in ("column_sums", "diagonal", *(["class_row"] if read.num_prefix else [])):
                ours, theirs = getattr(read, name)(), getattr(opened, name)()
                assert_close(ours, theirs, rtol=1e-3, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def _check_keys(ours: Tensor, theirs: Tensor) -> None:
    """Raises unless ``ours`` are the keys ``[B, H, P+N, D]``, before or after rotation, or their mean over heads."""
    if ours.shape == theirs.shape:
        ours, theirs = ours.norm(dim=3), theirs.norm(dim=3)
    else:
        theirs = theirs.mean(dim=1, keepdim=True)
    assert_close(ours, theirs, rtol=1e-3, atol=1e-3, msg=lambda m: f"keys are not those of the block. {m}")
