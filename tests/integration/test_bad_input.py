"""What is refused, in which words, and that nothing was changed or lost by it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

import lorachord as lc
from tests.integration.helpers import adapted, close, config, differ, layers, logits, task_logits
from tests.tiny_models import perturb, tiny, token_ids

TASKS = ["cola", "sst2"]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = weights(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def assert_plain(base: nn.Module) -> None:
    """The tiny model as it is made: no adapter, no hook, everything trainable, the same answers."""
    twin = tiny("llama")
    assert not layers(base)
    assert all(not module._forward_pre_hooks for module in base.modules())
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert_unchanged(base, weights(twin))
    assert torch.equal(logits(base), logits(twin))


# Attaching

REFUSED_BY_ATTACH: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown method": ("hydra_lora", {}, r"no method 'hydra_lora'\. Did you mean 'hydralora'"),
    "unknown method, nothing near": (
        "xyz",
        {},
        "Known: allot, comol, hydralora, lora, malora, ",
    ),
    "unknown option": ("hydralora", {"num_expert": 4}, r"no option 'num_expert'\. Did you mean 'num_experts'"),
    "unknown option of a baseline": ("peft_lora", {"rs_lora": True}, r"no option 'rs_lora'\. Did you mean 'rslora'"),
    "option of another method": ("lora", {"num_experts": 4}, "lora has no option 'num_experts'"),
    "word for a number": ("lora", {"r": "8"}, r"r = '8', but it must be an integer, at least 1"),
    "fraction for a count": ("lora", {"r": 8.0}, r"r = 8\.0, but it must be an integer"),
    "truth for a number": ("lora", {"alpha": True}, r"alpha = True, but it must be a number"),
    "rank of zero": ("lora", {"r": 0}, "r = 0, but it must be an integer, at least 1"),
    "zero among the ranks": ("lora", {"r": (4, 0)}, r"r = \(4, 0\), but it must be an integer, at least 1"),
    "no ranks": ("lora", {"r": ()}, r"r = \(\), but it must be"),
    "dropout of one": ("lora", {"dropout": 1.0}, r"dropout = 1\.0, but it must be a number, at least 0, below 1"),
    "list for a plain option": ("lora", {"dropout": (0.1, 0.2)}, r"dropout = \(0\.1, 0\.2\), but it must be a number"),
    "not a choice": ("multilora", {"scaling": "matrix"}, "scaling = 'matrix', but it must be one of vector, scalar"),
    "too many experts chosen": ("mosld", {"top_k": 3, "num_experts": (2, 4)}, "top_k = 3, but some layers have only 2"),
    "list for a baseline": ("peft_lora", {"r": (2, 4)}, "peft_lora takes one value for r"),
    "targets that match nothing": (
        "lora",
        {"target_modules": ["q_prj"]},
        r"'q_prj' matches no module.*down_proj, gate_proj.*Did you mean.*q_proj",
    ),
    "one target of two that matches nothing": ("lora", {"target_modules": ["q_proj", "query"]}, "'query' matches no"),
    "regex that matches nothing": ("lora", {"target_modules": r".*\.query"}, r"leave no layer to adapt.*q_proj"),
    "layers that there are not": (
        "lora",
        {"target_modules": ["q_proj"], "layers_to_transform": [7]},
        r"q_proj \(in layers \[7\]\) leave no layer",
    ),
    "everything excluded": (
        "lora",
        {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]},
        "q_proj leave no layer to adapt",
    ),
    "embedding": (
        "lora",
        {"target_modules": ["embed_tokens"]},
        "'model.embed_tokens' is a.? Embedding; .*linear layers",
    ),
    "norm": ("lora", {"target_modules": ["q_proj", "norm"]}, "'model.norm' is a.? LlamaRMSNorm; .*linear layers"),
    "no tasks": ("mtl_lora", {}, r"mtl_lora has parameters for each task: name them, as in tasks=\['cola', 'sst2'\]"),
    "empty tasks": ("mtl_lora", {"tasks": []}, "mtl_lora has parameters for each task"),
    "repeated tasks": ("mtl_lora", {"tasks": ["cola", "sst2", "cola"]}, "Task names must be unique; repeated: cola"),
    "repeated tasks of a method that needs none": ("lora", {"tasks": ["cola", "cola"]}, "repeated: cola"),
    "repeated tasks of a baseline": ("peft_lora", {"tasks": ["cola", "cola"]}, "repeated: cola"),
    "tasks as one string": ("mtl_lora", {"tasks": "mnli"}, "tasks must be a list of names, not the string 'mnli'"),
    "numbers for tasks": ("mtl_lora", {"tasks": [0, 1]}, "Task names must be non-empty strings; got 0"),
    "nameless task": ("mtl_lora", {"tasks": ["cola", ""]}, "Task names must be non-empty strings; got ''"),
}


@pytest.mark.parametrize("case", REFUSED_BY_ATTACH)
def test_attach_refuses(case):
    method, settings, message = REFUSED_BY_ATTACH[case]
    base = tiny("llama")
    with pytest.raises(ValueError, match=message):
        lc.attach(base, method, **settings)
    assert_plain(base)
    lc.attach(base, "lora", r=2)
    assert close(logits(base), logits(tiny("llama")), 1e-7)


def test_a_second_attach_is_refused_and_the_first_adapter_stays():
    model = adapted("llama", "lora")
    expected = logits(model)
    for again in (model, model.base_model.model):
        with pytest.raises(ValueError, match=r"has adapters already.*add_adapter.*unload"):
            lc.attach(again, "hydralora")
    assert torch.equal(logits(model), expected)


def test_a_config_refuses_what_attach_refuses():
    with pytest.raises(ValueError, match="tasks must be a list of names, not the string 'mnli'"):
        lc.LorachordConfig(method="mtl_lora", tasks="mnli")
    with pytest.raises(ValueError, match="no option 'ranks'"):
        lc.LorachordConfig(method="lora", options={"ranks": 4})
    with pytest.raises(ValueError, match="Did you mean 'mtl_lora'"):
        lc.LorachordConfig(method="mtllora", tasks=TASKS)


def test_a_second_adapter_that_is_refused_leaves_the_first_as_it_was():
    model = adapted("llama", "mtl_lora")
    expected = task_logits(model)
    names = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    with pytest.raises(ValueError, match=rf"'embed' matches no module.*Its linear layers are called {names}\."):
        model.add_adapter("other", config("mtl_lora", target_modules=["q_proj", "embed"]))
    assert list(model.peft_config) == ["default"]
    assert all(list(layer.lorachord_adapter) == ["default"] for layer in layers(model).values())
    assert torch.equal(task_logits(model), expected)
    model.add_adapter("other", config("mtl_lora", tasks=["c"]))


# Saved adapters


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    adapted("llama", "mtl_lora", tasks=TASKS).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refuse_to_load(base: PreTrainedModel, folder: Path, message: str) -> None:
    before, expected, files = weights(base), logits(base), contents(folder)
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(base, folder)
    assert not layers(base)
    assert_unchanged(base, before)
    assert torch.equal(logits(base), expected)
    assert contents(folder) == files


def test_an_adapter_of_a_base_of_other_sizes_is_refused(folder):
    refuse_to_load(tiny("llama", hidden_size=32), folder, "made for another base model.*other names or sizes")


def test_an_adapter_of_a_base_with_more_layers_is_refused(folder):
    refuse_to_load(tiny("llama", num_hidden_layers=3), folder, "made for another base model")


def test_an_adapter_of_a_base_with_other_weights_is_refused(folder):
    refuse_to_load(tiny("llama", seed=9), folder, "same sizes, but other weights")


def test_an_adapter_of_another_architecture_is_refused(folder):
    refuse_to_load(tiny("gpt2"), folder, "matches no module of the model")


def test_another_checkpoint_of_the_same_base_is_warned_of(folder):
    base = tiny("llama")
    perturb(base, 0.002)
    with pytest.warns(UserWarning, match="another checkpoint of the same model"):
        PeftModel.from_pretrained(base, folder)


def test_the_same_base_in_another_dtype_is_welcome(folder):
    PeftModel.from_pretrained(tiny("llama").to(torch.bfloat16), folder)


def test_an_adapter_of_a_newer_format_is_refused(folder):
    change_config(folder, format_version=99)
    refuse_to_load(tiny("llama"), folder, r"format 99.*reads up to 1.*pip install -U lorachord")


def test_a_saved_config_with_an_unknown_option_is_refused(folder):
    change_config(folder, options={"r": 2, "num_up": 2})
    refuse_to_load(tiny("llama"), folder, "no option 'num_up'. Did you mean 'num_ups'")


def test_a_truncated_weights_file_is_refused(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuse_to_load(
        tiny("llama"), folder, "adapter_model.safetensors is truncated or damaged.*copy or download it again"
    )


def test_an_empty_weights_file_is_refused(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"")
    refuse_to_load(tiny("llama"), folder, "adapter_model.safetensors is truncated or damaged")


def test_a_missing_weights_file_is_refused(folder):
    (folder / "adapter_model.safetensors").unlink()
    refuse_to_load(tiny("llama"), folder, "has no adapter_model.safetensors; found README.md, adapter_config.json")


def test_missing_tensors_are_refused(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    dropped = [key for key in tensors if key.endswith("q_proj.lorachord_adapter.mixture")]
    assert len(dropped) == 2
    save_file({key: tensor for key, tensor in tensors.items() if key not in dropped}, path)
    base = tiny("llama")
    before = weights(base)
    with pytest.raises(ValueError, match=rf"incomplete: 2 of {len(tensors)} tensors are missing.*q_proj.*mixture"):
        PeftModel.from_pretrained(base, folder)
    assert_unchanged_below(base, before)


def assert_unchanged_below(base: nn.Module, before: dict[str, torch.Tensor]) -> None:
    """The base's own weights are as they were, whatever was put around its layers."""
    after = {name.replace(".base_layer.", "."): tensor for name, tensor in weights(base).items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["sst2", "cola"], "stacked in another order than these: sst2, cola"),
        (["cola", "mnli"], "stacked for other tasks"),
    ],
)
def test_reordered_or_renamed_tasks_are_refused(folder, tasks, message):
    change_config(folder, tasks=tasks)
    base = tiny("llama")
    before = weights(base)
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(base, folder)
    assert_unchanged_below(base, before)


def test_reordered_tasks_are_refused_when_loaded_beside_another_adapter(folder):
    model = adapted("llama", "mtl_lora")
    expected = task_logits(model)
    change_config(folder, tasks=["sst2", "cola"])
    with pytest.raises(ValueError, match="stacked in another order"):
        model.load_adapter(folder, adapter_name="other")
    model.set_adapter("default")
    assert torch.equal(task_logits(model), expected)


def test_reordered_tasks_are_refused_at_each_forward_after_transformers_loaded_them(folder):
    change_config(folder, tasks=["sst2", "cola"])
    base = tiny("llama")
    base.load_adapter(str(folder))
    for _ in range(2):
        with pytest.raises(ValueError, match="stacked in another order than these: sst2, cola"):
            task_logits(base, "cola")


# Merging and exporting


@pytest.mark.parametrize("method", ["hydralora", "mosld"])
def test_an_input_routed_method_refuses_to_merge_and_says_what_to_do(method):
    model = adapted("llama", method)
    before, expected = weights(model), logits(model)
    message = rf"{method} routes by its input.*neither merged nor exported.*Serve it as it is.*save_pretrained"
    for refused in (lambda: lc.merge(model), lambda: lc.merge(model, task=0), lambda: lc.merge(model, inplace=True)):
        with pytest.raises(ValueError, match=message):
            refused()
    for refused in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match=message):
            refused()
    assert_unchanged(model, before)
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("method", ["hydralora", "mosld"])
def test_an_input_routed_method_refuses_to_export_and_writes_nothing(method, tmp_path):
    with pytest.raises(ValueError, match=rf"{method} routes by its input.*Serve it as it is"):
        lc.export_lora(adapted("llama", method), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_an_export_without_a_task_writes_nothing(tmp_path):
    model = adapted("llama", "mtl_lora", tasks=TASKS)
    with pytest.raises(ValueError, match=r"one weight per task, so say which.*export_lora\(model, out, task="):
        lc.export_lora(model, tmp_path / "out")
    with pytest.raises(ValueError, match=r"no task 'sst' in this adapter\. Did you mean 'sst2'"):
        lc.export_lora(model, tmp_path / "out", task="sst")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["lora", "peft_lora"])
def test_an_export_into_a_folder_that_holds_something_leaves_it_alone(method, tmp_path):
    model = adapted("llama", method, r=2)
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(ValueError, match="exists and is not empty: name a new folder"):
        lc.export_lora(model, tmp_path)
    with pytest.raises(ValueError, match="exists and is not empty"):
        lc.export_lora(model, tmp_path / "notes.txt")
    assert contents(tmp_path) == {"notes.txt": b"keep me"}


@pytest.mark.parametrize("inplace", [False, True])
def test_merging_a_per_task_method_without_a_task_changes_no_weight(inplace):
    model = adapted("llama", "mtl_lora", tasks=TASKS)
    before, expected = weights(model), task_logits(model)
    message = r"mtl_lora has one weight per task, so say which: lorachord\.merge\(model, task="
    with pytest.raises(ValueError, match=message):
        lc.merge(model, inplace=inplace)
    for refused in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match=message):
            refused()
    with pytest.raises(ValueError, match=message), lc.on_task(model, ["cola", "sst2", "cola", "sst2"]):
        model.merge_and_unload()
    with pytest.raises(ValueError, match=r"no task 'sst' in this adapter\. Did you mean 'sst2'"):
        lc.merge(model, task="sst", inplace=inplace)
    assert_unchanged(model, before)
    assert torch.equal(task_logits(model), expected)


def test_of_two_active_adapters_none_is_merged_if_one_cannot_be():
    model = lc.attach(tiny("llama"), "lora", r=2, target_modules=["q_proj"])
    model.add_adapter("routed", config("hydralora", target_modules=["o_proj"]))
    model.base_model.set_adapter(["default", "routed"])
    perturb(model, 0.3)
    before = weights(model)
    for refused in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="hydralora routes by its input"):
            refused()
    assert_unchanged(model, before)
    assert not any(layer.merged for layer in layers(model).values())


def test_a_plain_model_can_be_neither_merged_nor_exported(tmp_path):
    base = tiny("llama")
    with pytest.raises(
        ValueError, match=r"Expected a PeftModel, as lorachord\.attach returns it; got LlamaForCausalLM"
    ):
        lc.merge(base)
    with pytest.raises(ValueError, match="Expected a PeftModel"):
        lc.export_lora(base, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_merge_that_would_not_be_finite_is_refused_if_asked_to_check():
    model = adapted("llama", "lora")
    with torch.no_grad():
        layer = layers(model)["base_model.model.model.layers.0.self_attn.q_proj"]
        layer.lorachord_adapter["default"].up[0, 0] = torch.inf
    before = weights(model)
    with pytest.raises(ValueError, match="adapter default would put NaN or infinity into the weights"):
        layer.merge(safe_merge=True)
    assert_unchanged(model, before)


# Tied weights


@pytest.fixture
def tied() -> PeftModel:
    with pytest.warns(UserWarning, match="a tied layer is part of the adapter"):
        model = lc.attach(tiny("gpt2"), "lora", r=2, target_modules=["lm_head", "c_attn"])
    perturb(model, 0.2)
    base = model.base_model.model
    assert base.lm_head.get_base_layer().weight is base.transformer.wte.weight
    return model.eval()


def test_merging_into_a_tied_weight_is_refused_in_words(tied):
    before, expected = weights(tied), logits(tied)
    for refused in (lambda: lc.merge(tied), tied.merge_and_unload, tied.merge_adapter):
        with pytest.raises(ValueError, match=r"lm_head shares its weight with another layer.*untie=True"):
            refused()
    assert_unchanged(tied, before)
    assert torch.equal(logits(tied), expected)


def test_an_untied_merge_leaves_the_embedding_as_it_was(tied, tmp_path):
    before, expected = weights(tied), logits(tied)
    merged = lc.merge(tied, untie=True)
    assert_unchanged(tied, before)
    assert torch.equal(logits(tied), expected)
    assert close(logits(merged), expected)
    assert torch.equal(merged.transformer.wte.weight, tiny("gpt2").transformer.wte.weight)
    assert differ(merged.lm_head.weight, merged.transformer.wte.weight)
    merged.save_pretrained(tmp_path)
    assert close(logits(type(merged).from_pretrained(tmp_path)), expected)


# Tasks of a pass


@pytest.fixture
def model() -> PeftModel:
    return adapted("llama", "mtl_lora", tasks=TASKS)


def test_a_pass_without_tasks_is_refused(model):
    with pytest.raises(
        ValueError, match=r"mtl_lora needs the task of each sample.*on_task\(model, tasks\).*lorachord_tasks="
    ):
        logits(model)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("sst", "no task 'sst' in this adapter. Did you mean 'sst2'"),
        (["cola", "cola", "cola", "xyz"], "no task 'xyz' in this adapter. Known: cola, sst2"),
        (2, "no task 2: the adapter has 2 tasks, cola, sst2"),
        (-1, "no task -1: the adapter has 2 tasks"),
        ([0, 1, 0, 2], "no task 2"),
        (True, "a name or an index, not True"),
        (1.0, r"a name or an index, not 1\.0"),
        ([0.0, 1.0, 1.0, 0.0], r"a name or an index, not [01]\.0"),
        (None, "a name or an index, not None"),
        ([[0], [1], [1], [0]], r"a name or an index, not \[[01]\]"),
        ([], "the list is empty"),
        (torch.tensor([0.0, 1.0, 1.0, 0.0]), r"1-D integer tensor; got torch\.float32 of shape \(4,\)"),
        (torch.tensor([[[0, 1], [1, 0]]]), r"1-D integer tensor; got torch\.int64 of shape \(1, 2, 2\)"),
        (torch.tensor([0, 1, 1, 2]), "no task 2"),
        (torch.tensor([True, False, True, False]), "a name or an index, not (True|False)"),
    ],
    ids=str,
)
def test_tasks_that_are_none_are_refused(model, tasks, message):
    expected = task_logits(model, "cola")
    with pytest.raises(ValueError, match=message), lc.on_task(model, tasks):
        pass
    with pytest.raises(ValueError, match=message):
        logits(model, lorachord_tasks=tasks)
    assert torch.equal(task_logits(model, "cola"), expected)


def test_on_task_on_a_model_without_an_adapter_is_refused():
    base = tiny("llama")
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no adapter.*lorachord\.attach"), lc.on_task(base, 0):
        pass


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("num_ids", [2, 3, 8])
def test_the_ids_must_be_as_many_as_the_samples(model, num_ids, training):
    message = f"{num_ids} samples have a task, but the batch has 4"
    model.train(training)
    # Equal ones, too: the user has counted wrongly.
    for tasks in (([0, 1] * num_ids)[:num_ids], [1] * num_ids):
        with pytest.raises(ValueError, match=message), lc.on_task(model, tasks):
            model(input_ids=token_ids())
        with pytest.raises(ValueError, match=message), torch.no_grad():
            model(input_ids=token_ids(), lorachord_tasks=tasks)
        with pytest.raises(ValueError, match=message), torch.no_grad(), lc.on_task(model, tasks):
            model(token_ids())


# Experts


def test_all_linear_warns_of_fused_experts_with_their_number():
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=40)
    base = MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2))
    fused = [parameter for parameter in base.parameters() if parameter.dim() == 3]
    assert len(fused) == 4
    with pytest.warns(UserWarning, match=r"all-linear misses 4 three-dimensional parameters \(0\.0 M weights\)"):
        model = lc.attach(base, "lora", r=2)
    assert layers(model)
    assert not any("experts" in name for name in layers(model))


def test_named_targets_are_no_reason_to_warn_of_fused_experts():
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=40)
    base = MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2))
    lc.attach(base, "lora", r=2, target_modules=["q_proj", "v_proj"])


class Experts(nn.Module):
    """Experts as modules of their own, each of which sees the tokens that chose it."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4)
        self.experts = nn.ModuleList(nn.ModuleDict({"w": nn.Linear(4, 4)}) for _ in range(2))


def test_a_per_task_method_is_refused_on_experts():
    base = Experts()
    settings = {"tasks": TASKS, "r": 2, "target_modules": ["w", "project"]}
    with pytest.raises(
        ValueError, match=r"experts\.0\.w sees tokens of several samples.*mtl_lora cannot know.*exclude_mod"
    ):
        lc.attach(base, "mtl_lora", **settings)
    assert not layers(base)
    assert set(layers(lc.attach(base, "mtl_lora", **settings, exclude_modules=r".*experts.*"))) == {
        "base_model.model.project"
    }


def test_a_method_without_task_parts_is_welcome_on_experts():
    model = lc.attach(Experts(), "lora", r=2, target_modules=["w", "project"])
    assert len(layers(model)) == 3
