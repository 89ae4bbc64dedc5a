"""What an adapter knows about a family of models: where the blocks are, and the two halves of a block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import ClassVar

from torch import Tensor, nn

from tokengraph.nn.masked_attention import KeepMask
from tokengraph.select.attention import AttentionStats


class Adapter(ABC):
    """The anatomy of one family. Stateless; strategies never see it, and it never sees a strategy.

    A family is added by one subclass in a file of this folder: name the block class, write ``attend`` and ``feed`` by
    the block's own submodules, and give the mixins whose ``forward`` has the signature of the block.

    Attributes:
        family: What it is called in messages.
        block_mixin: Put in front of the block's class; see :class:`tokengraph.adapters.block.CoarseBlock`.
        model_mixin: Put in front of the model's class, for pooling and feature maps; ``None``: not needed.
    """

    family: ClassVar[str]
    block_mixin: ClassVar[type]
    model_mixin: ClassVar[type | None] = None

    @abstractmethod
    def serves(self, model: nn.Module) -> bool:
        """Whether ``model`` itself is of this family. Must not import the family's package."""

    @abstractmethod
    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The blocks in order.

        Raises:
            ValueError: If the model holds blocks of another kind; the message names them and what would do.
        """

    @abstractmethod
    def num_prefix(self, model: nn.Module) -> int:
        """P, the tokens in front of the patches."""

    @abstractmethod
    def channels(self, model: nn.Module) -> int:
        """C, the width of the tokens."""

    @abstractmethod
    def grid(self, model: nn.Module) -> tuple[int, int]:
        """``(H, W)`` of the patches for the model's own image size."""

    @abstractmethod
    def has_class_token(self, model: nn.Module) -> bool:
        """Whether the first token is a class token."""

    @abstractmethod
    def attend(self, block: nn.Module, x: Tensor, mask: Tensor | KeepMask | None) -> Tensor:
        """The attention half with its residual, ``[B, P+N, C]``; ``mask`` as the block takes it."""

    @abstractmethod
    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        """The MLP half with its residual, ``[B, P+N, C]``."""

    @abstractmethod
    def projection(self, block: nn.Module) -> nn.Module:
        """The module that makes queries, keys and values; its output is kept while the block runs."""

    @abstractmethod
    def statistics(self, block: nn.Module, projected: Tensor, num_prefix: int, bias: Tensor | None) -> AttentionStats:
        """Lazy statistics of the attention that the block has just computed."""

    @abstractmethod
    def map_site(self, block: nn.Module) -> nn.Module:
        """The module that the attention map ``[B, H, P+N, P+N]`` comes out of, after softmax, where it is open.

        What a hook there returns instead is what weighs the values.
        """

    @abstractmethod
    def open_map(self, block: nn.Module) -> AbstractContextManager[None]:
        """A context in which the block leaves its fused kernel, so that the map passes through :meth:`map_site`."""

    @abstractmethod
    def embedding(self, model: nn.Module) -> nn.Module:
        """The module that turns images into patches; called once a run, before the blocks."""

    @abstractmethod
    def image_grid(self, embedding: nn.Module, images: Tensor) -> tuple[int, int]:
        """``(H, W)`` of the patches that the embedding makes of ``images``."""

    @abstractmethod
    def features(self, model: nn.Module, images: Tensor, layer: int) -> tuple[Tensor, tuple[int, int]]:
        """The tokens ``[B, P+N, C]`` that leave block ``layer`` (0-based, negative from the end), and the grid."""
