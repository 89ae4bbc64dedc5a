"""An adapter whose numbers are not the model's breaks the law of anatomy."""

import pytest
import torch
from needs import library
from torch import nn

from tokengraph.adapters.timm.vit import TimmViT
from tokengraph.testing import ModelCase, tiny_vit
from tokengraph.testing.anatomy_laws import counts_the_tokens_of_the_model

library("timm")
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class TwoPrefixTokens(TimmViT):
    def num_prefix(self, model):
        return 2


class HalfTheChannels(TimmViT):
    def channels(self, model):
        return 16


class AnotherGrid(TimmViT):
    def image_grid(self, embedding, images):
        return 3, 5


class AnotherEmbedding(TimmViT):
    def embedding(self, model):
        return nn.Conv2d(3, 32, 8, 8)


class OtherBlocks(TimmViT):
    def blocks(self, model):
        return [nn.Identity(), *model.blocks]


class TwoOfThreeBlocks(TimmViT):
    def blocks(self, model):
        return list(model.blocks)[:2]


class BlocksInAnotherOrder(TimmViT):
    def blocks(self, model):
        return [model.blocks[1], model.blocks[0], model.blocks[2]]


class NoPrefix(TimmViT):
    def num_prefix(self, model):
        return 0

    def image_grid(self, embedding, images):
        return 1, 17


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (TwoPrefixTokens, r"num_prefix\(\)=2 and 16 patches are not 17 tokens"),
        (HalfTheChannels, r"channels\(\) is 16, tokens have 32"),
        (AnotherGrid, r"num_prefix\(\)=1 and 15 patches are not 17 tokens"),
        (AnotherEmbedding, r"embedding\(\) is a Conv2d that the model does not call"),
        (OtherBlocks, r"blocks\(\) begins with a Identity that the model does not call"),
        (TwoOfThreeBlocks, r"blocks\(\) leaves out 1 Block that the model calls beside them"),
        (BlocksInAnotherOrder, r"blocks\(\) is not in the order"),
        (NoPrefix, r"has_class_token\(\) is True, but there is no prefix token"),
    ],
)
def test_counts_the_tokens_of_the_model_fails_for_numbers_of_another(adapter, message):
    with pytest.raises(AssertionError, match=message):
        counts_the_tokens_of_the_model(ModelCase(tiny_vit, (IMAGES,), adapter=adapter()))


def test_counts_the_tokens_of_the_model_holds_for_its_adapter():
    counts_the_tokens_of_the_model(ModelCase(tiny_vit, (IMAGES,)))
