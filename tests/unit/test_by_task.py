"""Cores by task: folded into B' or applied to the rows, they are one function."""

import pytest
import torch
from torch import Tensor

import lorachord as lc
from lorachord.core.tasks import TaskNames
from tests.tiny_models import perturb

LAYER = lc.LayerSpec("layer", index=0, num_layers=1, d_in=12, d_out=9)
TASKS = TaskNames(("a", "b", "c"))


def results(tasks: list[int], rows: int, folded: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)
    method = lc.get_method("mtl_lora")
    adapter = method(LAYER, method.Config(r=2, num_ups=3), TASKS).to(torch.promote_types(dtype, torch.float32))
    perturb(adapter, scale=0.3)
    if not folded:
        adapter.folded_up = lambda ctx, num_rows: None  # type: ignore[method-assign]
    x, out = torch.randn(6, rows, 12, dtype=dtype).requires_grad_(), torch.randn(6, rows, 9, dtype=dtype)
    ctx = lc.Context.of_tasks(tasks)
    assert (adapter.folded_up(ctx, 6 * rows) is not None) == folded
    y = adapter(x, lambda x: out, ctx)
    (y * torch.randn_like(y)).sum().backward()
    assert x.grad is not None
    return {"y": y, "x": x.grad, **{name: p.grad for name, p in adapter.named_parameters() if p.grad is not None}}


# Runs of one length, of several, a task that comes twice, and one task for all.
@pytest.mark.parametrize("tasks", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 2, 2], [2, 0, 2, 0, 2, 0], [1] * 6])
def test_folding_changes_neither_outputs_nor_gradients(tasks: list[int]) -> None:
    found, expected = (results(tasks, 8, folded, torch.float64) for folded in (True, False))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)


def test_folding_in_half_precision_is_near() -> None:
    found, expected = (results([0, 0, 1, 1, 2, 2], 8, folded, torch.bfloat16) for folded in (True, False))
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, rtol=0.05, atol=0.05 * float(value.detach().abs().max()))


def test_few_rows_are_not_worth_folding() -> None:
    method = lc.get_method("mtl_lora")
    adapter = method(LAYER, method.Config(r=2, num_ups=3), TASKS)
    # As when decoding: one row a sample.
    assert adapter.folded_up(lc.Context.of_tasks([0, 1, 2]), 3) is None
