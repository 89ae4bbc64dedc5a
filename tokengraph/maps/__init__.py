"""What a coarsening is: hard and soft maps from tokens to clusters, and how maps combine."""
