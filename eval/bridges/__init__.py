"""Other evaluation programs: lmms-eval runs visd's checkpoints and questions, VLMEvalKit runs its checkpoints."""
