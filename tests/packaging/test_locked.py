"""What `make` installs: the tested versions, each with hashes."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT = {"torch"}
"""Its builds differ from machine to machine."""


def locked(name: str) -> dict[str, set[str]]:
    """The versions of each package in one file. Some have one for each Python."""
    versions: dict[str, set[str]] = {}
    for entry in re.split(r"\n(?=\w)", (ROOT / name).read_text(encoding="utf-8"))[1:]:
        found = re.match(r"([\w.-]+)==([^ ;]+)", entry)
        assert found, f"not a pinned package: {entry[:80]}"
        assert "--hash=sha256:" in entry, f"no hash: {entry[:80]}"
        versions.setdefault(plain(found[1]), set()).add(found[2])
    return versions


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked_for(extra: str | None) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else [])]
    return {plain(re.split(r"[\[<>=! ]", line)[0]) for line in wanted}


@pytest.mark.parametrize(("name", "extra"), [("requirements.txt", None), ("requirements-dev.txt", "dev")])
def test_every_dependency_is_locked_with_hashes(name: str, extra: str | None) -> None:
    assert asked_for(extra) - set(locked(name)) == WITHOUT


def test_locked_versions_are_the_tested_ones() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    versions = locked("requirements-dev.txt")
    assert {name: versions[plain(name)] for name in pins if plain(name) in versions} == {
        name: {version} for name, version in pins.items() if plain(name) in versions
    }
    assert {plain(name) for name in pins} - set(versions) == WITHOUT


def test_a_user_gets_what_was_tested() -> None:
    user, developer = locked("requirements.txt"), locked("requirements-dev.txt")
    assert {name: developer.get(name) for name in user} == user
