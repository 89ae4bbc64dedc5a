"""Trains a GNN on token graphs of handwritten digits: every pixel is a token, and graphs are coarsened by features.

Needs scikit-learn for the digits (1,797 images of 8 x 8 pixels, which it ships).
"""

import math
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader
from torch_geometric.nn import SAGEConv, global_max_pool, global_mean_pool

import tokengraph as tg
from tokengraph.edges.grid import grid_positions

torch.set_num_threads(1)  # the network is small
GRID = (8, 8)


class Net(nn.Module):
    def __init__(self, inputs: int, channels: int = 64) -> None:
        super().__init__()
        self.first, self.second = SAGEConv(inputs, channels), SAGEConv(channels, channels)
        self.head = nn.Linear(2 * channels, 10)

    def forward(self, batch: Batch) -> Tensor:
        x = torch.cat([batch.x, batch.size.log()[:, None]], dim=1)
        x = self.first(x, batch.edge_index).relu()
        x = x + self.second(x, batch.edge_index).relu()
        return self.head(torch.cat([global_mean_pool(x, batch.batch), global_max_pool(x, batch.batch)], dim=1))


def pixel_tokens(pixels: Tensor) -> Tensor:
    """Maps ``[B, 64]`` to ``[B, 64, 13]``: the grey value, and the position as sines and cosines of three lengths."""
    angle = (grid_positions(GRID)[:, :, None] * math.pi / 8 * torch.tensor([1.0, 2.0, 4.0])).flatten(1)
    place = 0.3 * torch.cat([angle.sin(), angle.cos()], dim=1)
    return torch.cat([pixels[:, :, None] / 16, place.expand(len(pixels), -1, -1)], dim=2)


def token_graphs(tokens: Tensor, labels: Tensor, keep: int) -> list[tg.TokenGraph]:
    """Makes one graph for each digit, coarsened from 64 to ``keep`` tokens."""
    graphs = []
    for chunk in tokens.split(64):
        graph = tg.TokenGraph.from_tokens(chunk, GRID).connect_grid()
        graphs += tg.coarsen(graph, "dpc-knn", keep).graph.split()
    for graph, label in zip(graphs, labels, strict=True):
        graph.y = label[None]
    return graphs


def accuracy(graphs: list[tg.TokenGraph], epochs: int = 12) -> float:
    """Trains on 1,400 digits, and returns the accuracy on the others."""
    torch.manual_seed(0)
    order = torch.randperm(len(graphs)).tolist()
    train, test = [graphs[i] for i in order[:1400]], [graphs[i] for i in order[1400:]]
    net = Net(graphs[0].x.size(1) + 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(epochs):
        for batch in DataLoader(train, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(net(batch), batch.y).backward()
            optimizer.step()
    with torch.no_grad():
        right = sum(int((net(batch).argmax(1) == batch.y).sum()) for batch in DataLoader(test, batch_size=256))
    return right / len(test)


pixels, labels = (torch.tensor(t) for t in load_digits(return_X_y=True))
tokens = pixel_tokens(pixels.float())
for keep in (64, 20):
    graphs = token_graphs(tokens, labels, keep)
    start = time.perf_counter()
    right = accuracy(graphs)
    seconds = time.perf_counter() - start
    print(f"{keep} tokens, {graphs[0].num_edges} edges per digit: accuracy {right:.1%}, trained in {seconds:.1f} s")
