"""Tiny models of real architectures, for tests and for the small world."""
