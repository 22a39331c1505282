"""Adapters on quantised base layers (bitsandbytes in 8 and 4 bits, torchao in 8) against the same base dequantised.

In 4 bits on a CPU with AVX512-BF16, the first pass in eval mode packs a weight into a layout that bitsandbytes can
neither dequantise nor differentiate through: after it, merging (under PEFT's own LoRA too) and training are wrong. So
tests that merge or train in 4 bits make no such pass before.
"""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import BitsAndBytesConfig, LlamaForCausalLM, PreTrainedModel, TorchAoConfig

import lorachord as lc
from lorachord.core.matrix import delta
from tests.integration.helpers import METHODS, close, differ, gradients, layers, logits, task_logits
from tests.tiny_models import perturb, tiny, token_ids

SIZES = {"hidden_size": 64, "intermediate_size": 128}
MIXED = [0, 1, 1, 0]
kinds = pytest.mark.parametrize("kind", ["bnb-8bit", "bnb-4bit", "torchao-int8"])
methods = pytest.mark.parametrize("method", ["lora", "mtl_lora"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny("llama", **SIZES).save_pretrained(folder)
    return folder


def load(folder: Path, kind: str) -> PreTrainedModel:
    if kind == "torchao-int8":
        quantization = pytest.importorskip("torchao.quantization")
        config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    else:
        pytest.importorskip("bitsandbytes")
        bits = {"load_in_8bit": True} if kind == "bnb-8bit" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        config = BitsAndBytesConfig(**bits)
    model = LlamaForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu")
    assert type(model.model.layers[0].self_attn.q_proj.weight) is not torch.nn.Parameter
    return model.eval()


def quantised(folder: Path, kind: str, method: str) -> PeftModel:
    base = load(folder, kind)
    torch.manual_seed(0)
    model = lc.attach(base, method, **METHODS[method])
    perturb(model, 0.05)
    return model.eval()


def dequantised(model: PeftModel, method: str) -> PeftModel:
    """The same adapter on a plain base with the same, dequantised, weights."""
    plain = lc.attach(tiny("llama", **SIZES), method, **METHODS[method])
    ours = layers(plain)
    with torch.no_grad():
        for name, layer in layers(model).items():
            ours[name].get_base_layer().weight.copy_(layer.get_base_weight())
            ours[name].lorachord_adapter.load_state_dict(layer.lorachord_adapter.state_dict())
    return plain.eval()


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@kinds
@methods
def test_a_quantised_base_answers_as_its_dequantised_twin(folder, kind, method):
    model = quantised(folder, kind, method)
    expected = task_logits(dequantised(model, method), MIXED)
    # Inference kernels may round the activations too.
    assert distance(task_logits(model, MIXED), expected) < 0.05
    assert distance(logits(load(folder, kind)), expected) > 0.5


@kinds
@methods
def test_adapters_on_a_quantised_base_get_the_gradients_of_its_twin(folder, kind, method):
    model = quantised(folder, kind, method)
    twin = dequantised(model, method)
    for each in (model, twin):
        with lc.on_task(each.train(), MIXED):
            each(input_ids=token_ids()).logits.square().sum().backward()
    found, expected = gradients(model), gradients(twin)
    assert found.keys() == expected.keys()
    assert found.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, gradient in found.items():
        assert gradient.any(), name
        assert distance(gradient, expected[name]) < 1e-3, name


@kinds
@methods
def test_adapters_on_a_quantised_base_start_at_zero_and_can_be_disabled(folder, kind, method):
    base = load(folder, kind)
    expected = logits(base)
    model = lc.attach(base, method, **METHODS[method])
    assert close(task_logits(model), expected)
    perturb(model, 0.05)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert differ(task_logits(model), expected)


@kinds
def test_every_linear_layer_of_a_quantised_base_is_adapted(folder, kind):
    names = set(layers(quantised(folder, kind, "lora")))
    assert names == set(layers(lc.attach(tiny("llama", **SIZES), "lora")))
    for layer in layers(quantised(folder, kind, "lora")).values():
        assert layer.quantization_backend is not None
        assert {parameter.dtype for parameter in layer.lorachord_adapter.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["bnb-8bit", "torchao-int8"])
@methods
def test_merging_into_8_bits_is_near_the_adapter(folder, kind, method):
    model = quantised(folder, kind, method)
    base = logits(load(folder, kind))
    expected = task_logits(model, 0)
    weights = {
        name: layer.get_base_weight() + delta(layer.lorachord_adapter["default"], 0)
        for name, layer in layers(model).items()
    }
    with lc.on_task(model, 0):
        model.merge_adapter()
    for name, layer in layers(model).items():
        # A row has steps of 1/127 of its largest entry.
        assert close(layer.get_base_weight(), weights[name], float(weights[name].abs().max()) / 127), name
    assert float((logits(model) - expected).norm() / (base - expected).norm()) < 0.1


@methods
def test_merging_into_4_bits_is_as_near_as_4_bits_can_be(folder, method):
    model = quantised(folder, "bnb-4bit", method).train()
    found = layers(model)
    weights = {
        name: layer.get_base_weight() + delta(layer.lorachord_adapter["default"], 0) for name, layer in found.items()
    }
    with lc.on_task(model, 0):
        model.merge_adapter()
    for name, layer in found.items():
        assert 0.01 < distance(layer.get_base_weight(), weights[name]) < 0.15, name


def test_merging_into_packed_weights_is_refused(folder, tmp_path):
    model = quantised(folder, "bnb-4bit", "mtl_lora")
    with torch.no_grad():
        expected = task_logits(model, 0)
    weights = [layer.get_base_layer().weight for layer in layers(model).values()]
    if not any(weight.quant_state.packing_format_for_cpu for weight in weights):
        pytest.skip("bitsandbytes packs no weights on this processor")
    for merge in (lambda: lc.merge(model, task=0), model.merge_adapter, model.merge_and_unload):
        with lc.on_task(model, 0), pytest.raises(ValueError, match=r"packed the 4-bit weights.*export a LoRA"):
            merge()
    assert torch.equal(task_logits(model, 0), expected)
    assert (lc.export_lora(model, tmp_path / "lora", task=0) / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["bnb-8bit", "torchao-int8"])
@methods
def test_merging_and_unloading_in_8_bits_leaves_the_merged_answers(folder, kind, method):
    merged, model = quantised(folder, kind, method), quantised(folder, kind, method)
    with lc.on_task(merged, 1):
        merged.merge_adapter()
    with lc.on_task(model, 1):
        plain = model.merge_and_unload()
    assert not layers(plain)
    assert torch.equal(logits(plain), logits(merged))


@kinds
def test_an_adapter_made_on_a_quantised_base_loads_on_the_plain_one(folder, kind, tmp_path):
    model = quantised(folder, kind, "mtl_lora")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny("llama", **SIZES), tmp_path)
    ours, theirs = layers(loaded), layers(model)
    assert ours.keys() == theirs.keys()
    for name, layer in ours.items():
        assert torch.equal(layer.lorachord_adapter["default"].up, theirs[name].lorachord_adapter["default"].up)


# In 4 bits the passes of a calibration are such passes in eval mode.
@pytest.mark.parametrize("kind", ["bnb-8bit", "torchao-int8"])
def test_thanora_starts_from_dequantised_weights(folder: Path, kind: str) -> None:
    batches = {task: [{"input_ids": token_ids(seed=seed)}] for seed, task in enumerate("ab")}
    base = load(folder, kind)
    before = logits(base)
    model = lc.attach(base, "thanora", calibration=lc.calibrate(base, "thanora", tasks=["a", "b"], batches=batches))
    assert torch.equal(logits(model.eval()), before)
    for layer in layers(model).values():
        adapter = layer.lorachord_adapter["default"]
        # Full rank would be the whole weight: the tasks' blocks hold a projection of it.
        down, up = adapter.down_start, adapter.scale * adapter.up_start
        directions = torch.linalg.qr(up).Q
        weight = layer.get_base_weight().float()
        torch.testing.assert_close(up @ down, directions @ directions.T @ weight, rtol=1e-3, atol=1e-4)
    loss = model.train()(input_ids=token_ids()).logits.square().mean() + lc.penalty(model)
    loss.backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())
