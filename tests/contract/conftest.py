"""Runs a contract class once per case, and per architecture where a promise asks for one."""

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = metafunc.cls.cases
        metafunc.parametrize("case", cases, ids=[case.name for case in cases])
