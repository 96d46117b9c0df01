"""Verifiable rewards: one parser of responses, pure reward functions, and their weighted sum."""
