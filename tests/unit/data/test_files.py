from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pandas import DataFrame

from lorachord.data.files import data_files, missing, read_rows
from lorachord.data.memory import plain_rows
from tests.unit.data.helpers import rows, write


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_every_format_gives_the_rows_that_were_written(tmp_path: Path, suffix: str) -> None:
    written = rows(3)
    written[1]["sentence1"] = 'a "quoted", comma\nand a second line: é'
    read = list(read_rows(write(tmp_path / f"x{suffix}", written)))
    expected = [{**row, "label": str(row["label"])} for row in written] if suffix == ".csv" else written
    assert read == expected


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"a": 1}\nnot json\n')
    stream = read_rows(file)
    assert next(stream) == {"a": 1}
    with pytest.raises(ValueError, match=r"line 2: no JSON"):
        next(stream)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_other_encodings_are_named_with_file_and_byte(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"x{suffix}"
    start = b"sentence1,label\nfine,0\n" if suffix == ".csv" else b'{"sentence1": "fine"}\n'
    file.write_bytes(start + "caf\u00e9".encode("latin1") + b",1\n")
    with pytest.raises(ValueError, match=rf"x{suffix} is not UTF-8: byte {len(start) + 3} is 0xe9"):
        list(read_rows(file))


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes("\ufefflabel\n1\n".encode())
    assert list(read_rows(file)) == [{"label": "1"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "a,b\n1,2\n1,2,3\n", "line 3: 3 values for 2 columns"),
        ("x.csv", 'a,b\n1,"2\n', "line 2.*unexpected end"),
        ("x.jsonl", '{"a": 1}\n\n[1]\n', "line 3: a list, not an object"),
        ("x.parquet", "PAR0", "cannot be read as parquet"),
        ("x.tsv", "", "x.tsv is not one of .parquet, .jsonl, .csv"),
    ],
)
def test_what_does_not_parse_is_named_with_its_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        list(read_rows(tmp_path / name))


def test_a_missing_path_names_what_lies_near(tmp_path: Path) -> None:
    (tmp_path / "glue_cola").mkdir()
    assert "has no 'glue_cole'. Did you mean 'glue_cola'?" in str(missing(tmp_path / "glue_cole"))
    assert "glue_cola has no 'train.csv'. Known: none." in str(missing(tmp_path / "glue_cola" / "train.csv"))


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(2))
    (tmp_path / "notes.txt").write_text("no data")
    assert data_files(tmp_path) == {"train": tmp_path / "train.csv"}
    write(tmp_path / "train.jsonl", rows(2))
    with pytest.raises(ValueError, match=r"both train\.csv and train\.jsonl"):
        data_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.csv", "text,label,label\na,1,0\n"), ("x.jsonl", '{"text": "a", "label": 1, "label": 0}\n')],
)
def test_a_repeated_column_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match="repeated 'label'"):
        list(read_rows(tmp_path / name))


def test_a_repeated_column_of_parquet_or_a_frame_is_an_error(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array([1]), pa.array([0])]
    pq.write_table(pa.table(columns, names=["text", "label", "label"]), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="repeated 'label'"):
        list(read_rows(tmp_path / "x.parquet"))
    with pytest.raises(ValueError, match="repeated 'label'"):
        plain_rows(DataFrame([["a", 1, 0]], columns=["text", "label", "label"]), "train")


def test_a_long_value_of_a_csv_is_read(tmp_path: Path) -> None:
    written = [{"text": "word " * 40_000, "label": "1"}]
    assert list(read_rows(write(tmp_path / "x.csv", written))) == written


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named_as_such(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.csv").write_bytes("text,label\na,1\n".encode(encoding))
    with pytest.raises(ValueError, match=r"is UTF-16.*iconv -f utf-16 "):
        list(read_rows(tmp_path / "x.csv"))
