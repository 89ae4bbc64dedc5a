"""Kinds of models with a relative position bias, tiny: BEiT of timm and transformers, Data2Vec."""

from dataclasses import dataclass, field

import torch
from architectures import SIZES
from needs import library
from strategies import CLASS, STRATEGIES

import tokengraph as tg
from tokengraph.testing.model_case import tensors

OWN, SHARED = {"use_relative_position_bias": True}, {"use_shared_relative_position_bias": True}
ABSOLUTE = {"use_absolute_position_embeddings": True}
TIMM = {
    "timm_own": {"use_rel_pos_bias": True, "init_values": 0.1, "drop_path_rate": 0.2},
    "timm_shared": {"use_shared_rel_pos_bias": True, "qkv_bias": False},
    "timm_both": {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": True, "use_abs_pos_emb": False},
    "timm_token": {"use_rel_pos_bias": True, "global_pool": "token", "swiglu_mlp": True},
    "timm_absolute": {},
}
TRANSFORMERS = {
    "beit_own": ("BeitModel", OWN | {"drop_path_rate": 0.2}),
    "beit_shared": ("BeitModel", SHARED | {"hidden_dropout_prob": 0.1}),
    "beit_both": ("BeitForImageClassification", OWN | SHARED | {"num_labels": 5}),
    "beit_absolute": ("BeitModel", ABSOLUTE | {"layer_scale_init_value": 0.0}),
    "data2vec_own": ("Data2VecVisionModel", OWN | {"attention_probs_dropout_prob": 0.1}),
    "data2vec_shared": ("Data2VecVisionModel", SHARED | {"layer_scale_init_value": 0.0}),
    "data2vec_both": ("Data2VecVisionForImageClassification", OWN | SHARED | {"num_labels": 5}),
}
STRATEGIES = STRATEGIES | CLASS


def make(kind, **more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind in TIMM:
            timm = library("timm")
            sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
            model = timm.models.beit.Beit(**sizes | {"head_init_scale": 1.0} | TIMM[kind] | more)
        else:
            transformers = library("transformers")
            name, options = TRANSFORMERS[kind]
            config = "BeitConfig" if name.startswith("Beit") else "Data2VecVisionConfig"
            model = getattr(transformers, name)(getattr(transformers, config)(**SIZES | options | more))
        for name, parameter in model.named_parameters():
            if "relative_position_bias_table" in name:  # zeros at first
                torch.nn.init.normal_(parameter)
            elif name.endswith(("lambda_1", "lambda_2", "gamma_1", "gamma_2")):
                torch.nn.init.constant_(parameter, 0.5)
    return model.eval()


def run(model, x, **options):
    """Every tensor of the output, the same random numbers each time."""
    torch.manual_seed(7)
    with torch.no_grad():
        return tensors(model(x, **options))


def equal(ours, theirs):
    return len(ours) == len(theirs) > 0 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@dataclass(frozen=True)
class First(tg.Select):
    """Keeps the first tokens and notes the statistics that it sees."""

    seen: list = field(default_factory=list)
    needs_map = False
    merges = False

    def __call__(self, tokens, budget):
        stats = tokens.attention
        self.seen.append((stats.rows(0, 3), stats.class_row(), stats.column_sums(), stats.diagonal()))
        order = torch.arange(tokens.x.size(1), 0, -1).float().expand(tokens.x.size(0), -1)
        return tg.topk(order, budget)


class OpenFirst(First):
    """The same from the map that the block has made."""

    needs_map = True
