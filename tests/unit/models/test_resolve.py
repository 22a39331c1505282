"""What a name means, decided before anything is loaded."""

from pathlib import Path

import pytest

from lorachord.models.resolve import resolve
from tests.tiny_models import tiny
from tests.unit.models.helpers import save, write_gguf


@pytest.mark.parametrize(
    "name", ["bert-base-uncased", "gpt2", "owner/minilmm", "t5-small", "distilroberta-base", "albert-base-v2", "opt"]
)
def test_a_name_on_the_hub_is_passed_on(name: str) -> None:
    assert resolve(name) == name


@pytest.mark.parametrize(
    ("name", "near"),
    [("minilmm", "minilm"), ("MiniLM", "minilm"), ("smollm2", "smollm2-135m"), ("gemma3-270", "gemma3-270m")],
)
def test_a_near_name_is_suggested(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"Did you mean .*'{near}'"):
        resolve(name)


def test_a_folder_is_used_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tiny("bert"), tmp_path / "owner" / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("owner/model", "./owner/model", str(tmp_path / "owner" / "model")):
        assert resolve(name) == str(Path(name))
    assert resolve("~/owner/model") == str(tmp_path / "owner" / "model")


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "~/missing", "runs/long/missing", ".", "..", ""])
def test_a_folder_that_is_none_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"looks like a folder|no complete model"):
        resolve(name)


def test_an_incomplete_folder_is_refused(tmp_path: Path) -> None:
    (save(tiny("bert"), tmp_path / "model") / "config.json").unlink()
    with pytest.raises(ValueError, match=r"Missing: config\.json\."):
        resolve(str(tmp_path / "model"))


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ValueError, match=r"is a file.*gguf_file"):
        resolve(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize("name", ["owner/model", "minilm"])
def test_a_gguf_file_needs_a_local_folder(name: str) -> None:
    with pytest.raises(ValueError, match="local folder"):
        resolve(name, "model.gguf")


def test_a_gguf_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORACHORD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    write_gguf(tiny("llama"), folder / "tiny.gguf")
    first = resolve(str(folder), "tiny.gguf")
    written = Path(first).stat().st_mtime_ns
    assert Path(first).parent == tmp_path / "cache" / "models"
    # The same content elsewhere is the same model; other content under the same name is not.
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert resolve(str(moved), "tiny.gguf") == first
    assert Path(first).stat().st_mtime_ns == written
    write_gguf(tiny("llama", seed=1), moved / "tiny.gguf")
    assert resolve(str(moved), "tiny.gguf") != first
