"""The policy: loading, vision features, forward, log-probabilities."""
