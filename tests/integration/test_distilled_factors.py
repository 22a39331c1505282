"""The plain LoRA that is distilled of a routed adapter is the nearest one on the inputs of its task."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lorachord as lc
from lorachord.fusion.distilled_factors import distilled
from lorachord.fusion.load_routed import load_routed_task_vectors
from lorachord.fusion.predictions import Inputs
from lorachord.tuner.layer import LorachordLinear
from tests.tiny_models import perturb, tiny

TASKS = ("a", "b")
Seen = dict[str, tuple[Tensor, Tensor]]


def batch(task: int) -> Inputs:
    generator = torch.Generator().manual_seed(task)
    ids = torch.randint(5, 30, (32, 6), generator=generator)
    tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Inputs(tensors, "classes", (1,) * 32, num_classes=2)


def attached(base: nn.Module, method: str) -> nn.Module:
    model = lc.attach(copy.deepcopy(base), method, tasks=list(TASKS), r=2, num_experts=2)
    perturb(model, 0.5)
    return model.eval()


@torch.no_grad()
def seen_by_layer(model: nn.Module, task: int) -> Seen:
    """The inputs of every adapted layer (N, D), and what the adapter adds to them (N, O)."""
    found: Seen = {}

    def hook(name: str, layer: LorachordLinear, x: Tensor, y: Tensor) -> None:
        found[name] = (x.flatten(0, -2), (y - layer.base_layer(x)).flatten(0, -2))

    layers = [(name, layer) for name, layer in model.get_base_model().named_modules() if type(layer) is LorachordLinear]
    handles = [
        layer.register_forward_hook(lambda own, given, y, name=name: hook(name, own, given[0], y))
        for name, layer in layers
    ]
    with lc.on_task(model, TASKS[task]):
        model(**batch(task).tensors)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("method", ["hydralora", "mosld"])
def test_no_other_plain_lora_is_nearer_on_the_tasks_inputs(method: str, tmp_path: Path) -> None:
    base = tiny("bert")
    model = attached(base, method)
    model.save_pretrained(tmp_path)
    data = {task: [batch(index)] for index, task in enumerate(TASKS)}
    fitted, averaged = distilled(base, tmp_path, data), load_routed_task_vectors(base, tmp_path, data)
    better = 0
    for index in range(len(TASKS)):
        for name, (x_ND, y_NO) in seen_by_layer(model, index).items():
            if name not in fitted.layers:
                continue
            own_OD, mean_OD = fitted.delta(name, index), averaged.delta(name, index)
            wanted_OD = nearest(x_ND, y_NO, mean_OD)
            # Covariances are summed in float32.
            assert (own_OD - wanted_OD).norm() <= 2e-3 * wanted_OD.norm()
            better += left(own_OD, x_ND, y_NO) < 0.98 * left(mean_OD, x_ND, y_NO)
    # Gates and inputs go together, which averaged gates leave out.
    assert better


def nearest(x_ND: Tensor, y_NO: Tensor, mean_OD: Tensor) -> Tensor:
    """By least squares, with a hundredth of the inputs' mean square as a pull towards the averaged gates."""
    x_ND, y_NO, mean_OD = x_ND.double(), y_NO.double(), mean_OD.double()
    pull = 0.01 * x_ND.square().mean()
    rows = torch.cat([x_ND / len(x_ND) ** 0.5, pull.sqrt() * torch.eye(x_ND.shape[1], dtype=torch.float64)])
    answers = torch.cat([y_NO / len(x_ND) ** 0.5, pull.sqrt() * mean_OD.t()])
    return torch.linalg.lstsq(rows, answers).solution.t().float()


def left(delta_OD: Tensor, x_ND: Tensor, y_NO: Tensor) -> float:
    return float((x_ND @ delta_OD.t() - y_NO).norm())
