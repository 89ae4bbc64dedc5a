"""The integral pyramid of Fast-iTPN: channel MLPs that make one feature map per scale, for dense prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tokengraph.kinds import explain_kinds, explains
from tokengraph.models.fast_itpn import CONFIGS, FastITPNTrunk
from tokengraph.models.main_stage import TokenRecord
from tokengraph.models.stem import EPS, Pointwise, Split, StemBlock

STRIDES = {"C2": 4, "C3": 8, "C4": 16, "P2": 4, "P3": 8, "P4": 16, "P5": 32, "P6": 64}


class FeatureInfo(list):
    """One dict for each map with ``num_chs``, ``reduction`` and ``module``, and the methods of timm's class."""

    def channels(self) -> list[int]:
        """Returns the channels of each map."""
        return [info["num_chs"] for info in self]

    def reduction(self) -> list[int]:
        """Returns the stride of each map."""
        return [info["reduction"] for info in self]

    def module_name(self) -> list[str]:
        """Returns the name of each map."""
        return [info["module"] for info in self]


@explain_kinds
class FastITPNPyramid(FastITPNTrunk):
    r"""Fast-iTPN as a backbone for dense prediction, with the pyramid that it was pre-trained with.

    With Z the normed output of stage 3 at every position, and C2, C3 the two levels of the stem:

    .. math::
        t_3 = B_3(\mathrm{Split}(Z) + A_8 C_3), \quad t_2 = B_2(\mathrm{Split}(t_3) + A_4 C_2), \quad
        P_4, P_3, P_2 = M_0(A_{16} Z), M_1(t_3), M_2(t_2)

    P5 is every other position of P4, P6 every other position of P5. Parameters have the official names, so detection
    checkpoints load by name. Migration and gathering are after Fast-iTPN; the definition is this project's own. Tokens
    that left are back at their positions before the pyramid begins, so maps have no holes.

    Args:
        width: C of stage 3.
        depths: Blocks of stages 1, 2 and 3.
        heads: H of the main blocks.
        fpn_dim: Channels f of the pyramid.
        fpn_depth: MLP blocks at each level of the pyramid.
        levels: The maps to return, finest first: ``"P2"`` to ``"P6"``, or the raw ``"C2"``, ``"C3"``, ``"C4"``.
        mlp_ratio: Hidden width of the pyramid's MLPs over f.
        **trunk: Other arguments of :class:`FastITPNTrunk`.

    Attributes:
        channels: Channels of each map.
        strides: Stride of each map.
        feature_info: Channels and strides in timm's format.
        size_divisibility: H and W must be multiples of this.

    Raises:
        ValueError: If a level is unknown, or the levels do not run from fine to coarse.

    Source: Tian et al., *Fast-iTPN*, TPAMI 2024; the layout is that of a public port by its first author.
    """

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        heads: int,
        *,
        fpn_dim: int = 256,
        fpn_depth: int = 1,
        levels: Sequence[str] = ("P2", "P3", "P4", "P5"),
        mlp_ratio: float = 8 / 3,
        **trunk: Any,
    ):
        super().__init__(width, depths, heads, **trunk)
        self.levels = _check_levels(levels)

        def blocks(count: int) -> list[nn.Module]:
            return [StemBlock(fpn_dim, int(mlp_ratio * fpn_dim), sub_norm=False) for _ in range(count)]

        self.norm = nn.LayerNorm(width, eps=EPS)
        self.align_dim_16tofpn = nn.Identity() if width == fpn_dim else Pointwise(width, fpn_dim)
        self.split_16to8 = Split(width, fpn_dim)
        self.align_dim_16to8 = Pointwise(width // 2, fpn_dim)
        self.block_16to8 = nn.Sequential(*blocks(fpn_depth))
        self.split_8to4 = Split(fpn_dim, fpn_dim)
        self.align_dim_8to4 = Pointwise(width // 4, fpn_dim)
        self.block_8to4 = nn.Sequential(*blocks(fpn_depth))
        self.fpn_modules = nn.ModuleList(blocks(3))
        self._init_weights()
        raw = {"C2": width // 4, "C3": width // 2, "C4": width}
        self.channels = [raw.get(level, fpn_dim) for level in self.levels]
        self.strides = [STRIDES[level] for level in self.levels]
        self.size_divisibility = max(16, *self.strides)
        self.feature_info = FeatureInfo(
            {"num_chs": c, "reduction": s, "module": level}
            for c, s, level in zip(self.channels, self.strides, self.levels, strict=True)
        )

    def top_down(self, c2: Tensor, c3: Tensor, z: Tensor) -> list[Tensor]:
        """Computes P2, P3 and P4, rows of f channels, from rows ``[B, H, W, C]`` of three levels; ``z`` is normed."""
        t3 = self.block_16to8(self.split_16to8(z) + self.align_dim_16to8(c3))
        t2 = self.block_8to4(self.split_8to4(t3) + self.align_dim_8to4(c2))
        p4, p3, p2 = (m(t) for m, t in zip(self.fpn_modules, (self.align_dim_16tofpn(z), t3, t2), strict=True))
        return [p2, p3, p4]

    def forward_pyramid(self, images: Tensor) -> tuple[list[Tensor], TokenRecord]:
        """Returns the maps of :meth:`forward`, and the record of the tokens that left."""
        height, width = images.shape[-2:]
        if height % self.size_divisibility or width % self.size_divisibility:
            raise ValueError(
                f"Expected image sides that are multiples of {self.size_divisibility} for {self.levels[-1]} "
                f"(got {height} x {width}). Pad the images, or ask for fewer levels."
            )
        c2, c3, x = self.forward_stem(images)
        record = self.forward_main(x)
        table = record.table.view(x.shape)
        maps = {"C2": c2, "C3": c3, "C4": table}
        if any(level.startswith("P") for level in self.levels):
            maps["P2"], maps["P3"], maps["P4"] = self.top_down(c2, c3, self.norm(table))
            maps["P5"] = maps["P4"][:, ::2, ::2]
            maps["P6"] = maps["P5"][:, ::2, ::2]
        return [maps[level].permute(0, 3, 1, 2).contiguous() for level in self.levels], record

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps images ``[B, 3, H, W]`` to contiguous maps ``[B, channels, H / stride, W / stride]``, finest first."""
        return self.forward_pyramid(images)[0]


def _check_levels(levels: Sequence[str]) -> tuple[str, ...]:
    unknown = [level for level in levels if level not in STRIDES]
    if unknown or not levels:
        raise ValueError(f"Expected levels among {', '.join(STRIDES)} (got {list(levels)}).")
    strides = [STRIDES[level] for level in levels]
    if strides != sorted(strides) or len(set(levels)) != len(levels):
        raise ValueError(f"Expected levels from fine to coarse, each once (got {list(levels)}).")
    return tuple(levels)


@explains
def fast_itpn_pyramid(size: str, **options: Any) -> FastITPNPyramid:
    """Makes Fast-iTPN with its pyramid: ``"tiny"``, ``"small"``, ``"base"`` or ``"large"``.

    Options are those of :class:`FastITPNPyramid`.

    Args:
        size: The size.
        **options: Options of the class.

    Raises:
        ValueError: If the size is unknown.
    """
    if size not in CONFIGS:
        raise ValueError(f"Expected a size among {', '.join(CONFIGS)} (got {size!r}).")
    return FastITPNPyramid(*CONFIGS[size], **options)
