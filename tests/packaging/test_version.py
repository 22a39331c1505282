"""One version everywhere, and one range of Pythons."""

import tomllib
from pathlib import Path

import pytest

import lorachord as lc
from lorachord_cli import main

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_package_has_the_version_of_its_metadata() -> None:
    assert lc.__version__ == PYPROJECT["project"]["version"]


def test_the_command_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"lorachord {lc.__version__}\n"


def test_types_are_checked_for_the_oldest_python_that_installs() -> None:
    oldest = PYPROJECT["tool"]["mypy"]["python_version"]
    assert PYPROJECT["project"]["requires-python"].startswith(f">={oldest},")
    listed = [line for line in PYPROJECT["project"]["classifiers"] if line.startswith("Programming Language")]
    assert listed[0].endswith(f":: {oldest}")
