"""What every critic must do, embedded or published: a tiny random checkpoint stands for each of the latter."""

import importlib
import pkgutil
import shutil
from dataclasses import replace

import pytest
import torch

import tests.tiny_critics
from besttake.contracts import critic as contract
from besttake.rewards import critic_names, load_reward
from besttake.rewards.panel import RewardConfig, load_panel

MODULES = {
    module.name: importlib.import_module(f"tests.tiny_critics.{module.name}")
    for module in pkgutil.iter_modules(tests.tiny_critics.__path__)
}
PUBLISHED = [name for name, module in MODULES.items() if hasattr(module, "write")]
EMBEDDED = ["dynamic_degree", "heldout", "motion_smoothness", "temporal_flicker", "world"]
APART = ["judge", "qalign", "unifiedreward", "videoscore2", "visionreward"]
"""Critics that are other processes: what they must do is tested where they are."""

PROMPTS = ["a red ball rolls to the left", "a large blue square floats"]


def test_every_critic_is_tested_here():
    assert sorted(critic_names()) == sorted(
        [*PUBLISHED, *EMBEDDED, *(name for name in APART if name in critic_names())]
    )


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """The checkpoint of a published critic, written once; do not change it."""
    written = {}

    def folder(name):
        if name not in written:
            torch.manual_seed(0)
            written[name] = tmp_path_factory.mktemp("critics") / name
            MODULES[name].write(written[name])
        return written[name]

    return folder


@pytest.fixture(scope="module", params=[*EMBEDDED, *PUBLISHED])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def critic(name, folder_of):
    """Each critic in turn, loaded once; do not change it."""
    return load_reward(name, path=folder_of(name) if name in PUBLISHED else None)


@pytest.fixture
def videos(name):
    module = MODULES.get(name)
    frames, side = getattr(module, "FRAMES", 16), getattr(module, "SIDE", 32)
    return torch.rand(2, frames, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_it_does_what_every_critic_must(critic, videos, check):
    check(critic, videos, PROMPTS)


def test_it_has_the_name_of_its_file_and_says_how_much_memory_it_takes(critic, name):
    assert critic.name.replace("-", "_") == name
    assert name in EMBEDDED or critic.card.memory > 0


@pytest.fixture(params=PUBLISHED)
def published(request, folder_of, tmp_path):
    """A copy of the checkpoint of each published critic, to be broken."""
    shutil.copytree(folder_of(request.param), tmp_path / "copy")
    return request.param, tmp_path / "copy"


def test_damaged_weights_are_refused(published):
    name, folder = published
    files = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".pt", ".pth", ".bin")]
    assert files
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-200])
    with pytest.raises(ValueError, match="critic"):
        load_reward(name, path=folder)


def test_missing_files_are_refused(published, tmp_path):
    name, _ = published
    for folder in (tmp_path / "nowhere", tmp_path / "empty"):
        if folder.name == "empty":
            folder.mkdir()
        with pytest.raises(ValueError, match="critic"):
            load_reward(name, path=folder)


def test_a_recipe_says_where_a_critics_weights_are(folder_of):
    config = RewardConfig(critics={"aesthetic": {}, "pickscore": {}}, paths={})
    config = replace(config, paths={name: str(folder_of(name)) for name in config.critics})
    videos = torch.rand(2, 4, 3, 32, 32) * 2 - 1
    scores = load_panel(config)(videos, PROMPTS, 8.0).values[:, 0]
    alone = [load_reward(name, path=folder_of(name))(videos, PROMPTS, 8.0).values[:, 0] for name in config.critics]
    torch.testing.assert_close(scores, alone[0] + alone[1])
    worst = load_panel(replace(config, frames=2, aggregate="min"))(videos, PROMPTS, 8.0).values[:, 0]
    assert not torch.allclose(worst, scores)
    fewer = replace(config, settings={"aesthetic": {"frames": 2}, "pickscore": {"frames": 2}}, aggregate="min")
    torch.testing.assert_close(load_panel(fewer)(videos, PROMPTS, 8.0).values[:, 0], worst)
    with pytest.raises(ValueError, match=r"critic pickscore has no setting side; its settings: .*frames"):
        load_panel(replace(config, settings={"pickscore": {"side": 2}}))
    with pytest.raises(ValueError, match=r"paths names world; the critics are aesthetic"):
        RewardConfig("aesthetic", paths={"world": "here"})
