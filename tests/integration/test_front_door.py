"""A model, tasks and rows in, a trained and scored model out, with everything else by default."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset
from pandas import DataFrame
from transformers import BertConfig, BertForTokenClassification, TrainingArguments

import lorachord as lc
from lorachord.data import from_rows
from lorachord.data.mixture import TaskMixture
from lorachord.runs.arguments import mixture_of
from lorachord.runs.recipe import recipe_from
from lorachord.runs.train import train
from lorachord.training import DecoderBatches, EncoderBatches, MultiTaskTrainer
from tests.tiny_data import FILLERS, tokenizer, tree
from tests.tiny_models import tiny

NAMES = ["colour", "number"]
COLOUR = lc.Task("colour", kind="classification", text="body", label="team", group="place")
NUMBER = lc.Task("number", kind="regression", text=("review",), group="place")


def rows(size: int = 40) -> dict[str, list[dict[str, Any]]]:
    """The first word decides, in both tasks."""
    places = range(size)
    return {
        "colour": [
            {"body": f"{('blue', 'red')[n % 2]} {FILLERS[n % 3 % 2]}", "team": ("no", "yes")[n % 2], "place": n}
            for n in places
        ],
        "number": [{"review": f"{('two', 'one')[n % 2]} up", "label": float(n % 2), "place": n} for n in places],
    }


def encoder(method: str = "mtl_lora", names: list[str] = NAMES) -> Any:
    base = lc.add_heads(tiny("bert"), {"colour": 2, "number": 1})
    return lc.attach(base, method, tasks=names, r=4)


def decoder() -> Any:
    return lc.attach(tiny("llama"), "mtl_lora", tasks=NAMES, r=4)


def arguments(out: Path, **settings: Any) -> TrainingArguments:
    defaults = dict(max_steps=4, logging_steps=2, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True)
    return TrainingArguments(str(out), **{**defaults, **settings})


def trainer(out: Path, model: Any = None, **given: Any) -> lc.MultiTaskTrainer:
    parts: dict[str, Any] = dict(tokenizer=tokenizer(), tasks=[COLOUR, NUMBER], train_data=rows())
    settings = given.pop("settings", {})
    return lc.MultiTaskTrainer(model or encoder(), arguments(out, **settings), **{**parts, **given})


def batches(made: lc.MultiTaskTrainer) -> list[dict[str, Any]]:
    return list(made.get_train_dataloader())


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]


@pytest.mark.parametrize(("make", "kind"), [(encoder, EncoderBatches), (decoder, DecoderBatches)])
def test_lists_of_dicts_train_and_evaluate(tmp_path: Path, make: Any, kind: type) -> None:
    made = trainer(tmp_path, make())
    assert isinstance(made, MultiTaskTrainer)
    assert type(made.kind) is kind
    made.train()
    logged = [entry for entry in made.state.log_history if "loss" in entry]
    assert all(f"loss_{name}" in entry for entry in logged for name in NAMES)
    metrics = made.evaluate()
    assert metrics.keys() >= {"eval_colour", "eval_number", "eval_mean", "eval_worst"}
    # Other rows than those held out, by name too.
    other = made.predict_tasks({"number": rows(6)["number"], "colour": rows(8)["colour"]})
    assert {name: len(records) for name, records in other.items()} == {"colour": 8, "number": 6}


def test_an_encoder_learns_by_default(tmp_path: Path) -> None:
    made = trainer(tmp_path, settings=dict(max_steps=60, learning_rate=1e-2))
    made.train()
    assert made.evaluate(rows())["eval_worst"] > 0.8


@pytest.mark.parametrize("form", [DataFrame, Dataset.from_list, iter])
def test_every_form_of_rows_gives_the_same_batches(tmp_path: Path, form: Any) -> None:
    train_data = {name: form(some) for name, some in rows().items()}
    eval_data = {name: form(some) for name, some in rows(8).items()}
    made = trainer(tmp_path, train_data=train_data, eval_data=eval_data)
    expected = trainer(tmp_path, train_data=rows(), eval_data=list(rows(8).values()))
    assert_same(batches(made), batches(expected))
    for one, other in zip(made.eval_data, expected.eval_data, strict=True):
        assert list(one) == list(other)


def test_datasets_that_were_made_before_are_taken_as_they_are(tmp_path: Path) -> None:
    parts = [from_rows(task, {"train": some}) for task, some in zip([COLOUR, NUMBER], rows().values(), strict=True)]
    given = {"train_data": [part.train for part in parts], "eval_data": [part.val.select([0]) for part in parts]}
    made = trainer(tmp_path, tasks=[part.task for part in parts], **given)
    assert list(made.train_data) == [part.train for part in parts]
    assert [len(some) for some in made.eval_data] == [1, 1]
    with pytest.raises(ValueError, match=r"'colour': .*split already.*eval_data"):
        trainer(tmp_path, tasks=[part.task for part in parts], train_data=given["train_data"])


def test_options_in_a_frame_are_lists(tmp_path: Path) -> None:
    task = lc.Task("choice", kind="multiple_choice", text="body", group="place")
    some = [{"body": "red", "choices": ["up", "down"], "label": n % 2, "place": n} for n in range(12)]
    path = tmp_path / "rows.parquet"
    DataFrame(some).to_parquet(path)
    from pandas import read_parquet

    data = from_rows(task, {"train": read_parquet(path)})
    assert data.train[0]["choices"] == ["up", "down"]


@pytest.mark.parametrize("make", [encoder, decoder])
def test_labels_that_are_read_equal_labels_that_are_given(tmp_path: Path, make: Any) -> None:
    given = lc.Task("colour", kind="classification", text="body", label="team", labels=("no", "yes"), group="place")
    inferred, named = trainer(tmp_path, make()), trainer(tmp_path, make(), tasks=[given, NUMBER])
    assert inferred.tasks == named.tasks
    assert_same(batches(inferred), batches(named))


def test_labels_are_read_from_all_splits(tmp_path: Path) -> None:
    held = rows(6)
    held["colour"][0]["team"] = "maybe"
    base = lc.add_heads(tiny("bert"), {"colour": 3, "number": 1})
    made = trainer(tmp_path, lc.attach(base, "lora"), eval_data=held)
    assert made.tasks[0].labels == ("maybe", "no", "yes")


def test_a_datasets_own_class_names_are_its_labels(tmp_path: Path) -> None:
    some = Dataset.from_list([{**row, "team": int(row["team"] == "yes")} for row in rows()["colour"]])
    some = some.cast_column("team", ClassLabel(names=["nay", "aye"]))
    made = trainer(tmp_path, train_data={**rows(), "colour": some})
    assert made.tasks[0].labels == ("nay", "aye")


def test_val_is_drawn_as_for_a_recipe(tmp_path: Path) -> None:
    made = trainer(tmp_path, eval_data={"number": rows(8)["number"]})
    data = from_rows(COLOUR, {"train": rows()["colour"], "dev": rows(8)["colour"]})
    assert list(made.eval_data[0]) == list(data.val)
    assert list(made.train_data[0]) == list(data.train)
    assert [len(some) for some in made.eval_data] == [4, 8]
    assert len(made.train_data[1]) == 40


def test_the_default_mixture_is_that_of_a_recipe(tmp_path: Path) -> None:
    made = trainer(tmp_path, settings=dict(per_device_train_batch_size=16, seed=3))
    sizes = [len(some) for some in made.train_data]
    made_of = tree(tmp_path, "colour", "size", training={"batch_size": 16})
    expected = mixture_of(recipe_from({**made_of, "seed": 3}), sizes)
    assert made.mixture.schedule == expected.schedule
    assert list(made.mixture) == list(expected)


def broken(rows_of: dict[str, list[dict[str, Any]]], **changes: Any) -> dict[str, list[dict[str, Any]]]:
    """The rows with the fourth row of colour changed; a column that is None is left out."""
    row = {**rows_of["colour"][3], **changes}
    rows_of["colour"][3] = {name: value for name, value in row.items() if value is not None}
    return rows_of


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(train_data={**rows(), "color": rows()["colour"]}), "train_data has rows of 'color'.*mean 'colour'"),
        (dict(train_data={"colour": rows()["colour"]}), "train_data has no rows of number"),
        (dict(eval_data={"numbers": rows()["number"]}), "eval_data has rows of 'numbers'.*mean 'number'"),
        (dict(train_data=[rows()["colour"]]), "train_data has 1 entries for 2 tasks"),
        (dict(train_data=Dataset.from_list(rows()["colour"])), "train_data is a Dataset; .* by its name"),
        (dict(train_data={**rows(), "colour": {"body": ["a"]}}), "train_data of task 'colour' is a dict; rows are a"),
        (
            dict(train_data={**rows(), "colour": ["red"]}),
            r"Row 0 \(from 0\) of train_data.*'colour': a str, not",
        ),
        (dict(train_data={**rows(), "colour": []}), "train_data of task 'colour' is empty"),
        (
            dict(train_data=broken(rows(), body=None, bod="red")),
            r"Row 3 \(from 0\) of train_data of task 'colour': there is no column 'body'. Did you mean 'bod'",
        ),
        (dict(train_data=broken(rows(), body=7)), r"Row 3 .*train_data of task 'colour': column 'body' must hold text"),
        (dict(eval_data=broken(rows(), team=None)), r"Row 3 .*eval_data of task 'colour': there is no column 'team'"),
        (dict(train_data=broken(rows(), team=1)), r"Row 3 .*label 1 may be .*class or its index.*labels=\('"),
        (dict(train_data=broken(rows(), team="1")), "label '1' may be the name of a class or its index"),
        (dict(train_data=broken(rows(), team=float("nan"))), "Row 3 .*the label is missing"),
        (dict(tasks=[COLOUR, NUMBER, NUMBER]), "unique; repeated: number"),
        (dict(tasks=[NUMBER, COLOUR]), r"mtl_lora has parameters for the tasks colour, number, .*lc.attach\("),
        (dict(task_weights=[1.0]), "task_weights has 1 entries for 2 tasks"),
        (dict(max_length=600), "max_length is 600, but BertForSequenceClassification takes at most 512 tokens"),
        (dict(mixture=TaskMixture([40, 40], batch_size=8)), r"mixture is of \[40, 40\] rows, and the tasks have \[36"),
    ],
)
def test_what_does_not_fit_is_an_error_in_words(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **given)


def test_a_model_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    sizes = dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    with pytest.raises(ValueError, match=r"A BertForTokenClassification is no kind.*encoder: .*decoder: "):
        trainer(tmp_path, BertForTokenClassification(BertConfig(**sizes)))


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (None, r"one head, with 3 output\(s\).*colour 2, number 1.*lc.add_heads\(base, \{'colour': 2, 'number': 1\}\)"),
        ({"number": 1, "colour": 2}, r"has heads for .*'number': 1, 'colour': 2.*lc.add_heads\(base, \{'colour': 2"),
        ({"colour": 3, "number": 1}, r"has heads for .*'colour': 3.*lc.add_heads\(base, \{'colour': 2"),
    ],
)
def test_heads_that_do_not_fit_are_refused_with_the_call(
    tmp_path: Path, heads: dict[str, int] | None, message: str
) -> None:
    base = tiny("bert") if heads is None else lc.add_heads(tiny("bert"), heads)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, lc.attach(base, "lora"))


def test_a_shared_head_of_the_right_width_is_taken(tmp_path: Path) -> None:
    other = lc.Task("other", kind="classification", text="body", label="team", group="place")
    data = {"colour": rows()["colour"], "other": rows()["colour"]}
    model = lc.attach(tiny("bert", num_labels=2), "lora")
    trainer(tmp_path, model, tasks=[COLOUR, other], train_data=data).train()


def test_an_encoder_writes_no_text(tmp_path: Path) -> None:
    echo = lc.Task("number", kind="generation", text="body", label="team", group="place")
    data = {**rows(), "number": rows()["colour"]}
    with pytest.raises(ValueError, match="encoder writes no text: leave out number"):
        trainer(tmp_path, tasks=[COLOUR, echo], train_data=data)


@pytest.mark.parametrize(("make", "lacks"), [(encoder, "pad_token"), (decoder, "eos_token")])
def test_a_tokenizer_without_a_token_it_needs_is_refused(tmp_path: Path, make: Any, lacks: str) -> None:
    lacking = tokenizer()
    setattr(lacking, lacks, None)
    with pytest.raises(ValueError, match=f"set tokenizer.{lacks}"):
        trainer(tmp_path, make(), tokenizer=lacking)


def test_a_recipe_needs_a_source(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    plain = tree(tiny_bert, "colour")
    del plain["tasks"]["own"][0]["source"]
    with pytest.raises(ValueError, match="'colour' has no source: give it one"):
        train(recipe_from(plain), tmp_path / "run")
    assert train(recipe_from(plain), tmp_path / "run", data_dir=task_files).finished


def test_importing_the_package_imports_no_trainer_and_no_data() -> None:
    code = (
        "import sys, lorachord as lc\n"
        "late = ['lorachord.training', 'lorachord.data', 'datasets', 'pandas', 'sklearn']\n"
        "assert not [name for name in late if name in sys.modules]\n"
        "assert {'MultiTaskTrainer', 'Task'} <= set(dir(lc)) & set(lc.__all__)\n"
        "assert lc.Task('a', kind='regression', text='b').text_columns == ('b',)\n"
        "assert 'datasets' not in sys.modules\n"
        "assert lc.MultiTaskTrainer.__name__ == 'MultiTaskTrainer'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
