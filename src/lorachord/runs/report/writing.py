"""`lorachord report`, and `lc.report`: one page of a run, an adapter or a comparison."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lorachord.runs.compare.comparison import PLAN, RESULT
from lorachord.runs.report.comparison_page import page_of_comparison
from lorachord.runs.report.contents import Page
from lorachord.runs.report.fusion_page import FUSION, page_of_fusion
from lorachord.runs.report.markup import MARK, as_html
from lorachord.runs.report.run_page import page_of_adapter, page_of_run
from lorachord.whole import write_text

logger = logging.getLogger("lorachord")
NAME = "report.html"


def report(
    what: str | Path,
    out: str | Path | None = None,
    *,
    against: str | Path | None = None,
    max_rows: int = 256,
    data_dir: str | Path | None = None,
) -> Path:
    """Write one page that shows a run, a fused or exported adapter, or a comparison. It needs no network.

    Args:
        what: a finished run, its folder; a folder that `lorachord fuse`, `export` or `compare` has made.
        out: the file. Default: `report.html` in the folder. An earlier report is replaced, no other file is.
        against: another run or adapter, whose spectrum stands beside; not for a comparison.
        max_rows: of each task, which the model reads for routing and interference. Default 256; 0 reads none.
        data_dir: where the run's data lie now. Default: as when it was trained.

    Returns:
        The file.

    Raises:
        ValueError: `what` is none of these or not finished; `out` is a file of another kind.
    """
    what = Path(what)
    out = what / NAME if out is None else Path(out)
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name a file, such as {out / NAME}.")
    if out.exists() and MARK.encode() not in out.read_bytes()[:2000]:
        raise ValueError(f"{out} is there already, and is no report: name a new file.")
    how: dict[str, Any] = {"against": against, "max_rows": max_rows, "data_dir": data_dir}
    text = as_html(_page(what, how))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    logger.info("%s has %.1f MB", out, len(text.encode()) / 1e6)
    return out


def _page(what: Path, how: dict[str, Any]) -> Page:
    if (what / RESULT).is_file() or (what / PLAN).is_file() or what.name == RESULT:
        if how["against"] is not None:
            raise ValueError("A comparison has its own rows beside each other: leave out against.")
        return page_of_comparison(what)
    if (what / FUSION).is_file():
        return page_of_fusion(what, how)
    if (what / "recipe.yaml").is_file():
        return page_of_run(what, how)
    return page_of_adapter(what, how)
