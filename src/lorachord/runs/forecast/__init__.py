"""What a recipe is going to do, found out in seconds and without training: `lorachord check`.

`forecast` reads the data and the shape of the model. It counts parameters by method and task, estimates memory, times a
few steps where the model fits, and collects warnings and problems: what should be known, and what is not going to work.
It prints nothing; `as_text` makes the page of the terminal.
"""

from lorachord.runs.forecast.page import as_text
from lorachord.runs.forecast.parameters import Parameters, parameters_of
from lorachord.runs.forecast.speed import Speed, speed_by_shape, timed_speed
from lorachord.runs.forecast.step_memory import Memory, memory_of
from lorachord.runs.forecast.summary import Forecast, forecast

__all__ = [
    "Forecast",
    "Memory",
    "Parameters",
    "Speed",
    "as_text",
    "forecast",
    "memory_of",
    "parameters_of",
    "speed_by_shape",
    "timed_speed",
]
