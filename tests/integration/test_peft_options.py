"""Options of PEFT's LoRA that go with every method: ranks and scales by module, rslora, tokens that are trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import lorachord as lc
from lorachord.tuner.layer import LorachordLinear
from tests.tiny_models import perturb, tiny, token_ids

PATTERNS: dict[str, Any] = {
    "rank_pattern": {"v_proj": 6, r"layers\.1\.self_attn\.q_proj": 3},
    "alpha_pattern": {"v_proj": 4},
}
OPTIONS = {
    "patterns": PATTERNS,
    "rslora": {"use_rslora": True},
    "both": {**PATTERNS, "use_rslora": True},
    "tokens": {"trainable_token_indices": [5, 9]},
}
TARGETS = ["q_proj", "v_proj"]
WITH_SCALE = {
    "multilora": {"num_loras": 2},
    "mtl_lora": {"num_ups": 2},
    "hydralora": {"num_experts": 2},
    "mosld": {"num_experts": 2},
    "mixlora": {"num_experts": 8},
}


def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=token_ids()).logits


def pair(options: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """PEFT's LoRA, and ours with its weights."""
    theirs = get_peft_model(tiny("llama"), LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, **options))
    perturb(theirs, 0.3)
    ours = lc.attach(tiny("llama"), "lora", r=4, alpha=8, target_modules=TARGETS, **options)
    tensors = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[theirs_name(name)])
    return theirs, ours


def theirs_name(name: str) -> str:
    for ours, own in (("down", "lora_A"), ("up", "lora_B")):
        name = name.replace(f"lorachord_adapter.default.{ours}", f"{own}.default.weight")
    return name


@pytest.mark.parametrize("option", OPTIONS)
def test_logits_and_gradients_are_those_of_pefts_lora(option: str) -> None:
    theirs, ours = pair(OPTIONS[option])
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-5)
    logits(theirs).square().sum().backward()
    logits(ours).square().sum().backward()
    expected = {name: value.grad for name, value in theirs.named_parameters() if value.requires_grad}
    found = {theirs_name(name): value.grad for name, value in ours.named_parameters() if value.requires_grad}
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_saved_one_an_exported_one_and_a_merged_one_answer_alike(option: str, tmp_path: Path) -> None:
    _, model = pair(OPTIONS[option])
    expected = logits(model).detach()
    assert float((expected - logits(tiny("llama")).detach()).abs().max()) > 1e-2
    model.save_pretrained(tmp_path / "saved")
    lc.export_lora(model, tmp_path / "lora")
    for folder in ("saved", "lora"):
        again = PeftModel.from_pretrained(tiny("llama"), tmp_path / folder).eval()
        torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(lc.merge(model)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", WITH_SCALE)
def test_every_method_with_a_scale_follows_patterns(method: str, tmp_path: Path) -> None:
    options = {"r": 4, "alpha": 8, "target_modules": TARGETS, "tasks": ["a", "b"], **WITH_SCALE[method]}
    with torch.no_grad():
        model = lc.attach(tiny("llama"), method, **options, **OPTIONS["both"]).eval()
        perturb(model, 0.3)
        adapters = {
            name: module.lorachord_adapter["default"]
            for name, module in model.named_modules()
            if isinstance(module, LorachordLinear)
        }
        for name, adapter in adapters.items():
            rank = 6 if name.endswith("v_proj") else 3 if "layers.1" in name else 4
            alpha = 4 if name.endswith("v_proj") else 8
            assert (adapter.config.r, adapter.config.alpha) == (rank, alpha * rank**0.5)
        model.save_pretrained(tmp_path / "saved")
        again = PeftModel.from_pretrained(tiny("llama"), tmp_path / "saved").eval()
        with lc.on_task(model, "b"), lc.on_task(again, "b"):
            torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)


def test_tokens_of_one_task_model_are_trained_alone() -> None:
    model = lc.attach(tiny("llama"), "mtl_lora", tasks=["a", "b"], num_ups=2, trainable_token_indices=[5])
    before = model.get_input_embeddings().weight.detach().clone()
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1.0)
    with lc.on_task(model, "a"):
        model(input_ids=torch.full((1, 4), 5), labels=torch.full((1, 4), 7)).loss.backward()
    optimizer.step()
    moved = (model.get_input_embeddings().weight != before).any(1)
    assert moved.nonzero().tolist() == [[5]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank_pattern": {"w_proj": 2}}, "rank_pattern names 'w_proj', which matches no adapted module. Known: model"),
        ({"rank_pattern": {"v_proj": 0}}, r"rank_pattern\['v_proj'\] = 0: .*at least 1"),
        ({"rank_pattern": {"v_proj": (2, 4)}}, "but it must be one value"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern"),
        ({"rank_pattern": 4}, "must map modules' names to values of r"),
        ({"alpha_pattern": {"v_proj": "much"}}, "alpha_pattern.*a number"),
        ({"use_rslora": 1}, "must be true or false"),
        ({"trainable_token_indices": [-1]}, "lists of token ids"),
        ({"trainable_token_indices": [40]}, "names token 40, and model.embed_tokens has 40 tokens"),
        ({"trainable_token_indices": {"embed": [3]}}, "names 'embed', which is no embedding"),
    ],
)
def test_what_cannot_be_followed_is_said(options: dict[str, Any], words: str) -> None:
    model = tiny("llama")
    with pytest.raises(ValueError, match=words):
        lc.attach(model, "lora", target_modules=TARGETS, **options)
    assert not any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("option", ["alpha_pattern", "use_rslora"])
def test_a_method_without_a_scale_says_so(option: str) -> None:
    values = {"alpha_pattern": {"v_proj": 4}, "use_rslora": True}
    with pytest.raises(ValueError, match="mode"):
        lc.attach(tiny("llama"), "mode", **{option: values[option]})
