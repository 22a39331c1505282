"""The changes that `docs/add_a_method.md` shows fit the files as they are."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add_a_method.md"
DIFFS = re.findall(r"```diff\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_there_are_two() -> None:
    assert len(DIFFS) == 2


@pytest.mark.parametrize("diff", DIFFS, ids=["method", "tests"])
def test_each_applies(diff: str, tmp_path: Path) -> None:
    for name in re.findall(r"^--- a/(\S+)", diff, re.MULTILINE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    command = ["git", "apply", "--unsafe-paths", f"--directory={tmp_path}", "-"]
    done = subprocess.run(command, cwd=tmp_path, input=diff, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert any(path.name == "gauge.py" for path in tmp_path.rglob("*.py"))
