import pytest
import torch
import torch.nn.functional as F

import lorachord as lc
from lorachord.core.context import NO_CONTEXT, Context
from lorachord.methods.comol import CoMoL
from tests.reference import comol

LAYER = lc.LayerSpec("layer", index=0, num_layers=1, d_in=10, d_out=7)


def adapter(**options: object) -> CoMoL:
    made = CoMoL(LAYER, CoMoL.Config.from_dict({"r": 3, "num_experts": 4, **options})).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def of_reference(made: CoMoL, x: torch.Tensor, weight: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
    matrices = list(made.matrices.split(3, dim=1))
    factors = dict(A=made.down, B=made.up, M=matrices, W_r=made.router.weight, r=3, alpha=16.0)
    return comol.forward(x, weight, dropped=dropped, **factors)


def test_its_router_sees_the_dropped_input() -> None:
    made = adapter(dropout=0.4).train()
    x, weight = torch.randn(6, 10, dtype=torch.float64), torch.randn(7, 10, dtype=torch.float64)
    torch.manual_seed(1)
    ours = made(x, lambda x: F.linear(x, weight), NO_CONTEXT)
    torch.manual_seed(1)
    torch.testing.assert_close(ours, of_reference(made, x, weight, F.dropout(x, 0.4)))


def test_with_dropout_each_task_still_gets_its_own_gradients() -> None:
    made = adapter(dropout=0.4).train()
    x, order = torch.randn(3, 5, 10, dtype=torch.float64), [0, 1, 0]
    ctx, names = Context.of_tasks(order), [name for name, _ in made.named_parameters()]

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        out = made(x, lambda x: x.new_zeros(3, 5, 7), ctx)
        return (out.square() * chosen.view(3, 1, 1)).sum()

    expected = []
    for task in range(2):
        total = loss(torch.tensor([index == task for index in order]))
        expected.append(torch.autograd.grad(total, list(made.parameters())))
    probes = made.attach_probes(2)
    loss(torch.ones(3)).backward()
    weights = torch.cat([made.down_weight(), made.router_weight()]), made.up_weight(), made.core_weight()
    for task in range(2):
        received = [leaf.grad[task] for leaf in (probes.inner_TXD, probes.up_TOS, probes.core_TC)]
        pulled = torch.autograd.grad(weights, list(made.parameters()), received, retain_graph=True)
        for name, ours, alone in zip(names, pulled, expected[task], strict=True):
            torch.testing.assert_close(ours, alone, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("equal", [True, False])
def test_with_equal_matrices_it_is_one_lora(equal: bool) -> None:
    made, plain = adapter().eval(), lc.LoRA(LAYER, lc.LoRA.Config(r=3)).double()
    matrix = torch.randn(3, 3, dtype=torch.float64)
    with torch.no_grad():
        if equal:
            made.matrices.copy_(matrix.repeat(1, 4))
        plain.down.copy_(matrix @ made.down)
        plain.up.copy_(made.up)
    x, layer = torch.randn(2, 5, 10, dtype=torch.float64), torch.nn.Linear(10, 7).double()
    assert torch.allclose(made(x, layer, NO_CONTEXT), plain(x, layer, NO_CONTEXT)) == equal


def test_it_starts_with_matrices_of_their_own_width() -> None:
    made = CoMoL(lc.LayerSpec("layer", 0, 1, 1000, 7), CoMoL.Config())
    # Kaiming-uniform with a = sqrt 5: up to 1 / sqrt(r).
    bound = made.config.r**-0.5
    for weight in (made.matrices, made.router.weight):
        assert 0.9 * bound < float(weight.detach().abs().max()) <= bound


def test_its_default_costs_little_beside_lora() -> None:
    layers = [lc.LayerSpec("layer", 0, 1, 4096, 4096)]
    ours, plain = lc.count_parameters("comol", layers), lc.count_parameters("lora", layers, options={"r": 16})
    assert 1.01 < ours.total / plain.total < 1.02
