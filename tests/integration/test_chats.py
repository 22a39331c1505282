"""Tasks of the kind chat: rows by the chat template, and whole runs."""

import json
from pathlib import Path
from typing import Any

import pytest

import lorachord as lc
from lorachord.data.chats import from_text
from lorachord.data.sources import from_rows
from lorachord.models import pretrained
from lorachord.runs.train import train
from lorachord.runs.use import evaluate, export_run
from lorachord.training import DecoderBatches
from tests.tiny_data import CHAT_TEMPLATE, chat, recipe, tokenizer, write_rows

TURNS = [{"role": "system", "content": "up"}, *chat("red one", "no"), *chat("big", "small two")]
WRITTEN = "system : up user : red one assistant : no [EOS] user : big assistant : small two [EOS]"


def words(template: str | None = CHAT_TEMPLATE) -> Any:
    made = tokenizer()
    made.add_tokens(["system", "user", "assistant"])
    made.chat_template = template
    return made


def batches(*columns: str, template: str | None = CHAT_TEMPLATE, **changes: Any) -> DecoderBatches:
    task = lc.Task("support", kind="chat", text=columns or ("messages",), **changes)
    return DecoderBatches(words(template), (task,), max_length=32)


def example(kind: DecoderBatches, row: dict[str, Any]) -> dict[str, Any]:
    found = from_rows(kind.tasks[0], {"train": [row], "val": [row], "dev": [row]}).dev[0]
    return {**found, "task": 0}


def test_the_last_turn_is_learned_behind_the_others() -> None:
    kind = batches()
    own = example(kind, {"messages": TURNS})
    assert from_text(own["first"]) == TURNS[:-1]
    batch = kind.collate([own])
    [ids], [labels] = batch["input_ids"].tolist(), batch["labels"].tolist()
    assert kind.tokenizer.decode(ids) == WRITTEN
    assert kind.tokenizer.decode([label for label in labels if label != -100]) == "small two [EOS]"
    assert kind.tokenizer.decode(kind.prompt(own)) == WRITTEN.removesuffix(" small two [EOS]")


def test_a_prompt_and_a_completion_are_texts_or_turns() -> None:
    kind = batches("prompt", "completion")
    asked, answer = TURNS[:-1], TURNS[-1:]
    rows = [{"prompt": asked, "completion": answer}, {"prompt": asked, "completion": "small two"}]
    found = [kind.collate([example(kind, row)]) for row in rows]
    assert found[0]["input_ids"].tolist() == found[1]["input_ids"].tolist()
    assert kind.tokenizer.decode(found[0]["input_ids"][0]) == WRITTEN
    plain = example(kind, {"prompt": "big", "completion": "small"})
    assert from_text(plain["first"]) == [{"role": "user", "content": "big"}]


def test_other_words_for_turns_and_a_name_before_the_text() -> None:
    kind = batches("conversations", prefix="up: ")
    turns = [{"from": "human", "value": "big"}, {"from": "gpt", "value": "small"}]
    own = example(kind, {"conversations": turns})
    assert (from_text(own["first"]), own["label"]) == ([{"role": "user", "content": "up: big"}], "small")


def test_an_end_of_the_templates_own_is_learned_and_stopped_at() -> None:
    template = "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' . ' }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant : {% endif %}"
    kind = batches(template=template)
    labels = kind.collate([example(kind, {"messages": chat("big", "small")})])["labels"]
    assert kind.tokenizer.decode(labels[labels != -100]) == "small ."
    assert kind.chats.end == kind.tokenizer.convert_tokens_to_ids(".")


def test_a_long_chat_loses_its_beginning() -> None:
    kind = DecoderBatches(words(), batches().tasks, max_length=12)
    batch = kind.collate([example(kind, {"messages": TURNS})])
    assert kind.tokenizer.decode(batch["input_ids"][0]) == WRITTEN.split("red ")[1].split(" ", 1)[1]


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        (("messages",), {"messages": TURNS[:2]}, "does not end with a turn of the assistant"),
        (("messages",), {"messages": TURNS[-1:]}, "no turn before"),
        (("messages",), {"messages": []}, r"column 'messages' must hold a list of messages or a text; it holds \[\]"),
        (("messages",), {"messages": [{"role": "user"}]}, "without texts as its 'role' and 'content'"),
        (("messages",), {"massages": TURNS}, "no column 'messages'. Did you mean 'massages'"),
        (("prompt", "completion"), {"prompt": "a", "completion": TURNS}, "must hold one turn"),
        (("prompt", "completion"), {"prompt": "a", "completion": " "}, "nothing to learn"),
    ],
)
def test_rows_that_are_no_chats(columns: tuple[str, ...], row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Row 0 .*{message}"):
        example(batches(*columns), row)


def test_a_chat_has_no_prompt_of_its_own() -> None:
    with pytest.raises(ValueError, match="leave out prompt"):
        batches(prompt="{first}")


def own_tasks(folder: Path) -> list[dict[str, Any]]:
    rows = [{"messages": chat(f"{first} {filler}", answer)} for filler in ("up", "down", "one", "two", "or")
            for first, answer in (("red", "yes"), ("blue", "no"))]  # fmt: skip
    pairs = [{"prompt": f"big {filler}", "completion": "small"} for filler in ("up", "down", "one", "two", "or", "-")]
    write_rows(folder / "support.jsonl", rows * 4)
    write_rows(folder / "sizes.jsonl", pairs * 6)
    files = {name: {"path": str(folder / f"{name}.jsonl")} for name in ("support", "sizes")}
    return [
        {"name": "support", "kind": "chat", "text": ["messages"], "source": files["support"], "metric": "exact_match"},
        {"name": "sizes", "kind": "chat", "text": ["prompt", "completion"], "source": files["sizes"]},
    ]


def test_a_run_of_chats_answers_the_same_exported(tiny_llama: Path, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text(CHAT_TEMPLATE, encoding="utf-8")
    made = recipe(
        tiny_llama, model={"kind": "decoder", "chat_template": str(template)}, tasks={"own": own_tasks(tmp_path)},
        method={"name": "mtl_lora", "r": 8}, training={"max_steps": 60, "learning_rate": 0.05},
        evaluation={"max_new_tokens": 3},
    )  # fmt: skip
    assert made.model.chat_template == CHAT_TEMPLATE
    run = train(made, tmp_path / "run")
    scores = json.loads((run.path / "metrics.json").read_text())["dev"]["tasks"]
    assert scores["sizes"]["score"] > 0
    assert evaluate(run.path, "dev")["tasks"] == scores
    turns = chat("red up", "")[:1]
    expected = lc.load(run.path).predict([{"messages": turns}], "support")
    assert expected == lc.load(run.path).predict(["red up"], "support")
    export_run(run.path, tmp_path / "loras")
    served = lc.load(tmp_path / "loras")
    assert served.predict([{"messages": turns}], "support") == expected
    code = (tmp_path / "loras" / "support" / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    names: dict[str, Any] = {}
    exec("".join(part.split("```")[0] for part in code), names)
    assert [{"prediction": names["predict"](turns)}] == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template.*model.chat_template"),
        ("{{ messages[0]['content'] }}", "does not go on from there"),
        ("{{ raise_exception('no such roles') }}", "does not take the turns user: no such roles"),
    ],
)
def test_a_template_that_does_not_serve_is_told_before_weights(
    template: str | None, message: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(pretrained, "_load", read)
    with pytest.raises(ValueError, match=message):
        train(
            recipe(
                tiny_llama, model={"kind": "decoder", "chat_template": template}, tasks={"own": own_tasks(tmp_path)}
            ),
            tmp_path / "run",
        )


def test_what_a_recipe_cannot_say_of_chats(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"chat_template is 'chat.jinja', which is no template"):
        recipe(tiny_bert, model={"kind": "decoder", "chat_template": "chat.jinja"}, tasks={"own": own_tasks(tmp_path)})
    with pytest.raises(ValueError, match="chat_template is for decoders"):
        recipe(tiny_bert, model={"chat_template": "{{ 1 }}"}, tasks={"own": own_tasks(tmp_path)})
    with pytest.raises(ValueError, match="An encoder writes no text: leave out support, sizes"):
        train(recipe(tiny_bert, tasks={"own": own_tasks(tmp_path)}), tmp_path / "run")
