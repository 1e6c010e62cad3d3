"""Cost of each native critic: clips per second and peak memory at its real size, with random weights.

    python benchmarks/critic_throughput.py                            # on a GPU: every critic at its real size
    python benchmarks/critic_throughput.py --critics viclip vjepa --clips 4 --frames 81 --height 480 --width 832
    python benchmarks/critic_throughput.py --count                    # anywhere: parameters and GB at the real sizes

Networks are built by each critic's own classes from the published configurations without any download: the scores are
meaningless, time and memory are real. Each critic runs in its own process. Without a GPU the networks have one layer
and small vocabularies, which only tests that the critics run. The tokenizers are stand-ins with one token per word and
punctuation mark, about as many as the real ones.

It lists the critics of `besttake.rewards` that are missing in `BUILD`.
"""

from __future__ import annotations

import multiprocessing
import platform
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import tyro
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BlipTextConfig,
    BlipVisionConfig,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Idefics2Config,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    VJEPA2Config,
    VJEPA2Model,
)

from besttake.rewards import critic_names, load_reward
from besttake.rewards.critics.aesthetic import AestheticCritic, AestheticNetwork
from besttake.rewards.critics.clipscore import ClipScore
from besttake.rewards.critics.hpsv2 import HpsV2
from besttake.rewards.critics.hpsv3 import REWARD_TOKEN, HPSv3, HPSv3Network
from besttake.rewards.critics.imagereward import ImageRewardCritic, ImageRewardNetwork
from besttake.rewards.critics.mps import MpsCritic, MpsNetwork
from besttake.rewards.critics.pickscore import PickScore
from besttake.rewards.critics.viclip import ViCLIP, ViCLIPNetwork, ViCLIPSizes
from besttake.rewards.critics.videoalign import REWARD_TOKENS, VideoAlign, VideoAlignSettings, make_network
from besttake.rewards.critics.videoscore import VideoScore, VideoScoreNetwork
from besttake.rewards.critics.vjepa import VJepa
from besttake.rewards.networks.image_critic import empty_network
from besttake.rewards.networks.weights import load_weights
from besttake.types import Reward

PROMPT = "A red ball rolls down a wooden ramp and knocks over a row of small blue blocks, seen from the side"
"""The prompt of every clip."""

SHIPPED = ("dynamic_degree", "heldout", "motion_smoothness", "temporal_flicker", "world")
"""Critics without external weights."""

ELSEWHERE = ("judge", "qalign", "unifiedreward", "videoscore2", "visionreward")
"""Critics on a server or in a separate environment, which are not measured."""


@dataclass(frozen=True)
class Machine:
    """Where networks are built ("meta": nowhere), and how large: `layers` = the most layers of any part, None = all."""

    device: str
    layers: int | None = None

    @property
    def real(self) -> bool:
        return self.layers is None

    def depth(self, published: int) -> int:
        return published if self.layers is None else min(published, self.layers)

    def vocabulary_size(self, published: int) -> int:
        return published if self.real else 1024

    def filled(self, make: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Any:
        """A network with random weights, frozen; in float32 on a CPU whatever its precision."""
        network = empty_network("benchmark", make)
        if self.device == "meta":
            return network.to(dtype)
        dtype = dtype if self.device != "cpu" else torch.float32

        def weights() -> Iterator[tuple[str, Tensor]]:
            for name, value in network.state_dict().items():
                random = value.is_floating_point() or value.is_meta
                yield name, torch.randn(value.shape, dtype=dtype, device=self.device) * 0.02 if random else value

        load_weights("benchmark", network, weights(), dtype=dtype, device=self.device)
        return network.to(self.device)


def make_tokenizer(*special: str, first: str = "", last: str = "") -> Any:
    """One token for each word and each punctuation mark, and one for each of `special`."""
    letters = {"<unk>": 0, **{word: i for i, word in enumerate(special, 1)}}
    backend = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if first:
        frame = [(word, letters[word]) for word in (first, last)]
        backend.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=frame)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<unk>")
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def clip_tokenizer() -> Any:
    return make_tokenizer("<|startoftext|>", "<|endoftext|>", first="<|startoftext|>", last="<|endoftext|>")


def clip_config(machine: Machine, large: bool) -> CLIPConfig:
    """CLIP ViT-L/14 of OpenAI, or ViT-H/14 of LAION."""
    text, vision = (768, 12, 12), (1024, 24, 16)
    if not large:
        text, vision = (1024, 24, 16), (1280, 32, 16)

    def half(width: int, layers: int, heads: int) -> dict[str, int]:
        size = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
        return {**size, "num_hidden_layers": machine.depth(layers)}

    return CLIPConfig(
        text_config={**half(*text), "vocab_size": machine.vocabulary_size(49408), "eos_token_id": 2},
        vision_config={**half(*vision), "patch_size": 14, "image_size": 224},
        projection_dim=768 if large else 1024,
    )


def clipscore(machine: Machine) -> Reward:
    return ClipScore(machine.filled(lambda: CLIPModel(clip_config(machine, large=True))), clip_tokenizer())


def pickscore(machine: Machine) -> Reward:
    return PickScore(machine.filled(lambda: CLIPModel(clip_config(machine, large=False))), clip_tokenizer())


def hpsv2(machine: Machine) -> Reward:
    return HpsV2(machine.filled(lambda: CLIPModel(clip_config(machine, large=False))), clip_tokenizer())


def aesthetic(machine: Machine) -> Reward:
    config: Any = clip_config(machine, large=True).vision_config
    vision = CLIPVisionConfig(**{**config.to_dict(), "projection_dim": 768})
    return AestheticCritic(machine.filled(lambda: AestheticNetwork(CLIPVisionModelWithProjection(vision))))


def imagereward(machine: Machine) -> Reward:
    vision = BlipVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=machine.depth(24),
        num_attention_heads=16,
        image_size=224,
        patch_size=16,
    )
    text = BlipTextConfig(
        vocab_size=machine.vocabulary_size(30524),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=machine.depth(12),
        num_attention_heads=12,
        max_position_embeddings=512,
        encoder_hidden_size=1024,
        is_decoder=True,
        use_cache=False,
    )
    return ImageRewardCritic(machine.filled(lambda: ImageRewardNetwork(vision, text)), clip_tokenizer())


def mps(machine: Machine) -> Reward:
    config, layers = clip_config(machine, large=False), machine.depth(4)
    network = machine.filled(lambda: MpsNetwork(config, 1024, heads=16, head_width=64, inner=4096, layers=layers))
    return MpsCritic(network, clip_tokenizer())


def viclip(machine: Machine) -> Reward:
    sizes = replace(
        ViCLIPSizes(),
        layers=machine.depth(24),
        text_layers=machine.depth(12),
        vocabulary=machine.vocabulary_size(49408),
    )
    return ViCLIP(machine.filled(lambda: ViCLIPNetwork(sizes)), clip_tokenizer())


def vjepa(machine: Machine) -> Reward:
    config = VJEPA2Config(num_hidden_layers=machine.depth(24), pred_num_hidden_layers=machine.depth(12))
    return VJepa(machine.filled(lambda: VJEPA2Model(config)))


CHAT = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def qwen_config(machine: Machine, tokenizer: Any, width: int, inner: int, heads: int, groups: int) -> Qwen2VLConfig:
    """Qwen2-VL 2B or 7B."""
    ids = dict(zip(CHAT, tokenizer.convert_tokens_to_ids(list(CHAT)), strict=True))
    return Qwen2VLConfig(
        text_config={
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": machine.depth(28),
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "vocab_size": machine.vocabulary_size(151660),
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={"depth": machine.depth(32), "embed_dim": 1280, "hidden_size": width, "num_heads": 16},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def hpsv3(machine: Machine) -> Reward:
    tokenizer = make_tokenizer(*CHAT, REWARD_TOKEN)
    config = qwen_config(machine, tokenizer, 3584, 18944, 28, 4)
    special = tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
    network = machine.filled(lambda: HPSv3Network(config, special), torch.bfloat16)
    network.rm_head.float()
    return HPSv3(network, tokenizer)


def videoalign(machine: Machine) -> Reward:
    tokenizer = make_tokenizer(*CHAT, *REWARD_TOKENS)
    config = qwen_config(machine, tokenizer, 1536, 8960, 12, 2)
    settings = VideoAlignSettings("", 1, "special", torch.bfloat16, 32.0, False, 2.0, 448 * 448)
    return VideoAlign(
        machine.filled(lambda: make_network(config, settings, {}, tokenizer), torch.bfloat16), tokenizer, settings
    )


def videoscore(machine: Machine) -> Reward:
    tokenizer = make_tokenizer("<fake_token_around_image>", "<image>")
    config = Idefics2Config(
        text_config={"vocab_size": machine.vocabulary_size(32003), "num_hidden_layers": machine.depth(32)},
        vision_config={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": machine.depth(27),
            "num_attention_heads": 16,
            "image_size": 980,
            "patch_size": 14,
        },
        perceiver_config={"resampler_depth": machine.depth(3)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return VideoScore(machine.filled(lambda: VideoScoreNetwork(config, pad=None), torch.bfloat16), tokenizer)


BUILD: dict[str, Callable[[Machine], Reward]] = {
    "aesthetic": aesthetic,
    "clipscore": clipscore,
    "hpsv2": hpsv2,
    "hpsv3": hpsv3,
    "imagereward": imagereward,
    "mps": mps,
    "pickscore": pickscore,
    "viclip": viclip,
    "videoalign": videoalign,
    "videoscore": videoscore,
    "vjepa": vjepa,
}
"""Critic -> itself at its published size."""


@dataclass(frozen=True)
class ThroughputConfig:
    """Which critics, and what clips they are shown."""

    critics: list[str] = field(default_factory=list)
    """Their modules' names; all of them by default."""
    clips: int = 2
    """At once."""
    frames: int = 49
    fps: float = 8.0
    height: int = 480
    width: int = 720
    repeats: int = 5
    """Rounds of `clips` that are timed, after one that is not."""
    gradient: bool = True
    """Whether to measure scores with their gradient to the pixels as well."""
    threads: int = 0
    """CPU threads; 0 = torch's default."""
    count: bool = False
    """Only count the parameters of the real sizes, beside what the critics' cards say."""


@dataclass(frozen=True)
class Cost:
    """What a critic costs: clips a second and the most GB, of scores alone and with gradients (None = not measured)."""

    critic: str
    weights: float
    card: float
    speed: float
    peak: float
    gradient_speed: float | None = None
    gradient_peak: float | None = None
    remark: str = ""


def measure(name: str, config: ThroughputConfig) -> Cost:
    """Build one critic and time it; to be run in a process of its own, whose memory is the critic's."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    machine = this_machine()
    critic = load_reward(name, machine.device) if name in SHIPPED else BUILD[name](machine)
    videos = torch.rand(config.clips, config.frames, 3, config.height, config.width, device=machine.device) * 2 - 1
    speed, peak = _rounds(critic, videos, config, gradient=False)
    network = getattr(critic, "network", None)
    weights = sum(value.nbytes for value in network.parameters()) / 1e9 if network is not None else 0.0
    cost = Cost(name, weights, critic.card.memory, speed, peak)
    if not (config.gradient and critic.differentiable):
        return cost
    try:
        speed, peak = _rounds(critic, videos, config, gradient=True)
    except torch.OutOfMemoryError:
        return replace(cost, remark="gradient: out of memory")
    return replace(cost, gradient_speed=speed, gradient_peak=peak)


def _rounds(critic: Reward, videos: Tensor, config: ThroughputConfig, gradient: bool) -> tuple[float, float]:
    prompts, cuda = [PROMPT] * len(videos), videos.is_cuda
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    began = 0.0
    for k in range(config.repeats + 1):
        if k == 1:
            began = time.perf_counter()
        with torch.set_grad_enabled(gradient):
            values = critic(videos.detach().requires_grad_(gradient), prompts, config.fps).values
            if gradient:
                values.sum().backward()
        if cuda:
            torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return config.repeats * len(videos) / seconds, peak / 1e9


def counted(names: list[str]) -> str:
    """Markdown: parameters and GB of the published sizes, and the GB that the cards tell."""
    lines = ["| critic | parameters, billions | GB | its card, GB |", "| --- | --- | --- | --- |"]
    for name in names:
        critic: Any = BUILD[name](Machine("meta"))
        weights = list(critic.network.parameters())
        numbers = sum(weight.numel() for weight in weights) / 1e9, sum(weight.nbytes for weight in weights) / 1e9
        lines.append(f"| {name} | {numbers[0]:.3f} | {numbers[1]:.2f} | {critic.card.memory:.1f} |")
    return "\n".join(lines)


def this_machine() -> Machine:
    return Machine("cuda") if torch.cuda.is_available() else Machine("cpu", layers=1)


def table(costs: list[Cost], config: ThroughputConfig, machine: Machine) -> str:
    """Markdown: where and on what it was measured, then a line for each critic."""
    where = torch.cuda.get_device_name() if machine.device == "cuda" else platform.processor() or platform.machine()
    size = "published sizes" if machine.real else "**cut to one layer a part, small vocabularies: not the real size**"
    lines = [
        f"{where}, {size}; clips of {config.frames} x {config.height} x {config.width} "
        f"at {config.fps:g} frames a second, {config.clips} at once; torch {torch.__version__}",
        "",
        "| critic | GB of weights (its card) | clips/s | peak GB | clips/s with gradient | peak GB | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cost in costs:
        numbers = [cost.speed, cost.peak, cost.gradient_speed, cost.gradient_peak]
        cells = ["-" if number is None else f"{number:.3g}" for number in numbers]
        weights = f"{cost.weights:.2f} ({cost.card:.1f})"
        lines.append(f"| {cost.critic.replace('_', '-')} | {weights} | {' | '.join(cells)} | {cost.remark} |")
    return "\n".join(lines)


def main(config: ThroughputConfig) -> None:
    """Print the table of what critics cost.

    Raises:
        ValueError: there is no network of a critic that was asked for.
    """
    found = [name for name in critic_names() if name not in ELSEWHERE]
    if missing := [name for name in found if name not in BUILD and name not in SHIPPED]:
        print(f"not measured, for they are not in BUILD: {', '.join(missing)}")
    known = [name for name in found if name not in missing]
    chosen = [name.replace("-", "_") for name in config.critics] or known
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"there is no network of {', '.join(unknown)}; there are {', '.join(known)}")
    if config.count:
        print(counted([name for name in chosen if name in BUILD]))
        return
    costs = []
    for name in chosen:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                costs.append(pool.submit(measure, name, config).result())
            except (ValueError, RuntimeError) as error:  # such as clips it cannot see, or too little memory
                print(f"{name}: {error}")
    print("\n" + table(costs, config, this_machine()))


if __name__ == "__main__":
    main(tyro.cli(ThroughputConfig))
