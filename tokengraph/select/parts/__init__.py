"""The parts of methods: scores, graphs, choices and reductions, all functions of tensors that know no strategy.

| folder | question | pieces |
|---|---|---|
| ``scores`` | how much does a token, or an edge, matter? | attention, density, energy, norm, random |
| ``graphs`` | who may merge with whom? | halves, complete, window, propagation |
| ``choices`` | which become one? | best, edges, peaks, cells |
| ``reductions`` | what do they become? | fuse, propagate; ``Assignment.reduce`` has means, MLERP and centers |

A strategy's file combines parts, and sets its placement in the block and its defaults.
"""
