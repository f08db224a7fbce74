"""Stages, losses, the train step and the loop around it."""
