"""Checkpoints are read shard by shard, whole or not at all."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

from besttake.models import load_model
from besttake.models.loading import is_empty
from besttake.models.networks.opensora import HUB
from besttake.sampling.rollout import RolloutConfig, generate
from tests.processes import launch, results
from tests.tiny import tiny_models
from tests.tiny.wan import TINY, parts, transformer


@pytest.fixture
def folder(tmp_path):
    TINY["wan-2.1"].build().save_pretrained(tmp_path / "wan")
    return tmp_path / "wan"


@pytest.fixture(params=["transformer", "vae"])
def weights(request, folder):
    return folder / request.param / "diffusion_pytorch_model.safetensors"


def test_missing_weights_are_refused_by_name(folder, weights):
    tensors = load_file(weights)
    gone = sorted(tensors)[0]
    del tensors[gone]
    save_file(tensors, weights)
    with pytest.raises(
        ValueError, match=rf"weights in {weights.parent.name}/ do not match .*: missing {gone}; download"
    ):
        load_model(str(folder))


def test_unexpected_weights_are_refused_by_name(folder, weights):
    save_file(load_file(weights) | {f"extra.{i}": torch.ones(1) for i in range(5)}, weights)
    with pytest.raises(ValueError, match=r"unexpected extra.0, extra.1, extra.2 and 2 more"):
        load_model(str(folder))


def test_weights_of_another_shape_are_refused(folder, weights):
    tensors = load_file(weights)
    name = next(name for name, tensor in tensors.items() if tensor.ndim > 1)
    save_file(tensors | {name: torch.cat([tensors[name]] * 2)}, weights)
    with pytest.raises(ValueError, match="does not load"):
        load_model(str(folder))


def test_a_text_encoder_is_checked_before_it_is_read(folder):
    """Its weights are read when the first prompt comes; that its file is whole is known before."""
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"text_encoder/model.safetensors is damaged"):
        load_model(str(folder))


def test_a_text_encoder_that_lacks_weights_is_refused_at_the_first_prompt(folder):
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    gone = next(name for name in sorted(tensors) if "layer" in name)
    del tensors[gone]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"the text_encoder of '{folder}' does not load: .*missing {gone}"):
        load_model(str(folder)).encode_prompts(["a red ball"])


def test_a_config_of_more_layers_than_there_are_weights_is_refused(folder):
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layers": 3}))
    with pytest.raises(ValueError, match=r"missing blocks.2"):
        load_model(str(folder))


def test_parts_in_use_are_not_dropped_by_an_inner_use(folder):
    model = load_model(str(folder))
    model.pipeline.vae.to("meta")
    model.parts.low_memory = True
    with model.using("vae"):
        with model.using("vae"):
            pass
        assert not is_empty(model.pipeline.vae)
    assert is_empty(model.pipeline.vae)


def growth(small, large):
    """Kilobytes by which reading a model takes the process beyond what it held, and kilobytes of its denoiser."""
    load_model(small)  # what is imported only then
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = memory("VmRSS")
    model = load_model(large, torch.bfloat16)
    return memory("VmHWM") - before, sum(w.numel() * w.element_size() for w in model.denoiser.parameters()) // 1024


def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


@pytest.mark.skipif(sys.platform != "linux", reason="a process's peak of memory is read from /proc")
def test_sharded_weights_are_read_without_a_second_copy(folder, tmp_path):
    """The peak of reading more than 100 MB of weights, in shards of 10 MB, is those weights and little more."""
    wide = transformer(num_attention_heads=24, attention_head_dim=32, ffn_dim=4096, num_layers=5)
    pipeline = WanPipeline(**parts(), transformer=wide.to(torch.bfloat16))
    pipeline.save_pretrained(tmp_path / "wide", max_shard_size="10MB")
    assert len(list((tmp_path / "wide" / "transformer").glob("*.safetensors"))) > 5
    ((peak, weights),) = results(launch(1, growth, str(folder), str(tmp_path / "wide")))
    assert weights > 100_000
    assert peak < 1.35 * weights


def test_a_vae_is_float32_where_its_family_needs_it(folder):
    model = load_model(str(folder), torch.bfloat16)
    assert model.pipeline.vae.dtype == torch.float32
    assert model.denoiser.dtype == torch.bfloat16


def in_the_cache(hub, repository):
    """The folder of a repository's only revision."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(snapshot.name)
    return snapshot


@pytest.mark.parametrize("name", ["wan-2.1", "opensora-1.2"])
def test_a_hub_id_is_read_like_a_folder(name, tmp_path, monkeypatch):
    """The hub's cache stands for the hub: nothing but what it gives is used."""
    tiny = tiny_models()[name]
    snapshot = in_the_cache(tmp_path / "hub", "someone/model")
    if tiny.write:
        tiny.write(snapshot)
        for part, place in HUB.items():  # the authors keep them in other repositories
            shutil.copytree(snapshot / part, in_the_cache(tmp_path / "hub", place), dirs_exist_ok=True)
            shutil.rmtree(snapshot / part)
    else:
        tiny.build().save_pretrained(snapshot, max_shard_size="20KB")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    rollout = RolloutConfig(1, None, *tiny.size)
    videos = generate(load_model("someone/model"), ["a red ball"], rollout).videos
    frames, height, width = tiny.size
    assert videos.shape == (1, frames, 3, height, width)


def test_a_tokenizer_of_sentencepiece_alone_is_read(folder, tmp_path):
    """Real T5 tokenizers are often nothing but a `spiece.model`."""
    corpus = tmp_path / "words.txt"
    corpus.write_text(
        "\n".join(f"a {colour} ball rolls {where}" for colour in ("red", "blue") for where in ("in", "out"))
    )
    place = folder / "tokenizer"
    shutil.rmtree(place)
    place.mkdir()
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(place / "spiece"),
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
        **ids,
    )
    (place / "spiece.vocab").unlink()
    (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"tokenizer": ["transformers", "T5Tokenizer"]}))
    model = load_model(str(folder))
    assert model.count_tokens("a red ball") > 3
    assert model.encode_prompts(["a red ball"])["text"].isfinite().all()
