"""Tokens that are written behind a cache: as the path with gradients has them, and never by weights of before."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import DynamicCache, StaticCache

import lorachord as lc
from lorachord.tuner.walk import adapted_layers, states_of
from tests.contract.cases import CASES, Case
from tests.tiny_models import perturb, tiny, token_ids

TASKS = ["a", "b", "c"]
MIXED = ["b", "a", "a", "c"]
READY = [case for case in CASES if case.method != "thanora" and "warmup_steps" not in case.options]
"""Those that need no calibration."""
LENGTH = 5
IDS = token_ids(num_samples=4, length=LENGTH + 4)


def adapted(case: Case) -> PeftModel:
    model = lc.attach(tiny("llama"), case.method, tasks=TASKS, **case.options)
    case.fit(model)
    perturb(model, 0.3)
    return model.eval()


def of_tasks(**options: Any) -> PeftModel:
    model = lc.attach(tiny("llama"), "mtl_lora", tasks=TASKS, **{"r": 3, "num_ups": 2, **options})
    perturb(model, 0.3)
    return model.eval()


def begun(model: Any, cache: Any) -> None:
    """The prompts are read."""
    with torch.no_grad():
        model(input_ids=IDS[:, :LENGTH], attention_mask=torch.ones(4, LENGTH), past_key_values=cache)


def next_logits(model: Any, cache: Any, place: int) -> Tensor:
    """Of the token at a place behind the prompt."""
    token, mask = IDS[:, LENGTH + place, None], torch.ones(4, LENGTH + place + 1)
    logits: Tensor = model(input_ids=token, attention_mask=mask, past_key_values=cache).logits
    return logits.detach()


def by_gradients(model: Any, cache: Any, place: int) -> Tensor:
    """The same by the path that can be differentiated, on a copy of the cache."""
    with torch.enable_grad():
        return next_logits(model, copy.deepcopy(cache), place)


def num_kept(model: PeftModel) -> int:
    """The layers whose weights are ready, for the innermost block."""
    return len(states_of(model)[0].caller.named.prepared or {})


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("tasks", ["b", MIXED], ids=["one task", "mixed"])
@pytest.mark.parametrize("case", READY, ids=lambda case: case.name)
def test_the_next_tokens_are_those_of_the_path_with_gradients(case: Case, tasks: Any, static: bool) -> None:
    model = adapted(case)
    cache = StaticCache(model.config, max_cache_len=16) if static else DynamicCache()
    with lc.on_task(model, tasks):
        begun(model, cache)
        assert num_kept(model) == 0
        for place in range(3):
            wanted = by_gradients(model, cache, place)
            # That was a pass of other kind, after which all is made anew; the second time it is taken as it is.
            for _ in range(2):
                with torch.no_grad():
                    close(next_logits(model, copy.deepcopy(cache), place), wanted)
            assert num_kept(model) == sum(1 for _ in adapted_layers(model))
            with torch.no_grad():
                next_logits(model, cache, place)


@pytest.mark.parametrize("keywords", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}])
@pytest.mark.parametrize("method", ["lora", "mtl_lora", "hydralora", "mixlora"])
@torch.no_grad()
def test_texts_are_those_that_are_written_without_a_cache(method: str, keywords: dict[str, Any]) -> None:
    model = lc.attach(tiny("llama"), method, tasks=TASKS, r=3)
    perturb(model, 0.3)
    mask, settings = torch.ones_like(IDS), dict(do_sample=False, max_new_tokens=5, min_new_tokens=5)
    with lc.on_task(model, MIXED):
        together = model.eval().generate(input_ids=IDS, attention_mask=mask, **settings, **keywords)
    plain = {"num_beams": keywords.get("num_beams", 1), "use_cache": False}
    for row, task in enumerate(MIXED):
        with lc.on_task(model, task):
            own = slice(row, row + 1)
            alone = model.generate(input_ids=IDS[own], attention_mask=mask[own], **settings, **plain)
        assert together[row].tolist() == alone[0].tolist()


def moved(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's weights, elsewhere."""
    return {
        name: weight + 0.1 for name, weight in get_peft_model_state_dict(model).items() if weight.is_floating_point()
    }


def loaded(model: PeftModel) -> None:
    set_peft_model_state_dict(model, get_peft_model_state_dict(model) | moved(model))


def loaded_in_place(model: PeftModel) -> None:
    state = {name: value + 0.1 for name, value in model.state_dict().items() if value.is_floating_point()}
    model.load_state_dict(state, strict=False)


def loaded_as_others(model: PeftModel) -> None:
    state = {name: value + 0.1 for name, value in model.state_dict().items() if value.is_floating_point()}
    model.load_state_dict(state, strict=False, assign=True)


def stepped(kind: type[torch.optim.Optimizer], **options: Any) -> Callable[[PeftModel], None]:
    def change(model: PeftModel) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.ones_like(parameter)
        kind(trained, lr=0.1, **options).step()  # type: ignore[call-arg]

    return change


def replaced(model: PeftModel) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + 0.1


def widened(model: PeftModel) -> None:
    model.to(torch.float64)


def rounded(model: PeftModel) -> None:
    """The base as it was, and an adapter in the same place that has lost digits."""
    model.to(torch.bfloat16).to(torch.float32)


def merged_and_back(model: PeftModel) -> None:
    model.merge_adapter()
    model.unmerge_adapter()


def a_task_more(model: PeftModel) -> None:
    lc.add_task(model, "d")
    perturb(model, 0.1, seed=5)


def another_adapter(model: PeftModel) -> None:
    model.add_adapter("other", model.peft_config["default"])
    model.set_adapter("other")
    perturb(model, 0.3, seed=6)


def deleted_and_added(model: PeftModel) -> None:
    config = model.peft_config["default"]
    model.delete_adapter("default")
    model.add_adapter("default", config)
    model.set_adapter("default")
    perturb(model, 0.3, seed=7)


CHANGES: dict[str, Callable[[PeftModel], None]] = {
    "a saved adapter is loaded": loaded,
    "a state is loaded": loaded_in_place,
    "a state is assigned": loaded_as_others,
    "a step of SGD": stepped(torch.optim.SGD),
    "a fused step of AdamW": stepped(torch.optim.AdamW, fused=True),
    "a foreach step of AdamW": stepped(torch.optim.AdamW, foreach=True),
    "data is replaced": replaced,
    "another dtype": widened,
    "another dtype and back": rounded,
    "merged and back": merged_and_back,
    "a later task": a_task_more,
    "another adapter": another_adapter,
    "another of the same name": deleted_and_added,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("tasks", ["b", MIXED], ids=["one task", "mixed"])
@pytest.mark.parametrize("method", ["mtl_lora", "lora", "hydralora"])
def test_after_a_change_the_next_token_is_by_the_weights_of_now(method: str, tasks: Any, change: str) -> None:
    of_task = method == "mtl_lora"
    if (change == "a later task" and not of_task) or (change == "another adapter" and of_task):
        pytest.skip("no parameters of a task, or an adapter of which the block has named none")
    if change == "merged and back" and (method == "hydralora" or (of_task and tasks == MIXED)):
        pytest.skip("does not merge")
    model, cache = lc.attach(tiny("llama"), method, tasks=TASKS, r=3), DynamicCache()
    perturb(model, 0.3)
    model.eval()
    with lc.on_task(model, tasks), torch.no_grad():
        begun(model, cache)
        before = next_logits(model, copy.deepcopy(cache), 0)
        assert num_kept(model) > 0
        CHANGES[change](model)
        model.eval()
        if change == "another dtype":
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys.double(), layer.values.double()
        found = next_logits(model, copy.deepcopy(cache), 0)
        assert num_kept(model) > 0
        close(found, by_gradients(model, cache, 0))
    if change not in ("another dtype", "merged and back", "another dtype and back", "a later task"):
        assert not torch.allclose(found, before, atol=1e-3)


def test_merged_weights_are_not_added_to() -> None:
    model, cache = of_tasks(), DynamicCache()
    with lc.on_task(model, "b"), torch.no_grad():
        begun(model, cache)
        before = next_logits(model, copy.deepcopy(cache), 0)
        model.merge_adapter()
        close(next_logits(model, copy.deepcopy(cache), 0), before)


def test_what_is_written_to_data_counts_from_the_next_prompt_on() -> None:
    model, cache = of_tasks(), DynamicCache()
    with lc.on_task(model, MIXED), torch.no_grad():
        begun(model, cache)
        next_logits(model, copy.deepcopy(cache), 0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                # No count of writes sees this one.
                parameter.data.mul_(2)
        # A prompt of one token looks like one that is written, but for its cache.
        short = dict(input_ids=IDS[:, :1], attention_mask=torch.ones(4, 1))
        found = model(**short, past_key_values=DynamicCache()).logits
        with torch.enable_grad():
            close(found, model(**short).logits.detach())
        cache = DynamicCache()
        begun(model, cache)
        close(next_logits(model, copy.deepcopy(cache), 0), by_gradients(model, cache, 0))


def test_other_tasks_have_their_own() -> None:
    model, cache = of_tasks(), DynamicCache()
    orders = [MIXED, "a", ["c", "c", "b", "a"], MIXED[:1] * 4]
    with lc.on_task(model, MIXED), torch.no_grad():
        begun(model, cache)
        for tasks in orders:
            with lc.on_task(model, tasks):
                close(next_logits(model, copy.deepcopy(cache), 0), by_gradients(model, cache, 0))
            next_logits(model, copy.deepcopy(cache), 0)
            # The keyword counts over the block.
            token, mask = IDS[:, LENGTH, None], torch.ones(4, LENGTH + 1)
            keyword = dict(input_ids=token, attention_mask=mask, lorachord_tasks=tasks)
            found = model(**keyword, past_key_values=copy.deepcopy(cache)).logits
            with torch.enable_grad():
                wanted = model(**keyword, past_key_values=copy.deepcopy(cache)).logits
            close(found, wanted.detach())


def test_a_block_keeps_nothing_beyond_itself_and_nothing_is_kept_outside_of_one() -> None:
    model, cache = of_tasks(), DynamicCache()
    with lc.on_task(model, "b"), torch.no_grad():
        begun(model, cache)
        next_logits(model, cache, 0)
        assert num_kept(model) > 0
    assert states_of(model)[0].caller.named.prepared is None
    with lc.on_task(model, "b"):
        assert num_kept(model) == 0


def test_in_training_and_under_autocast_nothing_is_taken_from_before() -> None:
    model, cache = of_tasks(), DynamicCache()
    with lc.on_task(model, MIXED), torch.no_grad():
        begun(model, cache)
        model.train()
        next_logits(model, copy.deepcopy(cache), 0)
        with torch.autocast("cpu", torch.bfloat16):
            next_logits(model.eval(), copy.deepcopy(cache), 0)
        assert num_kept(model) == 0


def test_inference_mode_writes_the_same() -> None:
    model, cache = of_tasks(), DynamicCache()
    with lc.on_task(model, MIXED):
        begun(model, cache)
        wanted = by_gradients(model, cache, 0)
        with torch.inference_mode():
            close(next_logits(model, copy.deepcopy(cache), 0), wanted)
        with torch.no_grad():
            close(next_logits(model, copy.deepcopy(cache), 0), wanted)
    with torch.inference_mode():
        made = of_tasks()
        with lc.on_task(made, MIXED):
            begun(made, cache := DynamicCache())
            before = next_logits(made, copy.deepcopy(cache), 0)
            for layer in adapted_layers(made):
                layer.active()[0].up.mul_(2)
            assert not torch.allclose(next_logits(made, copy.deepcopy(cache), 0), before, atol=1e-3)


def test_half_precision_is_that_of_the_path_with_gradients() -> None:
    model = lc.attach(tiny("llama").to(torch.bfloat16), "mtl_lora", tasks=TASKS, r=3)
    perturb(model, 0.3)
    model.eval()
    with lc.on_task(model, MIXED), torch.no_grad():
        begun(model, cache := DynamicCache())
        found, wanted = next_logits(model, copy.deepcopy(cache), 0), by_gradients(model, cache, 0)
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


def test_threads_that_write_at_once_have_their_own_tasks_and_weights() -> None:
    model, wrong = of_tasks(), []
    wanted = {}
    for task in TASKS:
        with lc.on_task(model, task), torch.no_grad():
            begun(model, cache := DynamicCache())
            wanted[task] = next_logits(model, cache, 0)

    def write(task: str) -> None:
        with lc.on_task(model, task), torch.no_grad():
            for _ in range(20):
                begun(model, cache := DynamicCache())
                if not torch.allclose(next_logits(model, cache, 0), wanted[task], atol=1e-5):
                    wrong.append(task)

    threads = [threading.Thread(target=write, args=(task,)) for task in TASKS * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
