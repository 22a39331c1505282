"""The wheel and the source archive of a copy of this tree: what they hold, and what they say of themselves."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OUTPUTS = ("build", "dist", "runs")
"""Folders at the top that are made here."""

pytestmark = pytest.mark.slow


def sources(folder: Path) -> set[str]:
    """All files in and under a folder, relative to it, without what is hidden or made."""

    def made(path: Path) -> bool:
        parts = path.parts
        hidden = any(part.startswith(".") or part == "__pycache__" or part.endswith(".egg-info") for part in parts)
        return hidden or parts[0] in OUTPUTS

    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if not made(path)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel that was made from it."""
    folder = tmp_path_factory.mktemp("build")
    # In a copy, since a build writes beside the sources and reads the leftovers of an earlier one.
    for name in sources(ROOT):
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "tree" / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "tree")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.fixture
def wheel(built: Path) -> Iterator[zipfile.ZipFile]:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


@pytest.fixture
def metadata(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(wheel.read(f"lorachord-{PROJECT['version']}.dist-info/METADATA").decode("utf-8"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == sources(ROOT / "src")
    assert "lorachord/py.typed" in held


def test_the_wheel_has_the_licence_and_the_command(wheel: zipfile.ZipFile) -> None:
    described = {name.partition(".dist-info/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert wheel.read(described["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
    assert f"lorachord = {PROJECT['scripts']['lorachord']}" in wheel.read(described["entry_points.txt"]).decode()


def test_the_metadata_is_the_projects(metadata: Message) -> None:
    assert metadata["Version"] == PROJECT["version"]
    assert sorted(metadata["Requires-Python"].split(",")) == sorted(PROJECT["requires-python"].split(","))
    assert {*metadata.get_all("Provides-Extra")} == PROJECT["optional-dependencies"].keys()
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def test_only_an_extra_that_is_named_so_brings_the_gpl(metadata: Message) -> None:
    # TorchJD's extras with quadprog and ecos, and these themselves.
    gpl = ("full", "nash", "quadprog", "ecos")
    lines = [line for line in metadata.get_all("Requires-Dist") if any(name in line for name in gpl)]
    assert {line.partition("extra == ")[2] for line in lines} == {'"surgery-gpl"', '"dev"'}


def test_the_source_archive_holds_all_that_a_test_run_needs(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert sources(ROOT) <= held


def test_the_index_can_render_the_readme(built: Path) -> None:
    files = [str(path) for path in built.iterdir()]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
