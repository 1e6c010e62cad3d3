"""Model card of a run: base model, method, results, and a snippet that loads it in diffusers."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import diffusers
from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache

from besttake import __version__
from besttake.data.files import atomic
from besttake.data.video import probe
from besttake.models.loading import pipeline_class
from besttake.report.folder import RunFolder, read_run
from besttake.report.measures import difference, shown, shown_name
from besttake.report.verdict import measures, verdict
from besttake.runtime.embedded import embedded_model

METHODS = {
    "onlinevpo": ("OnlineVPO", "2412.15159"),
    "realdpo": ("RealDPO", "2510.14955"),
    "offline_dpo": ("Diffusion-DPO", "2311.12908"),
    "sft": ("supervised fine-tuning", ""),
}
"""Name and arXiv number of each algorithm's paper."""

MOST = 8
"""Measures in the card's table."""


def write_card(folder: Path, weights: str = "") -> Path:
    """Write `adapter/README.md` of a run.

    Args:
        weights: hub id that the snippet loads the weights from; by default the run's adapter folder.

    Raises:
        ValueError: the folder holds no run.
    """
    run = read_run(Path(folder))
    target = run.path / "adapter" / "README.md"
    with atomic(target) as part:
        part.write_text(model_card(run, weights or str(run.path / "adapter")), encoding="utf-8")
    return target


def model_card(run: RunFolder, weights: str, title: str = "") -> str:
    """The card: YAML metadata as the hub reads it, then Markdown.

    Args:
        weights: folder or hub id that the snippet loads.
        title: by default the name of the weights on the hub, or of the run's folder.
    """
    base, pipeline = str(run.config["model"]), _pipeline_of(run)
    algorithm = Path(run.config["algorithm"]).stem  # of the user's own it is the path of a file
    name, paper = METHODS.get(algorithm, (algorithm, ""))
    lora = run.config.get("policy", {}).get("train", "lora") == "lora"
    data = ModelCardData(
        base_model=base if _is_hub_id(base) else None,
        base_model_relation=("adapter" if lora else "finetune") if _is_hub_id(base) else None,
        library_name="diffusers",
        license=licence_of(base),
        pipeline_tag="image-to-video" if "ImageToVideo" in pipeline else "text-to-video",
        tags=["besttake", *(["lora"] if lora else []), algorithm, *([f"arxiv:{paper}"] if paper else [])],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title or (Path(weights).name if _is_hub_id(weights) else run.path.resolve().name)}",
        f"{'A LoRA of' if lora else 'A fine-tune of'} `{base}`, trained by {name}"
        f"{f' ([arXiv {paper}](https://arxiv.org/abs/{paper}))' if paper else ''} with besttake {__version__}.",
        f"## Use\n\n{_fenced(snippet(run, weights))}",
        f"## Results\n\n{_results(run)}",
        f"## Training\n\n{_training(run)}",
    ]
    return "\n\n".join(parts) + "\n"


def snippet(run: RunFolder, weights: str) -> str:
    """Python that samples a video with the trained weights, in diffusers or, if it lacks the pipeline, in besttake."""
    base, pipeline, rollout = str(run.config["model"]), _pipeline_of(run), run.config.get("rollout", {})
    prompt = str(run.prompts[0] if run.prompts else "a dog runs on a beach")
    if pipeline and not hasattr(diffusers, pipeline):
        place = f'snapshot_download("{weights}")' if _is_hub_id(weights) else f'"{weights}"'
        lines = ["import besttake as bt", "from huggingface_hub import snapshot_download", ""]
        lines += [
            f'model = bt.load_model("{base}", adapter={place})',
            f"videos = bt.generate(model, {prompt!r}).videos",
        ]
        return "\n".join(lines) + "\n"
    lines = ["import torch", "from diffusers import DiffusionPipeline", "from diffusers.utils import export_to_video"]
    frame = "ImageToVideo" in pipeline
    lines[-1] += ", load_image" if frame else ""
    source = f'"{base}"'
    if embedded_model(base) != base:
        lines.append("from besttake.runtime.embedded import embedded_model")
        source = f'embedded_model("{base}")'
    dtype = f"torch.{run.config.get('dtype', 'float32')}"
    lines += ["", f"pipe = DiffusionPipeline.from_pretrained({source}, torch_dtype={dtype})"]
    lines += _loading(run, pipeline, weights, dtype)
    lines += ['pipe.to("cuda" if torch.cuda.is_available() else "cpu")', "", "video = pipe("]
    names = {"steps": "num_inference_steps", "guidance": "guidance_scale", "frames": "num_frames"}
    named = {names.get(key, key): rollout.get(key) for key in ("frames", "height", "width", "steps", "guidance")}
    lines += [f"    prompt={prompt!r},", *(['    image=load_image("first_frame.png"),'] if frame else [])]
    lines += [f"    negative_prompt={rollout['negative_prompt']!r},"] if rollout.get("negative_prompt") else []
    lines += [f"    {key}={value}," for key, value in named.items() if value is not None]
    return "\n".join([*lines, ").frames[0]", f'export_to_video(video, "video.mp4", fps={_fps(run)})']) + "\n"


def licence_of(base: str) -> str | None:
    """Licence of a model according to its card in its folder or the hub's cache; None if unknown."""
    folder = embedded_model(base)
    if folder != base:
        return "apache-2.0"  # besttake's own
    file: Any = Path(base, "README.md") if Path(base).is_dir() else None
    if _is_hub_id(base):
        file = try_to_load_from_cache(base, "README.md")
    with suppress(OSError, ValueError, TypeError):
        return ModelCard.load(Path(file)).data.license
    return None


def _pipeline_of(run: RunFolder) -> str:
    """Pipeline class of a run's model; "" if it cannot be read."""
    try:
        return pipeline_class(embedded_model(str(run.config["model"])))
    except ValueError:
        return ""


def _is_hub_id(base: str) -> bool:
    return base.count("/") == 1 and not base.startswith((".", "/")) and not Path(base).exists()


def _loading(run: RunFolder, pipeline: str, weights: str, dtype: str) -> list[str]:
    """Lines of the snippet that load the trained weights into the pipeline."""
    if run.config.get("policy", {}).get("train", "lora") == "full":
        networks = sorted(path.name for path in (run.path / "adapter").glob("transformer*")) or ["transformer"]
        return [
            f'pipe.{name} = type(pipe.{name}).from_pretrained("{weights}", subfolder="{name}", torch_dtype={dtype})'
            for name in networks
        ]
    if pipeline and not hasattr(getattr(diffusers, pipeline), "load_lora_weights"):
        return [f'pipe.transformer.load_lora_adapter("{weights}", use_safetensors=True)']
    return [f'pipe.load_lora_weights("{weights}")']


def _fps(run: RunFolder) -> str:
    clips = run.clips["after"]
    return f"{probe(next(iter(clips.values()))).fps if clips else 16:g}"


def _results(run: RunFolder) -> str:
    """The verdict, and a table of the first measures before and after training."""
    found = verdict(run)
    if run.summary is None:
        return found.sentence
    before, after = run.summary["before"], run.summary["after"]
    rows = [
        f"| {shown_name(name, None).replace('_', ' ')} | {shown(name, before[name])} | {shown(name, after[name])} "
        f"| {difference(name, before[name], after[name])} |"
        for name in measures(run)[:MOST]
    ]
    table = "\n".join(["| measure | before | after | change |", "|---|---|---|---|", *rows])
    clips = run.about.get("clips")
    return f"{found.label}: {found.sentence}\n\n{table}" + (
        f"\n\nOn {clips} videos of held-out prompts." if clips else ""
    )


def _fenced(code: str) -> str:
    """Python as a Markdown block; its fence is longer than any run of backticks in the code, such as a prompt's."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", code))])
    return f"{fence}python\n{code}{fence}"


def _cell(value: Any) -> str:
    """A value in a Markdown table."""
    return str(value).replace("|", r"\|").replace("\n", " ")


def _training(run: RunFolder) -> str:
    config, optim, policy = run.config, run.config.get("optim", {}), run.config.get("policy", {})
    reward = config.get("reward", {})
    critics = ", ".join(reward.get("critics") or ([reward["name"]] if "name" in reward else []))
    facts = {
        "data": Path(str(config.get("data", ""))).name,
        "critics": critics,
        "steps": run.steps_done,
        "minutes": f"{run.minutes:.1f}",
        "learning rate": optim.get("lr"),
        "rank": policy.get("rank") if policy.get("train", "lora") == "lora" else None,
        "beta": config.get("beta"),
        "seed": config.get("seed"),
    }
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items() if value not in (None, "")]
    return "\n".join(["| setting | value |", "|---|---|", *rows, "", "All settings are in `config.yaml`."])
