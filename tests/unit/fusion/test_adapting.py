"""What adapts: objectives, coefficients, realignment; their gradients, their limits and what they refuse."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lorachord as lc
from lorachord.fusion import RMTLLMF, AdaMerging, Collapse, Concrete, FusionMethod, Merged, Ties, merge_vectors
from lorachord.fusion.adamerging import elected
from lorachord.fusion.arithmetic import elect, task_arithmetic, trim, weighted_sum
from lorachord.fusion.disentanglement import alone, disentanglement_error, distance_from, references, single
from lorachord.fusion.factors import dense
from lorachord.fusion.load import load_task_vectors
from lorachord.fusion.predictions import Inputs, Predictions, distance, entropy, predictions, supervised
from lorachord.fusion.task_vectors import held
from lorachord.fusion.updates import StackedCombination, combination
from tests.tiny_models import perturb, tiny, token_ids
from tests.unit.fusion.helpers import average_entropy, data, inputs, near, toy, two

LABELS = torch.tensor([0.0, 1.0, 2.0, 1.0])


def short(name: str, **options: Any) -> FusionMethod:
    """A method in a few steps."""
    made: dict[str, Callable[..., FusionMethod]] = {"adamerging": AdaMerging, "concrete": Concrete, "r": RMTLLMF}
    return made[name](**{"steps": 8, "learning_rate": 0.05, **options})


def test_entropy_is_a_mean_over_examples_and_not_that_of_the_mean():
    probabilities = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]).clamp_min(1e-30)
    found = entropy(Predictions(probabilities.log(), torch.full((3,), 1 / 3)))
    assert float(found) == pytest.approx(torch.tensor(0.5).log().neg().item() / 3, rel=1e-5)


def test_options_that_an_example_has_not_count_for_nothing():
    scores = torch.tensor([0.3, -0.2, 1.0, 0.1, 0.4], requires_grad=True)

    class Scorer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, input_ids: Tensor) -> Any:
            return type("Output", (), {"logits": scores[:, None]})

    batch = Inputs({"input_ids": torch.zeros(5, 1)}, "options", (2, 3))
    found = entropy(predictions(Scorer(), batch))
    expected = sum(-(part.softmax(0) * part.log_softmax(0)).sum() / 2 for part in (scores[:2], scores[2:]))
    assert torch.allclose(found, expected)
    gradients = [torch.autograd.grad(value, scores)[0] for value in (found, expected)]
    assert torch.allclose(*gradients)


def test_a_decoders_options_are_scored_by_their_own_tokens():
    model, batch = tiny("llama"), inputs(kind="tokens")
    mask = batch.answer_mask
    assert mask is not None
    options = Inputs(batch.tensors, "options", (2, 2), 1, mask)
    with torch.no_grad():
        found = predictions(model, options).values
        log = model(**batch.tensors).logits.log_softmax(-1)
    ids = batch.tensors["input_ids"]
    totals = torch.stack([sum(log[row, at - 1, ids[row, at]] for at in (5, 6)) for row in range(4)])
    assert near(found, totals.view(2, 2).log_softmax(-1), 1e-5)


def test_written_answers_weigh_as_many_as_there_are_examples():
    model, batch = tiny("llama"), inputs(kind="tokens")
    mask = torch.zeros(4, 7, dtype=torch.bool)
    mask[0, 1:] = mask[1:, -1] = True
    with torch.no_grad():
        found = predictions(model, Inputs(batch.tensors, "tokens", (1,) * 4, 1, mask))
    assert float(found.weights.sum()) == pytest.approx(1)
    assert found.weights[:6].tolist() == pytest.approx([1 / 24] * 6)
    assert torch.equal(found.targets[-3:], batch.tensors["input_ids"][1:, -1])
    expected = -found.values.gather(1, found.targets[:, None])[:, 0] @ found.weights
    assert torch.allclose(supervised(found, batch), expected)


def test_the_distance_of_predictions_is_kl_and_of_numbers_the_square():
    one, other = (torch.randn(3, 4).log_softmax(-1) for _ in range(2))
    weights = torch.full((3,), 1 / 3)
    found = distance(Predictions(other, weights), Predictions(one, weights), "classes")
    assert torch.allclose(found, F.kl_div(other, one, log_target=True, reduction="batchmean"))
    assert float(distance(Predictions(one, weights), Predictions(one, weights), "classes")) == pytest.approx(
        0, abs=1e-7
    )
    numbers = [Predictions(torch.tensor([[1.0], [2.0], [3.0]]) * scale, weights) for scale in (1, 2)]
    assert float(distance(*numbers, "number")) == pytest.approx((1 + 4 + 9) / 3)


def test_the_coefficients_gradient_is_that_of_dense_weights():
    vectors, x = toy((2, 3, 1)), torch.randn(4, 5, 5, requires_grad=True)
    layer = vectors.layers["linear"]
    out = torch.randn(4, 5, 6)
    results = []
    for found in (layer, None):
        lambdas = nn.Parameter(torch.tensor([0.3, -1.0, 2.0]))
        if found is not None:
            y = combination("linear", found, lambdas)(x, lambda x: out)
        else:
            y = out + x @ sum(lambdas[t] * layer.delta(t) for t in range(3)).t()
        results.append((y, *torch.autograd.grad(y.square().sum(), [lambdas, x])))
    assert all(near(left, right, 1e-5) for left, right in zip(*results, strict=True))


def test_stacked_adaptation_makes_no_dense_weight():
    d_in, d_out = 64, 96
    vectors = toy((2, 2), (d_out, d_in)).layers["linear"]
    adapter = combination("linear", vectors, nn.Parameter(torch.full((2,), 0.3)))
    assert isinstance(adapter, StackedCombination)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        adapter(torch.randn(3, d_in, requires_grad=True), lambda x: x.new_zeros(3, d_out)).sum().backward()
    assert max(sizes) < d_in * d_out


@pytest.mark.parametrize("granularity", ["layer", "task"])
def test_adamerging_lowers_the_entropy(granularity: str, tmp_path: Path):
    vectors = two(tmp_path)
    batches = data(vectors)
    merged = merge_vectors(vectors, short("adamerging", granularity=granularity, steps=15), batches)
    assert average_entropy(merged, batches) < average_entropy(task_arithmetic(vectors, 0.3), batches) - 1e-3
    assert merged.low_rank
    assert set(merged.coefficients) == set(vectors.layers)
    assert (len(set(merged.coefficients.values())) == 1) == (granularity == "task")
    assert all(0 <= value <= 1 for values in merged.coefficients.values() for value in values)


def test_coefficients_are_clamped(tmp_path: Path):
    vectors = two(tmp_path)
    merged = merge_vectors(vectors, short("adamerging", learning_rate=1.0), data(vectors))
    values = {value for own in merged.coefficients.values() for value in own}
    assert min(values) == 0 or max(values) == 1
    assert values <= {value for value in values if 0 <= value <= 1}


@pytest.mark.parametrize("kind", ["tokens", "options"])
def test_decoders_adapt_on_answers_and_options(kind: str, tmp_path: Path):
    vectors = two(tmp_path, "llama")
    batches = data(vectors, "tokens")
    if kind == "options":
        batches = {
            task: [Inputs(one.tensors, "options", (2, 2), 1, one.answer_mask) for one in own]
            for task, own in batches.items()
        }
    merged = merge_vectors(vectors, short("adamerging", steps=15), batches)
    assert average_entropy(merged, batches) < average_entropy(task_arithmetic(vectors, 0.3), batches)


def test_adamerging_plus_plus_starts_from_trimmed_and_elected_vectors(tmp_path: Path):
    vectors = two(tmp_path)
    name = next(iter(vectors.layers))
    used = elected(vectors, 0.2)
    deltas = torch.stack([trim(vectors.delta(name, task), 0.2) for task in range(2)])
    assert all(torch.equal(used.delta(name, task), elect(deltas)[task]) for task in range(2))
    merged = merge_vectors(vectors, short("adamerging", density=0.2), data(vectors))
    weights = torch.tensor(merged.coefficients[name])
    assert near(dense(merged.layers[name]), torch.tensordot(weights, elect(deltas), 1))


def test_whole_models_adapt_in_every_parameter(tmp_path: Path):
    for seed, task in enumerate("ab"):
        model = tiny("bert")
        perturb(model, 0.1, seed)
        model.save_pretrained(tmp_path / task)
    vectors = load_task_vectors(tiny("bert"), {task: tmp_path / task for task in "ab"})
    batches = data(vectors)
    merged = merge_vectors(vectors, short("adamerging", steps=15), batches)
    assert average_entropy(merged, batches) < average_entropy(task_arithmetic(vectors, 0.3), batches)
    reached = {name for name, values in merged.coefficients.items() if values != pytest.approx((0.3, 0.3))}
    assert reached >= {name for name in vectors.others if "LayerNorm" in name}


def test_realignment_lowers_the_loss_on_the_labelled_examples(tmp_path: Path):
    vectors = two(tmp_path)
    batches = data(vectors, answers=LABELS)

    def loss(merged: Merged) -> float:
        total = 0.0
        for task, own in batches.items():
            with merged.model() as model, lc.on_task(model, task):
                total += sum(float(supervised(predictions(model, batch), batch)) for batch in own)
        return total

    merged = merge_vectors(vectors, short("r", steps=30), batches)
    assert loss(merged) < loss(task_arithmetic(vectors, 0.3)) - 1e-3


def test_realignment_takes_numbers_and_leaves_protected_layers_alone(tmp_path: Path):
    vectors = two(tmp_path)
    merged = merge_vectors(vectors, short("r", protect=("layer.0",)), data(vectors, "number", answers=LABELS))
    assert merged.layers.keys() == {name for name in vectors.layers if ".layer.0." not in name}


def test_the_distance_of_a_single_task_is_zero_only_for_its_own_update(tmp_path: Path):
    vectors = two(tmp_path)
    batches = data(vectors)
    against = references(vectors, batches)
    found = distance_from(single(vectors, 0), batches, against)
    assert found["a"] == pytest.approx(0, abs=1e-6)
    assert found["b"] > 1e-3


def test_a_task_alone_is_weakened_but_not_disturbed(tmp_path: Path):
    # The other task's vector is zero, so that nothing interferes, whatever lambda is.
    vectors = two(tmp_path)
    layers = {name: held(torch.stack([layer.delta(0), 0 * layer.delta(0)])) for name, layer in vectors.layers.items()}
    vectors = replace(vectors, layers=layers)
    batches = data(vectors)
    against = references(vectors, batches)
    weak, strong = (task_arithmetic(vectors, scale) for scale in (0.1, 1.0))
    for merged in (weak, strong):
        assert disentanglement_error(merged, batches)["a"] == pytest.approx(0, abs=1e-6)
    assert distance_from(weak, batches, against)["a"] > 1e-3
    assert distance_from(strong, batches, against)["a"] == pytest.approx(0, abs=1e-6)
    assert disentanglement_error(strong, batches)["b"] > 1e-3


def test_the_disentanglement_error_is_that_of_the_paper(tmp_path: Path):
    vectors = two(tmp_path)
    batches = data(vectors)
    weights = [0.9, 0.4]
    merged = weighted_sum(vectors, weights)
    found = disentanglement_error(merged, batches)
    for index, task in enumerate(vectors.tasks):
        terms = []
        own = weighted_sum(vectors, [weight if task == index else 0.0 for task, weight in enumerate(weights)])
        for batch in batches[task]:
            logs = []
            for each in (own, merged):
                with each.model() as model, lc.on_task(model, task):
                    logs.append(predictions(model, batch).values)
            terms.append(float(F.kl_div(logs[1], logs[0], log_target=True, reduction="batchmean")))
        assert found[task] == pytest.approx(sum(terms) / len(terms), rel=1e-4)
        assert found[task] > 1e-4


@pytest.mark.parametrize(
    ("name", "options"),
    [("adamerging", {}), ("adamerging", {"density": 0.3}), ("concrete", {}), ("r", {"protect": ("layer.0",)})],
)
def test_what_the_tasks_contribute_alone_is_the_whole_update(name: str, options: dict[str, Any], tmp_path: Path):
    vectors = two(tmp_path)
    batches = data(vectors, answers=LABELS if name == "r" else None)
    merged = merge_vectors(vectors, short(name, **options), batches)
    parts = [alone(merged, task) for task in range(2)]
    assert parts[0].layers.keys() == merged.layers.keys()
    for layer, update in merged.layers.items():
        assert near(dense(parts[0].layers[layer]) + dense(parts[1].layers[layer]), dense(update), 1e-5)


def test_what_is_no_weighted_sum_has_no_disentanglement_error(tmp_path: Path):
    vectors = two(tmp_path)
    assert disentanglement_error(merge_vectors(vectors, Ties()), data(vectors)) is None


def test_methods_do_not_change_their_vectors_or_each_other(tmp_path: Path):
    vectors = two(tmp_path)
    before = {name: layer.delta(0).clone() for name, layer in vectors.layers.items()}
    first = merge_vectors(vectors, short("adamerging"), data(vectors))
    merge_vectors(vectors, short("concrete"), data(vectors))
    again = merge_vectors(vectors, short("adamerging"), data(vectors))
    assert first.coefficients == again.coefficients
    assert all(torch.equal(before[name], layer.delta(0)) for name, layer in vectors.layers.items())
    assert not any(hasattr(module, "lorachord_adapter") for module in vectors.base.modules())


@pytest.mark.parametrize("method", [AdaMerging(), Concrete(), RMTLLMF(), Collapse()], ids=lambda method: method.name)
def test_missing_data_are_refused(method: FusionMethod, tmp_path: Path):
    vectors = two(tmp_path)
    with pytest.raises(ValueError, match=r"needs data.*of every task.*'a'"):
        merge_vectors(vectors, method)
    with pytest.raises(ValueError, match="there are none of 'b'"):
        merge_vectors(vectors, method, {"a": data(vectors, answers=LABELS if method.needs == "labels" else None)["a"]})


@pytest.mark.parametrize("method", [AdaMerging(), Concrete()], ids=lambda method: method.name)
def test_a_regression_has_no_entropy(method: FusionMethod, tmp_path: Path):
    vectors = two(tmp_path)
    with pytest.raises(ValueError, match="'a' is a regression, and a number has no entropy"):
        merge_vectors(vectors, method, data(vectors, "number"))


@pytest.mark.parametrize("method", [AdaMerging(), Concrete(), Collapse()], ids=lambda method: method.name)
def test_labels_are_refused_where_they_must_not_be_seen(method: FusionMethod, tmp_path: Path):
    vectors = two(tmp_path)
    with pytest.raises(ValueError, match="adapts without labels"):
        merge_vectors(vectors, method, data(vectors, answers=LABELS))


def test_realignment_refuses_examples_without_labels(tmp_path: Path):
    vectors = two(tmp_path)
    with pytest.raises(ValueError, match="realigns on labelled examples"):
        merge_vectors(vectors, RMTLLMF(), data(vectors))


@pytest.mark.parametrize("options", [{"density": 0.0}, {"steps": 0}, {"start": 2.0}, {"granularity": "tensor"}])
def test_options_out_of_range_are_refused(options: dict[str, Any]):
    with pytest.raises(ValueError, match=f"{next(iter(options))} = .*must be"):
        AdaMerging(**options)


def test_fuse_makes_a_plain_lora(tmp_path: Path):
    vectors = two(tmp_path)
    fused = lc.fuse(vectors, Ties(), rank=3)
    out = lc.export_lora(fused, tmp_path / "out", task="a")
    assert {path.name for path in out.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    with lc.on_task(fused, "a"), torch.no_grad():
        expected = fused(input_ids=token_ids()).logits
    assert near(lc.merge(fused, task="a")(input_ids=token_ids()).logits.detach(), expected, 1e-5)
