"""What an adapter knows about a family of models: where the blocks are, and the two halves of a block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokengraph.attention.keep_mask import KeepMask
from tokengraph.attention.stats import AttentionStats
from tokengraph.maps.lineage import Lineage


@dataclass(frozen=True)
class InputShape:
    """The shape of a run's input.

    Args:
        grid: ``(H, W)`` of the patches of every image; ``None``: images differ, see ``grids``.
        grids: The same of each image, where images differ or are padded; ``None``: all have ``grid``.
        present: ``[B, N]`` bool, True where the input has a patch; ``None``: everywhere.
        ordered: Whether patches come in reading order; ViTMAE shuffles them.
    """

    grid: tuple[int, int] | None = None
    grids: tuple[tuple[int, int], ...] | None = None
    present: Tensor | None = None
    ordered: bool = True

    @property
    def one_grid(self) -> tuple[int, int] | None:
        """``(H, W)`` of the patches of every image; ``None``: images differ, or are padded."""
        if self.grids is None:
            return self.grid
        return self.grids[0] if self.present is None and len(set(self.grids)) == 1 else None

    @property
    def counts(self) -> tuple[int, ...] | None:
        """Patches of each image, where images are padded; ``None``: all have as many."""
        return None if self.present is None else tuple(h * w for h, w in self.grids or ())


class Adapter(ABC):
    """The anatomy of one family. Stateless; strategies never see it, and it never sees a strategy.

    Models, blocks and embeddings are modules whose parts no type checker knows: ``Any``.

    A family is added by one subclass, in a file of its own in the framework's folder: name the block class, write
    ``attend`` and ``feed`` by the block's own submodules, and give the mixins whose ``forward`` has the signature of
    the block.

    Attributes:
        family: What it is called in messages.
        block_mixin: Put in front of the block's class; see :class:`tokengraph.adapters.coarse.CoarseBlock`.
        model_mixin: Put in front of the model's class, for pooling and feature maps; ``None``: not needed.
        side_inputs: Names of the block's other inputs that :meth:`carry` knows.
    """

    family: ClassVar[str]
    block_mixin: ClassVar[type]
    model_mixin: ClassVar[type | None] = None
    side_inputs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def serves(self, model: Any) -> bool:
        """Whether ``model`` itself is of this family. Must not import the family's package."""

    @abstractmethod
    def blocks(self, model: Any) -> list[nn.Module]:
        """The blocks in order.

        Raises:
            ValueError: If the model holds blocks of another kind; the message names them and what would do.
        """

    @abstractmethod
    def num_prefix(self, model: Any) -> int:
        """P, the tokens in front of the patches."""

    @abstractmethod
    def channels(self, model: Any) -> int:
        """C, the width of the tokens."""

    @abstractmethod
    def grid(self, model: Any) -> tuple[int, int]:
        """``(H, W)`` of the patches for the model's own image size."""

    @abstractmethod
    def has_class_token(self, model: Any) -> bool:
        """Whether the first token is a class token."""

    @abstractmethod
    def attend(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """The attention half with its residual, ``[B, P+N, C]``; ``mask`` and ``side`` as the block takes them."""

    @abstractmethod
    def feed(self, block: Any, x: Tensor) -> Tensor:
        """The MLP half with its residual, ``[B, P+N, C]``."""

    def whole(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """Both halves, ``[B, P+N, C]``, where the strategy does nothing in between."""
        return self.feed(block, self.attend(block, x, mask, **side))

    def stock(self, kind: type[nn.Module], block: Any, x: Tensor, **side: Any) -> Tensor:
        """What the block's own class ``kind`` makes of ``x [B, P+N, C]``, in the same shape."""
        return kind.forward(block, x, **side)

    @abstractmethod
    def kept(self, block: Any) -> dict[str, nn.Module]:
        """Modules whose outputs :meth:`statistics` wants, by name; they are kept where the strategy reads attention."""

    @abstractmethod
    def statistics(
        self, block: Any, kept: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """Lazy statistics of the attention that the block has just computed, from what :meth:`kept` gave."""

    def carry(self, side: dict[str, Any], lineage: Lineage, block: Any) -> dict[str, Any]:
        """Coarsens the block's other per-token inputs (RoPE tables, biases) by the maps that the tokens came by."""
        return side

    def check_around(  # noqa: B027  # nothing to check is what most need
        self, model: Any, core: nn.Module
    ) -> None:
        """Raises if the model, or a head around it, needs a fixed number of tokens.

        Raises:
            ValueError: If not; the message names the class.
        """

    def wants_whole(self, model: Any, core: nn.Module) -> bool:
        """Whether what lies around ``core`` in ``model`` needs every patch of its output, as with ``lift=True``."""
        return False

    def tokens_to_check(self, block: Any) -> int:
        """How many tokens the attach-time check gives the block; another number where only that one will do."""
        return 8

    def example(self, block: Any, count: int) -> dict[str, Any]:
        """Other inputs that the block needs to run on ``count`` tokens by itself."""
        return {}

    def outputs(self, model: Any, core: nn.Module) -> list[tuple[nn.Module, str, Callable[..., Any]]]:
        """Hooks that bring tokens back to full resolution on their way out of ``core``, which lies in ``model``.

        Each is a module, ``"output"`` or ``"input"``, and a module-level function marked with
        :func:`~tokengraph.adapters.coarse.ours`, so that copies and pickles keep it.
        """
        return []

    @abstractmethod
    def embedding(self, model: Any) -> nn.Module:
        """The module that turns images into patches; called once a run, before the blocks."""

    @abstractmethod
    def image_grid(self, embedding: Any, images: Tensor) -> tuple[int, int]:
        """``(H, W)`` of the patches that the embedding makes of ``images``."""

    def input_shape(self, embedding: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> InputShape:
        """The shape of the images that come in, as ``embedding`` is called."""
        images = args[0] if args else next(iter(kwargs.values()))
        if torch.compiler.is_compiling():  # one graph for each size: budgets of symbolic sizes take minutes to simplify
            for size in images.shape[-2:]:
                len(range(size))
        return InputShape(self.image_grid(embedding, images))

    def features(self, model: Any, images: Tensor, layer: int) -> tuple[Tensor, tuple[int, int]]:
        """The tokens ``[B, P+N, C]`` once ``layer`` blocks are finished (negative from the end), and the grid."""
        check_images(images)
        tokens = tokens_after(self.blocks(model), layer, lambda: model(images))
        return tokens, self.image_grid(self.embedding(model), images)


def tokens_after(blocks: Sequence[nn.Module], layer: int, run: Callable[[], Any]) -> Tensor:
    """Runs a model without gradients and takes the tokens ``[B, P+N, C]`` once ``layer`` of its blocks are finished.

    Args:
        blocks: Of the model.
        layer: As for :func:`count_finished`.
        run: Calls the model.

    Raises:
        ValueError: If there is no such layer.
    """
    finished, seen = count_finished(layer, len(blocks)), []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else next(iter(kwargs.values())))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    if finished:
        hook = blocks[finished - 1].register_forward_hook(after)
    else:
        hook = blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    try:
        with torch.no_grad():
            run()
    finally:
        hook.remove()
    return seen[0]


def count_finished(layer: int, depth: int) -> int:
    """How many blocks are finished at ``layer``: itself, or counted from the end, -1 for all.

    Raises:
        ValueError: If there is no such layer.
    """
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"Expected a layer in [0, {depth}], finished blocks, or [{-depth - 1}, -1] (got {layer}).")
    return layer % (depth + 1)


def check_images(images: Any) -> None:
    """Raises unless these are images ``[B, C, H, W]`` in floating point.

    Raises:
        ValueError: For another shape.
        TypeError: For a mapping or integers.
    """
    if isinstance(images, Mapping):
        raise TypeError(
            f"Expected images as a Tensor [B, 3, H, W] (got {type(images).__name__}). Of what a processor returns give "
            'inputs["pixel_values"].'
        )
    if images.dim() != 4:
        hint = " Give one image as images[None]." if images.dim() == 3 else ""
        raise ValueError(f"Expected images of shape [B, 3, H, W] (got {list(images.shape)}).{hint}")
    if not images.is_floating_point():
        raise TypeError(
            f"Expected floating-point images (got {images.dtype}). Scale and normalise them: "
            "tokengraph.io.photo.normalize(images / 255, model)."
        )


def strided_grid(convolution: Any, images: Tensor) -> tuple[int, int]:
    """``(H, W)`` of the patches that a convolution makes of ``images [B, C, height, width]``."""
    c = convolution
    if c.padding == "same":  # which goes without strides
        return images.size(-2), images.size(-1)
    padding = (0, 0) if c.padding == "valid" else c.padding
    height, width = (
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, pad, dilation, kernel, stride in zip(
            images.shape[-2:], padding, c.dilation, c.kernel_size, c.stride, strict=True
        )
    )
    return height, width


def is_a(module: object, origin: str, name: str, *also: str) -> bool:
    """Whether a class of this name and origin is among the module's classes; imports nothing."""
    return any(c.__name__ == name and c.__module__ in (origin, *also) for c in type(module).__mro__)
