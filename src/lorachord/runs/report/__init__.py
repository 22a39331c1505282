"""One page that shows a run, an adapter or a comparison: `lorachord report`, and `lc.report`.

The page is one HTML file with everything in it. `run_page.py`, `fusion_page.py` and `comparison_page.py` say what
stands on it, `contents.py` of what kinds of parts, and `markup.py` writes it, with `page.css` and `page.js`. Drawings
are those of `lc.inspect` and of `load_comparison`, which shows itself in a notebook too.

>>> from lorachord.runs.report import Page, Section, Words, as_html
>>> page = as_html(Page("Run <1>", "lora", [Section("Scores", [Words("0.9 & more", leads=True)])]))
>>> "<h1>Run &lt;1&gt;</h1>" in page, "0.9 &amp; more" in page
(True, True)
"""

from lorachord.runs.report.contents import Listing, Page, Section, Table, Words
from lorachord.runs.report.markup import as_html
from lorachord.runs.report.writing import NAME, report

__all__ = ["NAME", "Listing", "Page", "Section", "Table", "Words", "as_html", "report"]
