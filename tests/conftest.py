"""Quiet libraries, and fixtures for all tests."""

import gc
import os
from pathlib import Path

# Before any import of transformers: no hub, no progress bars in the log.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch
import transformers

from tests.tiny_data import save_model, write_data
from tests.tiny_models import ARCHITECTURES, tiny

# The models are far too small for two threads to help.
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True, scope="session")
def _collected_once() -> None:
    """Every Trainer collects garbage, and would go through all that the libraries have imported each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny encoder."""
    return save_model(tiny("bert"), tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny decoder."""
    return save_model(tiny("llama"), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with all tasks of `tiny_data.OWN`."""
    return write_data(tmp_path_factory.mktemp("data"))
