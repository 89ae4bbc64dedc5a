"""Hard and soft maps from tokens to clusters, and how maps combine."""
