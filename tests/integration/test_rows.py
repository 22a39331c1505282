"""Whose row is it: images of different sizes and numbers, packed rows, beams; else the layer refuses by its name."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    LongformerConfig,
    LongformerForSequenceClassification,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    XLNetConfig,
    XLNetForSequenceClassification,
)

import lorachord as lc
from lorachord.surgery.task_grads import OnePass
from tests.integration.helpers import gradients
from tests.tiny_models import perturb, tiny, token_ids

TASKS = ["a", "b", "c"]
MIXED = ["b", "a", "c"]
OPTIONS: dict[str, dict[str, Any]] = {
    "mtl_lora": {"r": 2, "num_ups": 2, "tasks": TASKS},
    "mixlora": {"r": 2, "num_experts": 3, "tasks": TASKS},
    "mor1e": {"r1": 2, "r2": 3, "tasks": TASKS},
    "hydralora": {"r": 2, "num_experts": 2, "tasks": TASKS},
}
methods = pytest.mark.parametrize("method", list(OPTIONS))
IMAGE, START, END = 30, 28, 29
TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def qwen() -> PreTrainedModel:
    torch.manual_seed(0)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    config = Qwen2VLConfig(
        text_config={**TEXT, **SPECIAL, "num_key_value_heads": 2, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=31,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return Qwen2VLForConditionalGeneration(config).double().eval()


def smol() -> PreTrainedModel:
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SmolVLMConfig(
        text_config={**TEXT, **SPECIAL, "num_key_value_heads": 2, "model_type": "llama"},
        vision_config={**vision, "image_size": 16, "patch_size": 4},
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    return SmolVLMForConditionalGeneration(config).double().eval()


def texts(num_image_tokens: list[int]) -> dict[str, Tensor]:
    """A text around each sample's images, padded on the right."""
    generator, rows = torch.Generator().manual_seed(3), []
    for count in num_image_tokens:
        words = torch.randint(3, 20, (3,), generator=generator).tolist()
        rows.append([words[0], START, *[IMAGE] * count, END, *words[1:]])
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


Batch = tuple[dict[str, Tensor], Callable[[int], dict[str, Tensor]]]


def patches(sizes: list[int]) -> Batch:
    """Samples with one image each, of so many patches; the whole batch, and each sample alone."""
    pixels = torch.randn(sum(sizes), 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(5)).double()
    grid = torch.tensor([[1, 4, size // 4] for size in sizes if size])
    inputs = texts([size // 4 for size in sizes])
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()

    def alone(index: int) -> dict[str, Tensor]:
        length, start = int(inputs["attention_mask"][index].sum()), sum(sizes[:index])
        one = {name: value[index : index + 1, :length] for name, value in inputs.items()}
        if not sizes[index]:
            return one
        place = sum(map(bool, sizes[:index]))
        own = pixels[start : start + sizes[index]]
        return {**one, "pixel_values": own, "image_grid_thw": grid[place : place + 1]}

    return {**inputs, "pixel_values": pixels, "image_grid_thw": grid}, alone


def images(counts: list[int]) -> Batch:
    """Samples with so many images; the whole batch, and each sample alone."""
    pixels = torch.zeros(len(counts), max(counts), 3, 16, 16).double()
    generator = torch.Generator().manual_seed(5)
    for row, count in zip(pixels, counts, strict=True):
        row[:count] = torch.randn(count, 3, 16, 16, generator=generator)
    mask = torch.ones(len(counts), max(counts), 16, 16, dtype=torch.bool)
    inputs = texts([4 * count for count in counts])

    def alone(index: int) -> dict[str, Tensor]:
        length, count = int(inputs["attention_mask"][index].sum()), counts[index]
        one = {name: value[index : index + 1, :length] for name, value in inputs.items()}
        if not count:
            return one
        own = {"pixel_values": pixels, "pixel_attention_mask": mask}
        return {**one, **{name: value[index : index + 1, :count] for name, value in own.items()}}

    return {**inputs, "pixel_values": pixels, "pixel_attention_mask": mask}, alone


RAGGED = [
    *[pytest.param(qwen, patches, sizes, id=f"qwen-{sizes}") for sizes in ([16, 32, 48], [16, 32, 16], [32, 0, 16])],
    *[pytest.param(smol, images, counts, id=f"smol-{counts}") for counts in ([1, 2, 3], [1, 2, 1], [2, 0, 1])],
]
ragged = pytest.mark.parametrize(("make", "batch_of", "sizes"), RAGGED)


def adapted(base: nn.Module, method: str, **settings: Any) -> PeftModel:
    model = lc.attach(base, method, **{**OPTIONS[method], **settings})
    if method == "mor1e":
        centroids = torch.randn(24, 16, generator=torch.Generator().manual_seed(7))
        lc.fit_intuition(model, centroids)
    perturb(model, 0.3)
    # Embeddings are of the whole model's dtype.
    return model.double().eval()


def given(method: str, indices: list[int]) -> dict[str, Tensor]:
    """The embeddings of the prompts, for a method that looks at them."""
    embedding = torch.randn(3, 16, generator=torch.Generator().manual_seed(9)).double()
    return {"embedding": embedding[indices]} if method == "mor1e" else {}


def loss_of(logits: Tensor, mask: Tensor) -> Tensor:
    return (logits.tanh().sum(-1) * mask).sum()


# Images


@methods
@ragged
def test_samples_with_different_images_equal_each_alone(method, make, batch_of, sizes):
    model = adapted(make(), method)
    batch, alone = batch_of(sizes)
    with lc.on_task(model, MIXED, **given(method, [0, 1, 2])):
        mixed = model(**batch).logits
    loss_of(mixed, batch["attention_mask"]).backward()
    together = gradients(model)
    model.zero_grad()
    for index, task in enumerate(MIXED):
        one = alone(index)
        with lc.on_task(model, task, **given(method, [index])):
            single = model(**one).logits
        loss_of(single, one["attention_mask"]).backward()
        torch.testing.assert_close(mixed[index : index + 1, : single.shape[1]], single, rtol=0, atol=1e-5)
    one_by_one = gradients(model)
    assert any("visi" in name or "visual" in name for name in together)
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, one_by_one.get(name, torch.zeros_like(gradient)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["mtl_lora", "mixlora", "hydralora"])
@ragged
def test_a_surgeon_has_the_gradients_of_each_sample_with_its_images(method, make, batch_of, sizes):
    model = adapted(make(), method).train()
    batch, alone = batch_of(sizes)
    # Two halves of each task's samples: of b the first two samples, of a the last.
    collector, tasks, places = OnePass(model, len(TASKS), halves=True), ["b", "b", "a"], [2, 3, 0]
    with lc.on_task(model, tasks):
        loss_of(model(**batch).logits, batch["attention_mask"]).backward()
    found = collector.collect()
    for index, (task, place) in enumerate(zip(tasks, places, strict=True)):
        one = alone(index)
        with lc.on_task(model, task):
            loss_of(model(**one).logits, one["attention_mask"]).backward()
        # A sample alone is the first half of its task.
        expected = collector.collect()
        for key, value in found.items():
            torch.testing.assert_close(value[place], expected[key][2 * (place // 2)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beams", [{}, {"num_beams": 3, "num_return_sequences": 2}])
@pytest.mark.parametrize("method", ["mtl_lora", "mixlora", "hydralora"])
def test_generation_from_different_images_equals_each_alone(method, beams):
    model = adapted(smol(), method)
    batch, _ = images([1, 2, 3])
    batch, alone = {name: value.flip(1) if value.dim() == 2 else value for name, value in batch.items()}, []
    for index in range(3):
        alone.append({name: value[index : index + 1] for name, value in batch.items()})
    how = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, **beams}
    with lc.on_task(model, MIXED):
        mixed = model.generate(**batch, **how)
    times = beams.get("num_return_sequences", 1)
    for index, task in enumerate(MIXED):
        with lc.on_task(model, task):
            single = model.generate(**alone[index], **how)
        assert torch.equal(mixed[index * times : (index + 1) * times], single)


def test_images_that_nobody_can_place_are_refused_by_name():
    model = adapted(qwen(), "mtl_lora")
    batch, _ = patches([16, 32, 48])
    batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids"))
    for training in (True, False):
        model.train(training)
        with (
            pytest.raises(ValueError, match=r"visual\.\S+ got 96 rows for 3 samples.*exclude_modules"),
            lc.on_task(model, MIXED),
        ):
            model(**batch)


def test_one_task_for_all_needs_no_map():
    model = adapted(smol(), "mtl_lora")
    batch, _ = images([1, 2, 3])
    with lc.on_task(model, "a"):
        one = model(**batch).logits
    with lc.on_task(model, ["a"] * 3):
        torch.testing.assert_close(model(**batch).logits, one)


# Packed rows


PACKED = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0, 0, 0], [0, 0, 0, 0, 0, 0, 2, 2, 2, 2]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]])
PIECES = [(0, 0, 4), (0, 4, 7), (0, 7, 10), (1, 0, 6), (1, 6, 10)]


def packed(model: nn.Module, ids: Tensor) -> Tensor:
    # Without a mask, transformers finds the texts by their positions.
    return model(input_ids=ids, position_ids=POSITIONS, use_cache=False).logits


@pytest.mark.parametrize("surgery", [False, True])
@pytest.mark.parametrize("method", ["mtl_lora", "hydralora"])
def test_texts_packed_in_a_row_equal_each_alone(method, surgery):
    model = adapted(tiny("llama").double(), method).train()
    ids = token_ids(num_samples=2, length=10)
    collector = OnePass(model, len(TASKS)) if surgery else None

    def taken() -> dict[Any, Tensor]:
        found = gradients(model) if collector is None else collector.collect()
        model.zero_grad()
        return found

    with lc.on_task(model, PACKED):
        together = packed(model, ids)
    together.tanh().sum().backward()
    found, expected = taken(), {}
    for row, start, stop in PIECES:
        with lc.on_task(model, int(PACKED[row, start])):
            single = model(input_ids=ids[row : row + 1, start:stop]).logits
        torch.testing.assert_close(together[row, start:stop], single[0], rtol=0, atol=1e-5)
        single.tanh().sum().backward()
        for key, value in taken().items():
            expected[key] = expected[key] + value if key in expected else value
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5)


def test_ids_of_tokens_that_are_alike_in_each_sample_are_those_of_the_samples():
    model = adapted(tiny("llama"), "mtl_lora")
    ids = token_ids(num_samples=3)
    with lc.on_task(model, MIXED):
        expected = model(input_ids=ids.clone()).logits
    with lc.on_task(model, torch.tensor([[1], [0], [2]]).expand(-1, 7)):
        assert torch.equal(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize("shape", [(2, 9), (1, 10), (3, 10)])
def test_ids_of_other_tokens_than_the_batch_has_are_refused(shape):
    model = adapted(tiny("llama"), "mtl_lora")
    tasks = torch.arange(shape[0] * shape[1]).view(shape) % 3
    for training in (True, False):
        model.train(training)
        with pytest.raises(ValueError, match="but the batch has 2"), lc.on_task(model, tasks):
            model(input_ids=token_ids(num_samples=2, length=10))


def test_a_layer_that_sees_no_tokens_refuses_their_ids():
    model = adapted(tiny("bert"), "mtl_lora")
    with pytest.raises(ValueError, match=r"pooler\.dense got 2 rows for 2 samples"), lc.on_task(model, PACKED):
        model(input_ids=token_ids(num_samples=2, length=10))


@pytest.mark.parametrize("method", ["mixlora", "mor1e"])
def test_packed_rows_are_refused_by_methods_that_choose_by_prompt(method):
    model = adapted(tiny("llama").double(), method)
    ids = token_ids(num_samples=2, length=10)
    embedding = given(method, [0, 1])
    with pytest.raises(ValueError, match=r"once for each prompt.*packing"), lc.on_task(model, "a", **embedding):
        packed(model, ids)
    with pytest.raises(ValueError, match=r"once for each prompt.*packing"), lc.on_task(model, PACKED, **embedding):
        model(input_ids=ids)
    # Padding on the left has the same position throughout, and is no text of its own.
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    with lc.on_task(model, "a", **embedding):
        model(input_ids=ids, attention_mask=mask, position_ids=positions)


# Counts


@methods
def test_a_wrong_number_of_tasks_is_refused_everywhere(method):
    model = adapted(tiny("llama").double(), method)
    ids = token_ids(num_samples=2)
    embedding = given(method, [0, 1])
    for training in (True, False):
        model.train(training)
        with (
            pytest.raises(ValueError, match="3 samples have a task, but the batch has 2"),
            lc.on_task(model, MIXED, **embedding),
        ):
            model(input_ids=ids)
    how = {"max_new_tokens": 2, "do_sample": False}
    for prompts in (ids, token_ids(num_samples=6)):
        with (
            pytest.raises(ValueError, match=f"3 samples have a task, but the batch has {len(prompts)}"),
            lc.on_task(model, MIXED),
        ):
            model.generate(input_ids=prompts, **how)
    # What was refused leaves nothing behind.
    with pytest.raises(ValueError, match="2 samples have a task, but the batch has 4"), lc.on_task(model, ["a", "b"]):
        model(input_ids=token_ids(num_samples=4))


def test_a_copied_or_unloaded_model_generates_for_itself():
    model = adapted(tiny("llama"), "mtl_lora")
    twin = copy.deepcopy(model)
    ids, how = token_ids(num_samples=3), {"max_new_tokens": 3, "num_beams": 2, "do_sample": False}
    with lc.on_task(model, MIXED):
        expected = model.generate(input_ids=ids, **how)
    with lc.on_task(twin, MIXED):
        assert torch.equal(twin.generate(input_ids=ids, **how), expected)
    assert "generate" not in vars(model.unload())


class Transposing(nn.Module):
    """A model that turns its samples away from the first axis, as XLNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 4)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.project(x_BLD.transpose(0, 1)).transpose(0, 1)


def test_rows_in_another_order_are_refused_by_name():
    model = adapted(Transposing(), "mtl_lora", target_modules=["project"])
    with pytest.raises(ValueError, match=r"project got 15 rows for 3 samples"), lc.on_task(model, MIXED):
        model(torch.randn(3, 5, 6).double())


def _tokens_first(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "xlnet":
        return XLNetForSequenceClassification(
            XLNetConfig(vocab_size=40, d_model=16, n_layer=2, n_head=2, d_inner=24, pad_token_id=0)
        ).eval()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LongformerConfig(vocab_size=40, attention_window=[4, 4], max_position_embeddings=20, **sizes)
    return LongformerForSequenceClassification(config).eval()


@pytest.mark.filterwarnings("ignore:all-linear misses")
@pytest.mark.parametrize("kind", ["xlnet", "longformer"])
@pytest.mark.parametrize("method", ["mtl_lora", "mixlora"])
def test_as_many_samples_as_tokens_are_refused_where_tokens_lie_first(kind: str, method: str) -> None:
    model = lc.attach(_tokens_first(kind), method, **OPTIONS[method])
    perturb(model, 0.3)
    ids = torch.randint(5, 40, (4, 4), generator=torch.Generator().manual_seed(1))
    with lc.on_task(model, ["a", "b", "a", "c"]), pytest.raises(ValueError, match=r"got \d+ rows for 4 samples"):
        model(input_ids=ids)
    # One sample is whose all rows are.
    with lc.on_task(model, ["a"]), torch.no_grad():
        assert model(input_ids=ids[:1]).logits.isfinite().all()
