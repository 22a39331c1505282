"""Answers to new rows equal those of `evaluate`, in the order and beside the columns of the rows."""

import csv
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import lorachord as lc
from lorachord.data.files import read_rows
from lorachord.runs import served
from lorachord.runs.folder import RunFolder
from lorachord.runs.train import train
from lorachord.runs.usage import TASK_FILE
from lorachord.runs.use import evaluate
from lorachord_cli import main
from tests.tiny_data import SUFFIXES, own, recipe, task_of, write_data

TASKS = {"encoder": ("colour", "size", "number", "choice"), "decoder": ("colour", "size", "number", "choice", "echo")}
PARTS: dict[str, dict[str, Any]] = {
    "encoder": {"method": {"name": "mtl_lora", "r": 2, "num_ups": 2}, "training": {"max_steps": 20}},
    "decoder": {"evaluation": {"max_new_tokens": 3, "batch_size": 5}, "training": {"max_steps": 2}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tasks, with a test split."""
    return write_data(tmp_path_factory.mktemp("data"), test=15)


@pytest.fixture(scope="module", params=TASKS)
def run(
    request: pytest.FixtureRequest,
    tiny_bert: Path,
    tiny_llama: Path,
    data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    kind = request.param
    base = {"encoder": tiny_bert, "decoder": tiny_llama}[kind]
    made = recipe(base, *TASKS[kind], kind=kind, **PARTS[kind])
    path = train(made, tmp_path_factory.mktemp("runs") / kind, data_dir=data).path
    # So far from its start that its answers differ.
    file, generator = path / "adapter" / "adapter_model.safetensors", torch.Generator().manual_seed(3)
    scale = {"encoder": 0.3, "decoder": 1.0}[kind]
    moved = {
        name: value + (scale * torch.randn(value.shape, generator=generator) if value.is_floating_point() else 0)
        for name, value in load_file(file).items()
    }
    save_file(moved, file, metadata={"format": "pt"})
    evaluate(path, "test", again=True)
    return path


@pytest.fixture(scope="module")
def small(tiny_bert: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks that has learned next to nothing."""
    made = recipe(tiny_bert, "colour", "size", training={"max_steps": 1})
    return train(made, tmp_path_factory.mktemp("runs") / "small", data_dir=data).path


def rows_of(data: Path, task: str) -> list[dict[str, Any]]:
    """The test rows without their labels."""
    rows = list(read_rows(data / task / f"test{SUFFIXES[task]}"))
    return [{name: value for name, value in row.items() if name != "label"} for row in rows]


def expected(run: Path, task: str, rows: list[dict[str, Any]]) -> list[Any]:
    """What `evaluate` has saved, in the words of the task."""
    lines = (run / "predictions" / "test" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["prediction"] for line in lines]
    kind = task_of(own(task)[0]).kind
    if kind == "multiple_choice":
        return [row["choices"][index] for row, index in zip(rows, found, strict=True)]
    return [("no", "yes")[index] for index in found] if kind in ("classification", "pair") else found


def stdout(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def say(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    """Put something on stdin."""
    given = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded here."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was read")

    for name in ("load_run", "load_encoder", "load_decoder"):
        monkeypatch.setattr(served, name, fail)


# Answers


def test_a_runs_answers_are_those_of_evaluate(run: Path, data: Path) -> None:
    model, different = lc.load(run), 0
    assert tuple(model.tasks) == TASKS[run.name]
    for task in TASKS[run.name]:
        rows = rows_of(data, task)
        answers = model.predict(rows, task)
        wanted = expected(run, task, rows)
        assert [each["prediction"] for each in answers] == wanted
        different += len(set(map(str, wanted))) > 1
    assert different >= 2


def test_probabilities_are_those_of_the_saved_scores(run: Path, data: Path) -> None:
    for task in ("colour", "choice"):
        rows = rows_of(data, task)
        lines = (run / "predictions" / "test" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
        for found, record in zip(lc.load(run).predict(rows, task), map(json.loads, lines), strict=True):
            shares = torch.tensor(record["scores"], dtype=torch.float64).softmax(-1).tolist()
            values = found["probabilities"]
            assert (list(values.values()) if task == "colour" else values) == pytest.approx(shares, abs=1e-6)
            assert found["probability"] == pytest.approx(shares[record["prediction"]], abs=1e-6)
            assert task != "colour" or list(values) == ["no", "yes"]


def test_a_row_alone_is_answered_as_in_a_batch(run: Path, data: Path) -> None:
    model = lc.load(run)
    for task in TASKS[run.name]:
        rows = rows_of(data, task)
        for row, together in list(zip(rows, model.predict(rows, task), strict=True))[:5]:
            [alone] = model.predict([row], task)
            if task == "number":
                assert alone["prediction"] == pytest.approx(together["prediction"], abs=1e-5)
            else:
                assert alone["prediction"] == together["prediction"]
            if "probability" in alone:
                assert alone["probability"] == pytest.approx(together["probability"], abs=1e-5)


def test_tasks_mixed_in_one_file_keep_the_order_and_the_columns(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {task: rows_of(data, task)[:4] for task in TASKS[run.name]}
    mixed = [{"for": task, "note": f"{task} {at}", **rows[at]} for at in range(4) for task, rows in chosen.items()]
    file = tmp_path / "mixed.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in mixed), encoding="utf-8")
    lines = stdout(capsys, "predict", run, "--task-column", "for", "--input", file).splitlines()
    found = [json.loads(line) for line in lines]
    added = {"prediction", "probability", "probabilities", "written"}
    assert [{name: row[name] for name in row if name not in added} for row in found] == mixed
    for task, rows in chosen.items():
        wanted = expected(run, task, rows_of(data, task))[:4]
        own_rows = [row["prediction"] for row in found if row["for"] == task]
        assert own_rows == (pytest.approx(wanted, abs=1e-4) if task == "number" else wanted), rows


def test_exports_and_merged_models_answer_as_the_run(run: Path, data: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "loras")]) == 0
    several = lc.load(tmp_path / "loras")
    assert set(several.tasks) == set(TASKS[run.name])
    for task in TASKS[run.name]:
        merged = tmp_path / ("all" if run.name == "decoder" else task)
        if not merged.exists():
            asked = ["--task", task] if run.name == "encoder" else []
            assert main(["merge", str(run), "--out", str(merged), *asked]) == 0
        rows = rows_of(data, task)
        wanted = expected(run, task, rows)
        for model in (several, lc.load(merged)):
            answers = [each["prediction"] for each in model.predict(rows, task)]
            assert answers == (pytest.approx(wanted, abs=1e-4) if task == "number" else wanted)


def test_single_runs_and_the_adapters_folder_answer_too(tiny_bert: Path, data: Path, tmp_path: Path) -> None:
    made = recipe(tiny_bert, "colour", "size", mode="single", training={"max_steps": 2})
    run = train(made, tmp_path / "single", data_dir=data).path
    evaluate(run, "test")
    for task in ("colour", "size"):
        rows = rows_of(data, task)
        for path in (run, run / task, run / task / "adapter"):
            answers = lc.load(path).predict(rows, task)
            assert [each["prediction"] for each in answers] == expected(run / task, task, rows)


def test_columns_are_called_as_in_the_source_or_as_in_the_task(tiny_bert: Path, data: Path, tmp_path: Path) -> None:
    tasks = own("colour")
    renamed = [{"body": row["sentence1"], "label": row["label"]} for row in read_rows(data / "colour" / "train.jsonl")]
    (tmp_path / "rows").mkdir()
    for split in ("train", "dev"):
        text = "".join(json.dumps(row) + "\n" for row in renamed)
        (tmp_path / "rows" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    tasks[0] |= {"source": {"path": str(tmp_path / "rows"), "columns": {"sentence1": "body"}}, "group": "sentence1"}
    run = train(recipe(tiny_bert, tasks={"own": tasks}, training={"max_steps": 1}), tmp_path / "run").path
    assert main(["export", str(run), "--out", str(tmp_path / "lora")]) == 0
    for path in (run, tmp_path / "lora"):
        model = lc.load(path)
        assert model.predict([{"body": "red up"}]) == model.predict([{"sentence1": "red up"}])


def test_a_task_that_is_named_in_the_text_is_named_in_new_texts(tiny_bert: Path, data: Path, tmp_path: Path) -> None:
    parts: dict[str, Any] = {"tasks": {"name_in_text": True}, "model": {"heads": "shared"}}
    made = recipe(tiny_bert, "colour", "size", training={"max_steps": 2}, **parts)
    run = train(made, tmp_path / "run", data_dir=data).path
    assert main(["export", str(run), "--out", str(tmp_path / "lora")]) == 0
    named, exported = lc.load(run), lc.load(tmp_path / "lora")
    assert named.tasks["colour"].prefix == exported.tasks["colour"].prefix == "colour: "
    evaluate(run, "test")
    rows = rows_of(data, "colour")
    for model in (named, exported):
        assert [each["prediction"] for each in model.predict(rows, "colour")] == expected(run, "colour", rows)


# Files and streams


def test_csv_in_is_csv_out_and_parquet_and_jsonl_on_request(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new.csv"
    file.write_text('id,sentence1\n7,"red, up\n"\n9,blue\n', encoding="utf-8")
    [header, *found] = csv.reader(io.StringIO(stdout(capsys, "predict", small, "--task", "colour", "--input", file)))
    assert header == ["id", "sentence1", "prediction", "probability", "probabilities"]
    assert [row[:2] for row in found] == [["7", "red, up\n"], ["9", "blue"]]
    for suffix in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"out.{suffix}"
        text = stdout(capsys, "predict", small, "--task", "colour", "--input", file, "--out", out)
        assert text == f"The answers to 2 rows are in {out}.\n"
        rows = pq.read_table(out).to_pylist() if suffix == "parquet" else list(read_rows(out))
        assert [row["prediction"] for row in rows] == [row[2] for row in found]
        assert [row["id"] for row in rows] == ["7", "9"]
        shares = rows[0]["probabilities"]
        shares = json.loads(shares) if isinstance(shares, str) else shares
        assert math.fsum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("red up\n\nblue\n", ["sentence1"]),
        ('{"sentence1": "red up", "id": 1}\n\n{"sentence1": "blue", "id": 2}\n', ["sentence1", "id"]),
        ('[{"sentence1": "red up"}, {"sentence1": "blue"}]', ["sentence1"]),
        ("[urgent] red up\nblue\n", ["sentence1"]),
    ],
    ids=["lines", "objects", "a list", "a bracket"],
)
def test_stdin_holds_a_text_or_an_object_a_line(
    small: Path, text: str, columns: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say(monkeypatch, text)
    found = [json.loads(line) for line in stdout(capsys, "predict", small, "--task", "colour").splitlines()]
    # An empty line among texts is an empty text, so that lines and answers stay side by side.
    assert len(found) == (3 if text.startswith("red") else 2)
    assert all(list(row) == [*columns, "prediction", "probability", "probabilities"] for row in found)


def test_rows_in_memory_are_lists_frames_and_texts(small: Path) -> None:
    model = lc.load(small)
    texts = ["red up", "blue down"]
    found = model.predict(texts, "colour")
    assert model.predict([{"sentence1": text} for text in texts], "colour") == found
    assert model.predict(pandas.DataFrame({"sentence1": texts}), "colour") == found
    assert model.predict([{"sentence1": text, "t": "colour"} for text in texts], task_column="t") == found


# Bad input, said before a model is read


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "color"], "no task is called 'color'. Did you mean 'colour'?"),
        ([], "There are several tasks, colour, size: say whose rows these are"),
        (["--task", "colour", "--task-column", "id"], "not both"),
        (["--task", "size"], "Row 0 (from 0) of NEW: there is no column 'sentence2'. "),
        (["--task", "size"], "Columns: id, sentence1, kind."),
        (["--task-column", "kind"], "Row 1 (from 0) of NEW: no task is called 'sise'. Did you mean 'size'?"),
        (["--task-column", "which"], "there is no column 'which' for the task. Columns: id, sentence1, kind."),
        (["--task", "colour", "--out", "x.xlsx"], "x.xlsx is not one of .parquet, .jsonl, .csv"),
        (["--task", "colour", "--out", "NEW"], "exists: name another file"),
        (["--task", "colour", "--out", "gone/x.csv"], "There is no folder"),
    ],
)
def test_bad_input_is_said(
    small: Path, arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new.csv"
    file.write_text("id,sentence1,kind\n1,red,colour\n2,blue,sise\n", encoding="utf-8")
    asked = [str(file) if argument == "NEW" else argument for argument in arguments]
    message = refused(capsys, "predict", small, "--input", file, *asked)
    assert words.replace("NEW", str(file)) in message


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "stdin is empty"),
        ('{"sentence1": "red"}\nblue\n', "stdin, line 2: this is no JSON object"),
        ("[]", "there are no rows to predict"),
        ('{"sentence1": null}\n', "Row 0 (from 0) of stdin: column 'sentence1' must hold text; it holds None"),
        ('{"sentence1": "red", "prediction": 1}\n', "the columns prediction, which answers have as well"),
        (b"\xff\xfe", "stdin is not UTF-8"),
    ],
)
def test_bad_streams_are_said(
    small: Path,
    text: str | bytes,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    say(monkeypatch, text)
    assert words in refused(capsys, "predict", small, "--task", "colour")


@pytest.mark.usefixtures("no_models")
def test_bad_files_are_said(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.csv").write_text("sentence1\n", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("red\n", encoding="utf-8")
    cases = {"empty.csv": "is empty: it holds no rows", "gone.csv": "does not exist", "notes.txt": "convert it"}
    for name, words in cases.items():
        assert words in refused(capsys, "predict", small, "--task", "colour", "--input", tmp_path / name)
    say(monkeypatch, "red\n")
    assert "reads several columns, sentence1, sentence2" in refused(capsys, "predict", small, "--task", "size")


@pytest.mark.usefixtures("no_models")
def test_folders_that_answer_nothing_are_said(
    small: Path, tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = Path(shutil.copytree(small, tmp_path / "unfinished"))
    (unfinished / "metrics.json").unlink()
    (tmp_path / "nothing").mkdir()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / TASK_FILE).write_text('{"model": "m", "kind": "encoder", "max_length": 8, "tasks": [{"name": "t"}]}')
    for path, words in (
        (unfinished, "is not finished"),
        (tmp_path / "nothing", "is no run, exported LoRA or merged model; it holds nothing"),
        (tmp_path / "gone", "is no folder"),
        (tiny_bert, "does not say which tasks it answers"),
        (damaged, "does not say kind, text, prompt of a task"),
    ):
        assert words in refused(capsys, "predict", path, "--task", "colour")
    assert RunFolder.open(small).finished


def test_a_score_that_is_not_finite_has_no_probability(small: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(small, tmp_path / "run"))
    model = lc.load(broken)
    network, _ = model._served[0].loaded
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "heads" in name:
                parameter.fill_(math.nan)
    [found] = model.predict(["red"], "colour")
    assert (found["probability"], found["probabilities"]) == (None, None)
