"""Manifests, prompts and the order of samples."""
