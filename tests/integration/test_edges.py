"""Batches, rows and heads at their edges: other company, long texts, odd tokenizers, classes that a task lacks."""

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForSequenceClassification

import lorachord as lc
from lorachord.balance.popart import PopArtLinear
from lorachord.data.task import Task
from lorachord.heads import heads_of
from lorachord.training.decoder import DecoderBatches
from lorachord.training.encoder import EncoderBatches
from lorachord.training.model_checks import check_special_tokens
from lorachord.training.positions import longest_row
from lorachord.training.units import learn_in_units, say_zero
from tests import tiny_data
from tests.tiny_models import tiny

SINGLE = Task("colour", kind="classification", text="sentence1", labels=("no", "yes"))
PAIR = Task("size", kind="pair", text=("sentence1", "sentence2"), labels=("no", "yes"))
ECHO = Task("echo", kind="generation", text="sentence1", prompt="{first}")


def example(first: str = "red", label: Any = "up", task: int = 0, **more: Any) -> dict[str, Any]:
    return {"first": first, "second": "", "label": label, "task": task, "idx": 0, **more}


def tokenizer(single: str = "$A", pair: str = "$A $B") -> Any:
    made = tiny_data.tokenizer()
    special = [("[EOS]", 2), ("one", 11)]
    made.backend_tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=special)
    return made


def test_a_text_has_the_same_tokens_in_any_company() -> None:
    kind = EncoderBatches(tokenizer("one $A [EOS]", "one $A [EOS] $B [EOS]"), (SINGLE, PAIR))
    one, two = example("red up", 0), example("red up", 1, 1, second="big")
    together = kind.collate([one, two])
    for row, alone in enumerate((kind.collate([one]), kind.collate([two]))):
        kept = together["attention_mask"][row].bool()
        for name in alone.keys() - {"answers", "num_rows", "tasks"}:
            assert together[name][row][kept].tolist() == alone[name][0].tolist()


def test_padding_that_model_and_tokenizer_see_differently_is_refused() -> None:
    base = lc.add_heads(tiny("bert", num_labels=2), {"colour": 2})
    base.config.pad_token_id = 1
    with pytest.raises(ValueError, match=r"pads with token 0, and the model takes 1"):
        EncoderBatches(tokenizer(), (SINGLE,)).check(base)


def test_a_class_that_a_task_lacks_takes_no_probability() -> None:
    base = lc.add_heads(tiny("bert", num_labels=3), {"two": 2, "three.": 3})
    model = lc.attach(base, "lora", tasks=["two", "three."], r=2).eval()
    heads_of(model)[1].of("two").bias.data.fill_(-5.0)  # type: ignore[index, union-attr]
    ids, labels = torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.tensor([0, 1])
    with lc.on_task(model, "two"):
        found = model(input_ids=ids, labels=labels)
    assert found.logits.argmax(-1).max() < 2
    torch.testing.assert_close(found.loss, F.cross_entropy(found.logits[:, :2], labels))


@pytest.mark.parametrize("name", ["type", "train", "items", "update", "training", "heads", "a.b"])
def test_a_task_may_have_any_name(name: str) -> None:
    heads = heads_of(lc.add_heads(tiny("bert", num_labels=2), {name: 2, "other": 3}))
    assert heads is not None
    assert heads[1].num_outputs == {name: 2, "other": 3}


@pytest.mark.parametrize("length", [8, 16])
def test_a_row_holds_max_length_tokens_with_start_prompt_and_end(length: int) -> None:
    kind = DecoderBatches(tokenizer("one $A [EOS]"), (ECHO,), max_length=length)
    for text, answer in (
        ("red " * 40, "up"),
        ("red", "up " * 40),
        ("red " * 40, "up " * 40),
        ("red", "up"),
        ("", "up"),
    ):
        batch = kind.collate([example(text, answer)])
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        assert len(ids) <= length
        assert ids[0] == 11
        assert labels[-1] == 2
        # No end between the prompt and the answer.
        assert ids.eq(2).sum() == 1
        words = min(2, len(text.split()))
        assert labels.eq(-100).sum() >= 1 + words
        prompt = kind.prompt(example(text, answer))
        assert len(prompt) <= length
        assert prompt[0] == 11
        assert 2 not in prompt


def test_an_empty_prompt_has_a_token_to_begin_with() -> None:
    kind = DecoderBatches(tokenizer(), (ECHO,))
    assert kind.prompt(example("")) == [2]
    assert kind.collate([example("")])["labels"][0, 0] == -100


def test_room_that_is_too_small_is_named() -> None:
    with pytest.raises(ValueError, match="max_length is 4, and a row needs 5 tokens at least"):
        DecoderBatches(tokenizer("one $A"), (ECHO,), max_length=4).collate([example()])
    long = Task("long", kind="classification", text="sentence1", labels=("no", "yes " * 20))
    with pytest.raises(ValueError, match=r"Task 'long': the answer .* has 21 tokens.*max_length 16"):
        DecoderBatches(tokenizer(), (long,), max_length=16).check(tiny("llama"))


def test_cut_answers_are_said_once(caplog: Any) -> None:
    kind = DecoderBatches(tokenizer(), (ECHO,), max_length=16)
    for _ in range(2):
        kind.collate([example("red", "up " * 40)])
    assert caplog.text.count("too many for max_length 16") == 1


def test_ends_are_scored_where_an_option_begins_another_and_nowhere_else() -> None:
    kind = DecoderBatches(tokenizer(), (SINGLE,))
    assert kind.rows.need_ends(["no", "no Answer"])
    assert not kind.rows.need_ends(["no", "yes no"])
    batch = kind._rows_of([example("red", 0)], [["no", "no Answer"]], end=False)
    assert [row[row != -100].tolist()[-1] for row in batch["labels"]] == [2, 2]
    batch = kind._rows_of([example("red", 0)], [["no", "yes"]], end=False)
    assert not batch["labels"].eq(2).any()


def test_a_tokenizer_without_an_end_is_named() -> None:
    made = tokenizer()
    made.eos_token = None
    with pytest.raises(ValueError, match="no token for the end of a text"):
        DecoderBatches(made, (ECHO,)).collate([example()])


def test_an_end_at_which_the_model_does_not_stop_is_said(caplog: Any) -> None:
    base = tiny("llama")
    base.generation_config.eos_token_id = [7]
    DecoderBatches(tokenizer(), (ECHO,)).check(base)
    assert "token 2, and the model's own generate stops at 7" in caplog.text


def test_positions_that_no_token_has_are_not_counted() -> None:
    sizes = dict(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    roberta = RobertaConfig(**sizes, max_position_embeddings=34, pad_token_id=1)
    assert longest_row(RobertaForSequenceClassification(roberta)) == 32
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=1, n_positions=20))
    assert longest_row(gpt2) == 20
    # The answer has positions too.
    kind, model = DecoderBatches(tokenizer(), (ECHO,), max_length=20), lc.attach(gpt2, "lora", r=2)
    records = list(kind.predict(model, [example("red " * 40)], max_new_tokens=8))
    assert len(records) == 1
    with pytest.raises(ValueError, match="no room for a prompt beside an answer of max_new_tokens=20"):
        list(kind.predict(model, [example()], max_new_tokens=20))


def test_a_special_token_without_an_embedding_is_named() -> None:
    made = tokenizer()
    made.add_special_tokens({"pad_token": "[NEW]"})
    base = GPT2LMHeadModel(GPT2Config(vocab_size=len(made) - 1, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match=r"pad_token '\[NEW\]' is number .*resize_token_embeddings"):
        check_special_tokens(made, base)


@pytest.mark.parametrize(("mean", "unit"), [(0.5, 0.5), (250000.5, 65536.0), (2000.0, 0.0078125)])
def test_a_regression_learns_alike_in_any_unit_and_offset(mean: float, unit: float) -> None:
    found = []
    for offset, scale in ((0.0, 1.0), (mean, unit)):
        torch.manual_seed(0)
        base = lc.add_heads(tiny("bert", num_labels=1), {"price": 1, "other": 1})
        model = lc.attach(base, "lora", tasks=["price", "other"], r=2).eval()
        learn_in_units(model, {"price": (offset, scale**2)})
        head = heads_of(model)[1].of("price")  # type: ignore[index]
        assert isinstance(head, PopArtLinear)
        optimizer = torch.optim.Adam(head.parameters(), 1e-2)
        features = torch.randn(16, head.in_features)
        answers = offset + scale * features[:, :1].sign()
        for _ in range(30):
            loss = F.mse_loss(head(features), answers) / scale**2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append((head(features) - offset) / scale)
        # To everyone outside a plain linear, in the answers' own units, to the bit.
        state = head.state_dict()
        torch.testing.assert_close(F.linear(features, state["weight"], state["bias"]), head(features))
        before = [parameter.clone() for parameter in head.parameters()]
        head.load_state_dict(state)
        assert all(torch.equal(one, two) for one, two in zip(before, head.parameters(), strict=True))
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.05)


def test_a_loss_of_exactly_0_is_said(caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        say_zero(["a", "b"], {"loss_a": 0.0, "loss_b": 0.1})
    assert "the loss of a is exactly 0" in caplog.text
    assert "the loss of b" not in caplog.text
