"""BLIP and head in a pickle under BLIP's names, `med_config.json`, and BERT's vocabulary since tests have no hub."""

import json
import string
from pathlib import Path

import torch
from transformers import BlipTextConfig, BlipVisionConfig

from besttake.rewards.critics.imagereward import FILE, HEADS, VISION, ImageRewardNetwork
from tests.tiny.parts import without_zeros

VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "ball", ",", ".", "##s")
SETTINGS = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 24,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 40,
    "model_type": "bert",
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 38,
    "encoder_width": 768,
    "add_cross_attention": True,
}


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    text = BlipTextConfig(**{key: SETTINGS[key] for key in sizes}, max_position_embeddings=40, encoder_hidden_size=32)
    vision = BlipVisionConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=HEADS, image_size=48
    )
    network = without_zeros(ImageRewardNetwork(vision, text))
    with torch.no_grad():
        for parameter in network.parameters():  # far from the start of a training, where all pictures look alike
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {published(name): tensor for name, tensor in network.state_dict().items()}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    state["blip.vision_proj.weight"], state["blip.text_proj.weight"] = torch.zeros(8, 32), torch.zeros(8, 24)
    torch.save(state, folder / f"{FILE}.pt")
    (folder / "med_config.json").write_text(json.dumps(SETTINGS))
    vocabulary = [*VOCABULARY, *string.ascii_lowercase[1:]]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")


def published(name: str) -> str:
    """The checkpoint's name of one of ours."""
    half, rest = name.split(".", 1)
    if half == "layers":
        return f"mlp.layers.{rest}"
    if half == "text":
        return f"blip.text_encoder.{rest}"
    for old, new in VISION.items():
        rest = rest.replace(new, old)
    return f"blip.visual_encoder.{rest.replace('post_layernorm', 'norm')}"
