"""Expands the tokens of a run to one row per input patch, to feature maps and to the strategy's graph."""

from __future__ import annotations

import math
from numbers import Integral

import torch
from torch import Tensor

from tokengraph.adapters.base import InputShape
from tokengraph.attach.record import Record
from tokengraph.attach.run import Run
from tokengraph.attach.state import Asked, State
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.select.parts.graphs.propagation import PropagationGraph


class Lifting(Record):
    """The methods of :class:`tokengraph.attach.trace.Trace` that lift features."""

    run: Run

    def state(self, layer: int | None = None) -> State:
        """Returns the state of the tokens after ``layer`` blocks (default: all) in the last run."""
        raise NotImplementedError

    def size(self, layer: int | None = None) -> Tensor:
        """Returns the weight of each token after ``layer`` blocks, ``[B, n]`` float32."""
        raise NotImplementedError

    def lift(
        self, tokens: Tensor, *, layer: int | None = None, fill: Tensor | None = None, replenish: bool = False
    ) -> Tensor:
        """Expands tokens to one row per input patch.

        Args:
            tokens: The tokens after ``layer`` blocks of the last run, ``[B, n, C]`` or ``[B, P+n, C]`` (prefix tokens
                are then left out).
            layer: Finished blocks; all by default.
            fill: Rows ``[B, N, C]`` for dropped tokens; zeros by default.
            replenish: Restores dropped tokens from the features that the strategy stored (token migration). Only for
                features before the final norm.

        Returns:
            ``[B, N, C]``: a row for each of the N input patches, row-major; zeros at padding of coarsened images.

        Raises:
            ValueError: If ``tokens`` does not have as many tokens as the layer.

        Cost: one gather of ``[B, N, C]``; the first call with Expedite also computes its reconstruction edges.
        """
        lineage, prefix = self._state_of(tokens, layer).lineage, self.run.num_prefix
        now = lineage.now
        if tokens.dim() != 3 or tokens.size(0) != now.images:
            raise ValueError(f"Expected tokens of shape [B={now.images}, n, C] (got {list(tokens.shape)}).")
        if tokens.size(1) == now.width + prefix:
            tokens = tokens[:, prefix:]
        elif tokens.size(1) != now.width:
            raise ValueError(
                f"Expected {now.width} tokens an image, or {now.width + prefix} with prefix tokens "
                f"(got {tokens.size(1)}). Set layer to the number of blocks that they have passed."
            )
        if not lineage.coarse:
            return tokens
        lifted = lineage.lift(tokens, None if fill is None else fill.flatten(0, 1), replenish=replenish)
        return lifted.view(now.images, lineage.start.width, tokens.size(2))

    def as_map(self, tokens: Tensor | None = None, *, layer: int | None = None, replenish: bool = False) -> Tensor:
        """Returns a feature map at full resolution, ``[B, C, H, W]``; of videos ``[B, C, T, H, W]``.

        Args:
            tokens: As for :meth:`lift`; by default the last block's output (before the final norm, no gradient).
            layer: Finished blocks; all by default.
            replenish: As for :meth:`lift`; the last block's output is always replenished.

        Raises:
            ValueError: If the images have several grids, patches were shuffled or dropped before the blocks, or
                ``tokens`` does not have as many tokens as the layer.
        """
        full, shape = self._full(tokens, layer, replenish)
        if shape.one_grid is None:
            raise ValueError("Expected images of one patch grid (got images of several). Use trace.as_maps().")
        if not shape.ordered:
            raise ValueError(
                "Expected patches in row-major order (got a model that shuffles them, as ViTMAE does). Give it "
                "noise=torch.arange(N).expand(B, N), or restore the order of trace.lift(...) by its ids_restore."
            )
        grid = shape.one_grid
        if math.prod(grid) != full.size(1):
            raise ValueError(
                f"Expected {' x '.join(map(str, grid))} patches (got {full.size(1)}): the model dropped some before "
                "its blocks, as patch dropout does in train mode. Call model.eval(), or make it with patch_drop_rate=0."
            )
        return full.transpose(1, 2).reshape(full.size(0), full.size(2), *grid).contiguous()

    def as_maps(
        self, tokens: Tensor | None = None, *, layer: int | None = None, replenish: bool = False
    ) -> list[Tensor]:
        """Returns a feature map ``[C, H_b, W_b]`` of each image's own grid; arguments as for :meth:`as_map`."""
        full, shape = self._full(tokens, layer, replenish)
        if shape.grids is None:
            return list(self.as_map(tokens, layer=layer, replenish=replenish))
        pairs = zip(full, shape.grids, strict=True)
        return [rows[: h * w].t().reshape(-1, h, w).contiguous() for rows, (h, w) in pairs]

    def _full(self, tokens: Tensor | None, layer: int | None, replenish: bool) -> tuple[Tensor, InputShape]:
        """Returns one row per input patch, ``[B, N, C]``, and the shape of the images."""
        if tokens is None:
            self.state()  # raises if there was no run yet
            tokens, replenish = self.run.output, True
            assert tokens is not None
        full = self.lift(tokens, layer=layer, replenish=replenish)
        return full, self._state_of(tokens, layer).asked.shape

    def _state_of(self, tokens: Tensor, layer: int | None) -> State:
        """Like :meth:`state`, and also right before the first attached block has run, when nothing is coarsened."""
        if not isinstance(layer, Integral) or not 0 < layer <= self.run.start:
            return self.state(layer)
        shape = self.run.shape
        assert shape.grid is not None
        patches = math.prod(shape.grid) if shape.grids is None else tokens.size(1) - self.run.num_prefix
        return State.at_input(tokens.size(0), patches, Asked(shape))

    def lift_sequence(self, tokens: Tensor) -> Tensor:
        """Expands ``[B, P+n, C]`` after the last block to ``[B, P+N, C]``, prefix tokens in front."""
        if not self.state().lineage.coarse:
            return tokens
        return torch.cat([tokens[:, : self.run.num_prefix], self.lift(tokens)], dim=1)

    def graph(self, layer: int | None = None) -> TokenGraph:
        """Returns the graph that the strategy works on after ``layer`` blocks of the last run.

        Args:
            layer: Finished blocks; all by default.

        Returns:
            The tokens after ``layer`` blocks with their edges and weights; ``pos`` in patch units, ``size`` the token
            scales, ``x`` the features that the graph was built from.

        Raises:
            ValueError: If the strategy keeps no graph.
        """
        state = self.state(layer)
        memory = state.asked.memory
        if not isinstance(memory, PropagationGraph):
            raise ValueError(
                "Expected a strategy with a graph, as GTP(mode='propagate') on images of one shape (got none). "
                "Build one from features: tg.TokenGraph.from_model(model, images, layer=l).connect_knn(8)."
            )
        size = None if state.size is None else self.size(layer)
        return TokenGraph.from_propagation(memory, state.lineage.ancestor, size)
