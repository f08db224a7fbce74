"""Figures, latency, and where they are written."""
