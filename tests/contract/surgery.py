"""What surgery promises for every method, by both ways of collecting the gradients of each task."""

from typing import ClassVar

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from lorachord.surgery.rules import OrthoLora
from lorachord.surgery.surgeon import FACTORS, Surgeon
from tests.contract.cases import Case
from tests.contract.contract import MIXED, TASKS, WITHOUT_PENALTY, attach, logits, make_model, records_penalty
from tests.tiny_models import tiny, token_ids

ROWS = {task: [row for row, own in enumerate(MIXED) if own == task] for task in range(len(TASKS))}
EXACT = dict(rtol=1e-10, atol=1e-10)


def task_losses(model: PeftModel, scale: float = 1.0) -> list[Tensor]:
    """A mean over each task's rows, of one forward pass of the mixed batch."""
    found = scale * logits(model, MIXED)
    return [found[rows].logsumexp(-1).mean() for rows in ROWS.values()]


def shared_of(model: PeftModel) -> dict[tuple[str, str], torch.nn.Parameter]:
    return dict(Surgeon(model, collect="micro_batches").gradients.parameters)


def separate(model: PeftModel) -> tuple[dict[tuple[str, str], Tensor], dict[str, Tensor]]:
    """By T backward passes: the gradients of each task of what they share, and the plain sums of all else."""
    shared = shared_of(model)
    others = {
        name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in map(id, shared.values())
    }
    losses = task_losses(model)
    stacked: dict[tuple[str, str], list[Tensor]] = {key: [] for key in shared}
    for loss in losses:
        loss.backward(retain_graph=True)
        for key, parameter in shared.items():
            grad = parameter.grad
            stacked[key].append(torch.zeros_like(parameter) if grad is None else grad)
            parameter.grad = None
    sums = {name: p.grad for name, p in others.items() if p.grad is not None}
    model.zero_grad()
    return {key: torch.stack(parts) for key, parts in stacked.items()}, sums


def one_pass(model: PeftModel, surgeon: Surgeon) -> None:
    torch.stack(task_losses(model)).sum().backward()


def micro_batches(model: PeftModel, surgeon: Surgeon) -> None:
    for task, rows in ROWS.items():
        found = logits(model, [task] * len(rows), input_ids=token_ids()[rows])
        found.logsumexp(-1).mean().backward()
        surgeon.gradients.end_of(task)  # type: ignore[attr-defined]


WAYS = {"one_pass": one_pass, "micro_batches": micro_batches}


def double(case: Case) -> PeftModel:
    return make_model(case, "llama").double().train()


class SurgeryContract:
    cases: ClassVar[list[Case]]
    # What surgery does to penalties is asked where it matters.
    pytestmark = WITHOUT_PENALTY

    @pytest.mark.parametrize("way", WAYS)
    def test_task_gradients_equal_separate_backward_passes(self, case: Case, way: str) -> None:
        model = double(case)
        expected, sums = separate(model)
        surgeon = Surgeon(model, collect=way)
        for _ in range(2):
            # Over an accumulation window of two.
            WAYS[way](model, surgeon)
        found = surgeon.gradients.collect()
        assert found.keys() == expected.keys()
        for key, gradients in found.items():
            torch.testing.assert_close(gradients, 2 * expected[key], **EXACT)
        plain = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert plain.keys() == sums.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(gradient, 2 * sums[name], **EXACT)
        # And nothing is left over for the next window.
        assert all(not gradients.any() for gradients in surgeon.gradients.collect().values())

    def test_halves_of_the_samples_make_up_the_task_gradients(self, case: Case) -> None:
        model = double(case)
        expected, _ = separate(model)
        surgeon = Surgeon(model, "significant")
        one_pass(model, surgeon)
        assert surgeon.gradients.sizes_S.tolist() == [1, 1, 1, 0, 1, 0]  # type: ignore[attr-defined]
        found = surgeon.gradients.collect()
        for key, gradients in found.items():
            torch.testing.assert_close(gradients.unflatten(0, (-1, 2)).sum(1), expected[key], **EXACT)
        # The first task has two samples, and each half has its own.
        assert any(gradients[0].any() and gradients[1].any() for gradients in found.values())
        one_pass(model, surgeon)
        model.zero_grad()
        assert surgeon.operate().present == (0, 1, 2)
        for key, parameter in surgeon.gradients.parameters.items():
            torch.testing.assert_close(parameter.grad, expected[key].sum(0), **EXACT)

    @pytest.mark.parametrize("way", WAYS)
    def test_two_tasks_get_the_closed_form(self, case: Case, way: str) -> None:
        model = double(case)
        expected, _ = separate(model)
        surgeon = Surgeon(model, collect=way)
        WAYS[way](model, surgeon)
        # The third task is absent.
        for key, gradients in surgeon.gradients.collect().items():
            torch.testing.assert_close(gradients, expected[key], **EXACT)
        surgeon.gradients.collect = (
            lambda: {  # type: ignore[method-assign]
                key: torch.cat([gradients[:2], torch.zeros_like(gradients[2:])]) for key, gradients in expected.items()
            }
        )
        operation = surgeon.operate()
        assert operation.present == (0, 1)
        for key, (one, other, _) in expected.items():
            dot = (one * other).sum()
            wanted = one + other
            if dot < 0 and key[1] in FACTORS:
                wanted = wanted - dot / other.square().sum() * other - dot / one.square().sum() * one
            torch.testing.assert_close(surgeon.gradients.parameters[key].grad, wanted, **EXACT)

    def test_without_conflict_it_is_the_sum_of_the_segments_to_the_bit(self, case: Case) -> None:
        model = double(case).float()
        surgeon = Surgeon(model)
        one_pass(model, surgeon)
        segments = surgeon.gradients.collect()
        surgeon.gradients.collect = (
            lambda: {  # type: ignore[method-assign]
                key: gradients[:1].abs() * gradients.new_tensor([1.0, 0.5, 2.0]).view(3, *[1] * (gradients.dim() - 1))
                for key, gradients in segments.items()
            }
        )
        wanted = {key: gradients.sum(0) for key, gradients in surgeon.gradients.collect().items()}
        surgeon.operate()
        for key, parameter in surgeon.gradients.parameters.items():
            assert torch.equal(parameter.grad, wanted[key])

    def test_it_is_finite_at_step_0(self, case: Case) -> None:
        model = attach(case, tiny("llama")).train()
        surgeon = Surgeon(model)
        one_pass(model, surgeon)
        operation = surgeon.operate()
        assert operation.weights_NT.isfinite().all()
        assert operation.cosines.isfinite().all()
        assert all(p.grad.isfinite().all() for p in surgeon.gradients.parameters.values())

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpointing_leaves_the_task_gradients_as_they_are(self, case: Case, reentrant: bool) -> None:
        found = []
        for checkpointing in (False, True):
            model = double(case)
            if reentrant and any(records_penalty(layer) for layer in model.modules()):
                pytest.skip("refused: a recorded penalty would lose its graph")
            if checkpointing:
                model.enable_input_require_grads()
                model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
            surgeon = Surgeon(model)
            one_pass(model, surgeon)
            found.append(surgeon.gradients.collect())
        for key in found[0]:
            torch.testing.assert_close(found[1][key], found[0][key], **EXACT)

    def test_under_autocast_the_segments_make_up_the_ordinary_gradient(self, case: Case) -> None:
        model = make_model(case, "llama").train()
        found: list[dict[tuple[str, str], Tensor]] = []
        for probing in (True, False):
            surgeon = Surgeon(model, collect="one_pass" if probing else "micro_batches")
            with torch.autocast(model.device.type, torch.bfloat16):
                losses = task_losses(model)
            torch.stack([loss.float() for loss in losses]).sum().backward()
            if probing:
                found.append({key: gradients.sum(0) for key, gradients in surgeon.gradients.collect().items()})
            else:
                found.append({key: p.grad for key, p in surgeon.gradients.parameters.items()})
            surgeon.close()
            model.zero_grad()
        for key, gradient in found[0].items():
            assert gradient.dtype == torch.float32
            # Either way single entries are up to 3 % off float32's; of a single number (a gate) most may cancel.
            slack = 0.04 if gradient.numel() > 1 else 0.2
            torch.testing.assert_close(gradient, found[1][key], rtol=slack, atol=slack * float(gradient.abs().max()))
        # In the whole, what rounding does is small.
        segments, ordinary = (torch.cat([part[key].flatten() for key in found[0]]) for part in found)
        assert float((segments - ordinary).norm()) <= 0.015 * float(ordinary.norm())

    def test_the_scale_of_the_loss_scales_the_result(self, case: Case) -> None:
        results = []
        for scale in (1.0, 2.0**12):
            model = double(case)
            surgeon = Surgeon(model, OrthoLora(order="fixed"))
            (scale * torch.stack(task_losses(model)).sum()).backward()
            surgeon.operate()
            results.append({key: p.grad / scale for key, p in surgeon.gradients.parameters.items()})
        for key in results[0]:
            torch.testing.assert_close(results[1][key], results[0][key], **EXACT)

    def test_closed_it_leaves_ordinary_gradients(self, case: Case) -> None:
        model = double(case)
        torch.stack(task_losses(model)).sum().backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        surgeon = Surgeon(model)
        surgeon.close()
        torch.stack(task_losses(model)).sum().backward()
        for name, p in model.named_parameters():
            if name in expected:
                torch.testing.assert_close(p.grad, expected[name], **EXACT)
