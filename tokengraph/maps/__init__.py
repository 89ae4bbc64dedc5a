"""Hard and soft maps from tokens to clusters, and how maps combine.

| question | files |
|---|---|
| What is a map? | hard (``Assignment``), soft (``SoftAssignment``), gated (a hard one with factors), shown |
| How is one made? | dense (from numbers in each image), matrix, raster (renumbers), pyg, check, counts |
| How do maps reduce? | pool, edge_sums (over the edges of soft maps), connect (``S^T A S``) |
| How do maps combine? | follows, product (one after another), join (images to a batch), prefix (prefix tokens too), |
| | lineage (all layers of a run) |
"""
