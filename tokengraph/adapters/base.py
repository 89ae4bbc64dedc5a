"""The base class of adapters: where the blocks of a family are, and how to run the two halves of a block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokengraph.adapters.parts.input_shape import InputShape
from tokengraph.adapters.parts.norms import find_norms
from tokengraph.attention.keep_mask import KeepMask
from tokengraph.attention.stats import AttentionStats
from tokengraph.errors import check_layer
from tokengraph.maps.lineage import Lineage


class Adapter(ABC):
    """How the models of one family are built. Adapters have no state, and know no strategy.

    To add a family write one subclass: find the blocks, call the block's own submodules in :meth:`attend` and
    :meth:`feed`, and give mixins whose ``forward`` has the signature of the block's. ``docs/adding_a_family.md`` shows
    one. Models, blocks and embeddings have type ``Any``, because no type checker knows their submodules.

    Attributes:
        family: Name of the family in messages.
        block_mixin: A class put in front of the block's class; see :class:`tokengraph.adapters.coarse.CoarseBlock`.
        model_mixin: A class put in front of the model's class, for pooling and feature maps; ``None``: not needed.
        side_inputs: Names of the inputs of a block, besides tokens and mask, that :meth:`carry` can coarsen.
    """

    family: ClassVar[str]
    block_mixin: ClassVar[type]
    model_mixin: ClassVar[type | None] = None
    side_inputs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def serves(self, model: Any) -> bool:
        """Returns whether ``model`` itself is of this family. Must not import the family's package."""

    @abstractmethod
    def blocks(self, model: Any) -> list[nn.Module]:
        """The blocks, in the order in which they run.

        Raises:
            ValueError: If a block is of a kind that the adapter does not know; the message names its class.
        """

    @abstractmethod
    def num_prefix(self, model: Any) -> int:
        """P, the number of tokens in front of the patches: class, distillation and register tokens."""

    @abstractmethod
    def channels(self, model: Any) -> int:
        """C, the width of the tokens."""

    @abstractmethod
    def grid(self, model: Any) -> tuple[int, ...]:
        """``(H, W)`` of the patches for the model's own image size; ``(T, H, W)`` of a video's."""

    @abstractmethod
    def has_class_token(self, model: Any) -> bool:
        """Returns whether the first token is a class token."""

    @abstractmethod
    def attend(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """Runs the attention half with its residual, by the block's own submodules.

        Args:
            block: The block.
            x: Tokens that enter the block, ``[B, P+n, C]``.
            mask: Added to the attention logits: ``None``, a tensor ``[1 or B, 1 or H, 1 or P+n, P+n]``, or a mask
                object, which ``scaled_dot_product_attention`` takes like one. Pass it on unchanged.
            side: The block's other inputs.

        Returns:
            ``[B, P+n, C]``.
        """

    @abstractmethod
    def feed(self, block: Any, x: Tensor) -> Tensor:
        """Runs the MLP half with its residual; ``[B, P+n, C]`` in and out."""

    def whole(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """Runs a block in which the strategy does not act: both halves, ``[B, P+n, C]`` in and out."""
        return self.feed(block, self.attend(block, x, mask, **side))

    def stock(self, kind: type[nn.Module], block: Any, x: Tensor, **side: Any) -> Tensor:
        """Runs the forward of ``kind``, the block's original class; tokens ``[B, P+n, C]`` in and out."""
        return kind.forward(block, x, **side)

    @abstractmethod
    def kept(self, block: Any) -> dict[str, nn.Module]:
        """Submodules whose outputs :meth:`statistics` reads, by name; hooks keep these outputs."""

    @abstractmethod
    def statistics(
        self, block: Any, kept: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """Describes the attention that the block has just computed; nothing is computed until a strategy reads it.

        Args:
            block: The block.
            kept: Outputs of the submodules of :meth:`kept`, by the same names.
            num_prefix: P.
            bias: The mask that was added to the logits; ``None``: none.
            side: The block's other inputs.
        """

    def class_logits(self, block: Any, x: Tensor) -> Callable[[], Tensor] | None:
        """A cheap way to the class token's query times every token's key, mean over heads, before the block runs.

        Args:
            block: The block.
            x: Tokens that enter it, ``[B, P+n, C]``.

        Returns:
            A function that returns ``[B, P+n]`` without projecting all keys; ``None`` where there is none, as for keys
            that are normed or turned, or projected by another module than a plain linear layer.
        """
        return None

    def norms(self, block: Any) -> tuple[nn.Module, nn.Module]:
        """The norms in front of attention and MLP, whose outputs these read; by default found by their usual names.

        Raises:
            ValueError: If the block has none of the names.
        """
        return find_norms(block)

    def for_norm(self, block: Any, rows: Tensor) -> Tensor:
        """Lays rows ``[B, n, C]`` out as the norms of the block give them; as they are by default."""
        return rows

    def carry(self, side: dict[str, Any], lineage: Lineage, block: Any) -> dict[str, Any]:
        """Coarsens the block's other per-token inputs (RoPE tables, biases) by the maps that the tokens came by."""
        return side

    def check_around(  # noqa: B027  # most families have nothing to check
        self, model: Any, core: nn.Module
    ) -> None:
        """Raises if the model, or a head around it, needs a fixed number of tokens.

        Raises:
            ValueError: If so; the message names the class.
        """

    def wants_whole(self, model: Any, core: nn.Module) -> bool:
        """Returns whether a head around ``core`` in ``model`` needs a token for each patch, as ``lift=True`` gives."""
        return False

    def tokens_to_check(self, block: Any) -> int:
        """Number of tokens in the attach-time check; override it if the block runs on one number only."""
        return 8

    def example(self, block: Any, count: int) -> dict[str, Any]:
        """Makes the other inputs that the block needs in the attach-time check, for ``count`` tokens."""
        return {}

    def rest(self, model: Any) -> list[nn.Module]:
        """Blocks that run behind those of :meth:`blocks` and always see every patch; none by default."""
        return []

    def mixins(self, model: Any) -> list[tuple[nn.Module, type]]:
        """Other modules of the model that need a mixin, each with its mixin; none by default."""
        return []

    def patches_last(self, block: Any, x: Tensor) -> Tensor:
        """Orders the tokens of a plain block so that prefix tokens come first; as they are by default."""
        return x

    def stock_order(self, block: Any, x: Tensor) -> Tensor:
        """Undoes :meth:`patches_last`."""
        return x

    def outputs(self, model: Any, core: nn.Module) -> list[tuple[nn.Module, str, Callable[..., Any]]]:
        """Hooks that bring tokens back to full resolution on their way out of ``core``, which lies in ``model``.

        Each is a module, ``"output"`` for a forward hook or ``"input"`` for a forward pre-hook, and a function. The
        function stands at module level and is marked with :func:`~tokengraph.adapters.coarse.ours`, so that copies and
        pickles of the model keep it.
        """
        return []

    @abstractmethod
    def embedding(self, model: Any) -> nn.Module:
        """The module that turns images into patches; the model calls it once per forward, before the blocks."""

    @abstractmethod
    def image_grid(self, embedding: Any, images: Tensor) -> tuple[int, ...]:
        """``(H, W)`` of the patches that the embedding makes of ``images``; ``(T, H, W)`` of a video's."""

    def input_shape(self, embedding: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> InputShape:
        """Reads the patch grid from the arguments of a call of ``embedding``."""
        images = args[0] if args else next(iter(kwargs.values()))
        if torch.compiler.is_compiling():  # compile per image size: budgets of symbolic sizes take minutes
            for size in images.shape[-2:]:
                len(range(size))
        return InputShape(self.image_grid(embedding, images))

    def features(self, model: Any, images: Tensor, layer: int) -> tuple[Tensor, tuple[int, ...]]:
        """Tokens ``[B, P+N, C]`` after ``layer`` blocks (negative: counted from the end), and the grid."""
        check_images(images)
        tokens = tokens_after(self.blocks(model), layer, lambda: model(images))
        return tokens, self.image_grid(self.embedding(model), images)


def tokens_after(blocks: Sequence[nn.Module], layer: int, run: Callable[[], Any]) -> Tensor:
    """Runs a model without gradients and returns the tokens ``[B, P+N, C]`` after ``layer`` of its blocks.

    Args:
        blocks: The model's blocks, in order.
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
    """Number of finished blocks that ``layer`` means: a negative one counts from the end, -1 for all blocks.

    Raises:
        ValueError: If there is no such layer. TypeError: If it is no int.
    """
    check_layer(layer)
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"Expected a layer in [0, {depth}], finished blocks, or [{-depth - 1}, -1] (got {layer}).")
    return layer % (depth + 1)


def check_images(images: Any) -> None:
    """Raises if ``images`` is not a floating-point tensor ``[B, C, H, W]``.

    Raises:
        ValueError: For another shape.
        TypeError: For anything but a tensor, or integers.
    """
    if not isinstance(images, Tensor):
        hint = ' From the processor\'s output take inputs["pixel_values"].' if isinstance(images, Mapping) else ""
        raise TypeError(f"Expected images as a Tensor [B, 3, H, W] (got {type(images).__name__}).{hint}")
    if images.dim() != 4:
        hint = " Give one image as images[None]." if images.dim() == 3 else ""
        raise ValueError(f"Expected images of shape [B, 3, H, W] (got {list(images.shape)}).{hint}")
    if not images.is_floating_point():
        raise TypeError(
            f"Expected floating-point images (got {images.dtype}). Scale and normalise them: "
            "tokengraph.io.photo.normalize(images / 255, model)."
        )


def strided_grid(convolution: Any, images: Tensor) -> tuple[int, ...]:
    """``(H, W)`` of the patches that a convolution makes of ``images [B, C, height, width]``; of videos in 3-D.

    Raises:
        TypeError: If it is no convolution.
    """
    c = convolution
    if not hasattr(c, "kernel_size"):
        raise TypeError(
            f"Expected the patch embedding as a convolution (got {type(c).__name__}). Return another module from the "
            "adapter's embedding, or compute the grid in its image_grid."
        )
    axes = len(c.kernel_size)
    if c.padding == "same":  # torch allows it for stride 1 only
        return tuple(images.shape[-axes:])
    padding = (0,) * axes if c.padding == "valid" else c.padding
    return tuple(
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, pad, dilation, kernel, stride in zip(
            images.shape[-axes:], padding, c.dilation, c.kernel_size, c.stride, strict=True
        )
    )


def is_a(module: object, origin: str, name: str, *also: str) -> bool:
    """Returns whether a class of this name, defined in the module ``origin``, is among its bases; imports nothing."""
    return any(c.__name__ == name and c.__module__ in (origin, *also) for c in type(module).__mro__)
