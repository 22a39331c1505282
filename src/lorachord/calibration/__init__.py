"""Calibration: what is measured about a base and its tasks before an adapter is made."""

from lorachord.calibration.calibrate import calibrate

__all__ = ["calibrate"]
