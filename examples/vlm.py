"""Fewer visual tokens for a vision-language model: the kept tokens over the photograph, the answer before and after.

Run: ``python examples/vlm.py [--model llava-hf/llava-1.5-7b-hf] [--keep 0.25] [--select dpc-knn] [--out vlm.png]``

Without ``--model`` it makes a small LLaVA with random weights, so that nothing is downloaded. Random weights say
nothing about answers: the two texts are then noise. With a name of the hub it loads that model and its processor.
"""

import argparse

import torch

import tokengraph as tg
from tokengraph.compat import transformers  # transformers itself; also beside a CPU-only torch
from tokengraph.io.photo import load_photo
from tokengraph.viz import plot_clusters

IMAGE = 110


def pretrained(name: str, photo: torch.Tensor, question: str):
    """A model of the hub, and the inputs that its processor makes."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(name, torch_dtype="auto").eval()
    processor = transformers.AutoProcessor.from_pretrained(name)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text, images=photo, return_tensors="pt", do_rescale=False)
    return model, inputs, lambda ids: processor.decode(ids, skip_special_tokens=True)


def untrained(photo: torch.Tensor):
    """A small LLaVA with random weights: 24 x 24 visual tokens, as LLaVA-1.5 has."""
    vision = dict(
        model_type="clip_vision_model", hidden_size=64, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, image_size=336, patch_size=14, projection_dim=64,
    )  # fmt: skip
    text = dict(
        model_type="llama", hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=120, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    model = transformers.LlavaForConditionalGeneration(config)
    ids = torch.tensor([[1, 5, 6, *[IMAGE] * 576, 7, 8, 9]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": 2 * photo[None] - 1}
    return model.eval(), inputs, lambda ids: " ".join(f"<{i}>" for i in ids.tolist())


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", help="a vision-language model of the hub; default: random weights")
parser.add_argument("--question", default="What is in this picture?")
parser.add_argument("--keep", type=float, default=0.25)
parser.add_argument("--select", default="dpc-knn")
parser.add_argument("--out", default="vlm.png")
args = parser.parse_args()

photo = load_photo(size=336)
with torch.no_grad():
    model, inputs, decode = pretrained(args.model, photo, args.question) if args.model else untrained(photo)
    fewer = tg.vlm.reduce(model, inputs, args.select, args.keep)
    print(fewer.record)
    for name, given in [("all tokens", inputs), ("fewer", fewer)]:
        length = given["input_ids"].size(1)
        new = model.generate(**given, max_new_tokens=24, do_sample=False)[0, length:]
        print(f"{name}: prompt of {length} tokens, answer: {decode(new)}")

image = fewer.record.images[0]
labels = image.clusters()[-1]
figure = plot_clusters(photo, {f"{args.select}, {image.kept} of {image.count}": labels.flatten()}, tuple(labels.shape))
figure.savefig(args.out)
print(f"Written: {args.out}. Each patch of the photograph has the colour of its token.")
