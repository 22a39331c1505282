"""Damage that a fuzzer has found: each ends in a sentence that names the file or the field."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lorachord as lc
from lorachord.data.files import read_rows
from lorachord.data.sources import from_rows
from lorachord.hub import absolute, hub_name
from lorachord.runs.recipe import recipe_from
from lorachord.tuner.adapter_files import load_onto
from tests.tiny_data import own, rows, save_model, task_of, tree, write_rows
from tests.tiny_models import perturb, tiny

LONG = "x" * 600
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = lc.attach(tiny("bert"), "mtl_lora", tasks=["a", "b"], r=2)
    perturb(model)
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_onto(tiny("bert"), folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("peft_type", "LORACHORT", "there is no kind of adapter 'LORACHORT'"),
        ("peft_type", ["LORACHORD"], "there is no kind of adapter"),
        ("modules_to_save", "classifier", "modules_to_save is 'classifier'; it must be a list"),
        ("target_modules", None, "target_modules names no module"),
        ("target_parameters", 3, "target_parameters is of PEFT's LoRA"),
        ("base_model_name_or_path", 1.5, "base_model_name_or_path is 1.5, and no name of a model"),
    ],
)
def test_a_harmed_field_is_named(saved: Path, field: str, value: Any, message: str) -> None:
    config = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps({**config, field: value}))
    refused(saved, message)


def test_a_fingerprint_of_another_length_is_damaged(saved: Path) -> None:
    config = json.loads((saved / CONFIG).read_text())
    config["base_fingerprint"]["sample"].append(0.5)
    (saved / CONFIG).write_text(json.dumps(config))
    refused(saved, "base_fingerprint of the adapter is damaged")


def test_a_missing_config_is_named(saved: Path) -> None:
    (saved / CONFIG).unlink()
    refused(saved, "has no adapter_config.json; found README.md")


@pytest.mark.parametrize("harm", ["cut", "missing"])
def test_a_harmed_head_is_refused(saved: Path, harm: str) -> None:
    tensors = load_file(saved / WEIGHTS)
    name = next(name for name in tensors if "classifier" in name and name.endswith("bias"))
    value = tensors.pop(name)
    save_file({**tensors, name: value[:1].clone()} if harm == "cut" else tensors, saved / WEIGHTS)
    refused(saved, "is damaged, or does not fit the base model")


def test_a_turned_bit_of_an_exponent_is_seen(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS)
    name = next(name for name in tensors if name.endswith("down"))
    tensors[name].view(torch.int32)[0, 0] |= 1 << 30
    save_file(tensors, saved / WEIGHTS)
    refused(saved, f"damaged: .*{name.rpartition('.')[2]} holds")


@pytest.mark.parametrize("option", [{"alpha": 1e30}, {"r": 10**30}, {"temperature": 10**30}, {"alpha": float("nan")}])
def test_options_have_sizes_that_numbers_can_hold(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))} = "):
        lc.attach(tiny("bert"), "mtl_lora", tasks=["a", "b"], **option)


def words(path: Path) -> str:
    """The refusal of a file, or nothing."""
    try:
        list(read_rows(path))
    except ValueError as error:
        return str(error)
    return ""


def test_a_harmed_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write_rows(path, [{"a": f"word {row} " * 20} for row in range(50)])
    whole, found = path.read_bytes(), []
    for place in range(4, len(whole), 11):
        path.write_bytes(whole[:place] + b"\xff\x00\xff" + whole[place + 3 :])
        found.append(words(path))
    assert sum(map(bool, found)) > 10
    assert all("train.parquet cannot be read as parquet" in each for each in found if each)


@pytest.mark.parametrize("idx", [-(2**63) - 1, 2**64])
def test_an_idx_beyond_64_bits_is_named(idx: int) -> None:
    task = task_of(own("colour")[0])
    made = rows(task, 24, 0)
    made[3]["idx"] = idx
    with pytest.raises(ValueError, match=f"its idx is {idx}"):
        from_rows(task, {"train": made, "dev": rows(task, 24, 1)})


def test_names_that_no_file_system_takes_are_refused(tmp_path: Path) -> None:
    for call in (absolute, hub_name):
        with pytest.raises(ValueError, match=r"x\.\.\. is no path: it has 600 letters"):
            call(LONG)
    made = tree(save_model(tiny("bert"), tmp_path / "base"), "colour")
    for harmed in ({**made, "model": {**made["model"], "name": LONG}}, {**made, "start_from": LONG}):
        with pytest.raises(ValueError, match="is no path"):
            recipe_from(harmed)
    made["tasks"]["own"][0]["labels"] = LONG
    with pytest.raises(ValueError, match="is no path"):
        recipe_from(made)


def test_half_a_letter_is_no_name() -> None:
    with pytest.raises(ValueError, match="has half of a letter"):
        lc.attach(tiny("bert"), "mtl_lora", tasks=["a", "\ud800"])


def test_a_lab_of_a_million_tasks_is_not_made(tmp_path: Path) -> None:
    base = save_model(tiny("bert"), tmp_path / "base")
    with pytest.raises(ValueError, match=r"lab\.num_tasks: must be less than or equal to 64; found 1000000"):
        recipe_from(tree(base, tasks={"lab": {"name": "lab-contradiction", "num_tasks": 10**6}}))
