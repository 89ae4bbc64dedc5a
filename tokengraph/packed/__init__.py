"""Packed towers of vision-language models: images of all shapes in one sequence, folded four patches to a token."""
