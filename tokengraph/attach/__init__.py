"""Puts a strategy into a model and runs it there."""

from tokengraph.attach.attach import Attachment, attach, detach

__all__ = ["Attachment", "attach", "detach"]
