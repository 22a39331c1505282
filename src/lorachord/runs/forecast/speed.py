"""The time of a run, from a few steps of it, or from the model's shape where it does not fit.

Shapes: B rows of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lorachord.core.registry import all_methods
from lorachord.data.mixture import MixedDataset
from lorachord.families.by_prompt import PromptLevel
from lorachord.families.calibrated import Calibrated
from lorachord.runs.arguments import autocast, mixture_of, ranks
from lorachord.runs.forecast.parameters import options_of, rank_of
from lorachord.runs.model import load_plain, new_adapter
from lorachord.runs.recipe import Recipe
from lorachord.runs.tasksets import TaskSet
from lorachord.surgery.surgeon import Surgeon
from lorachord.training.model_kind import Example, ModelKind, to_device
from lorachord.training.scoring import predict
from lorachord.tuner import penalties

STEPS = 3
"""Steps that are timed, after one that is not."""
CANDIDATES = 256
"""Rows of each task among which the longest are looked for."""
SCORED, WRITTEN = 32, 4
"""Rows of each task that are predicted to time it: where the model chooses, and where it writes."""
EFFICIENCY = 0.5
"""Of a model, as a share of the speed of one large product of matrices."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """
    Attributes:
        step_seconds: of one optimizer step.
        scoring_seconds: of val and dev once; None where nothing was predicted.
        timed_steps: that were timed; 0 where the time is computed from the model's shape.
        timed_rows: in each of them; fewer than a batch has are multiplied up.
        activations: bytes that a batch of the longest rows keeps for its backward pass; None where nothing was timed.
        stand_in: the method that was timed in place of one that is fitted to its data first; else empty.
        device: that was timed.
    """

    step_seconds: float
    scoring_seconds: float | None
    timed_steps: int
    timed_rows: int
    activations: int | None
    stand_in: str
    device: str


def timed_speed(recipe: Recipe, data: TaskSet, *, seconds: float = 10.0) -> Speed:
    """Time a few steps of a recipe on its own rows. Nothing is saved, and the model is given up afterwards.

    A step has forward, backward, surgery and AdamW. A balance is left out: it costs next to nothing, but for FAMO's
    second forward pass.

    Args:
        data: of the tasks that are trained together.
        seconds: to spend on steps, and again on predictions, about; the batch is cut to that.
    """
    stand_in = "" if _begins_without_data(recipe) else "lora"
    if stand_in:
        recipe = replace(recipe, method={"name": stand_in, **rank_of(recipe, stand_in)})
    base, kind = load_plain(recipe, data.tasks, moments=data.moments)
    model = new_adapter(recipe, base, data.tasks).to(ranks().device)
    surgeon = None
    if recipe.surgery is not None and len(data.tasks) > 1:
        surgeon = Surgeon(model, num_tasks=len(data.tasks), **recipe.surgery)
    step = _Step(recipe, model, kind, data.variances, surgeon)
    batches, whole = _batches(recipe, data), recipe.training.batch_size // recipe.training.accumulation
    first = next(batches)
    # The first pass of all pays for what is set up once.
    step(first[:2])
    once = _seconds(lambda: step(first[:2]))
    rows = max(1, min(whole, int(seconds / (STEPS + 2) / once * len(first[:2]))))
    longest = _longest(data, kind, rows)
    with _kept(model) as kept:
        step(longest)
    spent = [_seconds(lambda: step(batch[:rows])) for batch in islice(batches, STEPS)]  # noqa: B023
    scoring = _scoring(recipe, data, model, kind, seconds)
    return Speed(
        step_seconds=sorted(spent)[len(spent) // 2] * whole / rows * recipe.training.accumulation,
        scoring_seconds=scoring,
        timed_steps=len(spent),
        timed_rows=rows,
        activations=round(kept[0] * whole / len(longest)),
        stand_in=stand_in,
        device=ranks().device.type,
    )


def speed_by_shape(recipe: Recipe, base: nn.Module, *, tokens: float) -> Speed:
    """The time of a step from the sizes of the model and the speed of one product of matrices on this device.

    A frozen weight costs two operations a token forward, two backward, and two more where activations are recomputed.

    Args:
        base: plain; it may be on the meta device.
        tokens: of an ordinary row.
    """
    table = base.get_input_embeddings().weight.numel()  # type: ignore[operator]
    weights = sum(parameter.numel() for parameter in base.parameters()) - table
    if recipe.model.kind == "decoder":
        # The output layer, which may be the same table.
        weights += table if getattr(base.config, "tie_word_embeddings", False) else 0
    passes = 6 if recipe.training.gradient_checkpointing else 4
    operations = passes * weights * tokens * recipe.training.batch_size
    return Speed(
        step_seconds=operations / (EFFICIENCY * _operations_per_second(recipe)),
        scoring_seconds=None,
        timed_steps=0,
        timed_rows=0,
        activations=None,
        stand_in="",
        device=ranks().device.type,
    )


def _begins_without_data(recipe: Recipe) -> bool:
    method = all_methods().get(recipe.method["name"])
    if method is None:
        return True
    config = method.Config.from_dict(options_of(recipe))
    if issubclass(method, Calibrated):
        return not method.needs_calibration(config)
    return not (issubclass(method, PromptLevel) and method.embeds)


class _Step:
    """One step of training, on some examples."""

    def __init__(
        self, recipe: Recipe, model: nn.Module, kind: ModelKind, variances: Mapping[int, float], surgeon: Surgeon | None
    ) -> None:
        self.recipe, self.model, self.kind = recipe, model.train(), kind
        self.variances, self.surgeon = variances, surgeon
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # So small that nothing is learned, and its weights stay finite.
        self.optimizer = torch.optim.AdamW(trained, lr=1e-9)

    def __call__(self, examples: Sequence[Example]) -> None:
        made = self.kind.collate(examples)
        tensors = {name: value for name, value in made.items() if isinstance(value, Tensor)}
        batch = {**made, **to_device(tensors, self.model)}
        with autocast(self.recipe):
            losses = self.kind.losses(self.kind.forward(self.model, batch).logits, batch, self.variances)
        total = torch.stack(list(losses.values())).sum() + sum(penalties(self.model).values())
        total.backward()
        if self.surgeon is not None:
            self.surgeon.operate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if batch["tasks"].is_cuda:
            torch.cuda.synchronize()


def _batches(recipe: Recipe, data: TaskSet) -> Iterator[list[Example]]:
    rows, mixture, epoch = MixedDataset([part.train for part in data.data]), mixture_of(recipe, data.sizes), 0
    while True:
        mixture.set_epoch(epoch)
        for batch in mixture:
            yield [rows[place] for place in batch]
        epoch += 1


def _longest(data: TaskSet, kind: ModelKind, number: int) -> list[Example]:
    """The longest of the first rows of all tasks, sorted by task."""
    rows: list[Example] = [
        {**part.train[row], "task": index}
        for index, part in enumerate(data.data)
        for row in range(min(CANDIDATES, len(part.train)))
    ]
    chosen = sorted(rows, key=kind.length, reverse=True)[:number]
    return sorted(chosen, key=lambda example: example["task"])


@contextmanager
def _kept(model: nn.Module) -> Iterator[list[int]]:
    """The bytes of all tensors that autograd keeps in the block, but for the model's own."""
    found, seen = [0], {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in seen:
            seen.add(place)
            found[0] += tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def _scoring(recipe: Recipe, data: TaskSet, model: nn.Module, kind: ModelKind, seconds: float) -> float:
    """The seconds of val and dev, from a few rows of each task, until the time is up."""
    part, spent, seen, total = recipe.evaluation, 0.0, 0, 0.0
    for index, own in enumerate(data.data):
        sizes = [min(len(rows), part.max_rows or len(rows)) for rows in (own.val, own.dev)]
        number = min(WRITTEN if kind.writes(own.task) else SCORED, len(own.dev), part.batch_size)
        if spent < seconds:
            rows = [own.dev[row] for row in range(number)]
            with autocast(recipe):
                took = _seconds(
                    lambda: predict(model, kind, rows, index, max_new_tokens=part.max_new_tokens)  # noqa: B023
                )
            spent, seen = spent + took, seen + number
            total += took / number * sum(sizes)
        else:
            total += spent / seen * sum(sizes)
    return total


def _operations_per_second(recipe: Recipe) -> float:
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = dtypes.get(recipe.training.precision, getattr(torch, recipe.model.dtype))
    device = ranks().device
    size = 4096 if device.type == "cuda" else 1024
    one = torch.ones(size, size, dtype=dtype, device=device)

    def product() -> None:
        value = (one @ one)[0, 0]
        if value.is_cuda:
            torch.cuda.synchronize()

    product()
    return 2 * size**3 / min(_seconds(product) for _ in range(3))


def _seconds(action: Any) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
