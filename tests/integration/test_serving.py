"""Exports on servers: the commands, what vLLM refuses, and several tasks in one batch with PEFT alone."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel

import lorachord as lc
from lorachord.runs.serving import refusals, serve_command
from tests.integration.helpers import adapted, task_logits
from tests.tiny_models import tiny, token_ids


def saved(folder: Path, **fields: object) -> Path:
    LoraConfig(base_model_name_or_path="owner/base", **fields).save_pretrained(str(folder))  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("server", ["vllm", "sglang", "lorax"])
def test_the_command_names_base_adapters_and_the_largest_rank(server: str, tmp_path: Path) -> None:
    folders = [saved(tmp_path / "a", r=4), saved(tmp_path / "b", r=4, rank_pattern={"q_proj": 12})]
    told = serve_command(server, folders)
    assert "owner/base" in told
    assert str(tmp_path / "b") in told
    assert {"vllm": "--max-lora-rank 16", "sglang": "--max-lora-rank 12", "lorax": "lorax-launcher"}[server] in told


def test_what_vllm_refuses_is_told(tmp_path: Path) -> None:
    assert refusals(saved(tmp_path / "head", modules_to_save=["score"])) == []
    [told] = refusals(saved(tmp_path / "more", modules_to_save=["score", "embed_tokens"]))
    assert "embed_tokens" in told
    [told] = refusals(saved(tmp_path / "start", init_lora_weights="pissa"))
    assert "pissa" in told
    assert refusals(saved(tmp_path / "gaussian", init_lora_weights="gaussian")) == []
    [told] = refusals(saved(tmp_path / "bias", bias="all"))
    assert "bias='all'" in told


def test_a_mixed_batch_of_the_exports_equals_on_task(tmp_path: Path) -> None:
    model = adapted("llama", "mtl_lora")
    for task in ("a", "b"):
        lc.export_lora(model, tmp_path / task, task=task)
    plain = PeftModel.from_pretrained(copy.deepcopy(tiny("llama")), tmp_path / "a", adapter_name="a")
    plain.load_adapter(tmp_path / "b", adapter_name="b")
    names = ["a", "b"] * len(token_ids())
    names = names[: len(token_ids())]
    with torch.no_grad():
        mixed = plain.eval()(input_ids=token_ids(), adapter_names=names).logits
    expected = task_logits(model, names)
    torch.testing.assert_close(mixed, expected, rtol=0, atol=2e-6)
    assert float((task_logits(model, "a") - task_logits(model, "b")).abs().max()) > 1e-2
