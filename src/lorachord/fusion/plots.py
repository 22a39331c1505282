"""Drawings of fusions. The only importer of matplotlib here; `pip install 'lorachord[plots]'`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lorachord.fusion.merged import Merged


def plot_coefficients(merged: Merged, path: str | Path) -> None:
    """The coefficients of each task over the layers, in the order of the model."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.add_subplot()
    for index, task in enumerate(merged.vectors.tasks):
        axes.plot([values[index] for values in merged.coefficients.values()], marker=".", label=task)
    axes.set_xlabel("adapted weight")
    axes.set_ylabel("coefficient")
    axes.legend()
    figure.savefig(path)


def plot_noise(decibels: Sequence[float], scores: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Scores against the signal-to-noise ratio, one line a way of fusing."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, line in scores.items():
        axes.plot(decibels, line, marker="o", label=name)
    axes.set_xlabel("signal-to-noise ratio of each tensor (dB)")
    axes.set_ylabel("mean score")
    axes.legend()
    figure.savefig(path)
