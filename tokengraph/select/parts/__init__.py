"""What methods are made of: scores, graphs, choices, reductions. Each is a function of tensors and knows no strategy.

| folder | question | pieces |
|---|---|---|
| ``scores`` | how much does a token, or an edge, matter? | attention, density, energy, norm, random, windows |
| ``graphs`` | who may merge with whom? | halves, complete, window, mutual, components, linkage, propagation |
| ``choices`` | which become one? | best, edges, peaks, cells, lines, roots, agglomerate |
| ``reductions`` | what do they become? | fuse, propagate; means, MLERP and centers are ``Assignment.reduce`` |

A strategy's file names its parts, its place in the block and its defaults.
"""
