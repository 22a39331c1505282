from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from lorachord.kernels import blocks, inner, linear, products
from lorachord.kernels.blocks import blocks_linear
from lorachord.kernels.inner import inner_products
from lorachord.kernels.linear import rows_linear
from lorachord.kernels.products import NARROW


@pytest.fixture(autouse=True, params=["cpu", "accelerator"])
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU, and as on an accelerator."""
    for module in (linear, inner, products, blocks):
        monkeypatch.setattr(module, "on_cpu", lambda x: request.param == "cpu")


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("width", [3, NARROW - 1, NARROW, NARROW + 1])
@pytest.mark.parametrize("down", [True, False])
@pytest.mark.parametrize("rows_last", [False, True])
@pytest.mark.parametrize("num_rows", [8, 9])
def test_is_the_linear_map_on_either_side_of_the_narrow_limit(
    width: int, down: bool, num_rows: int, rows_last: bool
) -> None:
    d_in, d_out = (20, width) if down else (width, 20)
    x, weight, out = rows(num_rows, d_in), rows(d_out, d_in), rows(num_rows, d_out)
    x = rows(d_in, num_rows).t() if rows_last else x
    torch.testing.assert_close(rows_linear(x, weight), x @ weight.T)
    torch.testing.assert_close(rows_linear(x, weight, out=out, scale=0.7), out + 0.7 * x @ weight.T)
    assert gradcheck(lambda *args: rows_linear(args[0], args[1], out=args[2], scale=0.7), (x, weight, out))
    assert gradcheck(lambda *args: rows_linear(*args, scale=1.3), (x, weight))


def test_each_block_has_a_weight_of_its_own() -> None:
    h, weights, out = rows(6, 3), rows(2, 3, 5), rows(6, 5)
    expected = out + 0.7 * torch.cat([h[:3] @ weights[0], h[3:] @ weights[1]])
    torch.testing.assert_close(blocks_linear(h, weights, out, 0.7), expected)
    assert gradcheck(lambda *args: blocks_linear(*args, 0.7), (h, weights, out))


def test_second_derivatives_are_right() -> None:
    assert gradgradcheck(
        lambda x, weight, out: rows_linear(x, weight, out=out, scale=0.7).sin(), (rows(4, 3), rows(5, 3), rows(4, 5))
    )


def add(kind: str, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, *, overwrite: bool) -> torch.Tensor:
    if kind == "rows":
        return rows_linear(x, weight, out=out, scale=0.7, overwrite=overwrite)
    return blocks_linear(x, weight, out, 0.7, overwrite=overwrite)


ADDED = pytest.mark.parametrize(("kind", "weight"), [("rows", (5, 3)), ("blocks", (2, 3, 5))])


@ADDED
def test_writing_over_the_output_changes_no_number(kind: str, weight: tuple[int, ...]) -> None:
    arguments = x, w, out = rows(6, 3), rows(*weight), rows(6, 5)
    made = out * 1
    found, expected = add(kind, x, w, made, overwrite=True), add(kind, x, w, out, overwrite=False)
    assert (found.data_ptr() == made.data_ptr()) == linear.on_cpu(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*[torch.autograd.grad(y.sin().sum(), arguments) for y in (found, expected)])
    # What is returned is no view to autograd: a model may go on in place.
    found, expected = add(kind, x, w, out * 1, overwrite=True).mul_(2), 2 * add(kind, x, w, out, overwrite=False)
    torch.testing.assert_close(*[torch.autograd.grad(y.sum(), arguments) for y in (found, expected)])


@ADDED
def test_an_output_that_is_needed_to_go_back_is_not_silently_written_over(kind: str, weight: tuple[int, ...]) -> None:
    x, w, out = rows(6, 3), rows(*weight), rows(6, 5)
    # exp keeps its result.
    found = add(kind, x, w, out.exp(), overwrite=True)
    if not linear.on_cpu(x):
        found.sum().backward()
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()


def test_leaves_the_output_it_adds_to_as_it_was() -> None:
    x, weight, out = rows(4, 3), rows(5, 3), rows(4, 5)
    before = out.detach().clone()
    rows_linear(x, weight, out=out)
    assert torch.equal(out, before)


@pytest.mark.parametrize(
    "runs",
    [
        ((0, 0, 4), (2, 4, 6)),
        ((2, 0, 1), (0, 1, 3), (2, 3, 6)),
        # As many rows of each: one batched product, of some tasks and in any order.
        ((2, 0, 3), (0, 3, 6)),
        # And twice of one.
        ((0, 0, 2), (2, 2, 4), (0, 4, 6)),
    ],
)
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_a_probe_gets_the_weight_gradient_of_each_task(runs: Any, reentrant: bool | None) -> None:
    x, weight, cotangent = rows(6, 5), rows(4, 5), torch.randn(6, 4, dtype=torch.float64)
    probe = torch.zeros(3, 4, 5, dtype=torch.float64, requires_grad=True)

    def function(x: torch.Tensor) -> torch.Tensor:
        return rows_linear(x, weight, scale=0.7, probe_TOI=probe, row_runs=runs)

    for _ in range(2):  # autograd accumulates over a window of two passes
        y = (
            function(x)
            if reentrant is None
            else torch.utils.checkpoint.checkpoint(function, x, use_reentrant=reentrant)
        )
        (y * cotangent).sum().backward()
    expected = torch.zeros_like(probe)
    for task, start, stop in runs:
        expected[task] += 2 * 0.7 * cotangent[start:stop].T @ x[start:stop].detach()
    torch.testing.assert_close(probe.grad, expected)
    assert weight.grad is None
    assert not probe.grad[1].any()
    torch.testing.assert_close(x.grad, 2 * 0.7 * cotangent @ weight.detach())


# Dynamo itself makes one when it traces an autograd.Function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_without_a_break() -> None:
    x, weight, out = rows(6, 5), rows(4, 5), rows(6, 4)
    probe = torch.zeros(2, 4, 5, dtype=torch.float64, requires_grad=True)
    runs = ((0, 0, 2), (1, 2, 6))

    def function(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        plain = rows_linear(x, weight, out=out, scale=0.5)
        return plain * rows_linear(x, weight, probe_TOI=probe, row_runs=runs)

    plain, compiled = (
        function(x, weight, out),
        torch.compile(function, backend="aot_eager", fullgraph=True)(x, weight, out),
    )
    torch.testing.assert_close(compiled, plain)
    leaves = (x, weight, out, probe)
    expected = torch.autograd.grad(plain.sum(), leaves)
    for found, wanted in zip(torch.autograd.grad(compiled.sum(), leaves), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("width", [3, NARROW + 1])
def test_a_batched_product_of_all_tasks_is_each_tasks_own(width: int) -> None:
    x, weight, cotangent = rows(6, width), rows(4, width), torch.randn(6, 4, dtype=torch.float64)
    probe = torch.zeros(3, 4, width, dtype=torch.float64, requires_grad=True)
    runs = ((0, 0, 2), (1, 2, 4), (2, 4, 6))
    (rows_linear(x, weight, scale=0.7, probe_TOI=probe, row_runs=runs) * cotangent).sum().backward()
    for task, start, stop in runs:
        torch.testing.assert_close(probe.grad[task], 0.7 * cotangent[start:stop].T @ x[start:stop].detach())


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("probing", [False, True])
@pytest.mark.parametrize("dropping", [False, True])
@pytest.mark.parametrize("routing", [False, True])
@pytest.mark.parametrize("rows_last", [False, True])
def test_a_sees_what_is_left_and_the_router_all(
    rows_last: bool, routing: bool, dropping: bool, probing: bool, through: bool
) -> None:
    x, down, router = rows(6, 5), rows(3, 5), rows(4, 5)
    dropped = x * torch.tensor([0.0, 2.0, 0.0, 2.0, 2.0]) if dropping else x
    one, other, others = (torch.randn(6, width, dtype=torch.float64) for width in (3, 4, 5))
    probe = torch.zeros(2, 7 if routing else 3, 5, dtype=torch.float64, requires_grad=True) if probing else None
    runs = ((1, 0, 2), (0, 2, 6)) if probing else None
    options = {"through": through, "rows_last": rows_last}
    h, logits, passed = inner_products(dropped, x, down, router if routing else None, probe, runs, **options)
    torch.testing.assert_close(h, dropped @ down.T)
    assert torch.equal(passed, x)
    loss = (h * one).sum() + (passed * 1 * others).sum()
    if logits is None:
        assert not routing
    else:
        torch.testing.assert_close(logits, x @ router.T)
        loss = loss + (logits * other).sum()
    loss.backward()
    weight_grad = torch.cat([one.T @ dropped.detach(), other.T @ x.detach()])[: 7 if routing else 3]
    if probing:
        torch.testing.assert_close(probe.grad.sum(0), weight_grad)
        torch.testing.assert_close(probe.grad[1, 3:], (other[:2].T @ x[:2].detach())[: len(weight_grad) - 3])
        assert down.grad is None
        assert router.grad is None
    else:
        torch.testing.assert_close(down.grad, weight_grad[:3])
        if routing:
            torch.testing.assert_close(router.grad, weight_grad[3:])
    mask = 1 if not dropping else torch.tensor([0.0, 2.0, 0.0, 2.0, 2.0])
    expected = (one @ down.detach()) * mask + others
    torch.testing.assert_close(x.grad, expected + other @ router.detach() if routing else expected)


class _Given(torch.autograd.Function):
    """x as it is; notes the gradients that it gets."""

    grads: list[torch.Tensor]

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        _Given.grads.append(grad)
        return grad * 1


@pytest.mark.parametrize("through", [False, True])
def test_the_gradient_of_what_went_through_is_added_to_in_place(through: bool) -> None:
    _Given.grads = []
    x, down, reader = rows(6, 5), rows(3, 5), rows(4, 5)
    h, _, passed = inner_products(given := _Given.apply(x), given, down, None, None, None, through=through)
    made: list[torch.Tensor] = []
    read = passed @ reader.T
    read.grad_fn.register_hook(lambda inputs, outputs: made.append(inputs[0]))
    (h.sum() + read.sum()).backward()
    in_place = through and linear.on_cpu(x)
    assert (_Given.grads[-1].data_ptr() == made[0].data_ptr()) == in_place
    torch.testing.assert_close(x.grad, (down.sum(0) + reader.sum(0)).expand(6, 5))


@pytest.mark.parametrize("rows_last", [False, True])
def test_rows_lie_in_memory_as_asked_and_so_do_their_gradients(rows_last: bool) -> None:
    h, logits, _ = inner_products(x := rows(6, 5), x, rows(3, 5), rows(4, 5), None, None, rows_last=rows_last)
    assert logits is not None
    made: list[torch.Tensor] = []
    h.register_hook(made.append)
    rows_linear(h, rows(7, 3)).sum().backward()
    turned = rows_last and linear.on_cpu(h)
    assert [part.stride(0) == 1 for part in (h, logits, *made)] == [turned] * 3


def test_parts_side_by_side_are_not_copied_and_others_are() -> None:
    buffer = torch.arange(50.0, dtype=torch.float64).view(10, 5)
    first, second = buffer[:3].t(), buffer[3:7].t()
    assert inner._side_by_side([first, second]).data_ptr() == buffer.data_ptr()
    shorter = torch.arange(8.0, dtype=torch.float64).view(2, 4).t()
    beside = [(first, second), (second, first), (first, buffer[4:7].t()), (first, buffer[3:7].t().clone())]
    beside += [(first.contiguous(), second), (first[:4], second[:4]), (first[:4], shorter)]
    for parts in beside:
        assert torch.equal(inner._side_by_side(parts), torch.cat(parts, dim=1))


def test_nothing_goes_through_where_nothing_is_differentiated() -> None:
    x, down = rows(6, 5), rows(3, 5)
    with torch.no_grad():
        assert inner_products(x, x, down, None, None, None, through=True)[2] is x
    x = x.detach()
    assert inner_products(x, x, down, None, None, None, through=True)[2] is x


@pytest.mark.parametrize("rows_last", [False, True])
def test_second_derivatives_are_right_of_what_goes_through(rows_last: bool) -> None:
    def function(x: torch.Tensor, down: torch.Tensor, router: torch.Tensor, reader: torch.Tensor) -> torch.Tensor:
        h, logits, passed = inner_products(x, x, down, router, None, None, through=True, rows_last=rows_last)
        assert logits is not None
        return h.sin().sum() + logits.cos().sum() + (passed @ reader).sin().sum()

    assert gradgradcheck(function, (rows(4, 3), rows(2, 3), rows(3, 3), rows(3, 2)))
