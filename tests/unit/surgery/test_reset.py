"""A batch that a loop drops leaves nothing behind in a surgeon, whatever its rule remembers and however it collects."""

from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

import lorachord as lc
from lorachord.surgery.micro_batches import MicroBatches
from tests.tiny_models import perturb, tiny, token_ids

RULES: list[tuple[str, dict[str, Any]]] = [
    ("sum", {}),
    ("ortho_lora", {}),
    ("significant", {}),
    ("gradvac", {"granularity": "global"}),
    ("mgda", {"granularity": "global"}),
]


class Loop:
    """A user's loop, whose steps are the same each time it is made."""

    def __init__(self, rule: str, method: str = "mtl_lora", **options: Any) -> None:
        self.model: PeftModel = lc.attach(tiny("llama"), method, tasks=["x", "y"], r=2)
        perturb(self.model, 0.1)
        self.model.train()
        self.surgeon = lc.Surgeon(self.model, rule, **options)
        self.optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], 0.1)

    def backward(self, seed: int, scale: float = 1.0, tasks: tuple[str, ...] = ("x", "x", "y", "y")) -> None:
        with lc.on_task(self.model, list(tasks)):
            logits = self.model(input_ids=token_ids(len(tasks), seed=seed)).logits
        (scale * logits.logsumexp(-1).mean()).backward()

    def collect(self, seed: int, scale: float = 1.0) -> None:
        """Two batches of an accumulation window."""
        for part in range(2):
            if isinstance(self.surgeon.gradients, MicroBatches):
                for index, task in enumerate(("x", "y")):
                    self.backward(10 * seed + part, scale, (task, task))
                    self.surgeon.gradients.end_of(index)
            else:
                self.backward(10 * seed + part, scale)

    def step(self, seed: int) -> list[Tensor]:
        self.collect(seed)
        self.surgeon.operate()
        found = [p.grad.clone() for p in self.model.parameters() if p.grad is not None]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return found

    def drop(self, seed: int, scale: float) -> None:
        self.backward(seed, scale)
        # A pass without a backward pass, and half a window.
        self.backward(seed + 1, scale)
        with lc.on_task(self.model, "x"):
            self.model(input_ids=token_ids())
        self.optimizer.zero_grad()
        self.surgeon.reset()


@pytest.mark.parametrize("scale", [7.0, float("nan")])
@pytest.mark.parametrize(("rule", "options"), RULES, ids=[name for name, _ in RULES])
def test_a_dropped_batch_leaves_nothing_behind(rule: str, options: dict[str, Any], scale: float) -> None:
    if rule in ("gradvac", "mgda"):
        pytest.importorskip("torchjd")
    unbroken, broken = Loop(rule, **options), Loop(rule, **options)
    for seed in range(3):
        broken.drop(seed + 5, scale)
        for want, found in zip(unbroken.step(seed), broken.step(seed), strict=True):
            assert torch.equal(found, want)
    for name, value in unbroken.surgeon.rule.state().items():
        assert torch.equal(broken.surgeon.rule.state()[name], value)


@pytest.mark.parametrize("scale", [7.0, float("nan")])
def test_nor_where_each_batch_is_of_one_task(scale: float) -> None:
    unbroken, broken = (Loop("ortho_lora", collect="micro_batches") for _ in range(2))
    for seed in range(2):
        broken.collect(seed + 5, scale)
        broken.optimizer.zero_grad()
        broken.surgeon.reset()
        assert not any(gradients.any() for _, gradients in broken.surgeon.gradients.held())
        for want, found in zip(unbroken.step(seed), broken.step(seed), strict=True):
            assert torch.equal(found, want)


@pytest.mark.filterwarnings("ignore:The method of adapter default has a penalty")
def test_nor_where_a_core_or_a_router_is_shared() -> None:
    for method in ("moelora", "mode", "hydralora"):
        unbroken, broken = Loop("ortho_lora", method), Loop("ortho_lora", method)
        broken.drop(5, float("nan"))
        for want, found in zip(unbroken.step(0), broken.step(0), strict=True):
            assert torch.equal(found, want), method
