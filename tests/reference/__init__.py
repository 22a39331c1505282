"""Naive reference implementations, written from the papers' formulas alone."""
