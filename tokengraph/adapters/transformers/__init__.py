"""transformers: plain vision models (versions before 5.9, too), BEiT, images of any shape, videos.

| question | files |
|---|---|
| Is a model supported, and where are its parts? | supported (refuses others by name), anatomy |
| How do plain layers run? | vit, older (layers whose attention takes no mask) |
| Which families differ? | beit, internvl (scales), naflex (any shape), spectrogram, pose (ViTPose) |
| Which read videos? | video (VideoMAE, ViViT), vjepa (V-JEPA 2) |
| Which have queries or detection tokens? | eomt, yolos |
| What do heads get? | outputs (hooks), callers (heads that need every patch) |
"""
