"""Evaluation of checkpoints on held-out questions."""
