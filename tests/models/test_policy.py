import json
import os
import stat

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from torch import nn

from besttake.models import load_model, split_backward
from besttake.models.lora import adapter_layers
from besttake.models.policy import (
    HASH_PREFIX,
    Policy,
    PolicyConfig,
    checksum,
    ema_decay_at,
    legacy_weights_hash,
    weights_hash,
)
from besttake.models.quantization import blocks
from besttake.models.sharding import is_sharded


@pytest.fixture
def inputs(model):
    """What to predict at: latents, times and conditions of two prompts."""
    x_t = torch.randn(2, *model.latent_shape(*model.default_size()))
    return x_t, torch.tensor([0.3, 0.9]), model.encode_prompts(["a red ball", "a large blue square"])


def disturb(policy, seed=0):
    """Move the trained weights, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.trainable.values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)


@torch.no_grad()
def base_prediction(model, inputs):
    return model.predict(model.denoiser, *inputs)


@torch.no_grad()
def predictions(policy, inputs):
    return policy.predict(*inputs), policy.reference.predict(*inputs)


def test_a_lora_starts_as_base_and_reference(model, inputs):
    base = base_prediction(model, inputs)
    policy, reference = predictions(Policy(model, PolicyConfig(rank=4)), inputs)
    assert torch.equal(policy, base)
    assert torch.equal(reference, base)


def test_the_seed_decides_the_lora_and_the_global_random_numbers_do_not_move(model_folder):
    def weights(seed):
        model = load_model(str(model_folder("tiny-wan")))
        torch.rand(seed)  # the random numbers before do not count
        state = torch.get_rng_state()
        policy = Policy(model, PolicyConfig(rank=4), seed)
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([weight.detach().flatten() for weight in policy.trainable.values()])

    first = weights(1)
    assert torch.equal(weights(1), first)
    assert not torch.equal(weights(2), first)


def test_policy_moves_alone_and_refresh_brings_the_reference_after_it(model, inputs):
    policy = Policy(model, PolicyConfig(rank=4))
    base = base_prediction(model, inputs)
    disturb(policy)
    moved, reference = predictions(policy, inputs)
    assert not torch.allclose(moved, base, atol=1e-3)
    assert torch.equal(reference, base)
    policy.reference.refresh()
    assert torch.equal(predictions(policy, inputs)[1], moved)
    disturb(policy)  # the copy is a copy
    assert torch.equal(predictions(policy, inputs)[1], moved)


def test_only_the_policys_lora_gets_gradients_even_after_the_reference_predicted(model, inputs):
    policy = Policy(model, PolicyConfig(rank=4))
    disturb(policy)
    prediction = policy.predict(*inputs)
    assert not policy.reference.predict(*inputs).requires_grad
    prediction.square().mean().backward()
    for name, parameter in model.denoiser.named_parameters():
        assert (parameter.grad is not None) == (".policy." in name), name
    assert all(parameter.grad.any() for parameter in policy.trainable.values())


def test_merged_it_predicts_the_same_and_is_put_back_to_the_bit(model, inputs):
    policy = Policy(model, PolicyConfig(rank=4))
    disturb(policy)
    before = {name: weight.clone() for name, weight in model.denoiser.state_dict().items()}
    alone = predictions(policy, inputs)[0]
    with policy.merged():
        assert any(not torch.equal(weight, before[name]) for name, weight in model.denoiser.state_dict().items())
        torch.testing.assert_close(predictions(policy, inputs)[0], alone, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(weight, before[name]) for name, weight in model.denoiser.state_dict().items())
    assert torch.equal(predictions(policy, inputs)[0], alone)


def test_merged_into_bfloat16_it_is_rounded_once_and_put_back_to_the_bit(model_folder, family):
    policy = Policy(load_model(str(model_folder(family)), torch.bfloat16), PolicyConfig(rank=4))
    disturb(policy)
    layer = adapter_layers(policy.model.denoiser)[0]
    weight = layer.get_base_layer().weight
    before, delta = weight.clone(), layer.get_delta_weight("policy")
    assert delta.dtype == torch.float32
    with policy.merged():
        assert torch.equal(weight, (before.float() + delta).bfloat16())
    assert torch.equal(weight, before)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_the_references_average_moves_by_exactly_one_part_in_a_thousand(cogvideox, train):
    policy = Policy(cogvideox, PolicyConfig(train=train, rank=2))
    before = {name: weight.clone() for name, weight in policy.reference.weights.items()}
    disturb(policy)
    for _ in range(2):
        policy.reference.ema(0.999)
    for name, weight in policy.reference.weights.items():
        after = before[name].double() + (1 - 0.999**2) * (policy.trainable[name].double() - before[name].double())
        torch.testing.assert_close(weight.double(), after, atol=1e-7, rtol=1e-6)
    assert all(weight.dtype == torch.float32 for weight in policy.reference.weights.values())


def test_the_reference_of_a_half_precision_model_moves_by_a_small_average_too(model_folder):
    policy = Policy(load_model(str(model_folder("tiny-wan")), dtype=torch.bfloat16), PolicyConfig(train="full"))
    name = "blocks.0.attn1.to_q.weight"
    before = policy.reference.weights[name].clone()
    with torch.no_grad():
        policy.trainable[name] += 0.1
    for _ in range(100):
        policy.reference.ema(0.999)  # one part in a thousand is less than bfloat16 can add at a time
    moved = (policy.reference.weights[name].float() - before.float()).mean()
    assert moved.item() == pytest.approx(0.1 * (1 - 0.999**100), rel=0.1)


def test_the_policys_own_average(model, inputs):
    policy = Policy(model, PolicyConfig(rank=4, ema_decay=0.1))
    start = {name: weight.detach().clone() for name, weight in policy.trainable.items()}
    disturb(policy)
    policy.update_ema(2)
    now = {name: weight.detach().clone() for name, weight in policy.trainable.items()}
    with policy.ema_weights():
        for name, weight in policy.trainable.items():
            torch.testing.assert_close(weight, start[name] + 0.9 * (now[name] - start[name]))
    assert all(torch.equal(weight, now[name]) for name, weight in policy.trainable.items())


@pytest.mark.parametrize("decay", [0.2, 0.5, 0.999])
def test_the_average_is_that_of_diffusers(cogvideox, decay):
    policy = Policy(cogvideox, PolicyConfig(rank=2, ema_decay=decay))
    theirs = EMAModel(policy.trainable.values(), decay=decay)
    for update in range(1, 31):
        disturb(policy, update)
        policy.update_ema(update)
        theirs.step(policy.trainable.values())
        for ours, their in zip(policy.ema.values(), theirs.shadow_params, strict=True):
            torch.testing.assert_close(ours, their)


def test_little_of_the_start_is_left_in_the_average_of_a_short_run(cogvideox):
    policy = Policy(cogvideox, PolicyConfig(rank=2, ema_decay=0.999))
    for update in range(1, 31):
        for weight in policy.trainable.values():
            weight.data.fill_(update)
        policy.update_ema(update)
    assert all(weight.mean().item() == pytest.approx(27, abs=0.1) for weight in policy.ema.values())


def test_a_warmed_up_decay_rises_to_what_it_is_to_be():
    assert [ema_decay_at(0.75, count) for count in (1, 2, 3, 18, 27, 28, 1000)] == [
        0,
        2 / 11,
        3 / 12,
        2 / 3,
        0.75,
        0.75,
        0.75,
    ]
    assert ema_decay_at(0.0, 5) == 0


def test_without_an_average_averaged_changes_nothing(model, inputs):
    policy = Policy(model, PolicyConfig(rank=4))
    disturb(policy)
    moved = predictions(policy, inputs)[0]
    with policy.ema_weights():
        assert torch.equal(predictions(policy, inputs)[0], moved)


@pytest.mark.parametrize("alpha", [None, 1.0, 16.0])
def test_what_is_saved_is_what_the_official_pipeline_loads(tmp_path, model, inputs, alpha):
    policy = Policy(model, PolicyConfig(rank=4, alpha=alpha))
    disturb(policy)
    ours = predictions(policy, inputs)[0]
    policy.save(tmp_path / "adapter")
    pipeline = DiffusionPipeline.from_pretrained(model.source)
    pipeline.load_lora_weights(str(tmp_path / "adapter"))
    theirs = base_prediction(type(model)(pipeline, model.source), inputs)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_what_is_saved_is_the_average(tmp_path, cogvideox):
    policy = Policy(cogvideox, PolicyConfig(rank=2, ema_decay=0.5))
    disturb(policy)
    policy.save(tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(cogvideox.source)
    pipeline.load_lora_weights(str(tmp_path))
    name = next(iter(policy.ema))
    loaded = dict(pipeline.transformer.named_parameters())[name.replace(".weight", ".default_0.weight")]
    torch.testing.assert_close(loaded, policy.ema[name])


def test_full_fine_tuning_holds_the_policy_against_a_frozen_copy_and_saves_a_denoiser(tmp_path, model, inputs):
    base = base_prediction(model, inputs)
    policy = Policy(model, PolicyConfig(train="full"))
    assert all(torch.equal(prediction, base) for prediction in predictions(policy, inputs))
    assert set(policy.trainable) == {name for name, _ in model.denoiser.named_parameters()}
    policy.predict(*inputs).square().mean().backward()
    assert not any(p.requires_grad or p.grad is not None for p in policy.reference.denoiser.parameters())
    disturb(policy)
    moved, reference = predictions(policy, inputs)
    assert torch.equal(reference, base)
    policy.save(tmp_path)
    loaded = type(model.denoiser).from_pretrained(tmp_path / "transformer").eval()
    with torch.no_grad():
        assert torch.equal(model.predict(loaded, *inputs), moved)
    policy.reference.refresh()
    assert torch.equal(predictions(policy, inputs)[1], moved)


def test_gradient_checkpointing_gives_the_same_gradients(model_folder):
    def gradients(checkpointing):
        model = load_model(str(model_folder("tiny-cogvideox")))
        policy = Policy(model, PolicyConfig(rank=2, gradient_checkpointing=checkpointing))
        disturb(policy)
        generator = torch.Generator().manual_seed(0)
        x_t = torch.randn((1, *model.latent_shape(*model.default_size())), generator=generator)
        inputs = x_t, torch.tensor([0.5]), model.encode_prompts(["a red ball"])
        prediction = policy.predict(*inputs)
        policy.reference.predict(*inputs)  # switches the adapter between forward and backward
        prediction.square().mean().backward()
        return {name: weight.grad for name, weight in policy.trainable.items()}

    plain, saving = gradients(False), gradients(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(saving[name], gradient, atol=1e-6, rtol=1e-4)


def test_a_model_without_the_modules_is_refused(cogvideox):
    cogvideox.lora_targets = ("nothing_is_called_this",)
    with pytest.raises(ValueError, match="nothing_is_called_this"):
        Policy(cogvideox, PolicyConfig())


@pytest.mark.parametrize("values", [{"rank": 0}, {"ema_decay": 1.0}, {"ema_decay": -0.1}, {"alpha": 0.0}])
def test_settings_without_sense_are_refused(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} is"):
        PolicyConfig(**values)


def test_a_full_fine_tune_of_a_half_precision_model_computes_in_it_and_learns_in_float32(model_folder):
    exact, half = (
        Policy(load_model(str(model_folder("tiny-wan")), dtype=dtype), PolicyConfig(train="full"))
        for dtype in (torch.float32, torch.bfloat16)
    )
    x_t = torch.randn(1, *exact.model.latent_shape(*exact.model.default_size()))
    t, condition = torch.tensor([0.3]), exact.model.encode_prompts(["a red ball"])
    prediction = half.predict(x_t, t, condition)
    assert prediction.dtype == half.reference.predict(x_t, t, condition).dtype == torch.bfloat16
    torch.testing.assert_close(prediction.float(), exact.predict(x_t, t, condition), atol=0.1, rtol=0.1)
    prediction.float().square().mean().backward()
    assert all(weight.dtype == weight.grad.dtype == torch.float32 for weight in half.trainable.values())


def test_until_it_moves_a_loras_reference_is_the_base_alone(model, inputs, monkeypatch):
    policy = Policy(model, PolicyConfig(rank=4))
    base = predictions(policy, inputs)[1]
    disturb(policy)
    with torch.no_grad():
        for weight in policy.reference.weights.values():
            weight.fill_(1)  # which nothing reads yet
    assert torch.equal(predictions(policy, inputs)[1], base)
    policy.reference.weights_changed()
    assert not torch.allclose(predictions(policy, inputs)[1], base, atol=1e-2)


def test_a_base_on_the_cpu_gives_the_same_predictions_and_gradients_to_the_bit(model_folder, family, inputs):
    found = {}
    for offload in (False, True):
        model = load_model(str(model_folder(family)), offload=offload)
        policy = Policy(model, PolicyConfig(rank=4, gradient_checkpointing="full", offload=offload))
        disturb(policy)
        policy.predict(*inputs).square().mean().backward()
        gradients = [weight.grad for weight in policy.trainable.values()]
        found[offload] = [*predictions(policy, inputs), *gradients]
        policy.reference.refresh()
        found[offload] += predictions(policy, inputs)
    assert all(torch.equal(one, other) for one, other in zip(found[False], found[True], strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_of_a_base_on_the_cpu_one_block_is_on_the_device(model_folder, family, inputs, checkpointing):
    """Going forward, and in a split backward, where all clips but the last are predicted once more."""
    model = load_model(str(model_folder(family)), offload=True)
    how = PolicyConfig(rank=4, offload=True, micro_batch_size=1, gradient_checkpointing=checkpointing)
    policy, there, parts = Policy(model, how), [], blocks(model.denoiser)

    def count(*_):
        there.append(sum(not any(map(is_sharded, block.parameters())) for block in parts))

    for block in parts:
        block.register_forward_pre_hook(count)
    split_backward.predict_both(policy, *inputs)[0].square().mean().backward()
    count()
    assert there[-1] == 0
    assert max(there) == 1


@pytest.mark.parametrize("place", ["device", "cpu"])
def test_the_reference_of_a_full_fine_tune_takes_half_and_predicts_alike_to_the_bit(
    model_folder, family, inputs, place
):
    model = load_model(str(model_folder(family)), torch.bfloat16)
    policy = Policy(model, PolicyConfig(train="full", reference_device=place))
    ours, reference = predictions(policy, inputs)
    assert torch.equal(ours, reference)
    size, whole = (
        sum(weight.nbytes for block in blocks(network) for weight in block.parameters())
        for network in (policy.reference.denoiser, model.denoiser)
    )
    assert size < 0.52 * whole
    disturb(policy)
    policy.reference.refresh()
    assert torch.equal(*predictions(policy, inputs))
    before = {name: weight.clone() for name, weight in policy.reference.weights.items()}
    disturb(policy, seed=1)
    policy.reference.ema(0.999)
    for name, weight in policy.reference.weights.items():
        torch.testing.assert_close(weight, before[name] * 0.999 + policy.trainable[name].detach() * 0.001)
        assert weight.dtype == torch.float32


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="offload is for LoRA"):
        PolicyConfig(train="full", offload=True)
    with pytest.raises(ValueError, match="reference_device is cpu and train is lora"):
        PolicyConfig(reference_device="cpu")


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(33, 50), nn.LayerNorm(50), nn.Linear(50, 7)).bfloat16()


@pytest.mark.parametrize("row", [0, 24, 49])
def test_a_signature_sees_every_weight(row):
    first, other = network(), network()
    assert weights_hash(other) == weights_hash(first)
    with torch.no_grad():
        other[0].weight[row, 16] += 0.01
    assert weights_hash(other) != weights_hash(first)
    assert legacy_weights_hash(other) == legacy_weights_hash(first)


def test_a_signature_sees_places_names_shapes_and_types():
    first = network()
    hashes = [
        weights_hash(first),
        weights_hash(network(1)),
        weights_hash(network().float()),
        weights_hash(nn.ModuleList(first)),
    ]
    with torch.no_grad():
        first[0].weight[[3, 40]] = first[0].weight[[40, 3]]
    hashes.append(weights_hash(first))
    assert hashes[0] == hashes[3]  # of the same names
    assert len({*hashes}) == 4
    assert checksum(torch.zeros(2, 3)) != checksum(torch.zeros(3, 2))
    assert checksum(torch.zeros(6)) != checksum(torch.zeros(5))
    assert all(name.startswith(HASH_PREFIX) for name in hashes)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float32, torch.float64])
def test_a_checksum_is_that_of_the_values_however_they_lie_in_memory(dtype):
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).mul(9).abs().to(dtype)
    odd = torch.cat([values.flatten()[:1], values.flatten()])[1:].view(3, 5)  # begins between two words
    turned = values.t().contiguous().t()
    assert checksum(odd) == checksum(turned) == checksum(values)
    assert checksum(values[0, 0]) != checksum(values[1, 1] + 1)  # without a dimension
    apart = torch.cat([values, values])[::5, 0][:1]  # one number, as the scales of a matrix in four bits may be
    assert apart.stride() == (25,)
    assert checksum(apart) == checksum(values[0, :1])


def test_a_checksum_is_fletchers_over_64_bit_words(monkeypatch):
    words = torch.tensor([5, -3, 2**62, 2**62, 7])
    expected = sum(words.tolist()), sum(i * word for i, word in enumerate(words.tolist(), 1))
    wrapped = tuple((number + 2**63) % 2**64 - 2**63 for number in expected)
    assert checksum(words) == repr([("torch.int64", (5,), *wrapped)])


def test_equal_adapters_are_equal_files_that_colleagues_can_read(cogvideox, tmp_path):
    policy = Policy(cogvideox, PolicyConfig(rank=2))
    before = os.umask(0o022)
    for name in "abcd":
        policy.save(tmp_path / name)
    os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}
    assert len(files) == 4
    assert len({path.read_bytes() for path in files}) == 1
    with safe_open(files[0], "pt") as file:
        metadata = file.metadata()
    modules = json.loads(metadata["lora_adapter_metadata"])["transformer.target_modules"]
    assert modules == sorted(cogvideox.lora_targets)
