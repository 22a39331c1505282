"""The installed command, in a process of its own."""

import subprocess
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
# The module and the function that the console script calls; help ends in SystemExit.
ASK_FOR_HELP = """
import contextlib, importlib, sys
module, function = sys.argv.pop().split(":")
with contextlib.suppress(SystemExit):
    getattr(importlib.import_module(module), function)(["--help"])
print("imported:", *sorted({"peft", "torch", "transformers"} & sys.modules.keys()))
"""


def test_help_imports_no_torch() -> None:
    script = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["scripts"]["lorachord"]
    command = [sys.executable, "-c", ASK_FOR_HELP, script]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    if not printed[0].startswith("usage: lorachord"):
        raise RuntimeError(f"No help was printed: {printed}")
    assert printed[-1] == "imported:"


def test_importing_every_module_runs_no_command() -> None:
    command = [sys.executable, "-c", "import lorachord.__main__; print('imported')"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1] == "imported"


def test_the_command_runs_from_inside_the_package_too() -> None:
    code = "import sys; from lorachord.cli import main; sys.exit(main(['suites']))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "glue" in done.stdout
