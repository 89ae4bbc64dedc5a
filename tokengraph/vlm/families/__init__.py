"""The families of vision-language models: how features lie on grids, and how positions are counted."""
