"""What every method promises. A method from anywhere is held to it by one class:

class TestMine(MethodContract):
    cases = [Case("mine", reference)]
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

import lorachord as lc
from lorachord.core.adapter import Adapter
from lorachord.core.context import NO_CONTEXT, Context, PenaltyFrom
from lorachord.core.matrix import delta, factors
from lorachord.core.tasks import TaskNames
from lorachord.families.calibrated import Calibrated
from tests.contract.cases import Case
from tests.tiny_models import perturb, tiny, token_ids

TASKS = ["a", "b", "c"]
LAYER = lc.LayerSpec("layer", index=0, num_layers=1, d_in=10, d_out=7)
MIXED = [0, 0, 1, 2]
PROMPT_LENGTH = 4
WITHOUT_PENALTY = pytest.mark.filterwarnings("ignore:The method of adapter .* has a penalty")
INPUT, TASK = lc.Mixing.INPUT, lc.Mixing.TASK


def make_layer(case: Case, dtype: torch.dtype = torch.float64) -> Adapter:
    """One layer's adapter with every parameter away from its start."""
    method = lc.get_method(case.method)
    adapter = method(LAYER, method.Config.from_dict(case.options), TaskNames(tuple(TASKS))).to(dtype)
    move(case, adapter, scale=0.3)
    return adapter


def move(case: Case, module: torch.nn.Module, scale: float = 0.05, seed: int = 2) -> None:
    """`perturb`, with a smaller step for what lives on a smaller scale."""
    before = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    perturb(module, scale, seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            factor = case.scales.get(name.rpartition(".")[2])
            if factor is not None:
                parameter.copy_(before[name] + factor * (parameter - before[name]))


def context(case: Case, adapter: Adapter, tasks: list[int]) -> Context:
    """What a layer of the model finds in a pass over samples with these tasks."""
    return case.context(adapter, Context.of_tasks(tasks))


def attach(case: Case, base: torch.nn.Module, **keywords: Any) -> PeftModel:
    """The method on all linears of a model, as it starts: calibrated or fitted where it has to be."""
    method, calibration = lc.get_method(case.method), None
    if issubclass(method, Calibrated) and method.needs_calibration(method.Config.from_dict(case.options)):
        batches = {task: [{"input_ids": token_ids(seed=seed)}] for seed, task in enumerate(TASKS)}
        how = dict(tasks=TASKS, batches=batches, loss=lambda model, batch: model(**batch).logits.logsumexp(-1).mean())
        calibration = lc.calibrate(base, case.method, **how, **case.options, **keywords)
    model = lc.attach(base, case.method, tasks=TASKS, calibration=calibration, **case.options, **keywords)
    case.fit(model)
    return model


def make_model(case: Case, architecture: str, **keywords: Any) -> PeftModel:
    """A tiny model with the method on all linears, every parameter away from its start, in eval mode."""
    model = attach(case, tiny(architecture), **keywords)
    move(case, model)
    return model.eval()


def logits(model: torch.nn.Module, tasks: list[int] | int | None, **inputs: Tensor) -> Tensor:
    inputs = inputs or {"input_ids": token_ids()}
    if tasks is None:
        return model(**inputs).logits
    # The same prompt for all methods: those that do not look at it must not mind.
    with lc.on_task(model, torch.tensor(tasks), prompt_mask=torch.ones(1, PROMPT_LENGTH)):
        return model(**inputs).logits


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    module.zero_grad()
    return found


def records_penalty(module: torch.nn.Module) -> bool:
    return isinstance(module, Adapter) and module.penalty_from is PenaltyFrom.PASS


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(
            found[name], expected[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


class MethodContract:
    cases: ClassVar[list[Case]]

    # One layer, float64.

    @pytest.mark.parametrize("alone", [False, True])
    @pytest.mark.parametrize("training", [False, True])
    def test_equals_the_naive_reference_on_outputs_and_every_gradient(
        self, case: Case, training: bool, alone: bool
    ) -> None:
        adapter = make_layer(case).train(training)
        x = torch.randn(4, 5, 10, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(7, 10, dtype=torch.float64)
        cotangent = torch.randn(4, 5, 7, dtype=torch.float64)

        ours = adapter(x, partial(F.linear, weight=weight), context(case, adapter, MIXED), alone=alone)
        (ours * cotangent).sum().backward()
        x_grad, x.grad = x.grad, None
        found = gradients(adapter)

        rows = [task for task in MIXED for _ in range(5)]
        naive = case.reference(adapter, x.reshape(20, 10), weight, rows).view(4, 5, 7)
        (naive * cotangent).sum().backward()
        torch.testing.assert_close(ours, naive, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(x_grad, x.grad, rtol=1e-10, atol=1e-10)
        assert_same_gradients(found, gradients(adapter), rtol=1e-10, atol=1e-10)

    def test_the_core_is_linear(self, case: Case) -> None:
        adapter = make_layer(case).eval()
        rank = len(adapter.down_weight())
        x = torch.randn(4, 5, 10, dtype=torch.float64)
        ctx = context(case, adapter, MIXED)
        if adapter.router_weight() is not None:
            x = x @ adapter.router_weight().T
        one, two = torch.randn(2, 4, 5, rank, dtype=torch.float64)
        both = adapter.core(2 * one - 3 * two, x, ctx)
        torch.testing.assert_close(both, 2 * adapter.core(one, x, ctx) - 3 * adapter.core(two, x, ctx))

    def test_dropout_drops_the_input_of_a_alone(self, case: Case) -> None:
        kept = make_layer(case).train()
        options = {**case.options, "dropout": 0.9999999}
        dropped = make_layer(replace(case, options=options)).train()
        dropped.load_state_dict(kept.state_dict())
        x, out = torch.randn(4, 5, 10, dtype=torch.float64), torch.randn(4, 5, 7, dtype=torch.float64)
        ctx = context(case, kept, MIXED)

        def layer(x: Tensor) -> Tensor:
            return out

        torch.manual_seed(3)
        found = dropped(x, layer, ctx)
        torch.manual_seed(3)
        # As good as every entry is dropped, and here every one: A sees nothing, and nothing is added.
        assert not F.dropout(x, 0.9999999).any()
        torch.testing.assert_close(found, out)
        assert not torch.allclose(kept(x, layer, ctx), out)
        torch.testing.assert_close(dropped.eval()(x, layer, ctx), kept.eval()(x, layer, ctx))

    def test_the_update_is_the_product_of_its_factors(self, case: Case) -> None:
        adapter = make_layer(case).eval()
        if adapter.mixing is INPUT:
            pytest.skip("routed by its input")
        x = torch.randn(6, 10, dtype=torch.float64)
        for task in range(len(TASKS)):
            update = adapter(x, lambda x: x.new_zeros(6, 7), Context.of_tasks([task]))
            down, up = factors(adapter, task)
            torch.testing.assert_close(update, x @ down.T @ up.T)
            torch.testing.assert_close(update, x @ delta(adapter, task).T)

    @pytest.mark.parametrize("order", [[0, 0, 1, 2], [2, 0, 1, 0], [1, 1, 1, 1]])
    def test_probes_receive_the_gradients_of_each_task(self, case: Case, order: list[int]) -> None:
        adapter = make_layer(case).train()
        x = torch.randn(4, 5, 10, dtype=torch.float64)
        cotangent = torch.randn(4, 5, 7, dtype=torch.float64)

        def zero(x: Tensor) -> Tensor:
            return x.new_zeros(4, 5, 7)

        # By one backward a task.
        expected = []
        for task in range(len(TASKS)):
            chosen = torch.tensor([index == task for index in order]).view(4, 1, 1)
            (adapter(x, zero, context(case, adapter, order)) * cotangent * chosen).sum().backward()
            expected.append(gradients(adapter))
            adapter.zero_grad()

        plain = adapter(x, zero, context(case, adapter, order))
        # To the bit, but for a core that is folded into B' where there are no leaves.
        adapter.folded_up = lambda ctx, num_rows: None
        unfolded = adapter(x, zero, context(case, adapter, order))
        probes = adapter.attach_probes(len(TASKS))
        probed = adapter(x, zero, context(case, adapter, order))
        assert torch.equal(probed, unfolded)
        torch.testing.assert_close(probed, plain, rtol=1e-12, atol=1e-12)
        (probed * cotangent).sum().backward()

        # Each task's part of the leaves, pulled back to the parameters that tasks share.
        inner, core = (adapter.down_weight(), adapter.router_weight()), adapter.core_weight()
        weights = [torch.cat([weight for weight in inner if weight is not None]), adapter.up_weight()]
        received = [probes.inner_TXD.grad, probes.up_TOS.grad]
        if probes.core_TC is not None and probes.core_TC.grad is not None:
            # What a penalty alone uses has no gradient here.
            weights.append(core)
            received.append(probes.core_TC.grad)
        names = [name for name, parameter in adapter.named_parameters() if parameter.requires_grad]
        for task in range(len(TASKS)):
            parameters = [adapter.get_parameter(name) for name in names]
            pulled = torch.autograd.grad(
                weights, parameters, [grad[task] for grad in received], retain_graph=True, allow_unused=True
            )
            for name, parameter, grad in zip(names, parameters, pulled, strict=True):
                if grad is not None:
                    torch.testing.assert_close(grad, expected[task][name], rtol=1e-10, atol=1e-10)
                    assert parameter.grad is None
                elif parameter.grad is not None:
                    # A parameter of single tasks has its gradient as ever.
                    joint = sum(of_task[name] for of_task in expected)
                    torch.testing.assert_close(parameter.grad, joint, rtol=1e-10, atol=1e-10)

    def test_has_a_penalty_from_where_it_says(self, case: Case) -> None:
        adapter = make_layer(case).train()
        # Of the weights alone, it is there before any pass.
        before = bool(adapter.penalty())
        assert before == (adapter.penalty_from is PenaltyFrom.WEIGHTS)
        x, layer = torch.randn(4, 5, 10, dtype=torch.float64), torch.nn.Linear(10, 7).double()
        adapter(x, layer, context(case, adapter, MIXED))
        assert bool(adapter.penalty()) == (adapter.penalty_from is not PenaltyFrom.NOTHING)

    def test_counts_what_its_formula_says(self, case: Case) -> None:
        adapter = make_layer(case)
        names = {**vars(adapter.config), "T": len(TASKS), "d_in": 10, "d_out": 7}
        expected = eval(adapter.parameters_formula, {}, names)
        counted = lc.count_parameters(case.method, [LAYER], num_tasks=len(TASKS), options=case.options)
        assert sum(parameter.numel() for parameter in adapter.parameters()) == expected == counted.total

    def test_config_round_trips_through_json(self, case: Case) -> None:
        config = lc.get_method(case.method).Config
        made = config.from_dict(case.options)
        assert config.from_dict(json.loads(json.dumps(made.to_dict()))) == made

    # Whole models.

    def test_changes_nothing_at_step_0(self, case: Case, architecture: str) -> None:
        base = logits(tiny(architecture), None)
        model = attach(case, tiny(architecture)).eval()
        assert torch.equal(logits(model, MIXED), base)

    def test_disabled_it_is_the_base(self, case: Case, architecture: str) -> None:
        # BERT's head of three outputs is narrower than some methods' ranks.
        without = {"exclude_modules": ["classifier"]} if architecture == "bert" else {}
        model = make_model(case, architecture, task_type=None, **without)
        assert not torch.equal(logits(model, MIXED), logits(tiny(architecture), None))
        with model.disable_adapter():
            assert torch.equal(logits(model, MIXED), logits(tiny(architecture), None))

    def test_a_mixed_batch_equals_one_task_at_a_time(self, case: Case, architecture: str) -> None:
        model, tokens = make_model(case, architecture), token_ids()
        together = logits(model, MIXED, input_ids=tokens)
        for sample, task in enumerate(MIXED):
            alone = logits(model, task, input_ids=tokens[sample : sample + 1])
            torch.testing.assert_close(together[sample], alone[0], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_later_tokens_change_nothing_before_them(self, case: Case, architecture: str) -> None:
        model, tokens = make_model(case, architecture), token_ids()
        other = torch.cat([tokens[:, :4], token_ids(seed=9)[:, 4:]], dim=1)
        before, after = (logits(model, MIXED, input_ids=ids) for ids in (tokens, other))
        torch.testing.assert_close(before[:, :4], after[:, :4], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(before[:, 4:], after[:, 4:])

    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_decoding_token_by_token_equals_one_pass(self, case: Case, architecture: str) -> None:
        model, tokens = make_model(case, architecture), token_ids()
        whole = logits(model, MIXED, input_ids=tokens)
        cache, steps = None, []
        with lc.on_task(model, torch.tensor(MIXED)), torch.no_grad():
            # The prompt in one pass, and then a token at a time.
            for part in tokens.split([PROMPT_LENGTH, *[1] * (tokens.shape[1] - PROMPT_LENGTH)], dim=1):
                step = model(input_ids=part, past_key_values=cache, use_cache=True)
                cache = step.past_key_values
                steps.append(step.logits)
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-5)

    def test_saves_and_loads_under_another_name(self, case: Case, architecture: str, tmp_path: Path) -> None:
        model = make_model(case, architecture)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(tiny(architecture), tmp_path, adapter_name="other").eval()
        torch.testing.assert_close(logits(loaded, MIXED), logits(model, MIXED), rtol=1e-5, atol=1e-6)

    def test_merges_and_exports_or_says_why_not(self, case: Case, architecture: str, tmp_path: Path) -> None:
        model = make_model(case, architecture)
        if lc.get_method(case.method).mixing is INPUT:
            before = logits(model, MIXED)
            for refused in (lambda: lc.merge(model), lambda: lc.export_lora(model, tmp_path / "out")):
                with pytest.raises(ValueError, match=r"routes by its input.*save_pretrained"):
                    refused()
            assert not (tmp_path / "out").exists()
            assert torch.equal(logits(model, MIXED), before)
            return
        for index, task in enumerate(TASKS):
            expected = logits(model, index)
            torch.testing.assert_close(logits(lc.merge(model, task=task), None), expected, rtol=1e-4, atol=1e-5)
            folder = lc.export_lora(model, tmp_path / task, task=task)
            plain = PeftModel.from_pretrained(tiny(architecture), folder).eval()
            assert plain.active_peft_config.peft_type == "LORA"
            torch.testing.assert_close(logits(plain, None), expected, rtol=1e-4, atol=1e-5)

    @WITHOUT_PENALTY
    def test_the_task_loss_alone_reaches_every_parameter(self, case: Case, architecture: str) -> None:
        model = make_model(case, architecture).train()
        reached: dict[str, Tensor] = {}
        # An expert that no token uses rightly gets no gradient: look from several places, until all have been used.
        for seed in range(6):
            move(case, model, scale=0.2, seed=seed)
            tokens = token_ids(num_samples=12, length=16, seed=seed)
            output = logits(model, sorted(MIXED * 3), input_ids=tokens)
            (output * torch.randn_like(output)).sum().backward()
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    assert parameter.grad is not None, name
                    # Each slice along the first axis: each task, each expert's router row, each rank.
                    found = parameter.grad.reshape(len(parameter), -1).abs().sum(1) > 0
                    reached[name] = found | reached.get(name, found)
            model.zero_grad()
        assert {name: mask.tolist() for name, mask in reached.items() if not mask.all()} == {}

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpointing_leaves_the_gradients_as_they_are(self, case: Case, reentrant: bool) -> None:
        found = []
        for checkpointing in (False, True):
            # In float32 the order of sums would show.
            model = make_model(case, "llama").double().train()
            penalised = any(records_penalty(layer) for layer in model.modules())
            if checkpointing:
                model.enable_input_require_grads()
                model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
            if checkpointing and reentrant and penalised:
                with pytest.raises(ValueError, match="use_reentrant=False"):
                    logits(model, MIXED)
                return
            losses = []
            for task in (0, 1):
                losses.append(logits(model, task).square().sum() + lc.penalty(model))
            torch.stack(losses).sum().backward()
            found.append(gradients(model))
        assert_same_gradients(found[1], found[0], rtol=1e-10, atol=1e-10)

    def test_bfloat16_is_finite_and_near_float32(self, case: Case, architecture: str) -> None:
        tokens, tasks = token_ids(num_samples=12), sorted(MIXED * 3)
        wide_model = make_model(case, architecture)
        wide = logits(wide_model, tasks, input_ids=tokens).detach()
        model = attach(case, tiny(architecture).to(torch.bfloat16)).eval()
        # The same adapter: one that was calibrated on rounded weights may be another.
        set_peft_model_state_dict(model, get_peft_model_state_dict(wide_model))
        adapters = [parameter for name, parameter in model.named_parameters() if "lorachord_adapter" in name]
        assert {parameter.dtype for parameter in adapters} == {torch.float32}
        narrow = logits(model, tasks, input_ids=tokens)
        assert narrow.dtype == torch.bfloat16
        narrow.float().square().sum().backward()
        assert all(bool(parameter.grad.isfinite().all()) for parameter in adapters)
        # A top-k choice may fall otherwise on rounded input: a few rows or samples may lie far off, but not most.
        error = (narrow.detach().float() - wide).norm(dim=-1) / wide.norm(dim=-1)
        assert float(error.median()) < 0.05, error

    def test_needs_task_ids_only_if_it_says_so(self, case: Case) -> None:
        adapter = make_layer(case).eval()
        x, layer = torch.randn(4, 10, dtype=torch.float64), torch.nn.Linear(10, 7).double()
        if adapter.mixing is TASK:
            with pytest.raises(ValueError, match="on_task"):
                adapter(x, layer, NO_CONTEXT)
        else:
            without = case.context(adapter, NO_CONTEXT)
            assert torch.equal(adapter(x, layer, without), adapter(x, layer, context(case, adapter, MIXED)))
