"""What every critic must do, embedded or published: a tiny random checkpoint stands for each of the latter."""

import importlib
import pkgutil
import shutil
from dataclasses import replace

import pytest
import torch

import tests.tiny_critics
from besttake.rewards import critic_names, load_reward
from besttake.rewards.checks import score_checked
from besttake.rewards.panel import RewardConfig, load_panel
from besttake.rewards.remote.server import select_frames

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


@pytest.fixture(params=[*EMBEDDED, *PUBLISHED])
def name(request):
    return request.param


@pytest.fixture
def critic(name, folder_of):
    return load_reward(name, path=folder_of(name) if name in PUBLISHED else None)


@pytest.fixture
def videos(name):
    module = MODULES.get(name)
    frames, side = getattr(module, "FRAMES", 16), getattr(module, "SIDE", 32)
    return torch.rand(2, frames, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_it_scores_every_video_in_every_dimension_and_says_what_it_is(critic, name, videos):
    score = score_checked(critic, videos, PROMPTS, 8.0)
    assert score.values.shape == (2, len(critic.dimensions))
    assert critic.name.replace("-", "_") == name
    card = critic.card
    assert tuple(card.ranges) == tuple(critic.dimensions)
    assert all(low < high for low, high in card.ranges.values())
    assert card.source
    assert card.licence
    assert card.resolution
    assert name in EMBEDDED or card.memory > 0


def test_a_score_does_not_depend_on_the_other_videos_and_is_the_same_again(critic, videos):
    both = critic(videos, PROMPTS, 8.0).values
    torch.testing.assert_close(critic(videos[1:], PROMPTS[1:], 8.0).values, both[1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(critic(videos.flip(0), PROMPTS[::-1], 8.0).values, both.flip(0), atol=1e-4, rtol=1e-4)
    assert torch.equal(critic(videos, PROMPTS, 8.0).values, both)


def test_the_video_matters(critic, videos):
    assert not torch.allclose(critic(videos, [PROMPTS[0]] * 2, 8.0).values[0], critic(videos, PROMPTS, 8.0).values[1])


def test_a_gradient_flows_to_the_video_if_it_says_so(critic, videos):
    videos.requires_grad_(True)
    values = critic(videos, PROMPTS, 8.0).values
    assert values.requires_grad == critic.differentiable
    if critic.differentiable:
        values.sum().backward()
        assert videos.grad.isfinite().all()
        assert videos.grad.any()  # CLIPScore's ends where a cosine is negative


def test_the_frames_it_chooses_are_all_it_looks_at(critic, videos):
    """So a server is sent these alone."""
    if not hasattr(critic, "chosen"):
        assert critic.card.frames is None, "it looks at all of a clip"
        return
    for fps in (8.0, 24.0):
        places, rate = select_frames(critic, videos.shape[1], fps)
        assert len(places) <= (critic.card.frames or videos.shape[1])
        assert select_frames(critic, len(places), rate)[0] == list(range(len(places)))
        expected = critic(videos[:1], PROMPTS[:1], fps).values
        torch.testing.assert_close(critic(videos[:1, places], PROMPTS[:1], rate).values, expected, atol=1e-5, rtol=1e-5)


def test_videos_and_prompts_that_are_none_are_refused(critic, videos):
    for wrong, prompts in ((videos[:, :, :1], PROMPTS), (videos[0], PROMPTS), (videos, PROMPTS[:1])):
        with pytest.raises(ValueError, match=critic.name):
            score_checked(critic, wrong, prompts, 8.0)


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
