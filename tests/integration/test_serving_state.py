"""What a model serves is what was asked for, or an error: merged weights, several adapters, names of adapters."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

import lorachord as lc
from tests.tiny_models import perturb, tiny, token_ids

MERGED = "merged for the task 'x'"


def adapted(method: str = "mtl_lora", architecture: str = "llama") -> PeftModel:
    model = lc.attach(tiny(architecture), method, tasks=["x", "y"], r=2).eval()
    perturb(model, 0.3)
    return model


def two(method: str = "lora") -> PeftModel:
    model = adapted(method)
    model.add_adapter("second", lc.LorachordConfig.build(method, tasks=["x", "y"], r=2, task_type="CAUSAL_LM"))
    model.set_adapter("second")
    perturb(model, 0.3, seed=5)
    model.set_adapter("default")
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module, task: object = None) -> Tensor:
    if task is None:
        return model(input_ids=token_ids()).logits
    with lc.on_task(model, task):
        return model(input_ids=token_ids()).logits


def merged_for_x(method: str = "mtl_lora") -> PeftModel:
    model = adapted(method)
    with lc.on_task(model, "x"):
        model.merge_adapter()
    return model


def test_a_model_merged_for_a_task_serves_that_task() -> None:
    model = merged_for_x()
    want = logits(adapted(), "x")
    for task in (None, "x", ["x"] * 4):
        torch.testing.assert_close(logits(model, task), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", ["y", ["x", "y", "x", "x"], ["y"] * 4])
def test_a_model_merged_for_a_task_refuses_another(task: object) -> None:
    model = merged_for_x()
    with pytest.raises(ValueError, match=MERGED):
        logits(model, task)
    with pytest.raises(ValueError, match=MERGED):
        model(input_ids=token_ids(), lorachord_tasks=task)
    with lc.on_task(model, task), pytest.raises(ValueError, match=MERGED):
        model.generate(input_ids=token_ids(), max_new_tokens=2, pad_token_id=0)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model, task), logits(adapted(), task), atol=1e-5, rtol=1e-4)


def test_a_model_merged_for_a_task_is_not_merged_for_another() -> None:
    model = merged_for_x()
    before = logits(model)
    with lc.on_task(model, "y"), pytest.raises(ValueError, match=MERGED):
        model.merge_adapter()
    with pytest.raises(ValueError, match=MERGED):
        lc.merge(model, "y")
    assert torch.equal(logits(model), before)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(lc.merge(model, "y")), logits(adapted(), "y"), atol=1e-5, rtol=1e-4)


def test_a_static_adapter_is_merged_for_every_task() -> None:
    model = merged_for_x("lora")
    torch.testing.assert_close(logits(model, "y"), logits(adapted("lora")), atol=1e-5, rtol=1e-4)


def test_an_export_of_a_merged_model_is_that_of_the_task_that_is_named(tmp_path: Path) -> None:
    lc.export_lora(merged_for_x(), tmp_path / "y", task="y")
    found = PeftModel.from_pretrained(tiny("llama"), tmp_path / "y")
    torch.testing.assert_close(logits(found.eval()), logits(adapted(), "y"), atol=1e-5, rtol=1e-4)


def test_nothing_is_added_or_loaded_into_merged_weights(tmp_path: Path) -> None:
    adapted().save_pretrained(tmp_path)
    model = merged_for_x()
    before = logits(model)
    config = lc.LorachordConfig.build("lora", r=2, task_type="CAUSAL_LM")
    for name in ("default", "second"):
        with pytest.raises(ValueError, match="call unmerge_adapter"):
            model.load_adapter(str(tmp_path), name)
    with pytest.raises(ValueError, match="call unmerge_adapter"):
        model.add_adapter("third", config)
    assert torch.equal(logits(model), before)


def test_two_active_adapters_are_merged_and_not_exported(tmp_path: Path) -> None:
    model = two()
    model.base_model.set_adapter(["default", "second"])
    want = logits(model.eval())
    with pytest.raises(ValueError, match="default, second are active"):
        lc.export_lora(model, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    torch.testing.assert_close(logits(lc.merge(model)), want, atol=1e-5, rtol=1e-4)


def test_the_adapter_that_computes_is_exported(tmp_path: Path) -> None:
    model = two()
    # PEFT's own name of the active adapter stays behind.
    model.base_model.set_adapter("second")
    lc.export_lora(model, tmp_path / "lora")
    found = PeftModel.from_pretrained(tiny("llama"), tmp_path / "lora")
    torch.testing.assert_close(logits(found.eval()), logits(model.eval()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("names", [["default", "second"], ["default"] * 4, ["no", "such"]])
def test_adapters_by_sample_are_refused(names: list[str]) -> None:
    model = two()
    with pytest.raises(ValueError, match="adapter_names= is not served"):
        model(input_ids=token_ids(), adapter_names=names)
    with pytest.raises(ValueError, match="adapter_names= is not served"):
        model.generate(input_ids=token_ids(), max_new_tokens=2, pad_token_id=0, adapter_names=names)
    with pytest.raises(ValueError, match="adapter_names= is not served"):
        model.get_base_model()(input_ids=token_ids(), adapter_names=names)
    torch.testing.assert_close(model(input_ids=token_ids(), adapter_names=None).logits, logits(model))


def test_unknown_adapters_are_errors() -> None:
    model = two()
    for set_adapter in (model.set_adapter, model.base_model.set_adapter):
        with pytest.raises(ValueError, match="secnd"):
            set_adapter("secnd")
    with pytest.raises(ValueError, match="Did you mean 'second'"):
        model.base_model.set_adapter(["default", "secnd"])
    with pytest.raises(ValueError, match="Did you mean 'second'"):
        model.merge_adapter(["secnd"])
    assert model.base_model.active_adapters == ["default"]
