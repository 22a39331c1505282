"""Folders of models: written whole or not at all, and looked over before anything is loaded from them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


def cache_folder(cache: Path | None = None) -> Path:
    """Where models are kept: `cache`, else `$LORACHORD_CACHE/models`, else `~/.cache/lorachord/models`."""
    return cache or Path(os.environ.get("LORACHORD_CACHE") or "~/.cache/lorachord").expanduser() / "models"


def sha256_of(files: Iterable[Path]) -> str:
    """The sum of the files, as if joined in this order."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def write_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, made by `write` unless it is there already.

    `write` gets an empty folder that takes the name only when it returns. So a folder of that name is always whole,
    and of two processes that write it at once the slower one drops its own.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        # A folder inside, because the temporary one itself is closed to other users.
        made = Path(temporary) / folder.name
        made.mkdir()
        write(made)
        for file in made.iterdir():
            # As open as the folder: safetensors closes its files to other users, who may share the cache.
            file.chmod(file.stat().st_mode | (made.stat().st_mode & 0o444))
        try:
            made.replace(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def check_complete(folder: Path, gguf_file: str | None = None) -> None:
    """Look for the files that loading needs.

    Args:
        folder: a local folder.
        gguf_file: the file in it that holds weights, configuration and tokenizer. Default None: separate files.

    Raises:
        ValueError: files are missing or cut off; the error lists them, and what there is.
    """
    if gguf_file is not None:
        lacking = [] if (folder / gguf_file).is_file() else [gguf_file]
    else:
        lacking = [] if (folder / "config.json").is_file() else ["config.json"]
        lacking += _lacking_weights(folder)
        if not any((folder / name).is_file() for name in TOKENIZERS):
            lacking.append(f"a tokenizer ({' or '.join(TOKENIZERS)})")
    if lacking:
        entries = sorted(entry.name for entry in folder.iterdir())
        there = ", ".join(entries[:12]) + (f" and {len(entries) - 12} more" if len(entries) > 12 else "")
        missing = ", ".join(lacking)
        raise ValueError(f"{folder} is no complete model. Missing: {missing}. There is: {there or 'nothing'}.")


def _lacking_weights(folder: Path) -> list[str]:
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _damaged(folder, [name])
        if index.is_file():
            shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
            return [shard for shard in shards if not (folder / shard).is_file()] or _damaged(folder, shards)
    return [f"weights ({' or '.join(WEIGHTS)}, whole or in shards with an index)"]


def _damaged(folder: Path, names: list[str]) -> list[str]:
    from safetensors import SafetensorError, safe_open

    found = []
    for name in names:
        if name.endswith(".safetensors"):
            try:
                # Reads the header only, and compares it with the length of the file.
                with safe_open(folder / name, "pt"):
                    pass
            except SafetensorError as error:
                found.append(f"a whole {name} ({error})")
    return found
