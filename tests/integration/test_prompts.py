"""Methods that choose once for each prompt: what is taken for it, in one pass, in decoding, and when it is unclear."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

import lorachord as lc
from lorachord.families.by_prompt import PromptLevel
from lorachord.tuner.checkpointing import TaskCheckpoint
from lorachord.tuner.prompt_clusters import embed_prompts
from lorachord.tuner.walk import adapted_layers, states_of
from tests.integration.helpers import close, differ
from tests.tiny_models import perturb, tiny, token_ids

TASKS = ["a", "b", "c"]
OPTIONS = {"mixlora": {"r": 2, "num_experts": 6}, "mor1e": {"r1": 2, "r2": 3}}
DECODERS = ["llama", "gpt2"]
methods = pytest.mark.parametrize("method", OPTIONS)
decoders = pytest.mark.parametrize("architecture", DECODERS)


def prompt_level(architecture: str, method: str, **settings: Any) -> PeftModel:
    """In float64, so that no near tie is settled by the size of the batch."""
    model = lc.attach(tiny(architecture).double(), method, tasks=TASKS, **{**OPTIONS[method], **settings})
    if method == "mor1e":
        lc.fit_intuition(model, [{"input_ids": token_ids(num_samples=12, length=5, seed=4)}])
    # A little, and then the factors more: gates open within hundredths.
    perturb(model, 0.01)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.numel() > 1:
                parameter += 0.5 * torch.randn(parameter.shape, dtype=parameter.dtype)
    return model.eval()


def padded(lengths: list[int], side: str) -> tuple[Tensor, Tensor]:
    """Prompts of these lengths and their attention mask."""
    ids = token_ids(num_samples=len(lengths), length=max(lengths), seed=3)
    places = torch.arange(max(lengths))
    sizes = torch.tensor(lengths).unsqueeze(1)
    mask = places < sizes if side == "right" else places >= max(lengths) - sizes
    return ids * mask, mask.long()


@methods
@decoders
@pytest.mark.parametrize("beams", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_generation_equals_a_recompute_of_the_whole_text_at_every_step(architecture, method, beams):
    model = prompt_level(architecture, method)
    ids, mask = padded([5, 3, 4], "left")
    settings = dict(beams, do_sample=False, min_new_tokens=6, max_new_tokens=6, attention_mask=mask)
    with lc.on_task(model, ["b", "a", "c"]):
        cached = model.generate(input_ids=ids, **settings)
    with lc.on_task(model, ["b", "a", "c"], prompt_mask=mask):
        recomputed = model.generate(input_ids=ids, use_cache=False, **settings)
    assert torch.equal(cached, recomputed)
    # And the prompt matters: what is taken for it changes the text.
    with lc.on_task(model, ["b", "a", "c"], prompt_mask=torch.ones(1, 1)):
        other = model.generate(input_ids=ids, use_cache=False, **{**settings, "attention_mask": torch.ones_like(mask)})
    assert not torch.equal(cached, other)


@methods
@decoders
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_its_samples_alone(architecture, method, side):
    model = prompt_level(architecture, method)
    lengths = [5, 2, 4]
    ids, mask = padded(lengths, side)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    together = model(input_ids=ids, attention_mask=mask, position_ids=places).logits
    for row, length in enumerate(lengths):
        real = mask[row].bool()
        alone = model(input_ids=ids[row : row + 1, real]).logits
        assert alone.shape[1] == length
        assert close(together[row : row + 1, real], alone, atol=1e-6)


@methods
@decoders
def test_labels_say_where_the_prompt_ends(architecture, method):
    model, ids = prompt_level(architecture, method), token_ids()
    labels, prompt = ids.clone(), torch.ones_like(ids)
    for row, length in enumerate((2, 3, 4, 5)):
        labels[row, :length] = -100
        prompt[row, length:] = 0
    told = model(input_ids=ids, labels=labels).logits
    with lc.on_task(model, None, prompt_mask=prompt):
        assert torch.equal(model(input_ids=ids).logits, told)
    assert differ(model(input_ids=ids).logits, told, 1e-4)
    # Text without a prompt: the first token is never predicted.
    with lc.on_task(model, None, prompt_mask=torch.ones(1, 1)):
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids, labels=ids).logits)


@methods
def test_an_encoders_labels_leave_the_whole_text_as_the_prompt(method):
    model, ids = prompt_level("bert", method), token_ids()
    labels = torch.tensor([0, 1, 2, 0])
    assert torch.equal(model(input_ids=ids, labels=labels).logits, model(input_ids=ids).logits)


@methods
def test_arguments_may_be_given_by_position(method):
    model = prompt_level("llama", method).get_base_model()
    ids, mask = padded([5, 3, 4], "right")
    assert torch.equal(model(ids, mask).logits, model(input_ids=ids, attention_mask=mask).logits)


@methods
@torch.no_grad()
def test_generations_in_turns_keep_to_their_own_prompts(method):
    model = prompt_level("llama", method)
    texts = [token_ids(num_samples=2, length=8, seed=seed) for seed in (5, 6)]
    expected = []
    for text in texts:
        with lc.on_task(model, None, prompt_mask=torch.ones(1, 4)):
            expected.append(model(input_ids=text).logits[:, 4:])
    caches = [model(input_ids=text[:, :4]).past_key_values for text in texts]
    steps: list[list[Tensor]] = [[], []]
    for place in range(4, 8):
        for which, text in enumerate(texts):
            steps[which].append(model(input_ids=text[:, [place]], past_key_values=caches[which]).logits)
    for found, wanted in zip(steps, expected, strict=True):
        assert close(torch.cat(found, dim=1), wanted, atol=1e-6)


@methods
@torch.no_grad()
def test_a_copied_cache_remembers_its_prompt(method):
    model, ids = prompt_level("llama", method), token_ids()
    cache = model(input_ids=ids[:, :4]).past_key_values
    copied = copy.deepcopy(cache)
    one, other = (model(input_ids=ids[:, 4:], past_key_values=past).logits for past in (cache, copied))
    assert torch.equal(one, other)


@methods
@torch.no_grad()
def test_a_cache_of_an_unknown_prompt_is_refused(method):
    model, ids = prompt_level("llama", method), token_ids()
    with model.disable_adapter():
        unread = model(input_ids=ids[:, :4]).past_key_values
    with pytest.raises(ValueError, match="whose prompt it has not seen"):
        model(input_ids=ids[:, 4:], past_key_values=unread)
    read = model(input_ids=ids[:, :4]).past_key_values
    with pytest.raises(ValueError, match="4 samples have a prompt in the cache, but the batch has 6"):
        model(input_ids=token_ids(num_samples=6)[:, 4:], past_key_values=read)


@methods
def test_a_mask_that_does_not_fit_is_refused(method):
    model = prompt_level("llama", method)
    for mask, message in (
        (torch.ones(1, 9), r"shape \(1, 9\), but the input \(4, 7\)"),
        (torch.ones(7), r"shape \(7,\)"),
        (torch.ones(3, 7), "3 samples have a prompt mask, but the batch has 4"),
    ):
        with lc.on_task(model, None, prompt_mask=mask), pytest.raises(ValueError, match=message):
            model(input_ids=token_ids())


@methods
def test_training_keeps_nothing_of_a_pass(method):
    model = prompt_level("llama", method).train()
    cache = model(input_ids=token_ids(), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="in eval mode, or without gradients"):
        model(input_ids=token_ids()[:, :1], past_key_values=cache)


def test_layers_that_are_checkpointed_one_by_one_have_the_gradients_of_those_that_are_not():
    gradients = []
    for checkpointing in (False, True):
        model = prompt_level("llama", "mixlora").train()
        model.enable_input_require_grads()
        if checkpointing:
            # Each layer by itself, which so comes between those with its input.
            plain = partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
            checkpoint = TaskCheckpoint(plain, states_of(model)[0])
            for layer in adapted_layers(model):
                layer.forward = partial(checkpoint, layer.forward)
        model(input_ids=token_ids()).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@methods
def test_models_with_an_encoder_and_a_decoder_are_refused(method):
    sizes = dict(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(T5Config(**sizes))
    with pytest.raises(ValueError, match="T5ForConditionalGeneration"):
        lc.attach(model, method, **OPTIONS[method])


@methods
def test_rows_of_no_sample_are_refused(method):
    adapter = next(m for m in prompt_level("llama", method).modules() if isinstance(m, PromptLevel))
    context = lc.Context(prompt_mask_BL=torch.ones(2, 3), cosines_BC=torch.ones(2, 6))
    with pytest.raises(ValueError, match="7 rows for 2 samples"):
        adapter(torch.ones(7, 16).double(), torch.nn.Identity(), context)


@methods
def test_no_tasks_named_leaves_them_as_they_are(method):
    model = prompt_level("llama", method)
    layer = next(m for m in model.modules() if isinstance(m, PromptLevel))
    seen: list[lc.Context] = []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    with lc.on_task(model, "b"), lc.on_task(model, None, prompt_mask=torch.ones(1, 2)):
        model(input_ids=token_ids())
    assert seen[0].single_task == 1


# Embeddings of prompts.


@decoders
def test_the_frozen_base_embeds_the_prompt_alone(architecture):
    model = prompt_level(architecture, "mor1e")
    ids = token_ids()
    base = tiny(architecture).double()
    hidden = base(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    expected = torch.nn.functional.normalize(hidden[:, :4].mean(1), dim=-1)
    found = embed_prompts(model, {"input_ids": ids}, torch.ones(1, 4))
    assert close(found, expected, atol=1e-10)
    assert not found.requires_grad
    # Not by dropout either, and the model stays in its mode.
    assert close(embed_prompts(model.train(), {"input_ids": ids}, torch.ones(1, 4)), expected, atol=1e-10)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("architecture", ["bert", *DECODERS])
def test_a_pass_without_embeddings_makes_them(architecture):
    model, ids = prompt_level(architecture, "mor1e"), token_ids()
    made = model(input_ids=ids).logits
    with lc.on_task(model, None, embedding=embed_prompts(model, {"input_ids": ids})):
        assert torch.equal(model(input_ids=ids).logits, made)
    with lc.on_task(model, None, embedding=torch.randn(4, 16)):
        assert differ(model(input_ids=ids).logits, made, 1e-6)


def test_given_embeddings_last_through_decoding():
    model, ids = prompt_level("llama", "mor1e"), token_ids()
    embedding = torch.randn(4, 16)
    with lc.on_task(model, None, embedding=embedding), torch.no_grad():
        whole = model(input_ids=ids).logits
        cache = model(input_ids=ids[:, :4]).past_key_values
        assert close(model(input_ids=ids[:, 4:], past_key_values=cache).logits, whole[:, 4:], atol=1e-6)


def test_without_centroids_it_says_what_to_call():
    model = lc.attach(tiny("llama"), "mor1e", **OPTIONS["mor1e"])
    with pytest.raises(ValueError, match="fit_intuition"):
        model(input_ids=token_ids())
    with model.disable_adapter():
        model(input_ids=token_ids())
    with pytest.raises(ValueError, match="4 prompts cannot make 6 clusters"):
        lc.fit_intuition(model, [{"input_ids": token_ids()}])
    with pytest.raises(ValueError, match="there is nothing to fit"):
        lc.fit_intuition(lc.attach(tiny("llama"), "lora"), torch.randn(10, 4))


def test_embeddings_of_another_kind_are_refused():
    model = prompt_level("llama", "mor1e")
    with lc.on_task(model, None, embedding=torch.randn(4, 5)), pytest.raises(ValueError, match="have 5 features"):
        model(input_ids=token_ids())
    with (
        lc.on_task(model, None, embedding=torch.randn(3, 16)),
        pytest.raises(ValueError, match="3 samples have an embedding, but the batch has 4"),
    ):
        model(input_ids=token_ids())
    other = prompt_level("llama", "mor1e", encoder="of/another")
    with pytest.raises(ValueError, match=r"'of/another'.*embedding="):
        other(input_ids=token_ids())


def test_a_model_that_cannot_embed_says_so():
    model = lc.attach(torch.nn.Sequential(torch.nn.Linear(6, 4)), "mor1e", target_modules=["0"], **OPTIONS["mor1e"])
    with pytest.raises(ValueError, match=r"Sequential.*embedding="):
        lc.fit_intuition(model, [{"input": torch.randn(12, 3, 6)}])
    lc.fit_intuition(model, torch.randn(12, 5))
    perturb(model)
    with lc.on_task(model, None, embedding=torch.randn(2, 5)):
        assert model(torch.randn(2, 3, 6)).shape == (2, 3, 4)


def test_two_adapters_have_each_their_own_encoder():
    model, ids = prompt_level("llama", "mor1e"), token_ids()
    model.add_adapter("other", lc.LorachordConfig.build("mor1e", encoder="of/another", **OPTIONS["mor1e"]))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match=r"'other'.*'of/another'"):
        model(input_ids=ids)


def test_centroids_follow_the_seed_and_are_of_length_one():
    model, prompts = lc.attach(tiny("llama"), "mor1e", **OPTIONS["mor1e"]), torch.randn(40, 5)
    first, again = (lc.fit_intuition(model, prompts, seed=1) for _ in range(2))
    assert first.shape == (6, 5)
    assert torch.equal(first, again)
    assert close(first.norm(dim=1), torch.ones(6), atol=1e-3)


def test_centroids_go_where_the_adapter_goes(tmp_path):
    model, ids = prompt_level("llama", "mor1e").float(), token_ids()
    expected = model(input_ids=ids).logits
    model.save_pretrained(tmp_path)
    bare = tiny("llama")
    bare.load_adapter(str(tmp_path), adapter_name="third")
    assert close(bare(input_ids=ids).logits, expected, atol=1e-5)
    loaded = PeftModel.from_pretrained(tiny("llama"), tmp_path, adapter_name="other").eval()
    copied = copy.deepcopy(loaded)
    copied.load_adapter(tmp_path, adapter_name="second")
    copied.set_adapter("second")
    copied.delete_adapter("other")
    assert close(copied.eval()(input_ids=ids).logits, expected, atol=1e-5)
    # Another adapter of that name knows nothing of them.
    copied.delete_adapter("second")
    copied.add_adapter("second", lc.LorachordConfig.build("mor1e", **OPTIONS["mor1e"]))
    copied.set_adapter("second")
    with pytest.raises(ValueError, match="fit_intuition"):
        copied(input_ids=ids)


def test_routers_are_counted_apart():
    layer = lc.LayerSpec("layer", index=0, num_layers=1, d_in=10, d_out=7)
    for options, routers in (({}, (2 * 16 + 4 * 16) * 10), ({"selection": "frozen_hash"}, 0)):
        assert lc.count_parameters("mixlora", [layer], options=options) == lc.Count(16 * 17, routers, 0)
    assert lc.count_parameters("mor1e", [layer]) == lc.Count(4 * 10 + 8 * 7, 32 * 10, 2)


def test_the_fitted_rank_is_one_that_a_pool_allows():
    layer = lc.LayerSpec("layer", index=0, num_layers=1, d_in=40, d_out=40)
    for target, r in ((960, 2), (10**6, 4)):
        assert lc.fit_rank("mixlora", [layer], target, options={"num_experts": 4}).r == r
