from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorachord.data.sources import TaskData, from_rows, load_task
from lorachord.data.task import KINDS, Source, Task
from lorachord.runs.class_names import name_classes
from tests.unit.data.helpers import folder, rows, task, write

GLUE_CARD = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/train.jsonl}
  - {split: validation_matched, path: small/matched.jsonl}
  - {split: test, path: small/test.jsonl}
---
"""


def at(path: Path, of: Task | None = None, **source: Any) -> Task:
    return replace(of or task(), source=Source(path=str(path), **source))


def texts(dataset: Any) -> set[str]:
    return {row["first"] for row in dataset}


@pytest.fixture
def hub_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out as a hub repository, and a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    clone = tmp_path / "clone"
    renamed = [{"premise": row["sentence1"], "label": row["label"], "idx": 100 + i} for i, row in enumerate(rows(40))]
    write(clone / "small" / "train.jsonl", renamed)
    write(clone / "small" / "matched.jsonl", renamed[:10])
    write(clone / "small" / "test.jsonl", [{**row, "label": -1} for row in renamed[:10]])
    (clone / "README.md").write_text(GLUE_CARD)
    return clone


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_a_folder_gives_three_splits_without_overlap(tmp_path: Path, suffix: str) -> None:
    data = load_task(at(folder(tmp_path, suffix)))
    assert (len(data.train), len(data.val), len(data.dev), data.test) == (36, 4, 10, None)
    assert texts(data.train) | texts(data.val) == {f"text {index}" for index in range(40)}
    assert data.train.features["label"].dtype == "int64"
    row = data.dev[3]
    assert row == {"first": "text 3", "second": "", "label": 1, "idx": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_columns(tmp_path: Path, kind: str) -> None:
    data = load_task(at(folder(tmp_path, kind=kind), task(kind)))
    types = {"regression": float, "generation": str, "chat": str}
    row = data.dev[1]
    assert type(row["label"]) is types.get(kind, int)
    assert row.get("choices") == (["left 1", "right 1"] if kind == "multiple_choice" else None)
    assert row["second"] == ("more 1" if kind == "pair" else "")


def test_a_data_directory_takes_the_place_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "data" / "superni" / "toy")
    elsewhere = task(name="superni/toy", source=Source(path="owner/hub", columns={"sentence1": "other"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for data_dir in (tmp_path / "data", "data", "~/data"):
        assert len(load_task(elsewhere, data_dir=data_dir).train) == 36


def test_val_and_test_of_the_folder_are_used(tmp_path: Path) -> None:
    path = folder(tmp_path, val=rows(5), test=rows(6), validation=rows(7), dev=None)
    data = load_task(at(path))
    assert data.test is not None
    assert [len(split) for split in (data.train, data.val, data.dev, data.test)] == [40, 5, 7, 6]


def test_splits_may_be_called_otherwise(tmp_path: Path) -> None:
    path = folder(tmp_path, fitted=rows(30))
    data = load_task(at(path, splits={"train": "fitted", "val": "train"}))
    assert (len(data.train), len(data.val)) == (30, 40)
    # A split that was named is never passed over in silence.
    with pytest.raises(ValueError, match=r"no 'valid' for our split 'val'"):
        load_task(at(path, splits={"val": "valid"}))


def test_of_a_single_file_dev_is_drawn_too(tmp_path: Path) -> None:
    data = load_task(at(write(tmp_path / "all.csv", rows(100))))
    assert (len(data.train), len(data.val), len(data.dev)) == (81, 9, 10)
    assert len(texts(data.train) | texts(data.val) | texts(data.dev)) == 100


def test_no_group_is_in_train_and_val(tmp_path: Path) -> None:
    tripled = [{**row, "sentence1": f"text {index // 3}"} for index, row in enumerate(rows(90))]
    path = folder(tmp_path, train=tripled)
    by_text = load_task(at(path))
    assert len(by_text.val) == 9
    assert not texts(by_text.train) & texts(by_text.val)
    by_other = load_task(at(path, task(group="sentence2")))
    assert texts(by_other.train) & texts(by_other.val)


def test_the_seed_decides_and_the_global_one_does_not_change(tmp_path: Path) -> None:
    import random

    of = at(folder(tmp_path), task(max_rows=30))
    state = random.getstate()
    first, again, other = (load_task(of, seed=seed) for seed in (0, 0, 1))
    assert random.getstate() == state
    assert texts(first.val) == texts(again.val) != texts(other.val)
    assert texts(first.train) == texts(again.train) != texts(other.train)
    assert texts(first.dev) == texts(other.dev)


def test_max_rows_are_those_of_train_and_val_together(tmp_path: Path) -> None:
    data = load_task(at(folder(tmp_path), task(max_rows=20)))
    assert (len(data.train), len(data.val), len(data.dev)) == (18, 2, 10)
    assert max(row["idx"] for row in data.train) > 20


def test_rows_in_memory_are_split_alike() -> None:
    data = from_rows(task(), {"train": rows(40), "dev": iter(rows(10))})
    assert (len(data.train), len(data.val), len(data.dev)) == (36, 4, 10)
    with pytest.raises(ValueError, match=r"no split 'validate'.*'val'"):
        from_rows(task(), {"train": rows(4), "validate": rows(4)})
    with pytest.raises(ValueError, match=r"no rows for train; it has dev"):
        from_rows(task(), {"dev": rows(4)})


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_dataset_is_loaded_by_its_names(hub_clone: Path, streaming: bool) -> None:
    of = at(hub_clone, name="small", splits={"dev": "validation_matched"}, columns={"sentence1": "premise"})
    data = load_task(of, streaming=streaming)
    # The unlabelled test split is not touched.
    assert data.test is None
    assert len(data.dev) == 10
    assert texts(data.train) | texts(data.val) == {f"text {index}" for index in range(40)}
    assert data.dev[0] == {"first": "text 0", "second": "", "label": 0, "idx": 100}


def test_a_hub_split_that_is_not_there_is_named(hub_clone: Path) -> None:
    with pytest.raises(ValueError, match=r"no 'dev' or 'validation' for our split 'dev'.*Known: test, train, valid"):
        load_task(at(hub_clone, name="small"))
    with pytest.raises(ValueError, match=r"no 'validation_matche'.*'validation_matched'"):
        load_task(at(hub_clone, name="small", splits={"dev": "validation_matche"}))


def test_unlabelled_rows_are_refused(hub_clone: Path) -> None:
    columns = {"sentence1": "premise"}
    with pytest.raises(ValueError, match=r"dev of task 'toy' .*label -1 is outside.*without labels"):
        load_task(at(hub_clone, name="small", splits={"dev": "test"}, columns=columns))


def test_a_name_that_the_hub_cannot_give_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no way there")

    monkeypatch.setattr("lorachord.data.sources.load_dataset", refuse)
    with pytest.raises(ValueError, match=r"nowhere/toy is neither a local folder or file nor.*no way there"):
        load_task(task())


def streamed(path: Path, **changes: Any) -> TaskData:
    return load_task(at(path, task(**changes)), streaming=True)


def test_a_stream_has_the_same_rows_in_another_order_each_epoch(tmp_path: Path) -> None:
    data = streamed(folder(tmp_path, train=rows(400)))
    assert isinstance(data.train, datasets.IterableDataset)
    first, again = ([row["idx"] for row in data.train] for _ in range(2))
    data.train.set_epoch(1)
    other = [row["idx"] for row in data.train]
    assert first == again != other
    assert sorted(first) == sorted(other) != first
    held_out = {row["idx"] for row in data.val}
    assert held_out | set(first) == set(range(400))
    assert not held_out & set(first)
    # A tenth to within three standard errors.
    assert 22 <= len(held_out) <= 58


def test_a_stream_stops_at_max_rows_and_keeps_a_val_that_is_there(tmp_path: Path) -> None:
    data = streamed(folder(tmp_path, val=rows(5)), max_rows=20)
    assert sorted(row["idx"] for row in data.train) == list(range(20))
    assert len(data.val) == 5


def test_a_stream_is_checked_at_its_first_row_and_then_as_it_comes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Row 0 \(from 0\) of train of task 'toy'.*no column"):
        streamed(folder(tmp_path / "a", train=[{"other": "x"}]))
    with pytest.raises(ValueError, match=r"train of task 'toy'.*is empty"):
        streamed(folder(tmp_path / "b", train=[]))
    with pytest.raises(ValueError, match=r"single file is not streamed"):
        streamed(write(tmp_path / "all.jsonl", rows(9)))
    late = streamed(folder(tmp_path / "c", train=[*rows(40), {"sentence1": "late", "label": 5}]))
    with pytest.raises(ValueError, match=r"Row 40 .*label 5 is outside"):
        list(late.train), list(late.val)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (dict(train=[{"sentence": "x", "label": 1}]), "no column 'sentence1'.*'sentence'.*sentence, label"),
        (dict(dev=[{"sentence1": "x", "lable": 1}]), "dev of task 'toy'.*no column 'label'.*'lable'"),
        (dict(train=[*rows(5), {"sentence1": "x", "label": 7}]), r"Row 5 .*label 7 is outside 0 = no, 1 = yes"),
        (dict(train=[*rows(5), {"sentence1": "x", "label": 0.5}]), "label 0.5 is neither"),
        (dict(train=[]), "train of task 'toy' .*train.jsonl.* is empty"),
        (dict(dev=[]), "dev of task 'toy' .*dev.jsonl.* is empty"),
        (dict(train=[{**row, "label": 1} for row in rows(20)]), "all 18 rows have the one class 'yes'"),
        (dict(train=[{**row, "sentence1": "x"} for row in rows(20)]), "val cannot be drawn.*1 group"),
        (dict(train=None), r"no 'train' for our split 'train'. Known: dev"),
        (dict(dev=None), "no 'dev' or 'validation' for our split 'dev'"),
        (dict(train=None, trian=rows(9)), "no 'train' .*Did you mean 'trian'"),
    ],
)
def test_bad_folders_are_errors_in_words(tmp_path: Path, splits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_task(at(folder(tmp_path, **splits)))


def test_option_lists_of_one_are_refused(tmp_path: Path) -> None:
    alone = [{"sentence1": "x", "choices": ["only"], "label": 0}]
    with pytest.raises(ValueError, match=r"Row 0 .*at least two options"):
        load_task(at(folder(tmp_path, kind="multiple_choice", train=alone), task("multiple_choice")))


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, ".csv")
    (tmp_path / "dev.csv").write_bytes(b"sentence1,label\n\xff,1\n")
    with pytest.raises(ValueError, match=r"dev.csv is not UTF-8: byte 16 is 0xff"):
        load_task(at(tmp_path))


def test_a_missing_folder_or_file_names_what_there_is(tmp_path: Path) -> None:
    folder(tmp_path / "toys")
    with pytest.raises(ValueError, match=r"no 'toy'. Did you mean 'toys'"):
        load_task(task(), data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"no 'trane.csv'. Did you mean 'train.jsonl'"):
        load_task(at(tmp_path / "toys" / "trane.csv"))
    with pytest.raises(ValueError, match=r"'nothere'"):
        load_task(at(Path("nothere/toys/x")))


def test_the_same_row_is_the_same_class_in_every_format(tmp_path: Path) -> None:
    for labels in (("true", "false"), ("neg", "pos"), ("no", "yes"), ("yes", "no")):
        found = {}
        for suffix in (".csv", ".jsonl", ".parquet"):
            made = [{"sentence1": f"text {n}", "label": n % 3 == 0} for n in range(40)]
            file = write(tmp_path / labels[0] / f"x{suffix}", made)
            data = load_task(task(source=Source(path=str(file)), labels=labels))
            found[suffix] = {row["first"]: row["label"] for part in (data.train, data.val, data.dev) for row in part}
        assert found[".csv"] == found[".jsonl"] == found[".parquet"]
        true = labels[found[".csv"]["text 0"]]
        assert true == {"true": "true", "neg": "pos", "no": "yes", "yes": "yes"}[labels[0]]


def test_classes_that_a_dataset_names_in_another_order_keep_their_names() -> None:
    made = datasets.Dataset.from_list(rows(40)).cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    data = from_rows(task(source=None, labels=("yes", "no")), {"train": made})
    for row in data.train:
        assert row["label"] == (int(row["first"].split()[1]) + 1) % 2
    stars = datasets.Dataset.from_list(rows(40)).cast_column("label", datasets.ClassLabel(names=["1", "2"]))
    data = from_rows(Task("stars", kind="classification", text="sentence1"), {"train": stars})
    assert all(row["label"] == int(row["first"].split()[1]) % 2 for row in data.train)


@pytest.mark.parametrize("labels", [("yes", "no"), ("no", "yes")])
def test_classes_that_a_parquet_file_of_datasets_names_keep_their_names(
    labels: tuple[str, str], tmp_path: Path
) -> None:
    made = datasets.Dataset.from_list(rows(40)).cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    made.to_parquet(tmp_path / "x.parquet")
    data = load_task(task(source=Source(path=str(tmp_path / "x.parquet")), labels=labels))
    for row in [*data.train, *data.val, *data.dev]:
        assert labels[row["label"]] == ("no", "yes")[int(row["first"].split()[1]) % 2]


def test_a_parquet_file_of_datasets_names_the_classes_of_a_task_that_does_not(tmp_path: Path) -> None:
    made = datasets.Dataset.from_list(rows(40)).cast_column("label", datasets.ClassLabel(names=["zeta", "alpha"]))
    made.to_parquet(tmp_path / "x.parquet")
    unnamed = task(source=Source(path=str(tmp_path / "x.parquet")), labels=("<class 0>", "<class 1>"))
    assert name_classes(unnamed, None).labels == ("zeta", "alpha")


def test_features_that_cannot_be_read_name_their_file(tmp_path: Path) -> None:
    table = pa.table({"sentence1": ["a"], "label": [0]}).replace_schema_metadata(
        {"huggingface": '{"info": {"features": 3}}'}
    )
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read as parquet"):
        load_task(at(tmp_path / "x.parquet"))


def test_row_numbers_of_64_bits_without_a_sign_are_kept(tmp_path: Path) -> None:
    made = [{**row, "idx": 2**64 - 1 - n} for n, row in enumerate(rows(40))]
    data = load_task(at(write(tmp_path / "x.jsonl", made)))
    assert sorted(row["idx"] for part in (data.train, data.val, data.dev) for row in part)[-1] == 2**64 - 1
    made[0]["idx"] = 2**64
    with pytest.raises(ValueError, match="idx is 18446744073709551616"):
        load_task(at(write(tmp_path / "y.jsonl", made)))
    with pytest.raises(ValueError, match="without streaming"):
        list(load_task(at(folder(tmp_path / "z", train=made)), streaming=True).train)


def test_halves_of_characters_are_replaced_and_whole_ones_stay(tmp_path: Path) -> None:
    made = rows(40)
    made[0]["sentence1"] = "cut \ud83d"
    made[1]["sentence1"] = "whole \ud83d\ude00"
    data = load_task(at(write(tmp_path / "x.jsonl", made)))
    texts = {row["first"] for part in (data.train, data.val, data.dev) for row in part}
    assert {"cut \ufffd", "whole \U0001f600"} <= texts


def test_a_test_split_without_labels_may_be_left_out(tmp_path: Path) -> None:
    path = folder(tmp_path / "x", test=[{"sentence1": "a"}])
    with pytest.raises(ValueError, match=r"no column 'label'.*splits: \{test: null\}"):
        load_task(at(path))
    assert load_task(at(path, splits={"test": None})).test is None


def test_rows_without_a_label_are_left_out_where_asked(tmp_path: Path, caplog: Any) -> None:
    missing = [None, "", " ", float("nan"), -1]
    made = rows(40) + [{"sentence1": f"none {n}", "label": label} for n, label in enumerate(missing)]
    made.append({"sentence1": "absent"})
    path = write(tmp_path / "x.jsonl", made)
    with pytest.raises(ValueError, match="Row 40"):
        load_task(at(path))
    data = load_task(at(path, skip_unlabelled=True))
    assert sum(map(len, (data.train, data.val, data.dev))) == 40
    assert "6 of 46 rows have no label" in caplog.text
    streamed = load_task(at(folder(tmp_path / "y", train=made), skip_unlabelled=True), streaming=True)
    assert len([*streamed.train, *streamed.val]) == 40
    named = task(source=Source(path="x", skip_unlabelled=True))
    data = from_rows(named, {"train": made})
    assert sum(map(len, (data.train, data.val, data.dev))) == 40
    with pytest.raises(ValueError, match=r"none of its 40 rows has a label\. Check the column 'lable'"):
        load_task(at(write(tmp_path / "z.jsonl", rows(40)), task(label="lable"), skip_unlabelled=True))


def test_a_null_inside_a_column_is_named(tmp_path: Path) -> None:
    made: list[dict[str, Any]] = [{"q": {"text": f"t {n}"}, "label": n % 2} for n in range(40)]
    made[7]["q"] = None
    source = {"columns": {"sentence1": "q.text"}}
    with pytest.raises(ValueError, match=r"Row 7 .*'q.text' is missing: .*'text' is null"):
        load_task(at(write(tmp_path / "x.jsonl", made), **source))
