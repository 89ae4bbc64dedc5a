"""What methods are made of: scores, graphs, choices, reductions. Each is a function of tensors and knows no strategy.

| folder | question | pieces |
|---|---|---|
| ``scores`` | how much does a token, or an edge, matter? | attention, criteria, density, energy, norm, random, received |
| ``graphs`` | who may merge with whom? | halves, complete, window, propagation |
| ``choices`` | which become one? | best, both_ways, cells, edges, medoids, peaks, receivers |
| ``reductions`` | what do they become? | fuse, propagate; means, MLERP and centers are ``Assignment.reduce`` |

A strategy's file names its parts, its place in the block and its defaults.
"""
