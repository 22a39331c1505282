"""Which method pays on some tasks, and how sure that is: `lorachord compare`.

The way of a comparison: `compared_rows.py` reads the rows, `fitting.py` gives them equal parameters, `plan.py` checks
and fixes all that is decided beforehand. `sweep.py` runs trials (`trial.py`) in processes or a cluster (`workers.py`).
`sweep_state.py` says, from the finished trials alone, which are wanted next; `ladder.py` chooses the learning rates.
`results.py` gathers the numbers, `verdict.py` says what they mean, `tables.py` and `comparison.py` show them.
`command.py` is the front door.

The statistics: `sample.py` makes `Scores` of the predictions of several methods, contrasts of their mean scores with
intervals over seeds and over examples. `statistics.py` has the formula and its measured honesty, the correction for
several claims (`holm`), and the number of seeds that would show an effect. `ratio.py` has the interval of the gap
recovered. `resampling.py` computes how scores move with the examples. `chance.py` has the two questions by which a
learning rate is chosen: whether a run is at chance, and whether a rate is tied with the best.

>>> from lorachord.data import Task
>>> from lorachord.runs.compare import Sample, Scores
>>> task = Task("mood", kind="classification", text="text", labels=("bad", "good"))
>>> def run(num_right):
...     return {"mood": [{"idx": i, "label": 1, "prediction": int(i < num_right)} for i in range(100)]}
>>> records = {"lora": [run(70), run(72), run(71)], "mtl_lora": [run(85), run(86), run(88)]}
>>> found = Scores(Sample([task], records)).difference("mtl_lora", "lora")
>>> f"{found.value:.3f} ± {found.half_width:.3f}, p = {found.p_value:.4f}", found.is_different
('0.153 ± 0.076, p = 0.0053', True)
"""

from lorachord.runs.compare.chance import at_chance, tied
from lorachord.runs.compare.ratio import Ratio
from lorachord.runs.compare.sample import RunRecords, Sample, Scores
from lorachord.runs.compare.statistics import Contrast, holm, holm_levels, seeds_needed

__all__ = [
    "Contrast",
    "Ratio",
    "RunRecords",
    "Sample",
    "Scores",
    "at_chance",
    "holm",
    "holm_levels",
    "seeds_needed",
    "tied",
]
