"""lmms-eval itself, where it is installed: `make test` runs its tests in the environment of `make env-vllm`."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("lmms_eval") is None:
    collect_ignore_glob = ["test_lmms_eval.py"]
