"""Judges: scores of a rollout along the dimensions, and words for what went wrong."""
