"""Model folders: incomplete ones are refused with a list of what is missing; they are written whole or not at all."""

import json
from pathlib import Path

import pytest

from lorachord.models.folders import cache_folder, check_complete, sha256_of, write_once
from tests.tiny_models import tiny
from tests.unit.models.helpers import names, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny("bert"), tmp_path / "model")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return save(tiny("bert"), tmp_path / "model", max_shard_size="8KB")


def test_complete_folders_pass(folder: Path) -> None:
    check_complete(folder)


def test_a_sharded_folder_passes(sharded: Path) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 1
    check_complete(sharded)


def test_pytorch_shards_pass(tmp_path: Path) -> None:
    for name in ("config.json", "vocab.txt", "a.bin", "b.bin"):
        (tmp_path / name).touch()
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": "a.bin", "y": "b.bin"}}))
    check_complete(tmp_path)
    (tmp_path / "b.bin").unlink()
    with pytest.raises(ValueError, match=r"Missing: b\.bin\."):
        check_complete(tmp_path)


@pytest.mark.parametrize(
    ("lost", "named"),
    [("config.json", r"config\.json"), ("model.safetensors", "weights"), ("tokenizer.json", "a tokenizer")],
)
def test_a_missing_file_is_named_with_what_is_there(folder: Path, lost: str, named: str) -> None:
    (folder / lost).unlink()
    with pytest.raises(ValueError, match=rf"Missing: {named}.*There is: .*tokenizer_config\.json") as caught:
        check_complete(folder)
    assert lost not in str(caught.value).partition("There is")[2].split(", ")


def test_a_missing_shard_is_named(sharded: Path) -> None:
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ValueError, match=rf"Missing: {lost.name}\."):
        check_complete(sharded)


def test_a_cut_off_file_of_weights_is_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"Missing: a whole model\.safetensors"):
        check_complete(folder)


def test_a_cut_off_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(b"version https://git-lfs")
    with pytest.raises(ValueError, match=f"Missing: a whole {shard.name}"):
        check_complete(sharded)


def test_an_empty_folder_lacks_everything(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Missing: config\.json, weights .*, a tokenizer .*There is: nothing\."):
        check_complete(tmp_path)


def test_of_many_files_some_are_listed(tmp_path: Path) -> None:
    for number in range(10, 30):
        (tmp_path / f"file{number}").touch()
    with pytest.raises(ValueError, match=r"There is: file10, .*, file21 and 8 more\."):
        check_complete(tmp_path)


def test_a_gguf_file_is_all_that_its_folder_needs(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    check_complete(tmp_path, "model.gguf")
    with pytest.raises(ValueError, match=r"Missing: other\.gguf\. There is: model\.gguf\."):
        check_complete(tmp_path, "other.gguf")


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    made = write_once(tmp_path / "deep" / "made", lambda folder: (folder / "a").write_text("first") and None)
    again = write_once(made, lambda folder: pytest.fail("written again"))
    assert (again / "a").read_text() == "first"
    assert names(made.parent) == ["made"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_once(tmp_path / "made", write)
    assert names(tmp_path) == []


def test_the_slower_of_two_writers_keeps_what_the_faster_wrote(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        write_once(tmp_path / "made", lambda faster: (faster / "a").write_text("faster") and None)
        (folder / "a").write_text("slower")

    assert (write_once(tmp_path / "made", write) / "a").read_text() == "faster"
    assert names(tmp_path) == ["made"]


def test_what_is_written_is_as_open_as_its_folder(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "a").touch(0o600)

    made = write_once(tmp_path / "made", write)
    assert (made / "a").stat().st_mode & 0o444 == made.stat().st_mode & 0o444


def test_a_name_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "made").touch()
    with pytest.raises(OSError, match="made"):
        write_once(tmp_path / "made", lambda folder: None)


def test_the_sum_is_that_of_the_joined_parts(tmp_path: Path) -> None:
    contents = {"whole": b"abcd", "first": b"ab", "second": b"cd"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert sha256_of([tmp_path / "first", tmp_path / "second"]) == sha256_of([tmp_path / "whole"])
    assert sha256_of([tmp_path / "second", tmp_path / "first"]) != sha256_of([tmp_path / "whole"])


def test_the_cache_is_named_by_argument_then_environment_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORACHORD_CACHE", str(tmp_path / "env"))
    assert cache_folder(tmp_path) == tmp_path
    assert cache_folder() == tmp_path / "env" / "models"
    monkeypatch.delenv("LORACHORD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "lorachord" / "models"
