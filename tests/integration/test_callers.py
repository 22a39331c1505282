"""`on_task` belongs to its caller: 8 threads of 100 coroutines each share one model, and each gets its own answers."""

import asyncio
import contextvars
import copy
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import lorachord as lc
from lorachord.surgery.surgeon import Surgeon
from lorachord.tuner.walk import adapted_layers, states_of
from tests.tiny_models import perturb, tiny, token_ids

TASKS = ["a", "b", "c", "d"]
METHODS: dict[str, dict[str, Any]] = {
    "mtl_lora": {"r": 2, "num_ups": 2},
    "mixlora": {"r": 2, "num_experts": 4},
    "mor1e": {"r1": 2, "r2": 2},
    "lora": {"r": 2},
}
IDS = token_ids(num_samples=2, length=5)
Answer = Callable[[Any, int], Tensor]


@pytest.fixture(autouse=True)
def hurried() -> Iterator[None]:
    """Threads that take turns at every few instructions."""
    before, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-5)
    torch.set_num_threads(1)
    yield
    sys.setswitchinterval(before)
    torch.set_num_threads(threads)


def adapted(method: str, architecture: str = "llama", **settings: Any) -> Any:
    base = tiny(architecture, num_hidden_layers=1)
    if architecture == "bert":
        lc.add_heads(base, dict.fromkeys(TASKS, 3))
    model = lc.attach(base, method, tasks=TASKS, **METHODS[method], **settings)
    if method == "mor1e":
        lc.fit_intuition(model, [{"input_ids": token_ids(num_samples=12, length=5, seed=4)}])
    perturb(model, 0.5)
    return model.eval()


def prompt(place: int) -> dict[str, Tensor]:
    """Of two tokens or three, which methods that choose by prompt tell apart."""
    return {"prompt_mask": (torch.arange(5) < 2 + place % 2).expand(2, 5)}


def asked(model: Any, place: int) -> Tensor:
    """A pass inside of a block."""
    with torch.no_grad(), lc.on_task(model, TASKS[place % 4], **prompt(place)):
        return model(input_ids=IDS).logits


def written(model: Any, place: int) -> Tensor:
    """Texts with beams, whose samples stand several times in place."""
    with lc.on_task(model, [TASKS[place % 4], TASKS[(place + 1) % 4]], **prompt(place)):
        keywords = dict(num_beams=2, do_sample=False, max_new_tokens=3, min_new_tokens=3)
        return model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **keywords).float()


def learned(model: Any, place: int) -> Tensor:
    """The gradients of a pass in training, per task where surgery collects them; the backward pass is outside."""
    with lc.on_task(model, [TASKS[place % 4], TASKS[(place + 1) % 4]], **prompt(place)):
        loss = model(input_ids=IDS, labels=IDS).loss
    probes = [layer.active()[0].probes for layer in adapted_layers(model)]
    leaves = [leaf for one in probes if one is not None for leaf in (one.inner_TXD, one.up_TOS)]
    leaves = leaves or [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in found if gradient is not None])


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=1e-5, atol=1e-6))


def in_threads(work: Callable[[int], list[str]], num_threads: int = 8) -> list[str]:
    """What went wrong in any of them."""
    with ThreadPoolExecutor(num_threads) as pool:
        return [each for found in pool.map(work, range(num_threads)) for each in found]


def hammered(model: Any, want: list[Tensor], coroutines: int = 100) -> list[str]:
    """What 8 threads of 100 coroutines each got that was not theirs."""

    async def one(place: int) -> str | None:
        task = TASKS[place % 4]
        with lc.on_task(model, task, **prompt(place)):
            for _ in range(place % 3):
                await asyncio.sleep(0)
            with torch.no_grad():
                got = model(input_ids=IDS).logits
            # The blocks end in another order than they have begun.
            await asyncio.sleep(0.001 * (place % 5))
        return None if same(got, want[place % 4]) else f"{place} for task {task}"

    async def all_of(thread: int) -> list[str]:
        found = await asyncio.gather(*(one(thread + place) for place in range(coroutines)))
        return [each for each in found if each is not None]

    return in_threads(lambda thread: asyncio.run(all_of(thread)))


@pytest.mark.parametrize("method", METHODS)
def test_every_thread_and_coroutine_gets_the_answers_of_its_own_tasks(method: str) -> None:
    model = adapted(method)
    if method == "lora":
        Surgeon(model, "ortho_lora")
    want = [asked(model, place) for place in range(4)]
    if method != "lora":
        assert not same(want[0], want[1])
    assert hammered(model, want) == []
    assert all(not state.named for state in states_of(model))


def test_heads_per_task_are_those_of_the_caller() -> None:
    model = adapted("mtl_lora", "bert")
    assert hammered(model, [asked(model, place) for place in range(4)], coroutines=30) == []


def wrong(answer: Answer, model: Any, want: list[Tensor], times: int, num_threads: int = 8) -> list[str]:
    """The places whose answers in several threads were not theirs."""

    def work(thread: int) -> list[str]:
        places = range(thread, thread + times)
        return [str(place) for place in places if not same(answer(model, place), want[place % 4])]

    return in_threads(work, num_threads)


@pytest.mark.parametrize("method", ["mtl_lora", "mixlora", "mor1e"])
def test_texts_are_written_for_the_tasks_of_the_thread(method: str) -> None:
    model = adapted(method)
    assert wrong(written, model, [written(model, place) for place in range(4)], 12) == []


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_caller_also_where_passes_are_recomputed(method: str, recomputed: bool) -> None:
    model = adapted(method).train()
    if method == "lora":
        Surgeon(model, "ortho_lora")
    if recomputed:
        model.activation_checkpointing_enable({"use_reentrant": False})
    want = [learned(model, place) for place in range(4)]
    assert not same(want[0], want[1])
    assert wrong(learned, model, want, 8) == []


def test_reentrant_recomputes_on_other_threads_keep_the_tasks_of_their_forward() -> None:
    model = adapted("mtl_lora").train()
    model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": True})

    def learn(place: int) -> None:
        with lc.on_task(model, TASKS[place % 4]):
            loss = model(input_ids=IDS, labels=IDS).loss
        # As autograd does with a device's own thread: the backward pass is another's.
        other = threading.Thread(target=loss.backward)
        other.start()
        other.join()

    def gradients() -> Tensor:
        found = [p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return torch.cat(found)

    for place in range(24):
        learn(place)
    want = gradients()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(learn, range(24)))
    assert torch.allclose(gradients(), want, rtol=1e-4, atol=1e-5)


def test_a_thread_that_names_no_task_is_refused_and_not_answered_for_anothers() -> None:
    model = adapted("mtl_lora")
    with lc.on_task(model, "a"), ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="in the thread"):
        pool.submit(lambda: model(input_ids=IDS)).result()


def test_a_copy_of_the_context_takes_the_tasks_along_until_the_block_ends() -> None:
    model = adapted("mtl_lora")
    want = asked(model, 1)
    with ThreadPoolExecutor(1) as pool, torch.no_grad():
        with lc.on_task(model, "b"):
            context = contextvars.copy_context()
            found = pool.submit(context.run, lambda: model(input_ids=IDS).logits).result()
        assert same(found, want)
        with pytest.raises(ValueError, match="none was named"):
            context.run(model, input_ids=IDS)


def test_blocks_that_end_in_another_order_leave_nothing_behind() -> None:
    model = adapted("mtl_lora")
    one, other = lc.on_task(model, "a"), lc.on_task(model, "b")
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    with torch.no_grad():
        assert same(model(input_ids=IDS).logits, asked(model, 1))
    other.__exit__(None, None, None)
    with pytest.raises(ValueError, match="none was named"):
        model(input_ids=IDS)


def test_a_block_that_another_thread_leaves_is_closed() -> None:
    model = adapted("mtl_lora")
    block = lc.on_task(model, "a")
    block.__enter__()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(block.__exit__, None, None, None).result()
    with pytest.raises(ValueError, match="none was named"):
        model(input_ids=IDS)


def test_the_inner_block_counts_for_its_own_model_alone() -> None:
    first, second = adapted("mtl_lora"), adapted("mtl_lora")
    want = asked(first, 0)
    with lc.on_task(first, "a"), torch.no_grad():
        with lc.on_task(second, "b"):
            assert same(first(input_ids=IDS).logits, want)
        with lc.on_task(first, "c"):
            assert not same(first(input_ids=IDS).logits, want)
        assert same(first(input_ids=IDS).logits, want)


def test_a_pass_that_fails_leaves_the_next_one_as_it_was() -> None:
    model = adapted("mtl_lora")
    want = asked(model, 2)
    with lc.on_task(model, "c"), torch.no_grad():
        with pytest.raises(ValueError, match="3 samples have a task"):
            model(input_ids=IDS, lorachord_tasks=["a", "b", "a"])
        with pytest.raises(IndexError):
            model(input_ids=IDS + 1000)
        assert same(model(input_ids=IDS).logits, want)


def test_a_copy_made_in_a_block_is_in_it_and_a_pickle_is_not() -> None:
    model = adapted("mtl_lora")
    want = asked(model, 0)
    with lc.on_task(model, "a"), torch.no_grad():
        copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        assert same(copied(input_ids=IDS).logits, want)
        with pytest.raises(ValueError, match="none was named"):
            pickled(input_ids=IDS)
    with pytest.raises(ValueError, match="none was named"):
        copied(input_ids=IDS)
    assert same(asked(pickled, 0), want)


# Naming torchao's enums costs torch.compile a warning.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_compiled_model_knows_its_callers_and_by_keyword_has_one_whole_graph() -> None:
    torch._dynamo.reset()
    model = adapted("mtl_lora")
    want = [asked(model, place) for place in range(4)]
    compiled = torch.compile(model, backend="eager")
    assert wrong(asked, compiled, want, 6, num_threads=2) == []
    torch._dynamo.reset()
    whole = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert all(
            same(whole(input_ids=IDS, lorachord_tasks=task).logits, each)
            for task, each in zip(TASKS, want, strict=True)
        )
