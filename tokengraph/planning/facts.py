"""The parts of a plan: its schedule, the model that it is for, and its figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlannedSchedule:
    """A schedule by token counts; images of another size keep the same shares. A class, so that models can be pickled.

    Args:
        tokens: Patch tokens before the first block and after each, never rising.
    """

    tokens: tuple[int, ...]

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        """Returns the tokens removed in each block."""
        first = max(self.tokens[0], 1)
        kept = [num_tokens * n // first if num_tokens != first else n for n in self.tokens]
        kept = [max(n, min(1, num_tokens)) for n in kept]
        return [a - b for a, b in zip(kept[:-1], kept[1:], strict=True)]


@dataclass(frozen=True)
class Target:
    """The model that a plan is for.

    Args:
        name: Its class.
        depth: Blocks.
        channels: C.
        side: Patches along a side of its own input; 0 if the grid is not square.
        patches: Patch tokens of its own input.
    """

    name: str
    depth: int
    channels: int
    side: int
    patches: int


@dataclass(frozen=True)
class Figures:
    """What a plan costs and keeps; ``None`` where it was not predicted or measured.

    Args:
        images: Number of images; 0 for a prediction.
        cost: Multiply-adds of the blocks as a share of the plain model's, merging included.
        speedup: Time of the plain model divided by the plan's.
        ms: Milliseconds of a batch under the plan.
        loss: The quantity that was minimised.
        class_cosine: Mean cosine of the class token to the plain model's.
        class_worst: Its mean over the worst 5 % of the images.
        patch_cosine: Mean cosine of the patch tokens, lifted and resized to the plain model's grid.
        patch_worst: Its mean over the worst 5 % of the images.
        agreement: Share of images with the same likeliest class.
        kl: KL divergence from the plain model's class probabilities, nats.
    """

    images: int = 0
    cost: float | None = None
    speedup: float | None = None
    ms: float | None = None
    loss: float | None = None
    class_cosine: float | None = None
    class_worst: float | None = None
    patch_cosine: float | None = None
    patch_worst: float | None = None
    agreement: float | None = None
    kl: float | None = None
