"""Loaded task vectors are what the adapters add, whatever these look like; what is none is refused in words."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lorachord as lc
from lorachord.fusion.arithmetic import weighted_sum
from lorachord.fusion.disentanglement import single
from lorachord.fusion.load import load_task_vectors
from lorachord.fusion.load_routed import load_routed_task_vectors
from lorachord.fusion.task_vectors import Dense, Stacked
from tests.tiny_models import ARCHITECTURES, perturb, tiny
from tests.unit.fusion.helpers import TARGETS, answers, inputs, near, peft_lora, two

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")

SETTINGS: dict[str, dict[str, Any]] = {
    "alpha": {"lora_alpha": 5},
    "rslora": {"use_rslora": True, "r": 4},
    "patterns": {"rank_pattern": {"0": 3}, "alpha_pattern": {"1": 7}},
    "other targets": {"target_modules": r".*(value|v_proj|c_proj)"},
}


def patterns(architecture: str, settings: dict[str, Any]) -> dict[str, Any]:
    first = TARGETS[architecture][0]
    keys = {"rank_pattern": {f"0.*{first}": 3}, "alpha_pattern": {f"1.*{first}": 7}}
    return {name: keys.get(name, value) for name, value in settings.items()}


@pytest.mark.parametrize("settings", SETTINGS)
def test_one_hot_coefficients_return_the_adapter(architecture: str, settings: str, tmp_path: Path):
    models = {
        "a": peft_lora(tmp_path / "a", architecture, 1),
        "b": peft_lora(tmp_path / "b", architecture, 2, **patterns(architecture, SETTINGS[settings])),
    }
    vectors = load_task_vectors(tiny(architecture), {task: tmp_path / task for task in models})
    for index, (task, model) in enumerate(models.items()):
        weights = [0.0, 0.0]
        weights[index] = 1.0
        fused = weighted_sum(vectors, weights).as_lora()
        assert near(answers(fused, task), answers(model))


def test_a_module_that_an_adapter_leaves_alone_is_zero_there(tmp_path: Path):
    peft_lora(tmp_path / "a", target_modules=["query"])
    peft_lora(tmp_path / "b", target_modules=["value"])
    vectors = load_task_vectors(tiny("bert"), {"a": tmp_path / "a", "b": tmp_path / "b"})
    layer = vectors.layers["bert.encoder.layer.0.attention.self.query"]
    assert isinstance(layer, Stacked)
    assert layer.ranks == (2, 0)
    assert torch.count_nonzero(layer.delta(1)) == 0


@pytest.mark.parametrize("method", ["lora", "multilora"])
def test_static_adapters_of_this_package_are_read(method: str, tmp_path: Path):
    for seed, task in enumerate("ab"):
        model = lc.attach(tiny("bert"), method, r=2, tasks=[task])
        perturb(model, 0.1, seed)
        model.save_pretrained(tmp_path / task)
    vectors = load_task_vectors(tiny("bert"), {task: tmp_path / task for task in "ab"})
    assert near(answers(single(vectors, 1).as_lora(), "b"), answers(model.eval()))


def test_an_adapter_with_weights_by_task_gives_a_vector_for_each(tmp_path: Path):
    base = lc.add_heads(tiny("bert"), {"x": 2, "y": 3})
    model = lc.attach(base, "mtl_lora", r=2, num_ups=2, tasks=["x", "y"])
    perturb(model, 0.1)
    model.eval().save_pretrained(tmp_path / "joint")
    vectors = load_task_vectors(tiny("bert"), dict.fromkeys("yx", tmp_path / "joint"))
    for index, task in enumerate("yx"):
        fused = single(vectors, index).as_lora()
        assert near(answers(fused, task), answers(model, task))


def test_each_task_keeps_its_head(tmp_path: Path):
    models = {"a": peft_lora(tmp_path / "a", num_labels=2), "b": peft_lora(tmp_path / "b", seed=2, num_labels=5)}
    vectors = load_task_vectors(tiny("bert"), {task: tmp_path / task for task in "ab"})
    for index, task in enumerate("ab"):
        found = answers(single(vectors, index).as_lora(), task)
        width = models[task].config.num_labels
        assert near(found[:, :width], answers(models[task]))
        # Classes that a task does not have cannot be predicted.
        assert (found[:, width:] == torch.finfo(found.dtype).min).all()


def test_the_base_is_left_as_it_is(tmp_path: Path):
    base = tiny("bert")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    peft_lora(tmp_path / "a")
    vectors = load_task_vectors(base, {"a": tmp_path / "a", "b": tmp_path / "a"})
    with single(vectors, 0).model():
        pass
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert before.keys() == base.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whole_models_are_task_vectors_too(architecture: str, tmp_path: Path):
    tuned = {}
    for seed, task in enumerate("ab"):
        tuned[task] = tiny(architecture)
        perturb(tuned[task], 0.1, seed)
        tuned[task].save_pretrained(tmp_path / task)
    vectors = load_task_vectors(tiny(architecture), {task: tmp_path / task for task in "ab"})
    assert vectors.others
    assert all(isinstance(layer, Dense) for layer in vectors.layers.values())
    merged = single(vectors, 1)
    with merged.model() as model:
        assert near(answers(model, "b"), answers(tuned["b"]), 1e-5)
    task = "b" if architecture == "bert" else None
    whole = merged.as_model(task)
    assert near(answers(whole), answers(tuned["b"]), 1e-5)
    if architecture == "gpt2":
        assert whole.lm_head.weight is whole.transformer.wte.weight
    with pytest.raises(ValueError, match="save the whole model"):
        lc.fuse(vectors, lc.fusion.Average())


def test_a_whole_model_and_an_adapter_are_fused(tmp_path: Path):
    tuned = tiny("llama")
    perturb(tuned, 0.1)
    tuned.save_pretrained(tmp_path / "whole")
    model = peft_lora(tmp_path / "lora", "llama")
    vectors = load_task_vectors(tiny("llama"), {"whole": tmp_path / "whole", "lora": tmp_path / "lora"})
    with single(vectors, 0).model() as fused:
        assert near(answers(fused), answers(tuned), 1e-5)
    with single(vectors, 1).model() as fused:
        assert near(answers(fused), answers(model))


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_adapters_are_refused(count: int, tmp_path: Path):
    with pytest.raises(ValueError, match="at least two"):
        load_task_vectors(tiny("bert"), {"a": tmp_path / "missing"} if count else {})


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_adapters_of_differently_named_bases_are_refused(tmp_path: Path):
    for task in "ab":
        peft_lora(tmp_path / task)
        change_config(tmp_path / task, base_model_name_or_path=f"models/{task}")
    with pytest.raises(ValueError, match=r"different bases.*a: models/a, b: models/b"):
        load_task_vectors(tiny("bert"), {task: tmp_path / task for task in "ab"})


def test_adapters_of_another_shape_are_refused(tmp_path: Path):
    two(tmp_path, "llama")
    with pytest.raises(ValueError, match=r"a: .* does not fit the base model"):
        load_task_vectors(tiny("llama", hidden_size=32), {"a": tmp_path / "a", "b": tmp_path / "b"})


def test_adapters_of_another_architecture_are_refused(tmp_path: Path):
    two(tmp_path, "llama")
    with pytest.raises(ValueError, match="does not fit the base model"):
        load_task_vectors(tiny("gpt2"), {"a": tmp_path / "a", "b": tmp_path / "b"})


def test_an_adapter_of_this_package_knows_its_base(tmp_path: Path):
    for task in "ab":
        model = lc.attach(tiny("llama"), "lora", r=2)
        model.save_pretrained(tmp_path / task)
    with pytest.raises(ValueError, match="made for another base"):
        load_task_vectors(tiny("llama", seed=5), {"a": tmp_path / "a", "b": tmp_path / "b"})


def test_a_whole_model_of_another_shape_is_refused(tmp_path: Path):
    tiny("llama", hidden_size=32).save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="was not tuned from this base"):
        load_task_vectors(tiny("llama"), {"a": tmp_path / "a", "b": tmp_path / "a"})


def test_missing_weights_are_refused(tmp_path: Path):
    two(tmp_path, "llama")
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"a: .*missing adapter keys"):
        load_task_vectors(tiny("llama"), {"a": tmp_path / "a", "b": tmp_path / "b"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "DoRA adapter, which rescales"),
        ({"trainable_token_indices": [3]}, "has trained tokens"),
        ({"bias": "all"}, "trained biases"),
        ({"modules_to_save": ["pooler"]}, "pooler.*trained in full"),
    ],
)
def test_what_is_no_low_rank_update_is_refused(settings: dict[str, Any], message: str, tmp_path: Path):
    peft_lora(tmp_path / "a", **{"target_modules": ["query"], **settings})
    with pytest.raises(ValueError, match=message):
        load_task_vectors(tiny("bert"), {"a": tmp_path / "a", "b": tmp_path / "a"})


def test_an_input_routed_adapter_is_refused(tmp_path: Path):
    lc.attach(tiny("llama"), "hydralora", r=2, num_experts=2).save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="routes by its input"):
        load_task_vectors(tiny("llama"), {"a": tmp_path / "a", "b": tmp_path / "a"})


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no folder"):
        load_task_vectors(tiny("bert"), {"a": tmp_path / "x", "b": tmp_path / "y"})
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"neither an adapter nor a model; found notes\.txt"):
        load_task_vectors(tiny("bert"), {"a": tmp_path, "b": tmp_path})


def test_a_base_with_adapters_is_refused(tmp_path: Path):
    model = peft_lora(tmp_path / "a")
    with pytest.raises(ValueError, match="has adapters already"):
        load_task_vectors(model, {"a": tmp_path / "a", "b": tmp_path / "a"})


def test_gates_averaged_on_data_are_the_gates_where_inputs_do_not_matter(tmp_path: Path):
    model = lc.attach(tiny("llama"), "hydralora", r=2, num_experts=2)
    perturb(model, 0.1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" in name:
                parameter.zero_()
    model.eval().save_pretrained(tmp_path / "a")
    batches = {task: [inputs(kind="tokens")] for task in "ab"}
    vectors = load_routed_task_vectors(tiny("llama"), tmp_path / "a", batches)
    assert near(answers(single(vectors, 0).as_lora()), answers(model))


def test_a_bfloat16_base_is_near_the_float32_one(tmp_path: Path):
    two(tmp_path, "llama")
    folders = {task: tmp_path / task for task in "ab"}
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        vectors = load_task_vectors(tiny("llama").to(dtype), folders)
        with single(vectors, 0).model() as model:
            found.append(answers(model))
        found.append(answers(single(vectors, 0).as_lora()))
    assert all(near(answer.float(), found[0], 0.1) for answer in found)
    assert found[2].dtype == torch.bfloat16
