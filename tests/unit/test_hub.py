"""Names of data and models: what is a path here, and what is asked of the hub."""

import logging
from pathlib import Path
from typing import Any

import pytest

from lorachord.data.files import SUFFIXES
from lorachord.data.sources import load_task
from lorachord.data.suites import SUITES
from lorachord.data.task import Source
from lorachord.hub import hub_name, local_path
from lorachord.models.pretrained import load_encoder
from lorachord.models.resolve import model_folder, resolve
from tests.unit.data.helpers import task


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's folder with a folder `data`, which is not the working directory."""
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "recipes"
    (folder / "data").mkdir(parents=True)
    (elsewhere / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("/abs/x", "/abs/x"),
        ("./owner/name", "{}/owner/name"),
        ("../x", "{}/../x"),
        ("~/x", "{}/../home/x"),
        ("owner/rows.csv", "{}/owner/rows.csv"),
        ("data/x", "{}/data/x"),
        ("data", "{}/data"),
        ("a/b/c", "{}/a/b/c"),
        ("nothing", "{}/nothing"),
    ],
)
def test_a_local_name_is_a_path_from_the_folder_on(beside: Path, name: str, found: str) -> None:
    import os

    assert local_path(name, beside, SUFFIXES) == Path(os.path.normpath(found.format(beside)))


@pytest.mark.parametrize("name", ["owner/name", "hub:owner/name", "hub:data/x", "hub:name"])
def test_a_name_with_an_owner_that_is_not_there_is_the_hubs(beside: Path, name: str) -> None:
    assert local_path(name, beside, SUFFIXES) is None


def test_a_user_that_there_is_not_is_an_error_in_words() -> None:
    with pytest.raises(ValueError, match=r"~no-such-user-here/x: "):
        local_path("~no-such-user-here/x")


def test_a_packaged_model_or_an_old_name_is_no_folder_unless_it_is_there(beside: Path) -> None:
    assert model_folder("minilm", beside) is None
    assert model_folder("gpt2", beside) is None
    (beside / "minilm").mkdir()
    assert model_folder("minilm", beside) == beside / "minilm"


def test_what_the_libraries_would_read_instead_of_the_hub_is_refused(beside: Path) -> None:
    with pytest.raises(ValueError, match=r"the working directory has .*elsewhere/owner/name, which would be read"):
        hub_name("hub:owner/name")
    with pytest.raises(ValueError, match="hub: needs a name"):
        hub_name("hub:")
    assert hub_name("hub:other/name") == "other/name"


def test_a_model_of_the_hub_is_passed_on_without_the_prefix(beside: Path) -> None:
    assert resolve("hub:other/name") == "other/name"
    assert resolve("hub:minilmm") == "minilmm"
    with pytest.raises(ValueError, match=r"none: .*elsewhere/owner/gone\. A model on the hub: hub:OWNER/NAME"):
        resolve("owner/gone")


@pytest.mark.parametrize("path", ["other/toy", "hub:other/toy"])
def test_the_hub_is_asked_for_data_after_saying_so(
    path: str, beside: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []

    def refuse(name: str, *_: object, **__: object) -> None:
        assert name == "other/toy"
        said.extend(record.getMessage() for record in caplog.records)
        raise ConnectionError("no way there")

    monkeypatch.setattr("lorachord.data.sources.load_dataset", refuse)
    with caplog.at_level(logging.INFO, "lorachord"), pytest.raises(ValueError, match="no way there"):
        load_task(task(source=Source(path=path)))
    assert said == ["asking the Hugging Face hub for other/toy"]


@pytest.mark.parametrize("name", ["other/model", "hub:other/model"])
def test_the_hub_is_asked_for_a_model_after_saying_so(
    name: str, beside: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []

    def refuse(source: str, **_: object) -> None:
        assert source == "other/model"
        said.extend(record.getMessage() for record in caplog.records)
        raise OSError("no way there")

    monkeypatch.setattr("lorachord.models.pretrained.AutoConfig.from_pretrained", refuse)
    with caplog.at_level(logging.INFO, "lorachord"), pytest.raises(ValueError, match="no way there"):
        load_encoder(name, num_labels=2)
    assert said == ["asking the Hugging Face hub for other/model"]


@pytest.mark.parametrize("path", ["nothing", "./nothing", "owner/nothing", "owner/rows.csv"])
def test_a_local_source_that_is_not_there_is_named_by_its_absolute_path_and_the_hub_is_not_asked(
    path: str, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("lorachord.data.sources.load_dataset", refuse)
    with pytest.raises(ValueError, match=rf"{Path.cwd() / path} does not exist.*hub:OWNER/NAME"):
        load_task(task(source=Source(path=path)))


def test_suites_are_the_hubs_wherever_they_are_read(beside: Path) -> None:
    for suite in SUITES.values():
        for each in suite:
            assert local_path(each.source.path, beside) is None
            assert each.source.path.startswith("hub:")
