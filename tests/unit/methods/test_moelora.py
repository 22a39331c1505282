import copy

import pytest
import torch
from torch import Tensor

import lorachord as lc
from lorachord.core.context import Context
from lorachord.methods import MoELoRA
from tests.reference import moelora

LAYER = lc.LayerSpec("layer", index=0, num_layers=1, d_in=10, d_out=7)
FROZEN = torch.nn.Linear(10, 7).requires_grad_(False)


def adapter(**options: object) -> MoELoRA:
    made = MoELoRA(LAYER, MoELoRA.Config.from_dict({"r": 2, "num_experts": 4, "balance": 0.0, **options})).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def penalty_after(made: MoELoRA, x: Tensor, ctx: Context) -> Tensor:
    made(x, FROZEN.to(x.dtype), ctx)
    return penalty_of(made)


def penalty_of(made: MoELoRA) -> Tensor:
    return torch.stack([*made.penalty().values()]).sum()


def naive(made: MoELoRA, x: Tensor, kept: list[list[int]]) -> Tensor:
    """The contrastive loss of the kept tokens of each sequence."""
    assert made.router is not None
    rows = [row[tokens] for row, tokens in zip(x, kept, strict=True)]
    chosen = [(row @ made.router.weight.T).topk(2).indices.tolist() for row in rows]
    downs, ups = list(made.down.split(2)), list(made.up.split(2, dim=1))
    return made.config.contrastive * moelora.contrastive_loss(rows, A=downs, B=ups, chosen=chosen, tau=0.1)


# Without a mask, nothing says what a sample of flat rows is.
@pytest.mark.parametrize(("masked", "flat"), [(False, False), (True, False), (True, True)])
def test_the_penalty_is_the_naive_one_of_sampled_tokens(masked: bool, flat: bool) -> None:
    made, x = adapter(contrastive=0.5, contrastive_tokens=4), torch.randn(2, 6, 10, dtype=torch.float64)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool() if masked else None
    # One task named for all samples, or rows without samples: the mask tells them apart.
    ctx = Context.of_tasks([0, 0] if not masked else [0])
    ctx = Context(task_ids_B=ctx.task_ids_B, runs=ctx.runs, token_mask_BL=mask)
    found = penalty_after(made, x.flatten(0, 1) if flat else x, ctx)
    # Of five tokens 1 to 5 the four are places 0, 1, 2 and 3 times 5/4.
    kept = [[1, 2, 3, 4], [0, 1, 2]] if masked else [[0, 1, 3, 4]] * 2
    expected = naive(made, x, kept)
    torch.testing.assert_close(found, expected)
    leaves = [made.down, made.up]
    for one, other in zip(*(torch.autograd.grad(loss, leaves) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_of_more_sequences_some_are_looked_at() -> None:
    made, x = adapter(contrastive=0.5, contrastive_sequences=3), torch.randn(5, 6, 10, dtype=torch.float64)
    found = penalty_after(made, x, Context.of_tasks([0] * 5))
    torch.testing.assert_close(found, naive(made, x[[0, 2, 4]], [list(range(6))] * 3))


def test_losses_add_up() -> None:
    x, ctx = torch.randn(2, 6, 10, dtype=torch.float64), Context.of_tasks([0, 1])
    both = adapter(contrastive=0.5, balance=0.3, z=0.2)
    apart = []
    for options in ({"contrastive": 0.5}, {"contrastive": 0.0, "balance": 0.3}, {"contrastive": 0.0, "z": 0.2}):
        one = adapter(**options)
        one.load_state_dict(both.state_dict())
        apart.append(penalty_after(one, x, ctx))
    torch.testing.assert_close(penalty_after(both, x, ctx), torch.stack(apart).sum())


@pytest.mark.parametrize(("num", "kept"), [(8, [[0, 1], [2], [3]]), (2, [[0], [2], []])])
def test_the_contrastive_loss_goes_with_the_tasks_of_its_sequences(num: int, kept: list[list[int]]) -> None:
    made, x = adapter(contrastive=0.5, contrastive_sequences=num), torch.randn(4, 6, 10, dtype=torch.float64)
    ctx = Context.of_tasks([0, 0, 1, 2])
    # Each sequence is a term of the mean over all that are looked at.
    terms = [naive(made, x[n : n + 1], [list(range(6))]) / sum(map(len, kept)) for n in range(4)]
    sums = [sum((terms[n] for n in own), start=0 * terms[0]) for own in kept]
    wanted = [torch.autograd.grad(loss, [made.down, made.up], retain_graph=True) for loss in sums]
    probes = made.attach_probes(3)
    penalty_after(made, x, ctx).backward()
    assert probes.core_TC is not None
    for task, (down, up) in enumerate(wanted):
        torch.testing.assert_close(probes.inner_TXD.grad[task, :8], down)
        gram = probes.core_TC.grad[task]
        torch.testing.assert_close(made.up @ (gram + gram.T), up)
    assert made.up.grad is None


def test_at_the_start_the_penalty_is_finite_and_reaches_nothing_but_the_router() -> None:
    made = MoELoRA(LAYER, MoELoRA.Config())
    made(torch.randn(2, 6, 10), FROZEN.float(), Context.of_tasks([0, 1]))
    penalty_of(made).backward()
    assert made.router is not None
    assert made.router.weight.grad.any()
    assert made.router.weight.grad.isfinite().all()
    assert not made.down.grad.any()
    assert not made.up.grad.any()


def test_eval_records_no_penalty() -> None:
    made = adapter(contrastive=0.5)
    penalty_after(made, torch.randn(2, 6, 10, dtype=torch.float64), Context())
    made.eval()(torch.randn(2, 6, 10).double(), FROZEN.double(), Context())
    assert made.penalty() == {}


def test_under_autocast_the_contrastive_loss_is_in_float32() -> None:
    made, x = adapter(contrastive=0.5).float(), torch.randn(2, 6, 10)
    with torch.autocast("cpu", torch.bfloat16):
        made(x, FROZEN.float(), Context())
        gram = made.core_weight()
    assert gram is not None
    torch.testing.assert_close(gram, made.up.T @ made.up)
    assert penalty_of(made).dtype == torch.float32


# All in one go, two layers at a time (of 2 x 12^2 pairs each), and one by one.
@pytest.mark.parametrize("pairs", [2**20, 600, 1])
def test_penalties_of_several_layers_add_up_to_those_of_each(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorachord.methods.moelora.PAIRS_AT_ONCE", pairs)
    # Of five layers of one kind, and one of another.
    layers = [adapter(contrastive=0.5, balance=0.3) for _ in range(5)] + [adapter(contrastive=0.5, num_experts=3)]
    for made in layers:
        penalty_after(made, torch.randn(2, 6, 10, dtype=torch.float64), Context())
    alone = torch.stack([penalty_of(made) for made in layers]).sum()
    together = torch.stack([*MoELoRA.penalties(layers).values()]).sum()
    torch.testing.assert_close(together, alone)
    leaves = [leaf for made in layers for leaf in (made.down, made.up)]
    for one, other in zip(
        *(torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (together, alone)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_copy_has_no_part_in_the_graph_of_the_last_pass() -> None:
    made = adapter(contrastive=0.5)
    penalty_after(made, torch.randn(2, 6, 10, dtype=torch.float64), Context())
    assert copy.deepcopy(made).penalty() == {}
    assert made.penalty() != {}


def test_a_recompute_leaves_what_the_last_pass_has_kept() -> None:
    made = adapter(contrastive=0.5, balance=0.3)
    expected = penalty_after(made, torch.randn(2, 6, 10, dtype=torch.float64), Context())
    other = torch.randn(2, 6, 10, dtype=torch.float64)
    torch.testing.assert_close(penalty_after(made, other, Context(recording=False)), expected)
    assert not torch.allclose(penalty_after(made, other, Context()), expected)
