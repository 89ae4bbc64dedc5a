"""The networks: attention pooling over tokens, GIN, and a graph transformer; all small, and trained the same way."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GINEConv, global_add_pool
from torch_geometric.utils import to_dense_batch

WIDTH, HEADS, LAYERS = 96, 4, 2
EPOCHS, BATCH, RATE, DECAY, DROPOUT = 15, 32, 1e-3, 0.05, 0.2


def mean_by_size(x: Tensor, batch: Any) -> Tensor:
    """Mean of the nodes of each image, each weighted by its patches."""
    size = batch.size[:, None]
    return global_add_pool(x * size, batch.batch) / global_add_pool(size, batch.batch)


class Start(nn.Module):
    """Projects node features, with the node's place and the logarithm of its size; the class token joins at the end."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.project = nn.LayerNorm(channels), nn.Linear(channels + 3, WIDTH)

    def forward(self, batch: Any) -> Tensor:
        place = batch.pos / 16 - 0.5
        return self.project(torch.cat([self.norm(batch.x), place, batch.size.log()[:, None]], dim=1))


class Local(nn.Module):
    """A layer of GIN whose messages see the edge's weight."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.norm, self.conv = nn.LayerNorm(WIDTH), GINEConv(inner, train_eps=True, edge_dim=1)

    def forward(self, x: Tensor, batch: Any) -> Tensor:
        weight = batch.edge_weight[:, None].log1p()
        sent = self.conv(self.norm(x), batch.edge_index, weight)
        return x + F.dropout(sent, DROPOUT, self.training)


class Global(nn.Module):
    """Self-attention over all nodes of an image; keys weigh by the logarithm of their size."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, batch: Any) -> Tensor:
        dense, real = to_dense_batch(self.norm(x), batch.batch)
        size, _ = to_dense_batch(batch.size.log(), batch.batch, fill_value=-1e4)
        q, k, v = self.qkv(dense).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=size[:, None, None])
        return x + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)[real]), DROPOUT, self.training)


class Net(nn.Module):
    """Layers over nodes, and a linear head on the mean node and the class token.

    Args:
        kind: ``"gin"``, ``"transformer"`` (GIN and attention in each layer) or ``"attention pooling"`` (no layers).
        channels: C of the tokens.
        classes: Of the task.
    """

    def __init__(self, kind: str, channels: int, classes: int) -> None:
        super().__init__()
        self.kind, self.start = kind, Start(channels)
        parts = {"gin": [Local], "transformer": [Local, Global], "attention pooling": []}[kind]
        self.layers = nn.ModuleList(part() for _ in range(LAYERS) for part in parts)
        self.score = nn.Linear(WIDTH, HEADS)
        self.prefix = nn.LayerNorm(channels)
        pooled = WIDTH * (HEADS if kind == "attention pooling" else 1)
        self.head = nn.Linear(pooled + channels, classes)

    def forward(self, batch: Any) -> Tensor:
        x = self.start(batch)
        for layer in self.layers:
            x = layer(x, batch)
        if self.kind == "attention pooling":
            dense, real = to_dense_batch(x, batch.batch)
            score = self.score(dense).masked_fill(~real[..., None], -torch.inf).softmax(1)
            pooled = torch.einsum("bnh,bnc->bhc", score, dense).flatten(1)
        else:
            pooled = mean_by_size(x, batch)
        joined = torch.cat([pooled, self.prefix(batch.prefix[:, 0])], dim=1)
        return self.head(F.dropout(joined, DROPOUT, self.training))


def train(kind: str, graphs: list[Any], classes: int, seed: int) -> tuple[nn.Module, float]:
    """Trains a network, and returns it with the seconds that it took."""
    torch.manual_seed(seed)
    net = Net(kind, graphs[0].x.size(1), classes)
    loader = DataLoader(graphs, BATCH, shuffle=True, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * len(loader))
    start = time.perf_counter()
    for _ in range(EPOCHS):
        for batch in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(batch), batch.y).backward()
            optimizer.step()
            schedule.step()
    return net.eval(), time.perf_counter() - start


@torch.no_grad()
def predict(net: nn.Module, graphs: list[Any]) -> tuple[Tensor, float]:
    """Returns the class of each graph, and the milliseconds that one takes."""
    start = time.perf_counter()
    found = torch.cat([net(batch).argmax(1) for batch in DataLoader(graphs, BATCH)])
    return found, 1000 * (time.perf_counter() - start) / len(graphs)
