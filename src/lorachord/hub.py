"""What a name means: a path on this machine, or a repository on the Hugging Face hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path

logger = logging.getLogger(__name__)
HUB = "hub:"
"""Before a name: it is on the hub, whatever lies here."""
LONGEST_NAME = 255
"""Bytes of a file's name at most."""


def absolute(path: str, beside: str | Path = ".") -> Path:
    """A path from `beside` on, without `~` and `..`.

    Raises:
        ValueError: `~USER` of a user that there is not, or a name that no file system takes.
    """
    try:
        expanded = Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None
    long = next((part for part in expanded.parts if len(part.encode(errors="replace")) > LONGEST_NAME), None)
    if long is not None:
        raise ValueError(f"{long[:60]}... is no path: it has {len(long)} letters, and {LONGEST_NAME} are the most.")
    # Unlike Path.resolve, this keeps links, whose targets may have other suffixes.
    return Path(os.path.normpath(Path(beside, expanded).absolute()))


def local_path(name: str, beside: str | Path = ".", suffixes: Collection[str] = ()) -> Path | None:
    """The absolute path that a name means, or None if it is a name on the hub.

    On the hub are `hub:NAME`, and `OWNER/NAME` without a folder OWNER here. All else is local: an absolute path, one
    that begins with a dot or `~`, one with a suffix of `suffixes`, and one whose first folder exists.

    Args:
        name: as a user wrote it.
        beside: the folder that relative paths start from. Default: the working directory.
        suffixes: of files that are read.
    """
    if name.startswith(HUB):
        return None
    path = absolute(name, beside)
    parts = Path(name).parts
    if len(parts) == 2 and not name.startswith((".", "~", "/")) and path.suffix not in suffixes:
        return path if Path(beside, parts[0]).is_dir() else None
    return path


def on_hub(name: str) -> str:
    """`hub:` before a name with an owner, which can no longer be taken for a path then; other names as they are."""
    return HUB + name if "/" in name and not name.startswith(HUB) else name


def hub_name(name: str) -> str:
    """A name on the hub as the libraries take it, without `hub:`.

    Raises:
        ValueError: no name, or the working directory has such a path, which the libraries would read instead.
    """
    plain = name.removeprefix(HUB)
    if not plain:
        raise ValueError("hub: needs a name after it, as in hub:owner/name.")
    if absolute(plain).exists():
        raise ValueError(
            f"{plain} is a name on the hub here, but the working directory has {Path(plain).absolute()}, which would "
            f"be read instead. Name that path if it is meant, or run in another directory."
        )
    return plain


def say_asked(name: str) -> None:
    """Log that the hub is asked, before it is: a stranger should know what goes over the network."""
    logger.info("asking the Hugging Face hub for %s", name)
