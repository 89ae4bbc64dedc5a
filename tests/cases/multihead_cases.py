"""Models of blocks over nn.MultiheadAttention, for tests: a user's own encoders, and open_clip."""

import torch
from strategies import CLASS, STRATEGIES
from torch import nn

import tokengraph as tg
from tokengraph.adapters import EncoderLayers

try:
    from tokengraph.compat import torchvision  # noqa: F401, I001  # first: open_clip needs it, beside a CPU-only torch
    from open_clip.transformer import VisionTransformer
except ImportError:
    VisionTransformer = None
STRATEGIES = STRATEGIES | CLASS


class Own(nn.Module):
    """What a user may write: patches, a class token, an encoder, a head."""

    def __init__(self, batch_first=True, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, **{"activation": "gelu", "norm_first": True} | options, batch_first=batch_first
        )
        self.batch_first = batch_first
        self.patch_embed = nn.Conv2d(3, 32, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.pos = nn.Parameter(torch.randn(1, 17, 32))
        self.encoder = nn.TransformerEncoder(layer, 3, nn.LayerNorm(32), enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def tokens(self, images, **masks):
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x], dim=1) + self.pos
        x = self.encoder(x if self.batch_first else x.transpose(0, 1), **masks)
        return x if self.batch_first else x.transpose(0, 1)

    def forward(self, images, **masks):
        return self.head(self.tokens(images, **masks)[:, 0])


OWN = EncoderLayers("encoder", num_prefix=1, grid=(4, 4), embedding="patch_embed")
KINDS = {
    "own": (lambda: Own(), OWN),
    "own_sequence_first": (lambda: Own(batch_first=False, bias=False), OWN),
    "own_relu": (lambda: Own(activation="relu", layer_norm_eps=1e-6), OWN),
}
if VisionTransformer is not None:
    KINDS["open_clip"] = (lambda: VisionTransformer(32, 8, 32, 3, 4, 2.0, output_dim=8), None)
    KINDS["open_clip_scales"] = (
        lambda: VisionTransformer(32, 8, 32, 3, 4, 2.0, ls_init_value=0.5, pool_type="avg", output_dim=8),
        None,
    )


def make(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = KINDS[kind][0]().eval()
        for parameter in model.parameters():  # clones of one layer would hide a mix-up of layers
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def attach(model, kind, *args, **options):
    return tg.attach(model, *args, adapter=KINDS[kind][1], **options)


def blocks(model):
    return model.encoder.layers if isinstance(model, Own) else model.transformer.resblocks


def run(model, x, **masks):
    torch.manual_seed(7)
    with torch.no_grad():
        return model(x, **masks)


def images():
    """Two of them."""
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def checkpointed_call(forward):
    return lambda *args, **kw: torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kw)
