"""The parts of methods: scores, graphs, choices and reductions, all functions of tensors that know no strategy.

| folder | question | pieces |
|---|---|---|
| ``scores`` | how much does a token or edge matter? | attention, criteria, density, energy, norm, random, received |
| ``graphs`` | who may merge with whom? | halves, complete, window, propagation |
| ``choices`` | which become one? | best, both_ways, cells, edges, medoids, peaks, receivers |
| ``reductions`` | what do they become? | fuse, propagate; ``Assignment.reduce`` has means, MLERP and centers |

A strategy's file combines parts, and sets its placement in the block and its defaults.
"""
