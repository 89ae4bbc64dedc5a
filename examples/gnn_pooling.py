"""Trains GNNs with pooling layers on token graphs of handwritten digits: every strategy is a pooling layer.

Each digit is a graph of 64 pixels with the edges of the grid. A GNN pools it to 16 nodes between its two convolutions:
by heavy edges or farthest points of its own hidden features, or by PyTorch Geometric's top-k scores as a strategy,
whose projection trains with the network.

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
from torch_geometric.nn import GraphConv, global_max_pool, global_mean_pool
from torch_geometric.nn.pool.select import SelectTopK

import tokengraph as tg
from tokengraph.edges.grid import grid_positions

torch.set_num_threads(1)  # the network is small
GRID, WIDTH, KEEP = (8, 8), 48, 16


class Net(nn.Module):
    """Two convolutions with a pooling layer in between."""

    def __init__(self, inputs: int, pool: nn.Module | None) -> None:
        super().__init__()
        self.first, self.second = GraphConv(inputs, WIDTH, aggr="mean"), GraphConv(WIDTH, WIDTH, aggr="mean")
        self.pool = pool
        self.head = nn.Linear(2 * WIDTH, 10)

    def forward(self, data: Batch) -> Tensor:
        x = self.first(data.x, data.edge_index).relu()
        edges, weight, batch = data.edge_index, data.edge_weight, data.batch
        if self.pool is not None:  # gradients pass through the pooled features, and through scores where there are some
            x, edges, weight, batch, *_ = self.pool(x, edges, weight, batch)
        x = x + self.second(x, edges, weight).relu()
        return self.head(torch.cat([global_mean_pool(x, batch), global_max_pool(x, batch)], dim=1))


def digit_graphs() -> list[tg.TokenGraph]:
    """Makes a graph of each digit: grey values and positions as features, the grid's edges."""
    pixels, labels = (torch.tensor(t) for t in load_digits(return_X_y=True))
    angle = (grid_positions(GRID)[:, :, None] * math.pi / 8 * torch.tensor([1.0, 2.0, 4.0])).flatten(1)
    place = 0.3 * torch.cat([angle.sin(), angle.cos()], dim=1)
    tokens = torch.cat([pixels.float()[:, :, None] / 16, place.expand(len(pixels), -1, -1)], dim=2)
    graphs = tg.TokenGraph.from_tokens(tokens, GRID).connect_grid().split()
    for graph, label in zip(graphs, labels, strict=True):
        graph.y = label[None]
    return graphs


def accuracy(net: Net, graphs: list[tg.TokenGraph], epochs: int = 5) -> float:
    """Trains on 1,000 digits, and returns the accuracy on the others."""
    order = torch.randperm(len(graphs)).tolist()
    train, test = [graphs[i] for i in order[:1000]], [graphs[i] for i in order[1000:]]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(epochs):
        for data in DataLoader(train, batch_size=50, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(net(data), data.y).backward()
            optimizer.step()
    with torch.no_grad():
        right = sum(int((net(data).argmax(1) == data.y).sum()) for data in DataLoader(test, batch_size=200))
    return right / len(test)


graphs = digit_graphs()
pools = {
    "no pooling": lambda: None,
    "heavy edges": lambda: tg.TokenPooling(tg.HeavyEdges(), KEEP),
    "farthest points": lambda: tg.TokenPooling(tg.FarthestPoints(), KEEP),
    "top-k of PyG": lambda: tg.TokenPooling(tg.FromPyG(SelectTopK(WIDTH)), KEEP),
}
for name, make in pools.items():
    torch.manual_seed(0)
    net, start = Net(graphs[0].x.size(1), make()), time.perf_counter()
    right = accuracy(net, graphs)
    nodes = 64 if net.pool is None else KEEP
    trained = sum(p.numel() for p in net.parameters())
    seconds = time.perf_counter() - start
    print(f"{name}: {nodes} nodes a digit, {trained} parameters, accuracy {right:.1%}, trained in {seconds:.1f} s")
