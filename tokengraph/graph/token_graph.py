"""TokenGraph: the tokens of a batch of images as a PyTorch Geometric graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from tokengraph.adapters import find_adapter
from tokengraph.adapters.pause import paused
from tokengraph.edges import grid_graph, grid_positions, knn_graph
from tokengraph.edges.grid import Grid
from tokengraph.edges.local import WINDOW, local_edges
from tokengraph.edges.window import window_edges
from tokengraph.errors import check_finite, check_grid, check_sorted
from tokengraph.flat.layout import pad
from tokengraph.graph.fields import Size, batch_layout, grid_of_each, is_one, summary
from tokengraph.graph.inputs import check_images, check_token_sets
from tokengraph.graph.split import cut
from tokengraph.kinds import explain_methods
from tokengraph.select.parts.graphs.propagation import PropagationGraph


@explain_methods
class TokenGraph(Data):
    """A graph whose nodes are patch tokens. Prefix tokens (class, distillation, registers) are a separate field.

    It is a :class:`torch_geometric.data.Data`, so PyG's loaders, transforms, ``Batch``, NetworkX export and layers
    accept it. One TokenGraph holds one image or many; ``Batch.from_data_list`` takes single images (see :meth:`split`).

    Attributes:
        x: Features, ``[M, C]``, the tokens of all images one after another.
        size: Number of input patches in each node, ``[M]`` float32.
        pos: Centroids in patch units, ``[M, 2]`` float32 as (y, x); the centre of patch (0, 0) is (0.5, 0.5). In a
            video ``[M, 3]`` as (t, y, x). Absent without a grid.
        batch: Image of each node, ``[M]`` int64, sorted.
        ptr: First node of each image, ``[B+1]`` int64.
        edge_index: ``[2, E]`` int64, source to target; absent until edges are added.
        edge_weight: ``[E]``.
        grid: ``(H, W)`` of the input patches, ``(T, H, W)`` of a video's, a list where images differ, or ``None``.
        prefix: Prefix tokens, ``[B, P, C]``; absent when there are none.
    """

    x: Tensor  # PyG declares it as optional
    pos: Tensor
    batch: Tensor

    @classmethod
    def from_tokens(
        cls,
        tokens: Tensor | Sequence[Tensor],
        grid: Grid | Sequence[Grid] | None = None,
        *,
        num_prefix: int = 0,
        check: bool = True,
    ) -> TokenGraph:
        """Builds a graph without edges from the tokens of a model.

        Args:
            tokens: ``[B, P+N, C]``, or a list with ``[P+N_b, C]`` for each image.
            grid: ``(H, W)`` with ``H*W = N``, row-major; for a list of tokens also a list of grids. ``(T, H, W)`` for
                a video, not ``(T*H, W)``, which looks like an image. ``None``: no positions.
            num_prefix: P, the number of prefix tokens at the front.
            check: Check for NaN and infinity (a host synchronisation on CUDA).

        Raises:
            ValueError: If shapes or grid do not fit, or tokens are not finite.
            TypeError: If ``tokens`` are no floating-point tensors, for example the whole output of a model.

        Cost: one copy of the tokens.

        Example:
            >>> TokenGraph.from_tokens(torch.randn(2, 1 + 12, 8), grid=(3, 4), num_prefix=1)
            TokenGraph(images=2, nodes=24, edges=0, channels=8, grid=(3, 4), prefix=1)
        """
        sets = check_token_sets(tokens)
        if not 0 <= num_prefix <= min(t.size(0) for t in sets):
            raise ValueError(f"Expected 0 <= num_prefix <= tokens per image (got num_prefix={num_prefix}).")
        if len({t.size(1) for t in sets}) > 1:
            raise ValueError(f"Expected one channel count (got {sorted({t.size(1) for t in sets})}).")
        counts = [t.size(0) - num_prefix for t in sets]
        grids = grid_of_each(grid, counts)
        x = torch.cat([t[num_prefix:] for t in sets])
        prefix = torch.stack([t[:num_prefix] for t in sets])
        if check:
            check_finite(x)
            check_finite(prefix, "prefix tokens")
        fields: dict[str, Any] = {"x": x, "size": x.new_ones(x.size(0), dtype=torch.float32), **batch_layout(counts, x)}
        if grids is not None:
            fields["pos"] = torch.cat([grid_positions(g, device=x.device) for g in grids])
            fields["grid"] = grids[0] if len(set(grids)) == 1 else grids
        if num_prefix:
            fields["prefix"] = prefix
        return cls(**fields)

    @classmethod
    def from_propagation(
        cls, graph: PropagationGraph, patch: Tensor | None = None, size: Tensor | None = None
    ) -> TokenGraph:
        """Builds a graph of the patches that survive in GTP's propagation graph, with features before block 0.

        Arguments, errors and cost as for :meth:`tokengraph.PropagationGraph.survivors`.
        """
        fields = graph.survivors(patch, size)
        count = fields["x"].size(0) // max(graph.images, 1)
        return cls(**fields, **batch_layout([count] * graph.images, graph.x))

    @classmethod
    def from_model(cls, model: nn.Module, images: Tensor | Mapping[str, Tensor], *, layer: int = -1) -> TokenGraph:
        """Runs a supported vision transformer and takes its tokens after ``layer`` blocks, before the final norm.

        Args:
            model: A model that :func:`tokengraph.attach` supports; it is not changed. What is attached to it is paused:
                the tokens are the plain model's.
            images: ``[B, 3, H, W]``, normalised as the model expects; for models of images of any shape (NaFlex) a
                mapping of their inputs by name.
            layer: Number of finished blocks, as in schedules and ``trace``: 0 for the input of the first block, the
                depth for the output of the last one; negative numbers count from the end, -1 is the last block.

        Returns:
            A graph of the patch tokens, without padding, with ``grid``, ``pos`` and ``prefix``.

        Raises:
            ValueError: If the model is not supported or has no such layer, or ``images`` are no batch.
            TypeError: If ``images`` are no floating-point tensor (NumPy, uint8, a model's output).
        """
        check_images(images)
        model, adapter = find_adapter(model)
        with paused(model):  # what is attached would leave fewer tokens than the grid has
            tokens, grid = adapter.features(model, images, layer)  # type: ignore[arg-type]
        return cls.from_tokens(tokens, grid, num_prefix=adapter.num_prefix(model))

    @property
    def size(self) -> Tensor:  # type: ignore[override]  # Data.size() is the shape of the adjacency matrix
        """Input patches in each node, ``[M]`` float32, 1 if unset. ``size()`` is PyG's method."""
        stored = self._store.get("size")
        if stored is None:
            device = None if self.x is None else self.x.device
            stored = torch.ones(self.num_nodes or 0, dtype=torch.float32, device=device)
        return stored.as_subclass(Size)

    @size.setter
    def size(self, value: Tensor) -> None:
        self._store["size"] = value.as_subclass(Tensor)

    @property
    def ptr(self) -> Tensor:
        """First node of each image, ``[B+1]`` int64."""
        stored, nodes = self._store.get("ptr"), self.num_nodes or 0
        if stored is not None and int(stored[-1]) == nodes:
            return stored
        # PyG's Batch.get_example drops ptr, and its subgraph does not update it; both update batch.
        counts = [nodes]
        if self.num_images > 1:
            counts = torch.bincount(self.batch, minlength=self.num_images).tolist()
        return batch_layout(counts, self.x)["ptr"]

    @ptr.setter
    def ptr(self, value: Tensor) -> None:
        self._store["ptr"] = value

    @property
    def grid(self) -> Any:
        """``(H, W)`` or ``(T, H, W)`` of the patches, or a list with one for each image; ``None``: no grid."""
        return self._store.get("grid")

    @grid.setter
    def grid(self, value: Any) -> None:
        self._store["grid"] = value

    @property
    def num_graphs(self) -> int:
        """B, under the name that PyG's ``Batch`` uses."""
        return self.num_images

    @property
    def num_images(self) -> int:
        """B, the number of images."""
        return self._store["ptr"].numel() - 1 if "ptr" in self else 1

    @property
    def counts(self) -> list[int]:
        """Number of nodes of each image (a host synchronisation on CUDA)."""
        return self.ptr.diff().tolist()

    @property
    def grids(self) -> list[Grid] | None:
        """The patch grid of each image, or ``None``."""
        if (grid := self._store.get("grid")) is None:
            return None
        if is_one(grid):
            return [tuple(int(side) for side in grid)] * self.num_images
        return [tuple(int(side) for side in one) for one in grid]

    def to_tokens(self) -> Tensor:
        """Returns the tokens as ``[B, P+N, C]``, prefix tokens first.

        Raises:
            ValueError: If images have different numbers of tokens; use :meth:`to_padded`.
        """
        if len(set(self.counts)) > 1:
            raise ValueError(f"Expected as many tokens in each image (got {self.counts}). Use to_padded().")
        return self._with_prefix(self.x.view(self.num_images, -1, self.x.size(1)))

    def to_padded(self) -> tuple[Tensor, Tensor]:
        """Returns the tokens as ``[B, P+N_max, C]``, padded with zeros, and ``[B, P+N_max]`` bool, True at tokens."""
        dense, mask = pad(self.x, self.counts)
        tokens = self._with_prefix(dense)
        return tokens, torch.cat([mask.new_ones(mask.size(0), tokens.size(1) - mask.size(1)), mask], dim=1)

    def with_edges(self, edge_index: Tensor, edge_weight: Tensor | None = None) -> TokenGraph:
        """Returns the same nodes with edges ``[2, E]`` int64 and weights ``[E]``; raises on other shapes."""
        if edge_index.dim() != 2 or edge_index.size(0) != 2:
            raise ValueError(f"Expected edge_index of shape [2, E] (got {list(edge_index.shape)}).")
        ones = torch.ones(edge_index.size(1), dtype=torch.float32, device=edge_index.device)
        graph = self.without("edge_attr")
        graph.edge_index, graph.edge_weight = edge_index, ones if edge_weight is None else edge_weight
        return graph

    def connect_knn(self, k: int, *, cosine: bool = False, backend: str = "auto") -> TokenGraph:
        """Returns the same nodes with edges from each node's k nearest; see :func:`tokengraph.knn_graph`."""
        if self.batch is not None:
            check_sorted(self.batch)
        ptr = self.ptr if len(set(self.counts)) > 1 else None
        x = self.x if ptr is not None else self.x.view(self.num_images, -1, self.x.size(1))
        return self.with_edges(*knn_graph(x, k, ptr=ptr, cosine=cosine, backend=backend))

    def connect_grid(self, neighbors: int | None = None) -> TokenGraph:
        """Returns the same nodes with the edges of the patch grid; see :func:`tokengraph.grid_graph`."""
        parts = [grid_graph(g, neighbors, device=self.x.device) for g in self._full_grids()]
        return self.with_edges(self._shift(parts))

    def connect_window(self, lam: int) -> TokenGraph:
        """Returns the same nodes with edges from the ``lam`` nearest patches; see :func:`tokengraph.window_graph`."""
        return self.with_edges(self._shift([window_edges(g, lam, device=self.x.device) for g in self._full_grids()]))

    def connect_local(self, k: int, window: int = WINDOW, *, cosine: bool = False) -> TokenGraph:
        """Returns the same nodes with edges from the k nearest nearby; see :func:`tokengraph.local_knn_graph`."""
        return self.with_edges(*local_edges(self.x.split(self.counts), self._full_grids(), k, window, cosine=cosine))

    def split(self) -> list[TokenGraph]:
        """Returns one graph for each image, with all fields of its nodes, its edges and itself (labels, masks)."""
        grids, graphs = self.grids, []
        for b, fields in enumerate(cut(self, self.ptr)):
            fields |= batch_layout([fields["x"].size(0)], self.x)
            if grids is not None:
                fields["grid"] = grids[b]
            graphs.append(TokenGraph(**fields))
        return graphs

    def to_data_list(self) -> list[TokenGraph]:
        """Calls :meth:`split`; the name that PyG's ``Batch`` uses."""
        return self.split()

    def without(self, *names: str) -> TokenGraph:
        """Returns a graph of the other fields, which shares their tensors (PyG's ``clone`` copies them)."""
        return TokenGraph(**{k: v for k, v in self._store.to_dict().items() if k not in names})

    def apply(self, func: Callable[[Any], Any], *args: str) -> TokenGraph:
        """Applies a function to all tensors, as ``.to()`` does; PyG's own method would turn tuples into lists."""
        kept = {"grid": self._store["grid"]} if "grid" in self else {}
        super().apply(func, *args)
        self._store.update(kept)
        return self

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Stops PyG from batching a graph of several images, which it would treat as one graph."""
        if self.num_images > 1:
            raise ValueError(
                f"Expected graphs of one image to batch (got one of {self.num_images}). Use graph.split() first."
            )
        if key == "batch":  # PyG would use the highest image id, which an empty image does not have
            return 1
        return super().__inc__(key, value, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out PyG's cache of field kinds, which ``torch.load(weights_only=True)`` rejects."""
        self._store.__dict__.pop("_cached_attr", None)
        return super().__getstate__()

    def __repr__(self) -> str:
        return super().__repr__() if self.x is None else summary(self)  # None while PyG fills the fields

    def _with_prefix(self, tokens: Tensor) -> Tensor:
        return torch.cat([self.prefix, tokens], dim=1) if "prefix" in self else tokens

    def _full_grids(self) -> list[Grid]:
        if self.grids is None:
            raise ValueError("Expected a graph with a grid (got none). Build it with grid=(H, W), or (T, H, W).")
        return [check_grid(grid, count, video=True) for grid, count in zip(self.grids, self.counts, strict=True)]

    def _shift(self, parts: list[Tensor]) -> Tensor:
        return torch.cat([e + start for e, start in zip(parts, self.ptr.tolist(), strict=False)], dim=1)
