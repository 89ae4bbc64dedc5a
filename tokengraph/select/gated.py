"""Strategies whose gates select, in each block anew, the tokens that take part: SViT and AdaViT's token part."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from tokengraph.attention.keep_mask import KeepMask
from tokengraph.cost import Cost
from tokengraph.errors import check_mask
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.nn.gates import LinearGate, MlpGate, gumbel_gate
from tokengraph.schedule import Schedule
from tokengraph.schedule.running import Running, in_stages
from tokengraph.select.base import Select
from tokengraph.select.tokens import Tokens


@explains
def gate(logits: Tensor, threshold: float = 0.5, *, mask: Tensor | None = None) -> Assignment:
    """Selects the tokens whose gate is at least the threshold, in order; an image may select none.

    Args:
        logits: ``[B, N]``.
        threshold: On their sigmoid, in (0, 1).
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        A lossy map over ``B*N`` tokens (the True ones of ``mask``), with ``centers`` the selected tokens.

    Cost: one pass; one host synchronisation, as images select different numbers.

    Example:
        >>> gate(torch.tensor([[2.0, -1.0, 0.0]])).cluster.tolist()
        [0, 2, 1]
    """
    if logits.dim() != 2 or not 0 < threshold < 1:
        raise ValueError(
            f"Expected logits of shape [B, N] and a threshold in (0, 1) (got {list(logits.shape)}, {threshold})."
        )
    check_mask(mask, logits)
    return select_marked(logits.detach().sigmoid() >= threshold, mask)


def select_marked(marked: Tensor, mask: Tensor | None) -> Assignment:
    """Returns the map that keeps the tokens where ``marked [B, N]`` is True, in order."""
    marked = marked if mask is None else marked & mask
    counts = marked.sum(dim=1).tolist()
    cluster = torch.where(marked, marked.cumsum(dim=1) - 1, -1)
    centers = (~marked).long().argsort(dim=1, stable=True)[:, : max(counts, default=0)]
    return Assignment.from_dense(cluster, counts, mask=mask, drops=True, centers=centers, single=True)


class Gated(Select):
    """The part that SViT and AdaViT share: a gate for each block, and tokens that idle where it does not select them.

    Args:
        targets: Shares that training aims at, one for each of ``layers``.
        layers: Blocks with a gate, from 0.
        threshold: On the gate's probability in evaluation.
        tau: Temperature of samples in training.
    """

    placement: ClassVar[str] = "around"
    around: ClassVar[str] = "block"
    merges: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __init__(
        self, targets: Sequence[float] | float, layers: Sequence[int] | None, threshold: float, tau: float
    ) -> None:
        shares = [targets] if isinstance(targets, int | float) else list(targets)
        if not all(0 < t <= 1 for t in shares) or not 0 < threshold < 1 or not tau > 0:
            raise ValueError(
                f"Expected targets in (0, 1], a threshold in (0, 1) and tau > 0 (got {targets}, {threshold}, {tau})."
            )
        if layers is not None and len(shares) not in (1, len(layers)):
            raise ValueError(f"Expected one target for each of {len(layers)} layers (got {len(shares)}).")
        self.targets: tuple[float, ...] = tuple(float(t) for t in shares)
        self.layers = None if layers is None else tuple(layers)
        self.threshold, self.tau = threshold, tau
        self.gates: nn.ModuleList | None = None
        self.noise: list[Tensor] | None = None  # fixed noise for each gate

    def __repr__(self) -> str:
        return f"{type(self).__name__}(targets={list(self.targets)})"

    @property
    def restores(self) -> bool:
        """Every token comes back."""
        return True

    def gate_of(self, channels: int) -> nn.Module:
        """Returns a new gate."""
        raise NotImplementedError

    def logits(self, tokens: Tokens, gate: nn.Module) -> Tensor:
        """Returns the logit of each token to be selected, ``[B, N]``."""
        raise NotImplementedError

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """Returns a copy with gates for a model, and a schedule of its targets; see :meth:`tokengraph.Select.bind`.

        Raises:
            ValueError: If layers or gates do not fit the model, or a schedule is given.
        """
        if schedule is not None and schedule not in (0, {1: 1.0}):
            raise ValueError(f"Expected no schedule for {self!r}, whose gates decide (got {schedule!r}).")
        bound = copy.copy(self)
        layers = tuple(range(depth // 4, depth)) if self.layers is None else self.layers
        if not layers or min(layers) < 0 or max(layers) >= depth:
            raise ValueError(f"Expected blocks in [0, {depth - 1}] as layers (got {list(layers)}).")
        shares = self.targets * len(layers) if len(self.targets) == 1 else self.targets
        if len(shares) != len(layers):
            shares = in_stages(self.targets[0], layers)
        bound.layers, bound.targets = layers, shares
        if bound.gates is None:
            bound.gates = nn.ModuleList(self.gate_of(channels) for _ in layers)
        elif len(bound.gates) != len(layers) or bound.gates[0].channels != channels:
            raise ValueError(
                f"Expected {len(layers)} gates of C={channels} (got {len(bound.gates)} of "
                f"C={bound.gates[0].channels}). Create a new {type(self).__name__}."
            )
        return bound, Running(tuple(zip(layers, shares, strict=True)))

    def acts(self, finished: int, keep: int, count: int) -> bool:
        """In each block with a gate."""
        return self.layers is not None and finished in self.layers and count > 0

    def _gate(self, tokens: Tokens) -> tuple[int, nn.Module]:
        if self.gates is None or self.layers is None:
            name = type(self).__name__
            raise ValueError(f"Expected a {name} after attach or bind(channels, depth) (got an unbound one).")
        index = self.layers.index(tokens.layer) if tokens.layer in self.layers else 0
        return index, self.gates[index]

    def decide(self, tokens: Tokens) -> KeepMask | None:
        """Samples this block's selection in train mode, ``[B, N]``; ``None`` in eval mode."""
        index, module = self._gate(tokens)
        if not module.training:
            return None
        noise = None if self.noise is None else self.noise[index]
        keep = gumbel_gate(self.logits(tokens, module), threshold=0.5, tau=self.tau, noise=noise)
        return KeepMask(keep if tokens.mask is None else keep * tokens.mask)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to those that this block's gate selects; the budget does not matter."""
        return gate(self.logits(tokens, self._gate(tokens)[1]), self.threshold, mask=tokens.mask)


class SViT(Gated):
    r"""SViT: a small gate before each block selects the tokens that run; the others idle and may come back later.

    ``attach(model, SViT())`` needs no schedule; it adds the gates to the model as ``selective_modules``, their name in
    published checkpoints. Train mode runs all tokens, with sampled decisions:
    :math:`x \leftarrow d \operatorname{block}(x) + (1 - d) x`; ``handle.trace.decisions`` has them for
    :class:`tokengraph.losses.ShareLoss`. In evaluation tokens with a probability of at least one half run, as many as
    there are in each image. Class and other prefix tokens always run.

    Args:
        targets: Shares for the loss: one for each layer, one for all, or by default 0.7, 0.49 and 0.343 for thirds of
            them.
        layers: Blocks with a gate, from 0; ``None``: all but the first quarter, as published (3 to 11 of 12).
        tau: Temperature of samples.

    Source: Liu et al., *Revisiting Token Pruning for Object Detection and Instance Segmentation*, WACV 2024, and its
    code, without the noise that it leaves on in evaluation. Differs: a tie selects; any number of patches.
    """

    name: ClassVar[str] = "svit"
    reads: ClassVar[str] = "nothing"

    def __init__(
        self, targets: Sequence[float] | float | None = None, *, layers: Sequence[int] | None = None, tau: float = 1.0
    ) -> None:
        self.by_thirds = targets is None
        super().__init__(0.7 if targets is None else targets, layers, 0.5, tau)

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """See :meth:`Gated.bind`; without targets they are powers of 0.7."""
        if not self.by_thirds:
            return super().bind(channels, depth, schedule)
        one = copy.copy(self)
        one.layers = tuple(range(depth // 4, depth)) if self.layers is None else self.layers
        one.targets, one.by_thirds = in_stages(0.7, one.layers), False
        return one.bind(channels, depth, schedule)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Returns the gates, under their name in published checkpoints."""
        return {} if self.gates is None else {"selective_modules": self.gates}

    def gate_of(self, channels: int) -> nn.Module:
        """Returns a :class:`tokengraph.nn.gates.MlpGate`."""
        return MlpGate(channels)

    def logits(self, tokens: Tokens, gate: nn.Module) -> Tensor:
        """The difference of both log-probabilities."""
        logp = gate(tokens.x)
        return logp[..., 0] - logp[..., 1]

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts one gate."""
        return Cost(num_tokens * channels**2 / 4, 4 * (2 * num_tokens * channels + channels**2 / 4))


class AdaViT(Gated):
    r"""The token part of AdaViT: a linear gate on what attention projects selects the tokens that run in each block.

    As :class:`SViT`, with the gates in the model as ``token_select``. Its gates of heads and of whole blocks are not
    here.

    Args:
        targets: Share of tokens for the loss, one for each layer or one for all; published: 0.5.
        layers: Blocks with a gate, from 0; ``None``: all but the first, as published.
        threshold: On the gate's probability in evaluation, published: 0.6.
        tau: Temperature of samples, published: 5.

    Source: Meng et al., *AdaViT: Adaptive Vision Transformers for Efficient Image Recognition*, CVPR 2022, and its
    code: the token gate; heads, blocks and training are described there and not verified here.
    """

    name: ClassVar[str] = "adavit"
    reads: ClassVar[str] = "norm"
    peeks: ClassVar[bool] = True

    def __init__(
        self,
        targets: Sequence[float] | float = 0.5,
        *,
        layers: Sequence[int] | None = None,
        threshold: float = 0.6,
        tau: float = 5.0,
    ) -> None:
        super().__init__(targets, layers, threshold, tau)

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """See :meth:`Gated.bind`; without layers all blocks but the first have a gate."""
        if self.layers is not None:
            return super().bind(channels, depth, schedule)
        one = copy.copy(self)
        one.layers = tuple(range(min(1, depth - 1), depth))
        return one.bind(channels, depth, schedule)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Returns the gates."""
        return {} if self.gates is None else {"token_select": self.gates}

    def gate_of(self, channels: int) -> nn.Module:
        """Returns a :class:`tokengraph.nn.gates.LinearGate`."""
        return LinearGate(channels)

    def logits(self, tokens: Tokens, gate: nn.Module) -> Tensor:
        """The gate of each row that attention projects."""
        return gate(tokens.x if tokens.normed is None else tokens.normed)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts a norm and one product with each token."""
        return Cost(2 * num_tokens * channels, 8 * num_tokens * channels)
