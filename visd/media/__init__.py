"""Video decoding, positions and prompts as tensors."""
