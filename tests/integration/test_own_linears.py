"""Kinds of nn.Linear of transformers' own that compute something else than a product are no layers to adapt."""

import pytest
import torch
from transformers import PhimoeConfig, PhimoeForCausalLM

import lorachord as lc
from tests.tiny_models import perturb, token_ids


def phimoe() -> PhimoeForCausalLM:
    torch.manual_seed(0)
    sizes = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    heads = dict(num_key_value_heads=2, num_local_experts=4, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return PhimoeForCausalLM(PhimoeConfig(**sizes, **heads)).eval()


@pytest.mark.filterwarnings("ignore:all-linear misses")
@pytest.mark.parametrize("method", ["mtl_lora", "mixlora"])
def test_a_router_that_is_a_linear_is_left_out_and_tasks_stay_apart(method: str) -> None:
    model = lc.attach(phimoe(), method, tasks=["a", "b", "c"], r=2).eval()
    perturb(model, 0.3)
    assert not any("router" in name for name in model.targeted_module_names)
    ids = token_ids(num_samples=3)
    with torch.no_grad():
        with lc.on_task(model, ["a", "b", "c"]):
            mixed = model(input_ids=ids).logits
        for row, task in enumerate("abc"):
            with lc.on_task(model, task):
                alone = model(input_ids=ids[row : row + 1]).logits
            torch.testing.assert_close(mixed[row : row + 1], alone, rtol=0, atol=1e-5)


def test_a_router_that_is_named_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'model.layers.0.mlp.router' is a PhimoeTopKRouter; LoRAchord adapts linear"):
        lc.attach(phimoe(), "lora", target_modules=["router"])
