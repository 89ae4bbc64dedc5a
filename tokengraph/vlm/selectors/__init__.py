"""Strategies for visual tokens on their way into a language model."""
