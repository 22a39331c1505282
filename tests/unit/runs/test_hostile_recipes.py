"""Recipes and names of others end in a sentence, quickly."""

from pathlib import Path

import pytest

from lorachord.endings import in_words
from lorachord.runs.folder import check_names
from lorachord.runs.run_lock import locked
from lorachord.runs.strict import dump_yaml, load_yaml


def test_aliases_that_explode_are_refused() -> None:
    lines = ["a: &a [x,x,x,x,x,x,x,x,x,x]"]
    lines += [
        f"{name}: &{name} [{','.join(['*' + last] * 10)}]" for last, name in zip("abcdefg", "bcdefgh", strict=True)
    ]
    with pytest.raises(ValueError, match="bomb: with its aliases written out"):
        load_yaml("\n".join(lines), "bomb")


@pytest.mark.parametrize("text", ["[" * 3000 + "]" * 3000, "a: " * 60 + "1", "&a [*a]", "x" * 2_000_001, "{[]: 1}"])
def test_no_text_ends_in_another_error(text: str) -> None:
    with pytest.raises(ValueError, match="deep"):
        load_yaml(text, "deep")


def test_numbers_are_those_of_yaml_1_2() -> None:
    tree = {"a": 10, "b": "1:30", "c": 8, "d": 1e-3, "e": 0.5, "f": 255, "g": "0b11"}
    assert load_yaml("{a: 010, b: 1:30, c: 0o10, d: 1e-3, e: .5, f: 0xff, g: 0b11}", "numbers") == tree
    texts = ["010", "1:30", "0o10", "1e5", ".5", "1.", "+3", "0x1", ".inf", "~"]
    assert load_yaml(dump_yaml(texts), "texts") == texts


@pytest.mark.parametrize(
    "name", [".", "..", "../x", "/x", "a/../b", "a//b", "a\\b", "a\nb", "x" * 500, "adapter", "~/x"]
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="A task cannot be called"):
        check_names([name])


def test_ordinary_names_are_taken() -> None:
    check_names(["cola", "a/b", "größe", "two words", "it's.fine-1"])


def test_a_second_holder_is_refused_and_a_stale_lock_is_not(tmp_path: Path) -> None:
    (tmp_path / ".run.lock").write_text("process 1 on another\n")
    refused = pytest.raises(ValueError, match="belongs to a run that is going on")
    with locked(tmp_path / "run"), refused, locked(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x"), 2),
        (OSError("x"), 2),
        (KeyError("x"), 2),
        (FloatingPointError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_end_is_a_sentence(error: BaseException, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> None:
        raise error

    assert in_words("train", action) == status
    said = capsys.readouterr().err
    assert said.startswith("lorachord train: ")
    assert "Traceback" not in said
    if isinstance(error, KeyError):
        file = Path(said.split()[-1].removesuffix("."))
        assert "Traceback" in file.read_text()
        file.unlink()
