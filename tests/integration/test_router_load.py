"""How much each expert is used, as a model's user sees it."""

import pytest
import torch

import lorachord as lc
from tests.tiny_models import perturb, tiny, token_ids

ROUTED = {"hydralora": {}, "mosld": {}, "mode": {}, "malora": {"top_k": 3}, "moelora": {"num_experts": 4}}


@pytest.mark.parametrize("method", ROUTED)
def test_loads_are_shares_by_layer_and_go_on_until_forgotten(method: str) -> None:
    model = lc.attach(tiny("llama"), method, tasks=["a"], r=2, **ROUTED[method])
    assert lc.router_load(model) == {}
    perturb(model, 0.5)
    model(input_ids=token_ids())
    first = lc.router_load(model)
    assert first.keys() == {layer.name for layer in lc.target_layers(tiny("llama"))}
    for load in first.values():
        torch.testing.assert_close(load.sum(-1), torch.ones_like(load.sum(-1)))
    model(input_ids=token_ids(seed=5))
    both = lc.router_load(model, forget=True)
    model(input_ids=token_ids(seed=5))
    second = lc.router_load(model)
    for name, load in both.items():
        torch.testing.assert_close(load, (first[name] + second[name]) / 2)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert not any("load" in key or "total" in key for key in model.state_dict())


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_count(side: str) -> None:
    model = lc.attach(tiny("bert"), "mosld", tasks=["a"], r=2, num_experts=4).eval()
    perturb(model, 0.5)
    tokens, mask = token_ids(), torch.ones(4, 7, dtype=torch.long)
    positions = torch.arange(7).expand(4, -1)
    model(input_ids=tokens, attention_mask=mask, position_ids=positions)
    plain = lc.router_load(model, forget=True)
    padding = torch.zeros(4, 3, dtype=torch.long)
    both = [[value, padding] if side == "right" else [padding, value] for value in (tokens, mask, positions)]
    names = ("input_ids", "attention_mask", "position_ids")
    model(**{name: torch.cat(parts, 1) for name, parts in zip(names, both, strict=True)})
    padded = lc.router_load(model)
    # The pooler sees the first token of each sample, whatever it is.
    for name in (name for name in plain if "pooler" not in name):
        torch.testing.assert_close(padded[name], plain[name])


def test_a_recompute_does_not_count() -> None:
    found = []
    for checkpointing in (False, True):
        model = lc.attach(tiny("llama"), "malora", tasks=["a"], r=2).train()
        perturb(model)
        if checkpointing:
            model.enable_input_require_grads()
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        for seed in (1, 2):
            (model(input_ids=token_ids(seed=seed)).logits.sum() + lc.penalty(model)).backward()
        found.append({name: adapter.router.total for name, adapter in adapters(model).items()})
    for name, total in found[0].items():
        assert torch.equal(found[1][name], total)
        assert float(total.sum()) == 2 * 28 * 2


def adapters(model: torch.nn.Module) -> dict[str, lc.methods.MALoRA]:
    return {module.layer.name: module for module in model.modules() if isinstance(module, lc.methods.MALoRA)}


def test_models_without_routers_have_no_loads() -> None:
    model = lc.attach(tiny("bert"), "lora", tasks=["a"])
    model(input_ids=token_ids())
    assert lc.router_load(model) == {}
