"""Pieces that several model families share."""
