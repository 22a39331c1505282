"""Files and folders that are there whole or not at all, however the process ends.

A file is written beside its place, brought to the disk and renamed. A sealed folder holds a manifest with the size and
the digest of each of its files, so that a damaged or missing one is noticed before anything is read.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MANIFEST = "whole.json"
"""The manifest of a sealed folder."""
SMALL = 1 << 20
"""Bytes of a disk that is as good as full."""


def write_text(path: Path, text: str) -> None:
    """Write a file whole, as UTF-8: a reader sees the old one or the new one."""
    with new_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """The same for plain data; JSON has no NaN and no infinity, so these become null."""
    write_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def json_line(value: Any) -> str:
    """Plain data as one line, likewise."""
    return json.dumps(finite(value), allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Plain data with None for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def read_json(path: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a JSON file.

    Args:
        keys: that it has to have.

    Raises:
        ValueError: the file is missing, damaged or lacks a key; it is named.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or cut off: it is no JSON ({error}).") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(found).__name__} in place of a mapping.")
    lacking = [key for key in keys if key not in found]
    if lacking:
        raise ValueError(f"{path} is damaged or of another origin: it has no {', '.join(lacking)}.")
    return found


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A place to write a file to, which is then renamed to `path`."""
    scratch = path.with_name(f".{path.name}.part")
    try:
        yield scratch
        _sync(scratch)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A new folder to write in, which is removed in the end unless it has been renamed.

    Raises:
        OSError: the disk is full, or a file cannot be written for another reason.
    """
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    except (RuntimeError, SafetensorError) as error:
        free, reason = shutil.disk_usage(path).free, str(error).strip().splitlines()[0]
        if not _is_about_files(error) and free > SMALL:
            raise
        # torch and safetensors have their own words for a full disk.
        full = f"No space left on the disk, {free} bytes are free; " if free <= SMALL else ""
        raise OSError(f"{path} could not be written: {full}{reason}") from error
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def new_folder(path: Path, *, seal: bool = False) -> Iterator[Path]:
    """A folder to fill, which then takes the place of `path`; errors as `scratch_folder`.

    Args:
        seal: with a manifest. Default false.
    """
    with scratch_folder(path.with_name(f".{path.name}.part")) as scratch:
        yield scratch
        install(scratch, path, seal=seal)


def install(scratch: Path, path: Path, *, seal: bool = False) -> None:
    """Bring a filled folder to the disk, and put it in the place of `path`; see `new_folder`."""
    old = path.with_name(f".{path.name}.old")
    if seal:
        sizes = {str(file.relative_to(scratch)): _describe(file) for file in files_of(scratch)}
        write_text(scratch / MANIFEST, json.dumps(sizes, indent=2) + "\n")
    for file in files_of(scratch):
        _sync(file)
    for folder in (*(entry for entry in scratch.rglob("*") if entry.is_dir()), scratch):
        _sync(folder)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    scratch.rename(path)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def files_of(folder: Path) -> list[Path]:
    """All files below a folder, sorted."""
    return sorted(file for file in folder.rglob("*") if file.is_file())


def flaw(folder: Path) -> str | None:
    """Why a sealed folder is not whole, or None where it is."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return f"it has no {MANIFEST}, which is written last"
    try:
        listed = read_json(manifest)
    except ValueError:
        return f"{MANIFEST} is damaged"
    for name, described in listed.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if not isinstance(described, dict) or file.stat().st_size != described.get("bytes"):
            return f"{name} has {file.stat().st_size} bytes, not those that were written"
        if _describe(file) != described:
            return f"{name} is damaged"
    added = [str(file.relative_to(folder)) for file in files_of(folder) if str(file.relative_to(folder)) not in listed]
    added = [name for name in added if name != MANIFEST]
    return f"{', '.join(added)} was not written with it" if added else None


def newest_whole(folders: Sequence[Path], say: Callable[[Path, str], None], also: Callable[[Path], str | None]) -> Any:
    """The first of some folders that is whole.

    Args:
        folders: the newest first.
        say: is called with each folder that is skipped, and the reason.
        also: a further reason not to take a whole one, or None.

    Returns:
        The folder, or None.
    """
    for folder in folders:
        reason = flaw(folder) or also(folder)
        if reason is None:
            return folder
        say(folder, reason)
    return None


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": file_digest(opened, "sha256").hexdigest()}


def _is_about_files(error: Exception) -> bool:
    words = str(error).lower()
    return any(word in words for word in ("file", "space", "i/o", "io error", "writer", "unexpected pos", "iostream"))


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
