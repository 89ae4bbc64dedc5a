"""Fast-iTPN: a plain transformer between a convolutional stem and a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.errors import check_positive, check_tokens
from tokengraph.kinds import explain_kinds, explains
from tokengraph.models.gathering import TokenGathering
from tokengraph.models.main_block import MainBlock
from tokengraph.models.main_stage import TokenRecord, main_stage
from tokengraph.models.positions import interpolate_positions
from tokengraph.models.stem import EPS, Merge, PatchEmbed, StemBlock
from tokengraph.select.migration.migration import TokenMigration

PATCH = 16
CONFIGS = {  # width, blocks of the three stages, heads
    "tiny": (384, (1, 1, 12), 6),
    "small": (384, (2, 2, 20), 6),
    "base": (512, (3, 3, 24), 8),
    "large": (768, (2, 2, 40), 12),
}


class FastITPNTrunk(nn.Module):
    """Stem and main stage, without a head; see :class:`FastITPN` and :mod:`tokengraph.models.pyramid`.

    Args:
        width: C of stage 3, a multiple of 4 and of ``heads``.
        depths: Blocks of stages 1, 2 and 3.
        heads: H of the main blocks.
        img_size: Side or ``(H, W)`` of the images that the position embedding is made for. Images may have any other
            size; to load a checkpoint, give the size that it was trained with.
        in_chans: Channels of an image.
        drop_path_rate: Stochastic depth rate of the last block in training; rates grow linearly from 0 at the first.
        migration: Token migration, after Fast-iTPN; the definition is this project's own. It has no parameters, so it
            may be set or removed at any time.
        gathering: Token gathering, after Fast-iTPN; the definition is this project's own. Its gathering tokens have a
            learned part, ``gather_tokens``.

    Raises:
        ValueError: If the width does not fit, or ``img_size`` is no multiple of 16.
    """

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        heads: int,
        *,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        migration: TokenMigration | None = None,
        gathering: TokenGathering | None = None,
    ):
        super().__init__()
        check_positive(width=width, heads=heads)
        if width % 4 or width % heads:
            raise ValueError(f"Expected a width that is a multiple of 4 and of heads={heads} (got width={width}).")
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.img_size = (size[0], size[1])
        self.grid = _grid(*self.img_size)
        self.embed_dim = self.num_features = width
        self.depths = tuple(depths)
        self.patch_embed = PatchEmbed(width // 4, in_chans)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], width))
        self.blocks = nn.ModuleList(_blocks(width, self.depths, heads, drop_path_rate))
        self.migration = migration
        self.grad_checkpointing = False
        self.gathering = gathering
        hubs = 0 if gathering is None else gathering.num_hubs
        self.gather_tokens = nn.Parameter(torch.zeros(hubs, width)) if hubs else None
        self._init_weights()

    @property
    def main_blocks(self) -> list[MainBlock]:
        """The blocks of stage 3."""
        return [block for block in self.blocks if isinstance(block, MainBlock)]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turns gradient checkpointing of the main blocks on or off: less memory in training, but more time."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Returns the names of parameters that should get no weight decay."""
        return {"pos_embed", "gather_tokens"}

    def forward_stem(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs stages 1 and 2 on images ``[B, 3, H, W]``.

        Returns:
            C2 ``[B, H/4, W/4, C/4]`` and C3 ``[B, H/8, W/8, C/2]``, each before its merge, and the input of stage 3
            without positions, ``[B, H/16, W/16, C]``.

        Raises:
            ValueError: If H or W is no multiple of 16.
        """
        check_tokens(images, dims=(4,), name="images")
        _grid(images.size(2), images.size(3))
        x = self.patch_embed(images)
        before: list[Tensor] = []
        for block in self.blocks[: self.depths[0] + self.depths[1] + 2]:
            if isinstance(block, Merge):
                before.append(x)
            x = block(x)
        return before[0], before[1], x

    def forward_main(self, x: Tensor) -> TokenRecord:
        """Runs stage 3 on ``[B, H/16, W/16, C]``: adds positions, runs the main blocks, and restores all tokens."""
        grid = (x.size(1), x.size(2))
        tokens = x.flatten(1, 2) + interpolate_positions(self.pos_embed, self.grid, grid)
        return main_stage(
            self.main_blocks,
            tokens,
            grid,
            migration=self.migration,
            gathering=self.gathering,
            learned=self.gather_tokens,
            checkpointing=self.grad_checkpointing and self.training,
        )

    def forward_record(self, images: Tensor) -> TokenRecord:
        """Maps images ``[B, 3, H, W]`` to the final value of every position, and records which tokens left when."""
        return self.forward_main(self.forward_stem(images)[2])

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.gather_tokens is not None and self.gathering is not None and not self.gathering.pooled:
            nn.init.trunc_normal_(self.gather_tokens, std=0.02)


@explain_kinds
class FastITPN(FastITPNTrunk):
    """Fast-iTPN as a classifier, with the official parameter names.

    Without ``migration`` and ``gathering`` it is the official network. Both are defined by this project, after
    Fast-iTPN, because the authors published no code for them.

    Args:
        width: C of stage 3.
        depths: Blocks of stages 1, 2 and 3.
        heads: H of the main blocks.
        num_classes: Classes; 0: no head.
        use_mean_pooling: Average the tokens, then norm (``fc_norm``); otherwise norm, then average (``norm``).
        drop_rate: Dropout before the head.
        **trunk: Other arguments of :class:`FastITPNTrunk`.

    Raises:
        ValueError: If the width does not fit, or ``img_size`` is no multiple of 16.

    Source: Tian et al., *Fast-iTPN: Integrally Pre-Trained Transformer Pyramid Network with Token Migration*, TPAMI
    2024, and its official code, which has neither migration nor gathering.
    """

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        heads: int,
        *,
        num_classes: int = 1000,
        use_mean_pooling: bool = True,
        drop_rate: float = 0.0,
        **trunk: Any,
    ):
        super().__init__(width, depths, heads, **trunk)
        self.norm = nn.Identity() if use_mean_pooling else nn.LayerNorm(width, eps=EPS)
        self.fc_norm = nn.LayerNorm(width, eps=EPS) if use_mean_pooling else nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """Returns the head."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Gives the model a new head; 0 removes it."""
        if num_classes < 0:
            raise ValueError(f"Expected num_classes >= 0 (got {num_classes}). 0: no head.")
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.embed_dim, num_classes)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
            self.head.to(self.pos_embed.device, self.pos_embed.dtype)

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps images ``[B, 3, H, W]`` to all positions in raster order, ``[B, N, C]``, tokens that left included."""
        return self.norm(self.forward_record(images).table)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps tokens ``[B, n, C]`` to logits ``[B, classes]``; with ``pre_logits`` to the head's input ``[B, C]``."""
        x = self.fc_norm(x.mean(dim=1))
        return x if pre_logits else self.head(self.head_drop(x))

    def forward(self, images: Tensor) -> Tensor:
        """Maps images ``[B, 3, H, W]``, H and W multiples of 16, to logits ``[B, classes]``."""
        record = self.forward_record(images)
        kept = self.migration is not None and self.migration.pool == "kept"
        return self.forward_head(self.norm(record.tokens if kept else record.table))


def _blocks(width: int, depths: Sequence[int], heads: int, drop_path: float) -> list[nn.Module]:
    """Makes stem blocks, merges and main blocks in the official order."""
    first, second, main = depths
    quarter, half, last = width // 4, width // 2, max(sum(depths) - 1, 1)
    rates = iter([drop_path * i / last for i in range(sum(depths))])
    return [
        *(StemBlock(quarter, 3 * quarter, drop_path=next(rates)) for _ in range(first)),
        Merge(quarter),
        *(StemBlock(half, 3 * half, drop_path=next(rates)) for _ in range(second)),
        Merge(half),
        *(MainBlock(width, heads, drop_path=next(rates)) for _ in range(main)),
    ]


def _grid(height: int, width: int) -> tuple[int, int]:
    if height < PATCH or width < PATCH or height % PATCH or width % PATCH:
        raise ValueError(f"Expected image sides that are multiples of 16 (got {height} x {width}). Pad or resize.")
    return height // PATCH, width // PATCH


@explains
def fast_itpn_tiny(num_classes: int = 1000, **options: Any) -> FastITPN:
    """Makes Fast-iTPN-T, 24.2 M parameters: ``fast_itpn_tiny_1112_patch16_224``; options as :class:`FastITPN`."""
    return FastITPN(*CONFIGS["tiny"], num_classes=num_classes, **options)


@explains
def fast_itpn_small(num_classes: int = 1000, **options: Any) -> FastITPN:
    """Makes Fast-iTPN-S, 39.9 M parameters: ``fast_itpn_small_2220_patch16_224``; options as :class:`FastITPN`."""
    return FastITPN(*CONFIGS["small"], num_classes=num_classes, **options)


@explains
def fast_itpn_base(num_classes: int = 1000, **options: Any) -> FastITPN:
    """Makes Fast-iTPN-B, 84.8 M parameters: ``fast_itpn_base_3324_patch16_224``; options as :class:`FastITPN`."""
    return FastITPN(*CONFIGS["base"], num_classes=num_classes, **options)


@explains
def fast_itpn_large(num_classes: int = 1000, **options: Any) -> FastITPN:
    """Makes Fast-iTPN-L, 312.0 M parameters: ``fast_itpn_large_2240_patch16_256``; options as :class:`FastITPN`."""
    return FastITPN(*CONFIGS["large"], num_classes=num_classes, **options)
