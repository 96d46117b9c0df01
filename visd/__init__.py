"""visd: reinforcement learning and structured self-distillation for video-language models."""

__version__ = "0.1.0"
