"""VideoReward in its published layout: `model_config.json`, `checkpoint-N/model.pth` and a tokenizer beside it."""

from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from transformers import Qwen2VLConfig

from besttake.rewards.critics.videoalign import QUESTION, REWARD_TOKENS, VideoAlignNetwork
from tests.tiny_critics.vlm_parts import at_random, qwen_config, qwen_names, qwen_tokenizer, write_json

RANK, ALPHA = 4, 8
ADAPTED = r".*language_model.*(q|k|v|o|gate|up|down)_proj"


def write(folder: Path, layout: str = "whole", outputs: int = 1, **norm: float) -> None:
    """
    Args:
        layout: "whole" as published, low-rank adapters included; "adapter" without the base model's weights; "bare"
            without adapters.
        norm: entries of inference_config.
    """
    checkpoint, base = folder / "checkpoint-20", folder / "base"
    tokens = qwen_tokenizer(base if layout == "adapter" else checkpoint / "tokenizer", QUESTION, *REWARD_TOKENS)
    vocabulary = max(tokens.values()) + 1
    config = qwen_config(tokens, vocabulary + 4)  # the real one has spare tokens, which the critic's weights have not
    write_json(base / "config.json", config)
    write_json(folder / "model_config.json", settings(outputs, norm))
    network = _network({**config, "vocab_size": vocabulary}, outputs, tokens, adapters=layout != "bare")
    state = qwen_names(network.state_dict())
    checkpoint.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint-9").mkdir()  # an earlier one does not count
    if layout == "bare":
        torch.save(state, checkpoint / "model.pth")
        return
    state = {f"base_model.model.{name}": weight for name, weight in state.items()}
    if layout == "whole":
        torch.save(state, checkpoint / "model.pth")
        return
    adapter = {name.replace(".default", ""): weight for name, weight in state.items() if ".lora_" in name}
    trained = {name: weight for name, weight in state.items() if "visual" in name or "rm_head" in name}
    given = state.keys() - {name for name in state if ".lora_" in name or "rm_head" in name}
    under = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): state[name].contiguous()
        for name in sorted(given)
    }
    save_file({name: weight.contiguous() for name, weight in adapter.items()}, checkpoint / "adapter_model.safetensors")
    torch.save(trained, checkpoint / "non_lora_state_dict.pth")
    save_file(
        {name: weight * 0 if "visual" in name else weight for name, weight in under.items()}, base / "model.safetensors"
    )


def settings(outputs: int, norm: dict[str, float]) -> dict:
    return {
        "data_config": {"fps": 2.0, "max_frame_pixels": 448 * 448, "num_frames": None, "sample_type": "uniform"},
        "training_args": {},
        "model_config": {
            "model_name_or_path": "base",
            "output_dim": outputs,
            "use_special_tokens": True,
            "reward_token": "special",
            "torch_dtype": "float32",
        },
        "peft_lora_config": {"lora_enable": True, "lora_r": RANK, "lora_alpha": ALPHA, "use_rslora": False},
        "inference_config": {
            "VQ_mean": 0.5,
            "VQ_std": 2.0,
            "MQ_mean": -0.25,
            "MQ_std": 0.5,
            "TA_mean": 0,
            "TA_std": 1,
            **norm,
        },
    }


def _network(config: dict, outputs: int, tokens: dict[str, int], adapters: bool) -> VideoAlignNetwork:
    special = [tokens[token] for token in REWARD_TOKENS]
    network = VideoAlignNetwork(Qwen2VLConfig.from_dict(config), outputs, "special", special)
    if adapters:
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=ADAPTED), network)
    return at_random(network)
