"""VideoScore in its published layout: config, preprocessor's config, tokenizer and safetensors."""

from pathlib import Path

from safetensors.torch import save_file
from transformers import Idefics2Config

from besttake.rewards.critics.videoscore import QUESTION, VideoScoreNetwork
from tests.tiny_critics.vlm_parts import at_random, mistral_tokenizer, write_json


def write(folder: Path, **settings) -> None:
    """`settings` go into config.json."""
    vocabulary = mistral_tokenizer(folder, QUESTION)
    config = {
        "architectures": ["Idefics2ForSequenceClassification"],
        "model_type": "idefics2",
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
        },
        "perceiver_config": {
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
            "hidden_size": 48,
        },
        "text_config": {
            "model_type": "mistral",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": vocabulary,
            "pad_token_id": 0,
            "sliding_window": None,
        },
        "image_token_id": vocabulary - 2,
        "pad_token_id": 0,
        "problem_type": "regression",
        **settings,
    }
    write_json(folder / "config.json", config)
    sizes = {"shortest_edge": 28, "longest_edge": 56}
    write_json(folder / "preprocessor_config.json", {"size": sizes, "do_image_splitting": False, "resample": 2})
    network = at_random(VideoScoreNetwork(Idefics2Config.from_dict(config)))
    save_file(network.state_dict(), folder / "model.safetensors")
