"""What a run tells its user: metrics, phase times, progress, dumps, the report."""
