"""Puts a strategy into a model and runs it there.

| question | files |
|---|---|
| How is a strategy put in? | attach (the verb), planner (who serves which strategy), plain (plain ViTs), changes (and |
| | their undo), site (marks), request (the arguments), handle, pause |
| What is refused before? | guards (wrapped models), checks (halves, plan), answers (of an adapter) |
| What runs in a block? | block, step, mask, ahead, around, held, kept (outputs of parts), peek (queries and keys |
| | before it runs), plan (tokens to keep), resize, compiled (halves of blocks), ragged (groups) |
| What is recorded? | run (blocks write), state, record, trace (users read), lifting |
| Who else may run it? | recompute (gradient checkpointing), threads |
"""

from tokengraph.attach.attach import Attachment, attach, detach

__all__ = ["Attachment", "attach", "detach"]
