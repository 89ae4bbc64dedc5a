"""Scenes of shapes for the dense examples, and training on them.

Scenes are drawn, so that nothing has to be downloaded: striped and checked shapes on a noisy ground. They only show how
the parts fit together; whether a strategy suits your task, your images decide.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

KINDS = ("ground", "disk", "square", "triangle")


@dataclass
class Scenes:
    """Images ``[B, 3, H, W]`` in [0, 1], the kind of each pixel ``[B, H, W]``, and boxes with labels of each image."""

    images: Tensor
    labels: Tensor
    boxes: list[dict[str, Tensor]]


def draw_scenes(count: int, size: tuple[int, int], generator: torch.Generator, shapes: int = 4) -> Scenes:
    """Draws scenes; later shapes cover earlier ones, and boxes are those of what is visible."""

    def draw(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    textures = (torch.ones(size), (y // 3 % 2).float(), (x // 3 % 2).float(), ((x // 4 + y // 4) % 2).float())
    images, labels, boxes = [], [], []
    for _ in range(count):
        image, owner, kinds = torch.full((3, *size), draw(0.2, 0.8)), torch.zeros(size, dtype=torch.long), [0]
        for number in range(1, shapes + 1):
            kind, side = 1 + int(draw(0, 3)), draw(10, 26)
            dy, dx = y - draw(0, size[0]), x - draw(0, size[1])
            inside = (
                dy**2 + dx**2 < side**2,
                (dy.abs() < side) & (dx.abs() < side),
                (dy < 0.7 * side) & (2 * dx.abs() - dy < 0.9 * side),
            )[kind - 1]
            color = torch.rand(3, 1, generator=generator)
            image[:, inside] = color * (0.4 + 0.6 * textures[kind][inside])
            owner[inside] = number
            kinds.append(kind)
        found = [(n, (owner == n).nonzero()) for n in range(1, shapes + 1) if int((owner == n).sum()) >= 40]
        corners = [torch.cat([p.amin(dim=0).flip(0), p.amax(dim=0).flip(0) + 1]) for _, p in found]
        boxes.append(
            {
                "boxes": torch.stack(corners).float() if corners else torch.zeros(0, 4),
                "labels": torch.tensor([kinds[n] for n, _ in found], dtype=torch.long),
            }
        )
        images.append((image + 0.05 * torch.randn(3, *size, generator=generator)).clamp(0, 1))
        labels.append(torch.tensor(kinds)[owner])
    return Scenes(torch.stack(images), torch.stack(labels), boxes)


def train(model: nn.Module, loss: Callable[[Scenes], Tensor], steps: int, size: tuple[int, int], rate: float) -> None:
    """Trains on new scenes in each step; ``loss`` takes a batch of them."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(steps, 2))
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(draw_scenes(8, size, generator))
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:3d}  loss {value.item():.3f}", flush=True)
    model.eval()


def mean_iou(predicted: Tensor, labels: Tensor) -> float:
    """Intersection over union, averaged over kinds."""
    pairs = [(predicted == kind, labels == kind) for kind in range(len(KINDS))]
    return statistics.mean(float((a & b).sum() / (a | b).sum().clamp_min(1)) for a, b in pairs)
