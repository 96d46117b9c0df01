"""The teacher: what it is told, which weights it has, and how it scores a rollout's own tokens."""
