"""Rasterizers of the forms in common use, written for comparison only."""
