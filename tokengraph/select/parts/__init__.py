"""The parts of methods: scores, graphs, choices and reductions, all functions of tensors that know no strategy.

| folder | question | pieces |
|---|---|---|
| ``scores`` | how much does a token or edge matter? | attention, criteria, density, energy, importance, merges, norm, |
| | | page_rank, random, received, windows |
| ``graphs`` | who may merge with whom? | complete, components, destinations, halves, laplacian, linkage, mutual, |
| | | pairs, propagation, propagation_slots, window |
| ``choices`` | which become one? | agglomerate, best, both_ways, cells, contraction, contraction_sets, edges, |
| | | facility, farthest, hosts, independent, kmeans, lines, matching, medoids, members, peaks, |
| | | prune_merge, ranked, receivers, roots, samples, selection, to_centers |
| ``reductions`` | what do they become? | fuse, propagate; ``Assignment.reduce`` has means, MLERP and centers |

A strategy's file combines parts, and sets its placement in the block and its defaults.
"""
