"""HPSv3 in its published layout, one file of weights, and beside it what it takes from Qwen2-VL-7B-Instruct."""

from pathlib import Path

from safetensors.torch import save_file
from transformers import Qwen2VLConfig

from besttake.rewards.critics.hpsv3 import QUESTION, REWARD_TOKEN, WEIGHTS, HPSv3Network
from tests.tiny_critics.vlm_parts import at_random, qwen_config, qwen_names, qwen_tokenizer, write_json

FRAMES = 2
"""Each becomes 448 x 448 pixels, whatever it was."""


def write(folder: Path, **settings) -> None:
    """`settings` go into config.json."""
    tokens = qwen_tokenizer(folder, QUESTION.replace(REWARD_TOKEN, ""))
    special = max(tokens.values()) + 1  # the critic adds it
    config = qwen_config(tokens, special + 5, **settings)
    write_json(folder / "config.json", config)
    network = at_random(HPSv3Network(Qwen2VLConfig.from_dict({**config, "vocab_size": special + 1}), special))
    save_file(qwen_names(network.state_dict()), folder / WEIGHTS)
