"""What tokens receive in attention does not depend on padding: images of different counts are as they are alone."""

import pytest
import torch
from strategies import Uneven
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.testing import tiny_vit

RECEIVED = {
    "k-medoids": tg.KMedoids(),
    "mctf": tg.MCTF(),
    "token-transforming": tg.TokenTransforming(importance="received"),
}


@pytest.mark.parametrize("name", RECEIVED)
def test_images_of_different_counts_are_as_alone_where_attention_received_counts(name):
    torch.manual_seed(1)
    model, images = tiny_vit(), torch.randn(4, 3, 32, 32) * torch.tensor([0.1, 1.0, 2.0, 4.0]).view(4, 1, 1, 1)
    for parameter in model.parameters():  # with biases, rows of padding have queries too
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad(), tg.attach(model, Uneven(RECEIVED[name]), {1: 11, 2: 7}) as handle:
        together = model(images)
        assert len(set(handle.trace.counts_per_image(1))) > 1  # so the second step reads a map with padding
        alone = torch.cat([model(image[None]) for image in images])
    assert_close(together, alone, rtol=1e-4, atol=1e-5)
