"""The commands that list what there is: methods, models, suites, tasks, runs."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lorachord.messages import show, table, tell


def methods(arguments: argparse.Namespace) -> None:
    """`lorachord methods [NAME]`."""
    from lorachord.method_pages import as_text, method_page, summary
    from lorachord.runs.listing import method_rows

    page = method_page(arguments.name) if arguments.name else None
    if arguments.json:
        print(json.dumps([row for row in method_rows() if page is None or row["name"] == page.name], indent=2))
        return
    show(as_text(page) if page else summary())


def models(arguments: argparse.Namespace) -> None:
    """`lorachord models`."""
    from lorachord.models.catalogue import CATALOGUE

    rows = [[name, model.kind, model.licence, model.description] for name, model in CATALOGUE.items()]
    show(table([["name", "kind", "licence", "what it is"], *rows]))


def suites(arguments: argparse.Namespace) -> None:
    """`lorachord suites`."""
    from lorachord.runs.listing import suite_rows

    _listed(arguments, suite_rows(), ("suite", "tasks"))


def tasks(arguments: argparse.Namespace) -> None:
    """`lorachord tasks`."""
    from lorachord.runs.listing import task_rows

    _listed(arguments, task_rows(arguments.of, arguments.data), ("task", "kind", "metric", "text", "labels"))


def runs(arguments: argparse.Namespace) -> None:
    """`lorachord runs`."""
    from lorachord.runs.listing import run_rows

    columns = ("run", "method", "mode", "seed", "tasks", "finished", "mean", "worst")
    _listed(arguments, run_rows(arguments.folder), columns)


def _listed(arguments: argparse.Namespace, rows: Any, columns: tuple[str, ...]) -> None:
    from lorachord.runs.listing import as_table

    tell(arguments.json, rows, lambda: as_table(rows, columns))
