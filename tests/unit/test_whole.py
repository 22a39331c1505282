"""Files and folders are there whole or not at all, and what is not whole is named."""

import json
from pathlib import Path

import pytest

from lorachord.training.checkpoint_folders import last_checkpoint
from lorachord.whole import MANIFEST, flaw, new_folder, read_json, write_json


def sealed(folder: Path, **state: int) -> Path:
    with new_folder(folder, seal=True) as made:
        (made / "trainer_state.json").write_text(json.dumps(state))
        (made / "weights").write_bytes(b"0123456789")
    return folder


def test_a_sealed_folder_is_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    assert flaw(sealed(tmp_path / "one")) is None
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize("harm", ["cut", "changed", "missing", "added", "unsealed"])
def test_each_flaw_names_its_file(tmp_path: Path, harm: str) -> None:
    folder = sealed(tmp_path / "one")
    {
        "cut": lambda: (folder / "weights").write_bytes(b"01234"),
        "changed": lambda: (folder / "weights").write_bytes(b"x123456789"),
        "missing": (folder / "weights").unlink,
        "added": lambda: (folder / "weights.2").write_bytes(b""),
        "unsealed": (folder / MANIFEST).unlink,
    }[harm]()
    assert (MANIFEST if harm == "unsealed" else "weights") in (flaw(folder) or "")


def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "one")

    def fail() -> None:
        with new_folder(folder) as made:
            (made / "weights").write_bytes(b"9")
            raise RuntimeError("[enforce fail at inline_container.cc] file: No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert flaw(folder) is None
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_the_newest_whole_checkpoint_is_taken_and_others_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4, 10):
        sealed(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-10" / "weights").unlink()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert "checkpoint-10 is not whole and is skipped: weights is missing" in caplog.text


def test_a_checkpoint_without_its_best_one_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sealed(tmp_path / "checkpoint-4", best_global_step=2)
    assert last_checkpoint(tmp_path) is None
    assert "its best one, checkpoint-2, is not whole" in caplog.text
    assert "starts anew" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\x00"])
def test_damaged_json_names_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "some.json").write_text(text)
    with pytest.raises(ValueError, match=r"some\.json is damaged"):
        read_json(tmp_path / "some.json", ("key",))
    (tmp_path / "some.json").unlink()
    with pytest.raises(ValueError, match=r"some\.json is missing"):
        read_json(tmp_path / "some.json")


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "some.json", {"a": [float("nan"), 1.5], "b": float("inf")})
    assert json.loads((tmp_path / "some.json").read_text()) == {"a": [None, 1.5], "b": None}
