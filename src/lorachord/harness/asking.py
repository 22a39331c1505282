"""`lorachord evaluate RUN --harness TASK ...`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from lorachord.harness.harness_scores import Score, harness_table, score_by_harness
from lorachord.messages import table


def asked(arguments: argparse.Namespace) -> tuple[list[Score], Callable[[], str]]:
    """The scores that a command line asks for, and how they are said.

    Raises:
        ValueError: options that are of the run's own rows; or as `score_by_harness`.
    """
    for option in ("beside", "data", "again"):
        if getattr(arguments, option):
            raise ValueError(f"--harness brings its own rows: leave out --{option}.")
    names = arguments.harness
    if arguments.task:
        names = [f"{task}={name}" for task in arguments.task for name in names]
    found = score_by_harness(
        arguments.run_folder, names, include=arguments.include, shots=arguments.shots, limit=arguments.limit
    )
    return found, lambda: table(harness_table(found))
