"""A method that chooses by the prompt reads the same prompt whatever the cache and the mask of a pass, or says so."""

import warnings

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig

import lorachord as lc
from tests.tiny_models import perturb, tiny

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13], [6]]
LENGTH = 4
WARNING = "chooses by the prompt, and this pass has no labels"


def adapted(method: str = "mixlora", architecture: str = "llama") -> PeftModel:
    options = {"r1": 2, "r2": 2} if method == "mor1e" else {"r": 2}
    model = lc.attach(tiny(architecture), method, tasks=["x", "y"], **options)
    perturb(model, 0.5)
    if method == "mor1e":
        ids, mask = batch()
        lc.fit_intuition(model, [{"input_ids": ids, "attention_mask": mask}])
    return model.eval()


def batch(padding: str = "left") -> tuple[Tensor, Tensor]:
    def padded(rows: list[list[int]]) -> Tensor:
        zeros = [[0] * (LENGTH - len(row)) for row in rows]
        return torch.tensor([z + r if padding == "left" else r + z for z, r in zip(zeros, rows, strict=True)])

    return padded(PROMPTS), padded([[1] * len(row) for row in PROMPTS])


def written(model: PeftModel, **how: object) -> list[list[int]]:
    ids, mask = batch()
    how = {
        "attention_mask": mask,
        "max_new_tokens": 5,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": 39,
        **how,
    }
    found: list[list[int]] = model.generate(input_ids=ids, **how)[:, LENGTH:].tolist()
    return found


@pytest.mark.parametrize("method", ["mixlora", "mor1e"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_text_does_not_depend_on_the_cache(method: str, architecture: str) -> None:
    model = adapted(method, architecture)
    want = written(model)
    assert written(model, use_cache=False) == want
    assert written(model, attention_mask=None) == want
    if architecture == "llama":
        assert written(model, cache_implementation="static") == want
        assert written(model, cache_implementation="static", attention_mask=None) == want
    beams = written(model, num_beams=2, num_return_sequences=2)
    assert written(model, num_beams=2, num_return_sequences=2, use_cache=False) == beams


def test_the_text_is_that_of_each_prompt_alone() -> None:
    model = adapted()
    for row, prompt in zip(written(model, cache_implementation="static"), PROMPTS, strict=True):
        ids = torch.tensor([prompt])
        config = GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=39, use_cache=False)
        alone = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        assert alone[0, len(prompt) :].tolist() == row


def test_a_given_prompt_counts_in_generation_too() -> None:
    model = adapted()
    _, mask = batch()
    first = torch.zeros_like(mask)
    first[:, -1:] = 1
    with lc.on_task(model, None, prompt_mask=first):
        want = written(model)
        assert written(model, use_cache=False) == want
        assert written(model, cache_implementation="static") == want
    assert want != written(model)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("kind", ["bool", "additive", "by kind of layer"])
def test_a_mask_over_pairs_of_tokens_tells_the_padding(padding: str, kind: str) -> None:
    model = adapted()
    ids, mask = batch(padding)
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    pairs = (causal & mask.bool()[:, None, None, :]).expand(-1, 1, -1, -1)
    # Of what is padding nothing is attended to; a row that attends to nothing has no softmax.
    additive = torch.where(pairs, 0.0, torch.finfo(torch.float32).min)
    given = {"bool": pairs, "additive": additive, "by kind of layer": {"full_attention": pairs}}[kind]
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True).logits
        if kind == "by kind of layer":
            prompts = lc.tuner.walk.states_of(model)[0].prompts
            found = prompts.mask_of(model.get_base_model(), {"input_ids": ids, "attention_mask": given})
            assert torch.equal(found, mask.bool())
            return
        found = model(input_ids=ids, attention_mask=given, position_ids=positions, use_cache=True).logits
    torch.testing.assert_close(found[mask.bool()], want[mask.bool()], atol=1e-5, rtol=1e-4)


def test_a_mask_that_does_not_tell_is_refused() -> None:
    model = adapted()
    ids, _ = batch()
    with pytest.raises(ValueError, match=r"does not tell the padding.*prompt_mask"):
        model(input_ids=ids, attention_mask=torch.ones(4, 1, 2, 3))


def test_a_pass_over_a_whole_text_is_warned_of_once() -> None:
    model = adapted()
    ids, mask = batch()
    with pytest.warns(UserWarning, match=WARNING + ".*prompt_mask"):
        model(input_ids=ids, attention_mask=mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(input_ids=ids, attention_mask=mask)


@pytest.mark.filterwarnings(f"error:.*{WARNING}")
def test_a_pass_that_says_what_its_prompt_is_is_not_warned_of() -> None:
    ids, mask = batch("right")
    labels = torch.where(mask.bool(), ids, -100)
    model = adapted()
    model(input_ids=ids, attention_mask=mask, labels=labels)
    model(input_ids=ids, attention_mask=mask, use_cache=True)
    with lc.on_task(model, "x", prompt_mask=mask):
        model(input_ids=ids, attention_mask=mask)
    written(model, use_cache=False)
    adapted("mixlora", "bert")(input_ids=ids, attention_mask=mask)
    adapted("hydralora")(input_ids=ids, attention_mask=mask)


def test_labels_of_a_whole_text_make_a_perplexity_that_does_not_look_ahead() -> None:
    model = adapted()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    changed = ids.clone()
    changed[0, -1] = 11
    with torch.no_grad():
        first, second = (model(input_ids=one, labels=one).logits for one in (ids, changed))
    torch.testing.assert_close(first[:, :-1], second[:, :-1])
