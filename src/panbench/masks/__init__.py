"""Pseudo-masks as artefacts: sets of them on disk, what makes them, and what measures them."""
