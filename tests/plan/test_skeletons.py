import json
import shutil

import pytest
import torch

from besttake.commands.cli import RECIPES, read_recipe
from besttake.models import load_model
from besttake.plan.fake_device import CARD, fake_device
from besttake.plan.skeletons import ARCHITECTURES, WordTokenizer, configurations, skeleton
from besttake.runtime.embedded import embedded_model

SIZES = {  # billions of parameters, as their authors tell
    "THUDM/CogVideoX-2b": 1.69,
    "THUDM/CogVideoX-5b": 5.57,
    "THUDM/CogVideoX-5b-I2V": 5.6,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": 1.42,
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": 14.3,
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": 5.0,
    "hpcai-tech/OpenSora-STDiT-v3": 1.1,
}


def billions(part) -> float:
    return sum(parameter.numel() for parameter in part.parameters()) / 1e9


def test_every_architecture_is_looked_at_here():
    assert {folder.name.replace("--", "/") for folder in ARCHITECTURES.iterdir()} == SIZES.keys()


@pytest.mark.parametrize("source", SIZES)
def test_architectures_have_the_published_size_and_take_their_own_clips(source):
    with fake_device():
        model = skeleton(source, torch.bfloat16)
        assert billions(model.denoiser) == pytest.approx(SIZES[source], rel=0.1)
        assert model.denoiser.dtype == torch.bfloat16
        assert next(model.denoiser.parameters()).device == CARD
        assert len(model.latent_shape(*model.default_size())) == 4


def test_every_recipe_of_a_hub_model_is_planned_without_the_hub():
    for recipe in RECIPES.glob("*.yaml"):
        assert configurations(read_recipe(recipe.stem).model)


@pytest.mark.parametrize("name", ["tiny-cogvideox", "tiny-wan"])
def test_a_folder_of_configurations_makes_the_model_that_its_weights_would(name, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(embedded_model(name), folder, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
    (folder / "tokenizer").mkdir()
    real = load_model(name, torch.bfloat16)
    with fake_device():
        model = skeleton(str(folder), torch.bfloat16)
        with model.using("vae", "text_encoder"):
            for part in ("transformer", "vae", "text_encoder"):
                with real.using(part):
                    there = getattr(real.pipeline, part).named_parameters()
                    here = dict(getattr(model.pipeline, part).named_parameters())
                    assert {n: (w.shape, w.dtype) for n, w in there} == {n: (w.shape, w.dtype) for n, w in here.items()}
        assert isinstance(model.pipeline.tokenizer, WordTokenizer)
        model.check_prompts(["a red ball"])
        expected, shown = real.encode_prompts(["a red ball"]), model.encode_prompts(["a red ball"])
        assert {n: t.shape[2:] for n, t in expected.items()} == {n: t.shape[2:] for n, t in shown.items()}


def test_what_is_neither_folder_nor_known_nor_on_the_hub():
    with pytest.raises(ValueError, match=r"'nobody/nothing' is not a folder.*Wan-AI"):
        skeleton("nobody/nothing", torch.bfloat16)


def test_a_broken_configuration_is_named(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(embedded_model("tiny-wan"), folder)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": "many"}))
    with pytest.raises(ValueError, match=r"no model can be built from the configurations of"), fake_device():
        skeleton(str(folder), torch.bfloat16)
