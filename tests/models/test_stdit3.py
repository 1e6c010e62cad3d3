"""STDiT3 against the authors' own numbers, and its public checkpoint format.

`opensora12_*` hold what Open-Sora v1.2's code computes; `opensora12_more` adds odd sizes, clean frames and holes.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from besttake.models.networks.stdit3 import STDiT3, positions, sinusoids

GOLDEN = Path(__file__).parent.parent / "golden"
STATE = GOLDEN / "opensora12_stdit3_tiny_state.safetensors"
CASES = load_file(GOLDEN / "opensora12_stdit3_tiny_cases.safetensors") | load_file(
    GOLDEN / "opensora12_more.safetensors"
)


def golden_config() -> dict:
    with safe_open(STATE, "pt") as file:
        return json.loads(file.metadata()["config"])


@pytest.fixture
def network() -> STDiT3:
    network = STDiT3(**golden_config()).eval()
    network.load_state_dict(load_file(STATE))
    return network


def case(name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in CASES.items() if key.startswith(f"{name}.")}


@pytest.mark.parametrize(
    "name",
    [
        "a_even_ragged",
        "d_image_T1",
        "odd_sizes",
        "one_prompt",
        "no_mask",
        "clean_frames",
        "tiled_mask",
        "long_text",
        "holes",
    ],
)
@torch.no_grad()
def test_predictions_are_the_authors(network, name):
    inputs = case(name)
    expected = inputs.pop("out")
    torch.testing.assert_close(network(**inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_the_authors(network, checkpointing):
    if checkpointing:
        network.enable_gradient_checkpointing()
    inputs, expected = case("clean_frames"), case("clean_frames_grad")
    del inputs["out"]
    x, y = (inputs[name].clone().requires_grad_() for name in "xy")
    network(**inputs | {"x": x, "y": y}).pow(2).mean().backward()
    found = {"x": x.grad, "y": y.grad} | {name: weight.grad for name, weight in network.named_parameters()}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_position_and_time_embeddings_are_the_authors():
    places = positions((3, 5), 0.625, 96).flatten(0, 1)
    torch.testing.assert_close(places[None], CASES["pos_embed.h3_w5_scale0.625_base4"], atol=1e-6, rtol=0)
    # of angles up to 1000, which float32 knows to 6e-5; processors differ in the last bit of the frequencies
    torch.testing.assert_close(sinusoids(CASES["t_sinusoid.in"], 256), CASES["t_sinusoid.out"], atol=6e-5, rtol=0)


@torch.no_grad()
def test_text_behind_the_mask_is_never_read(network):
    inputs = case("a_even_ragged")
    expected = inputs.pop("out")
    inputs["y"] = torch.where(inputs["mask"][:, None, :, None] != 0, inputs["y"], 1e4)
    torch.testing.assert_close(network(**inputs), expected, atol=1e-5, rtol=1e-5)


def test_the_network_of_the_public_config_is_the_public_one():
    with torch.device("meta"):
        network = STDiT3()
    assert sum(weight.numel() for weight in network.parameters()) == 1_207_643_936
    assert {"rope.freqs", "y_embedder.y_embedding"} == dict(network.named_buffers()).keys()
    assert network.y_embedder.y_embedding.shape == (300, 4096)


def test_the_public_layout_is_read_and_written_as_it_is(network, tmp_path):
    network.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == ["STDiT3"]
    assert config["model_type"] == "STDiT3"
    assert {name: config[name] for name in golden_config()} == golden_config()
    public = config | {"torch_dtype": "float32", "transformers_version": "4.38.2"}  # as the authors' file has
    (tmp_path / "saved" / "config.json").write_text(json.dumps(public))
    read = STDiT3.from_pretrained(tmp_path / "saved")
    read.save_pretrained(tmp_path / "again")
    weights = load_file(tmp_path / "again" / "model.safetensors")
    golden = load_file(STATE)
    assert weights.keys() == golden.keys()
    assert all(torch.equal(weights[name], golden[name]) for name in golden)


def write_shards(network: STDiT3, folder: Path) -> None:
    network.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{1 + i % 3:05}-of-00003.safetensors" for i, name in enumerate(weights)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in weights if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def test_shards_are_read_in_the_requested_dtype(network, tmp_path):
    write_shards(network, tmp_path)
    read = STDiT3.from_pretrained(tmp_path, torch.bfloat16)
    assert not read.training
    for name, weight in network.state_dict().items():
        assert torch.equal(read.state_dict()[name], weight.bfloat16()), name
    inputs = case("d_image_T1")
    expected = inputs.pop("out")
    with torch.no_grad():
        prediction = read(**inputs)
    assert prediction.dtype == torch.float32
    torch.testing.assert_close(prediction, expected, atol=0.15, rtol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("rope.freqs"), r"missing rope\.freqs; download it again, or mend its config\.json"),
        (lambda w: [w.pop(name) for name in sorted(w)[:5]], r"missing final_layer.linear.bias, .* and 2 more"),
        (lambda w: w.update({"pos_embed": torch.zeros(3)}), "unexpected pos_embed;"),
        (
            lambda w: w.update({"rope.freqs": torch.zeros(3)}),
            r"mis-shaped rope\.freqs is \(3,\) and not \(12,\)",
        ),
    ],
)
def test_weights_that_are_not_the_configs_are_named(network, tmp_path, change, message):
    network.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        STDiT3.from_pretrained(tmp_path)


def test_a_file_that_is_cut_short_is_named(network, tmp_path):
    network.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    for kept in (-100, 50, 0):
        file.write_bytes(file.read_bytes()[:kept])
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged .*download it again"):
            STDiT3.from_pretrained(tmp_path)


def test_files_that_are_missing_are_named(network, tmp_path):
    write_shards(network, tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"there is no model-00002-of-00003\.safetensors in '.*'; download it again"):
        STDiT3.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is no index of shards"):
        STDiT3.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no readable config\.json"):
        STDiT3.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", r"the config\.json in '.*' is a list, expected names with values"),
        ("{", r"has no readable config\.json"),
        ('{"num_heads": 0}', r"the config\.json in '.*' is not a STDiT3's"),
        ('{"hidden_size": "wide"}', r"the config\.json in '.*' is not a STDiT3's"),
    ],
)
def test_a_config_that_is_no_stdit3s_is_named(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        STDiT3.from_pretrained(tmp_path)
