"""Which task a sample has: in mixed batches, in generation, and over the extent of `on_task`."""

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

import lorachord as lc
from tests.integration.helpers import METHODS, NO_DROPOUT, adapted, close, differ, gradients, logits, task_logits
from tests.tiny_models import perturb, tiny, token_ids

TASKS = ["a", "b", "c"]
# Unsorted, with a task on both sides of another: runs of equal tasks are not the tasks.
MIXED = ["b", "a", "c", "b", "b"]
IDS = token_ids(num_samples=5)


def three_tasks(architecture: str, scale: float = 0.3, **settings: object) -> PeftModel:
    model = lc.attach(tiny(architecture, **NO_DROPOUT[architecture]), "mtl_lora", tasks=TASKS, r=2, **settings)
    perturb(model, scale)
    return model.eval()


@pytest.mark.parametrize("transform", ["full", "diagonal"])
@pytest.mark.parametrize("training", [False, True])
def test_a_mixed_batch_equals_its_samples_one_by_one(architecture, training, transform):
    model = three_tasks(architecture, transform=transform).train(training)
    mixed = task_logits(model, MIXED, input_ids=IDS)
    for index, task in enumerate(MIXED):
        single = task_logits(model, task, input_ids=IDS[index : index + 1])
        assert close(mixed[index : index + 1], single)
    assert differ(mixed, task_logits(model, "a", input_ids=IDS))


def test_the_gradient_of_a_mixed_batch_is_the_sum_over_its_tasks(architecture):
    model = three_tasks(architecture).train()
    with lc.on_task(model, MIXED):
        model(input_ids=IDS).logits.square().sum().backward()
    mixed = gradients(model)
    model.zero_grad()
    for index, task in enumerate(MIXED):
        with lc.on_task(model, task):
            model(input_ids=IDS[index : index + 1]).logits.square().sum().backward()
    one_by_one = gradients(model)
    assert mixed.keys() == one_by_one.keys()
    for name, gradient in mixed.items():
        assert torch.allclose(gradient, one_by_one[name], rtol=1e-3, atol=1e-3), name


def test_a_task_leaves_the_parameters_of_the_others_without_gradient(architecture):
    model = three_tasks(architecture).train()
    with lc.on_task(model, ["a", "c", "c", "a", "a"]):
        model(input_ids=IDS).logits.square().sum().backward()
    stacked = {name: grad for name, grad in gradients(model).items() if name.endswith((".transform", ".mixture"))}
    assert stacked
    for gradient in stacked.values():
        assert gradient[0].any()
        assert not gradient[1].any()
        assert gradient[2].any()


def test_a_padded_batch_equals_its_samples_alone():
    model = three_tasks("bert")
    mask = torch.ones_like(IDS)
    for index, padding in enumerate((0, 2, 3, 0, 1)):
        mask[index, IDS.shape[1] - padding :] = 0
    mixed = task_logits(model, MIXED, input_ids=IDS, attention_mask=mask)
    for index, task in enumerate(MIXED):
        single = task_logits(model, task, input_ids=IDS[index : index + 1, : int(mask[index].sum())])
        assert close(mixed[index : index + 1], single)


class Flattening(nn.Module):
    """A layer that merges samples and tokens into rows, as routers of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 4)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.project(x_BLD.flatten(0, 1)).view(*x_BLD.shape[:2], 4)


def test_a_layer_that_flattens_the_tokens_knows_the_samples():
    model = lc.attach(Flattening(), "mtl_lora", tasks=TASKS, target_modules=["project"], r=2)
    perturb(model, 0.3)
    x_BLD = torch.randn(5, 3, 6)
    with lc.on_task(model, MIXED):
        mixed = model(x_BLD)
    for index, task in enumerate(MIXED):
        with lc.on_task(model, task):
            assert close(mixed[index : index + 1], model(x_BLD[index : index + 1]))


# Generation


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("beams", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_generation_under_mixed_tasks_equals_that_of_each_sample(architecture, beams):
    # In float64, so that no near tie is settled by the batch size.
    model = lc.attach(tiny(architecture).double(), "mtl_lora", tasks=TASKS, r=2)
    perturb(model, 0.5)
    # The same prompt for all, so that the task alone can make the texts differ.
    prompt = token_ids(num_samples=1, length=4).expand(len(MIXED), -1)
    settings = dict(beams, do_sample=False, min_new_tokens=6, max_new_tokens=6)
    with lc.on_task(model, MIXED):
        mixed = model.generate(input_ids=prompt, **settings)
    num_texts = beams.get("num_return_sequences", 1)
    assert len(mixed) == num_texts * len(MIXED)
    texts = {}
    for index, task in enumerate(MIXED):
        with lc.on_task(model, task):
            texts[task] = model.generate(input_ids=prompt[:1], **settings)
        assert torch.equal(mixed[num_texts * index : num_texts * (index + 1)], texts[task])
    for task, other in (("a", "b"), ("b", "c"), ("a", "c")):
        assert not torch.equal(texts[task], texts[other])


def test_cached_decoding_equals_one_pass_over_the_whole_text():
    model = three_tasks("llama")
    with lc.on_task(model, MIXED), torch.no_grad():
        whole = model(input_ids=IDS).logits
        prefill = model(input_ids=IDS[:, :4], use_cache=True)
        steps, cache = [prefill.logits], prefill.past_key_values
        for position in range(4, IDS.shape[1]):
            step = model(input_ids=IDS[:, position : position + 1], past_key_values=cache, use_cache=True)
            steps, cache = [*steps, step.logits], step.past_key_values
    assert close(torch.cat(steps, dim=1), whole)


# How tasks are named, and for how long


def test_every_way_to_name_the_tasks_of_a_batch_means_the_same(architecture):
    model = three_tasks(architecture)
    by_names = task_logits(model, MIXED, input_ids=IDS)
    indices = [TASKS.index(task) for task in MIXED]
    for tasks in (tuple(MIXED), indices, torch.tensor(indices), torch.tensor(indices, dtype=torch.int32)):
        assert torch.equal(task_logits(model, tasks, input_ids=IDS), by_names)


def test_every_way_to_name_one_task_for_all_means_the_same(architecture):
    model = three_tasks(architecture)
    by_name = task_logits(model, "c", input_ids=IDS)
    for tasks in (2, ["c"], ["c"] * 5, [2], torch.tensor(2), torch.tensor([2]), torch.tensor([2] * 5)):
        assert torch.equal(task_logits(model, tasks, input_ids=IDS), by_name)
    assert differ(by_name, task_logits(model, "a", input_ids=IDS))


def test_the_inner_of_two_blocks_counts_and_the_outer_one_comes_back():
    model = three_tasks("llama")
    expected = {task: task_logits(model, task) for task in TASKS}
    with lc.on_task(model, "a"):
        with lc.on_task(model, "b"):
            assert torch.equal(logits(model), expected["b"])
            with lc.on_task(model, "c"):
                assert torch.equal(logits(model), expected["c"])
            assert torch.equal(logits(model), expected["b"])
        assert torch.equal(logits(model), expected["a"])
    with pytest.raises(ValueError, match="needs the task"):
        logits(model)


def test_an_error_inside_a_block_ends_it():
    model = three_tasks("llama")
    expected = task_logits(model, "a")
    wrong = torch.full((1, 1), 99)
    with lc.on_task(model, "a"):
        with pytest.raises(IndexError), lc.on_task(model, "b"):
            logits(model, input_ids=wrong)
        assert torch.equal(logits(model), expected)
    with pytest.raises(IndexError), lc.on_task(model, "b"):
        logits(model, input_ids=wrong)
    with pytest.raises(ValueError, match="needs the task"):
        logits(model)


def test_a_block_that_cannot_be_entered_changes_nothing():
    model = three_tasks("llama")
    expected = task_logits(model, "a")
    with lc.on_task(model, "a"):
        with pytest.raises(ValueError, match="no task"), lc.on_task(model, "d"):
            pass
        assert torch.equal(logits(model), expected)


def test_blocks_of_two_models_do_not_meet():
    left, right = three_tasks("llama"), three_tasks("llama")
    expected = {task: task_logits(left, task) for task in TASKS}
    with lc.on_task(left, "a"), lc.on_task(right, "b"):
        assert torch.equal(logits(left), expected["a"])
        assert torch.equal(logits(right), expected["b"])


def test_the_tasks_of_a_forward_keyword_end_with_that_pass():
    model = three_tasks("llama")
    # A part of the model, called without the whole, as some losses do.
    backbone = model.base_model.model.model
    with lc.on_task(model, "a"), torch.no_grad():
        expected = backbone(input_ids=IDS).last_hidden_state
        logits(model, lorachord_tasks="b")
        assert torch.equal(backbone(input_ids=IDS).last_hidden_state, expected)
    logits(model, lorachord_tasks="b")
    with pytest.raises(ValueError, match="needs the task"):
        backbone(input_ids=IDS)


def test_a_wrapped_model_has_the_tasks_of_what_it_wraps():
    model = three_tasks("bert")
    wrapped = nn.ModuleDict({"inner": model})
    with lc.on_task(wrapped, MIXED):
        found = logits(model, input_ids=IDS)
    assert torch.equal(found, task_logits(model, MIXED, input_ids=IDS))


@pytest.mark.parametrize("method", ["lora", "multilora", "hydralora", "mosld"])
def test_methods_without_task_parts_accept_and_ignore_tasks(method):
    named = adapted("bert", method, tasks=["a", "b"])
    expected = logits(named)
    assert torch.equal(task_logits(named, ["a", "b", "b", "a"]), expected)
    assert torch.equal(logits(named, lorachord_tasks="b"), expected)
    assert "tasks" not in METHODS[method]


def test_an_unknown_task_gets_the_mean_of_the_cores_where_that_was_asked_for():
    model = three_tasks("llama", unknown_task="mean")
    known = task_logits(model, "a")
    unknown = task_logits(model, "never seen")
    assert torch.isfinite(unknown).all()
    assert differ(unknown, known)
    mixed = task_logits(model, ["a", "never seen", "a", "never seen"])
    assert close(mixed[::2], known[::2])
    assert close(mixed[1::2], unknown[1::2])
