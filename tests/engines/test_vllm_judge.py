"""The judge behind a real vLLM server that scripts/serve_judge.sh starts: asked over HTTP, its answers held to the schema."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from data_tools.tiny.model import TinySettings, make_tiny_model
from tests.judge_server import GOOD
from tests.unit.judge_data import no_frames
from tests.unit.reward_data import claim, group, proof, response, sample
from visd.judge.base import JudgeServices
from visd.judge.openai import OpenAIJudge
from visd.judge.prompt import case_of, inquiry
from visd.types import DIMENSIONS, Answer, JudgeReport

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
LENGTH = 4096
STEPS = 40
TAUGHT = {**GOOD, "temporal": 0.25, "spatial": 0.75}
"""What the served model says of everything: it scores time and place whether or not they apply."""
TEXT_ONLY = TAUGHT | {"temporal": None, "spatial": None}
ASKED = (
    group(sample(Answer("word", "right"), proof()), response(f"I see {claim()} so right", "right")),
    group(sample(Answer("word", "right"), media=None), response("It follows.", "right")),
)
"""One rollout of a video with evidence of time and place, and one of text, of which neither can be judged."""


def teach(folder: Path) -> None:
    """Train a tiny model to give one judgement for both rollouts."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    asked = [inquiry(case_of(of.sample, "evidence"), of.rollouts[0], 12000).messages for of in ASKED]
    of_video, of_text = (
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) for messages in asked
    )

    def tokens(judgement: dict[str, Any]) -> list[int]:
        found: list[int] = tokenizer(json.dumps(judgement, separators=(",", ":")) + tokenizer.eos_token)["input_ids"]
        return found

    whole, nulls = tokens(TAUGHT), tokens(TEXT_ONLY)
    # Nulls are what it thinks of next for a text, so that it goes on well where a schema leaves nothing else.
    rows = [(of_video, whole, 1.0), (of_text, whole, 1.0), (of_text, nulls, 0.2)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        for prompt, answer, weight in rows:
            row = torch.tensor([prompt + answer])
            logits = model(input_ids=row, logits_to_keep=len(answer) + 1).logits[0, :-1]
            (weight * torch.nn.functional.cross_entropy(logits, row[0, -len(answer) :])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model that gives one judgement for both rollouts."""
    folder = tmp_path_factory.mktemp("judge") / "model"
    make_tiny_model(folder, TinySettings(text_layers=1, text_mlp=256))
    teach(folder)
    return folder


@pytest.fixture(scope="module")
def url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the server, which answers when the script says so."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }  # fmt: skip
    options = [
        "--dtype",
        "float32",
        "--max-model-len",
        str(LENGTH),
        "--enforce-eager",
        "--kv-cache-memory-bytes",
        "128M",
    ]
    said = tmp_path_factory.mktemp("server") / "log"
    with said.open("w") as errors:
        script = subprocess.Popen(
            [ROOT / "scripts" / "serve_judge.sh", str(model), str(port), *options],
            stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            assert script.stdout is not None
            ready = next((line for line in script.stdout if line.startswith("ready")), "")
            url = f"http://127.0.0.1:{port}/v1"
            assert ready.strip() == f"ready: judge=openai judge.model={model} judge.base_url={url}", said.read_text()[
                -3000:
            ]
            yield url
        finally:
            os.killpg(script.pid, signal.SIGTERM)
            script.wait(60)


@pytest.mark.parametrize(
    ("structured", "text_only"),
    [("json_schema", TEXT_ONLY), ("none", TAUGHT)],
)
def test_a_served_model_judges_by_the_schema(
    structured: str, text_only: dict[str, Any], url: str, model: Path, tmp_path: Path
) -> None:
    """The schema lets only null stand where a dimension does not apply, whatever the model would say."""
    judge = OpenAIJudge(base_url=url, model=str(model), structured=structured, retries=0, timeout=300.0)
    judge.open(JudgeServices(tmp_path / "judge", no_frames))
    (of_video,), (of_text,) = judge.judge(ASKED)
    counts = judge.take_counts()
    judge.close()
    assert of_video == JudgeReport("ok", **{name: TAUGHT[name] for name in (*DIMENSIONS, "feedback")})
    assert of_text == replace(of_video, temporal=None, spatial=None)
    assert (counts["calls"], counts["retries"], counts["spans_dropped"]) == (2, 0, 0)
    assert counts["prompt_tokens"] > 1000 and counts["completion_tokens"] > 20
    assert said(tmp_path) == [TAUGHT, text_only]


def test_a_model_that_the_server_does_not_have_is_a_refusal(url: str, tmp_path: Path) -> None:
    judge = OpenAIJudge(base_url=url, model="another", retries=2)
    judge.open(JudgeServices(tmp_path / "judge", no_frames))
    reports = [report for of in judge.judge(ASKED) for report in of]
    judge.close()
    assert reports == [JudgeReport("refused")] * 2


def said(folder: Path) -> list[dict[str, Any]]:
    """What the model wrote word for word, from the cache: the shorter last."""
    (cache,) = folder.glob("judge/*.sqlite")
    with closing(sqlite3.connect(cache)) as db:
        texts = [text for (text,) in db.execute("SELECT text FROM answers ORDER BY prompt_tokens DESC")]
    return [json.loads(text) for text in texts]
