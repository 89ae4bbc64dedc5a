"""How much a token, or an edge, matters."""
