"""How a strategy is put into a model, and how it runs there."""

from tokengraph.attach.attach import Attachment, attach, detach

__all__ = ["Attachment", "attach", "detach"]
