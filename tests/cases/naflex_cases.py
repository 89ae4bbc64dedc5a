"""SigLIP 2 NaFlex models, batches of images of several shapes, and strategies, for the tests."""

import torch
from needs import library

import tokengraph as tg

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "patch_size": 4,
    "num_patches": 16,
}
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 40,
    "max_position_embeddings": 8,
    "projection_size": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SHAPES = [(4, 4), (2, 5), (3, 3), (1, 7)]
STRATEGIES = {
    "tome": (tg.ToMe(), 3),
    "tome, no sizes": (tg.ToMe(), {1: 0.6, 3: 0.3}, {"prop_attn": "none"}),
    "tome, folded": (tg.ToMe(), 2, {"size_bias": "fold"}),
    "dpc-knn": (tg.DPCKNN(), {1: 0.75, 2: 0.5}),
    "dpc-knn, count": (tg.DPCKNN(), {1: 8, 2: 0.4}),
    "ailurus": (tg.AiluRus(lam=9), {1: 0.5}),
    "mpm": (tg.MPM(layers=(1, 2)), None),
    "g2tm": (tg.G2TM(0.1, layer=2), None),
    "algm": (tg.ALGM(0.1, layers=(1, 3)), None),
    "atc": (tg.ATC(), {1: 0.7, 2: 0.5}),
    "cubist": (tg.CubistMerge(), {2: 0.6}),
    "tofu": (tg.ToFu(until=1), 2),
    "k-medoids": (tg.KMedoids(), {1: 0.7, 2: 0.5}),
    "mctf": (tg.MCTF(), 2),
    "mctf, ahead": (tg.MCTF(ahead=True), {1: 0.7, 2: 0.5}),
    "mctf, precise": (tg.MCTF(ahead="precise"), 2),
    "token-transforming": (tg.TokenTransforming(), {1: 0.7, 2: 0.5}),
    "topk": (tg.TopK(score="norm"), {2: 0.5}),
    "fuse": (tg.TopK(score="norm", fuse=True), {1: 8, 2: 5}),
    "random": (tg.Random(), 2),
    "gtp": (tg.GTP(), 2),
    "gtp, spatial": (tg.GTP(graph="spatial", score="random"), {1: 0.7, 2: 0.5}),
    "gtp, semantic mean": (tg.GTP(graph="semantic", score="random", mode="mean"), 2),
    "gtp, sparse": (tg.GTP(sparsity=0.5), 2),
    "expedite": (tg.Expedite(), {1: 0.5, 2: "reconstruct"}),
    "expedite, own": (tg.Expedite(clusters=(2, 2)), {1: "cluster", 3: "reconstruct"}),
    "dynamicvit": (tg.DynamicViT(layers=[1, 2]), None),
    "dynamicvit, threshold": (tg.DynamicViT(threshold=0.5, layers=[1, 2]), None),
    "grid-pool": (tg.GridPool(), {1: 0.5, 3: 0.25}),
    "migration": (tg.TokenMigration(), {1: 0.7, 2: 0.5, 3: "reconstruct"}),
    "migration, twin": (tg.TokenMigration(replenish="twin_delta"), {1: 0.7, 3: "reconstruct"}),
}


def make(kind="model", train=False, **options):
    transformers = library("transformers")
    config = transformers.Siglip2VisionConfig(**SIZES, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "model":
            model = transformers.Siglip2VisionModel(config)
        else:
            whole = transformers.Siglip2Config(text_config=TEXT, vision_config=config.to_dict(), num_labels=5)
            whole.vision_config._attn_implementation_internal = options.get("attn_implementation")
            model = getattr(transformers, kind)(whole)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.train(train)


def batch(shapes=SHAPES, width=20, dtype=torch.long, seed=1):
    """Inputs of images with these shapes; image b is the same in every batch, padding is random."""
    values = 100 * torch.randn(len(shapes), width, 48)
    mask = torch.zeros(len(shapes), width, dtype=dtype)
    for b, (h, w) in enumerate(shapes):
        values[b, : h * w] = torch.randn(h * w, 48, generator=torch.Generator().manual_seed(seed + 10 * h + w))
        mask[b, : h * w] = 1
    return {"pixel_values": values, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor(shapes)}


def run(model, inputs, **options):
    with torch.no_grad():
        return model(**inputs, **options)


def attach(model, strategy, **more):
    select, schedule, *options = STRATEGIES[strategy]
    torch.manual_seed(3)  # of prediction modules
    return tg.attach(model, select, schedule, **(options[0] if options else {}), **more)
