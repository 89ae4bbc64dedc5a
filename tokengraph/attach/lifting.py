"""The way back from the tokens of a run to every input patch, and to the graph that a strategy keeps."""

from __future__ import annotations

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
    """What :class:`tokengraph.attach.trace.Trace` tells of features."""

    run: Run

    def state(self, layer: int | None = None) -> State:
        """The tokens after ``layer`` blocks (default: all) in the last run."""
        raise NotImplementedError

    def size(self, layer: int | None = None) -> Tensor:
        """Weight of each token after ``layer`` blocks, ``[B, n]`` float32."""
        raise NotImplementedError

    def lift(
        self, tokens: Tensor, *, layer: int | None = None, fill: Tensor | None = None, replenish: bool = False
    ) -> Tensor:
        """Brings tokens back to full resolution.

        Args:
            tokens: ``[B, n, C]``, or ``[B, P+n, C]`` (prefix tokens are then left out), as they are after ``layer``
                blocks of the last run.
            layer: Finished blocks; all by default.
            fill: Rows ``[B, N, C]`` that dropped tokens get instead of zeros.
            replenish: Dropped tokens come back with what the strategy stored (token migration). For features, as they
                are before the final norm.

        Returns:
            ``[B, N, C]``: a row for each of the N input patches, row-major; zeros at padding of coarsened images.

        Raises:
            ValueError: If ``tokens`` do not have the number of tokens that the layer had.

        Cost: one gather of ``[B, N, C]``; with Expedite the first time its reconstruction edges, too.
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
                f"(got {tokens.size(1)}). Give the layer that they come from."
            )
        if not lineage.coarse:
            return tokens
        lifted = lineage.lift(tokens, None if fill is None else fill.flatten(0, 1), replenish=replenish)
        return lifted.view(now.images, lineage.start.width, tokens.size(2))

    def as_map(self, tokens: Tensor | None = None, *, layer: int | None = None, replenish: bool = False) -> Tensor:
        """A feature map at full resolution, ``[B, C, H, W]``.

        Args:
            tokens: As for :meth:`lift`; by default what left the last block (before the final norm, no gradient).
            layer: Finished blocks; all by default.
            replenish: As for :meth:`lift`; what left the last block is replenished in any case.
        """
        full, shape = self._full(tokens, layer, replenish)
        if shape.one_grid is None:
            raise ValueError("Expected images of one patch grid (got images of any shape). Use trace.as_maps().")
        if not shape.ordered:
            raise ValueError(
                "Expected patches in reading order (got those of a model that shuffles them, as ViTMAE does). Give it "
                "noise=torch.arange(N).expand(B, N), or restore the order of trace.lift(...) by its ids_restore."
            )
        height, width = shape.one_grid
        if height * width != full.size(1):
            raise ValueError(
                f"Expected {height} x {width} patches (got {full.size(1)}): the model dropped some before its blocks, "
                "as patch dropout does in train mode. Call model.eval(), or make it with patch_drop_rate=0."
            )
        return full.transpose(1, 2).reshape(full.size(0), full.size(2), height, width).contiguous()

    def as_maps(
        self, tokens: Tensor | None = None, *, layer: int | None = None, replenish: bool = False
    ) -> list[Tensor]:
        """A feature map of each image at its own resolution, ``[C, H_b, W_b]``; arguments as for :meth:`as_map`."""
        full, shape = self._full(tokens, layer, replenish)
        if shape.grids is None:
            return list(self.as_map(tokens, layer=layer, replenish=replenish))
        pairs = zip(full, shape.grids, strict=True)
        return [rows[: h * w].t().reshape(-1, h, w).contiguous() for rows, (h, w) in pairs]

    def _full(self, tokens: Tensor | None, layer: int | None, replenish: bool) -> tuple[Tensor, InputShape]:
        """Rows ``[B, N, C]`` of every input patch, and the shape of the images that they are of."""
        if tokens is None:
            self.state()  # says so when there was no run yet
            tokens, replenish = self.run.output, True
            assert tokens is not None
        full = self.lift(tokens, layer=layer, replenish=replenish)
        return full, self._state_of(tokens, layer).asked.shape

    def _state_of(self, tokens: Tensor, layer: int | None) -> State:
        """As :meth:`state`; in front of the first attached block, which may not have run, nothing is coarsened."""
        if not isinstance(layer, Integral) or not 0 < layer <= self.run.start:
            return self.state(layer)
        shape = self.run.shape
        assert shape.grid is not None
        patches = shape.grid[0] * shape.grid[1] if shape.grids is None else tokens.size(1) - self.run.num_prefix
        return State.at_input(tokens.size(0), patches, Asked(shape))

    def lift_sequence(self, tokens: Tensor) -> Tensor:
        """``[B, P+n, C]`` after the last block to ``[B, P+N, C]``, prefix tokens in front."""
        if not self.state().lineage.coarse:
            return tokens
        return torch.cat([tokens[:, : self.run.num_prefix], self.lift(tokens)], dim=1)

    def graph(self, layer: int | None = None) -> TokenGraph:
        """The graph that the strategy works on, as it is after ``layer`` blocks of the last run.

        Args:
            layer: Finished blocks; all by default.

        Returns:
            The current tokens, with edges and weights, positions in patch units, and their scales as ``size``.
            ``x`` are the features that the graph was built from.

        Raises:
            ValueError: If the strategy keeps no graph.
        """
        state = self.state(layer)
        memory = state.asked.memory
        if not isinstance(memory, PropagationGraph):
            raise ValueError(
                "Expected a strategy that keeps a graph, as GTP(mode='propagate') on images of one shape (got none). "
                "Build one from features: tg.TokenGraph.from_model(model, images, layer=l).connect_knn(8)."
            )
        size = None if state.size is None else self.size(layer)
        return TokenGraph.from_propagation(memory, state.lineage.ancestor, size)
