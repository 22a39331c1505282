"""Exported LoRAs and merged models answer as the adapter does, in a process that does not know this package."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

import lorachord as lc
from tests.integration import load_with_peft_alone
from tests.integration.helpers import METHODS, adapted, close, config, differ, layers, logits, task_logits
from tests.tiny_models import ARCHITECTURES, perturb, tiny

ROOT = Path(__file__).parents[2]
# PEFT's own LoRA finds out by itself that GPT-2's weights are transposed.
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`")
STATIC = ("lora", "multilora", "peft_lora", "peft_dora")


@dataclass
class Case:
    """One adapter to export or to merge; `changes` go to the base, `settings` to the adapter."""

    architecture: str
    method: str
    task: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    merged: bool = False
    folder: str = ""
    class_name: str = ""

    def build(self) -> PeftModel:
        settings = {**METHODS.get(self.method, {"r": 2}), **self.settings}
        model = lc.attach(tiny(self.architecture, **self.changes), self.method, **settings)
        perturb(model, 0.2)
        return model.eval()


def all_cases() -> dict[str, Case]:
    cases = {}
    for name in ARCHITECTURES:
        for method in STATIC:
            cases[f"{name}-{method}"] = Case(name, method)
        for task in ("a", "b"):
            cases[f"{name}-mtl_lora-{task}"] = Case(name, "mtl_lora", task)
            cases[f"{name}-mtl_lora-{task}-merged"] = Case(name, "mtl_lora", task, merged=True)
        for method in ("lora", "multilora", "mtl_lora"):
            task = "b" if method == "mtl_lora" else None
            cases[f"{name}-{method}-ranks"] = Case(name, method, task, {"r": (2, 4)})
        cases[f"{name}-lora-merged"] = Case(name, "lora", merged=True)
    # Names in which one is the end or the start of another: layers.1 and layers.11.
    cases["llama-twelve-layers"] = Case("llama", "lora", None, {"r": (2, 4, 6)}, {"num_hidden_layers": 12})
    cases["llama-one-layer"] = Case("llama", "lora", None, {"target_modules": ["o_proj"], "layers_to_transform": [1]})
    cases["llama-alpha"] = Case("llama", "multilora", None, {"r": (2, 4), "alpha": (1, 12), "scaling": "scalar"})
    cases["llama-diagonal"] = Case("llama", "mtl_lora", "a", {"transform": "diagonal"})
    cases["llama-head"] = Case("llama", "lora", None, {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]})
    cases["bert-excluded"] = Case("bert", "lora", None, {"exclude_modules": r".*layer\.0.*dense"})
    cases["bert-no-head"] = Case("bert", "mtl_lora", "a", {"task_type": None})
    cases["llama-other-name"] = Case("llama", "lora", None, {"adapter_name": "mine"})
    cases["llama-peft-other-name"] = Case("llama", "peft_lora", None, {"adapter_name": "mine"})
    return cases


CASES = all_cases()
EXPORTED = [name for name, case in CASES.items() if not case.merged]


@dataclass
class Answers:
    expected: dict[str, Tensor]
    found: dict[str, Tensor]
    folders: dict[str, Path]
    errors: str


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Every case written here, and read in one other process."""
    root = tmp_path_factory.mktemp("exports")
    expected, folders = {}, {}
    for name, case in CASES.items():
        model = case.build()
        folders[name] = root / name / "out"
        expected[name] = logits(model) if case.task is None else task_logits(model, case.task)
        if case.merged:
            merged = lc.merge(model, task=case.task)
            case.class_name = type(merged).__name__
            merged.save_pretrained(folders[name])
        else:
            lc.export_lora(model, folders[name], task=case.task)
        case.folder = str(folders[name])
    manifest, out = root / "cases.json", root / "logits.safetensors"
    manifest.write_text(json.dumps({name: asdict(case) for name, case in CASES.items()}))
    command = [sys.executable, "-m", load_with_peft_alone.__name__, str(manifest), str(out)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return Answers(expected, load_file(out), folders, finished.stdout)


@pytest.mark.parametrize("name", CASES)
def test_another_process_gets_the_same_answers_with_peft_alone(answers, name):
    assert name in answers.found, answers.errors
    assert close(answers.found[name], answers.expected[name], 1e-5)
    assert differ(answers.expected[name], logits(tiny(CASES[name].architecture, **CASES[name].changes)))


def test_the_exports_of_two_tasks_differ(answers, architecture):
    assert differ(answers.found[f"{architecture}-mtl_lora-a"], answers.found[f"{architecture}-mtl_lora-b"])
    assert differ(
        answers.found[f"{architecture}-mtl_lora-a-merged"], answers.found[f"{architecture}-mtl_lora-b-merged"]
    )


# What an exported folder holds


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_folder_holds_a_lora_and_a_card(answers, name):
    folder = answers.folders[name]
    assert {path.name for path in folder.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    saved = json.loads((folder / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LORA"
    assert not any("lorachord" in key for key in load_file(folder / "adapter_model.safetensors"))


@pytest.mark.parametrize("name", [name for name in EXPORTED if not CASES[name].method.startswith("peft_")])
def test_the_scale_of_an_export_is_one(answers, name):
    saved = json.loads((answers.folders[name] / "adapter_config.json").read_text())
    assert saved["lora_alpha"] == saved["r"]
    assert saved["alpha_pattern"] == saved["rank_pattern"]
    assert not saved["use_rslora"]
    assert not saved["use_dora"]


def test_the_card_names_method_and_task(answers):
    card = (answers.folders["llama-mtl_lora-b"] / "README.md").read_text()
    assert "mtl_lora" in card
    assert "for the task b" in card
    assert "library_name: peft" in card


@pytest.mark.parametrize("variant", ["lora", "multilora", "mtl_lora-a", "lora-ranks"])
def test_targets_of_a_llama_are_the_short_names_that_servers_know(answers, variant):
    saved = json.loads((answers.folders[f"llama-{variant}"] / "adapter_config.json").read_text())
    names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert sorted(saved["target_modules"]) == names


def test_targets_that_short_names_would_widen_are_whole_names(answers):
    saved = json.loads((answers.folders["llama-one-layer"] / "adapter_config.json").read_text())
    assert saved["target_modules"] == ["model.layers.1.self_attn.o_proj"]


def test_heads_are_in_the_export(answers):
    tensors = load_file(answers.folders["bert-mtl_lora-a"] / "adapter_model.safetensors")
    head = adapted("bert", "lora").base_model.model.classifier.original_module
    for name, tensor in head.named_parameters():
        saved = tensors[f"base_model.model.classifier.{name}"]
        assert saved.shape == tensor.shape
        assert differ(saved, tensor)


def test_ranks_of_an_export_are_those_of_the_layers(answers):
    tensors = load_file(answers.folders["llama-twelve-layers"] / "adapter_model.safetensors")
    ranks = {
        int(key.split("layers.")[1].split(".")[0]): len(tensor) for key, tensor in tensors.items() if "lora_A" in key
    }
    assert ranks == {layer: (2, 4, 6)[layer // 4] for layer in range(12)}


# Exporting itself


def test_exporting_returns_the_folder_and_changes_nothing(architecture, tmp_path):
    model = adapted(architecture, "mtl_lora", dropout=0.5).train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with lc.on_task(model, "b"):
        assert lc.export_lora(model, tmp_path / "deep" / "down", task="a") == tmp_path / "deep" / "down"
        with_other_task = task_logits(model.eval(), "b")
        assert torch.equal(logits(model), with_other_task)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trainable


def test_exporting_leaves_the_adapters_in_training_mode(tmp_path):
    model = adapted("llama", "lora").train()
    lc.export_lora(model, tmp_path / "out")
    assert all(module.training for module in model.modules())


def test_an_empty_folder_may_be_exported_into(tmp_path):
    (tmp_path / "out").mkdir()
    lc.export_lora(adapted("llama", "lora"), tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_task_given_by_index_is_the_one_given_by_name(tmp_path):
    model = adapted("llama", "mtl_lora")
    for task in ("b", 1):
        lc.export_lora(model, tmp_path / str(task), task=task)
    by_name, by_index = (load_file(tmp_path / str(task) / "adapter_model.safetensors") for task in ("b", 1))
    assert by_name.keys() == by_index.keys()
    assert all(torch.equal(tensor, by_index[key]) for key, tensor in by_name.items())


@pytest.mark.parametrize("active", ["default", "other"])
def test_the_active_adapter_is_exported(active, tmp_path):
    model = adapted("llama", "lora")
    model.add_adapter("other", config("lora", r=3))
    model.set_adapter("other")
    perturb(model, 0.3, seed=5)
    model.set_adapter(active)
    lc.export_lora(model, tmp_path / "out")
    assert close(logits(PeftModel.from_pretrained(tiny("llama"), tmp_path / "out")), logits(model))


# Merging


@pytest.mark.parametrize("method", [*STATIC, "mtl_lora"])
def test_a_merged_model_is_plain_and_answers_as_the_adapter(architecture, method):
    model = adapted(architecture, method, r=2)
    for task in ("a", "b") if method == "mtl_lora" else (None,):
        expected = logits(model) if task is None else task_logits(model, task)
        merged = lc.merge(model, task=task)
        assert type(merged) is type(tiny(architecture))
        assert close(logits(merged), expected)
        assert not layers(merged)
        assert merged.state_dict().keys() == tiny(architecture).state_dict().keys()
        assert not hasattr(merged, "peft_config")
        after = logits(model) if task is None else task_logits(model, task)
        assert torch.equal(after, expected)


def test_a_merged_model_survives_saving_and_loading(architecture, tmp_path):
    merged = lc.merge(adapted(architecture, "mtl_lora"), task="a")
    merged.save_pretrained(tmp_path)
    loaded = type(merged).from_pretrained(tmp_path)
    assert close(logits(loaded), logits(merged))
    assert differ(logits(loaded), logits(tiny(architecture)))


def test_a_merged_model_can_be_adapted_again():
    merged = lc.merge(adapted("llama", "mtl_lora"), task="a")
    expected = logits(merged)
    again = lc.attach(merged, "mtl_lora", tasks=["c", "d"], r=2)
    assert close(task_logits(again, "d"), expected, 1e-6)


def test_merging_in_place_uses_the_models_own_weights():
    model = adapted("llama", "lora")
    expected = logits(model)
    inner = model.base_model.model
    embedding = inner.model.embed_tokens.weight
    merged = lc.merge(model, inplace=True)
    assert merged is inner
    assert merged.model.embed_tokens.weight is embedding
    assert close(logits(merged), expected)


def test_a_merge_under_a_block_of_another_task_is_of_the_task_it_names():
    model = adapted("llama", "mtl_lora")
    expected = {task: task_logits(model, task) for task in ("a", "b")}
    with lc.on_task(model, "b"):
        assert close(logits(lc.merge(model, task="a")), expected["a"])
        assert close(logits(lc.merge(model)), expected["b"])
        assert torch.equal(logits(model), expected["b"])
