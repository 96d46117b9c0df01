"""The settings of a language-model judge, and what is refused of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import httpx

from visd.config import ConfigError
from visd.judge.limits import Budget

CHOICES = {
    "sees": ("evidence", "frames", "both"),
    "structured": ("json_schema", "json_object", "none"),
    "on_failure": ("feedback", "teacher"),
    "cache": ("read_write", "read_only", "off"),
}
NOT_NEGATIVE = (
    "retries", "backoff", "temperature", "requests_per_minute", "tokens_per_minute",
    "budget_calls", "budget_tokens", "budget_usd", "usd_per_million_prompt", "usd_per_million_completion",
)  # fmt: skip
_ENVIRONMENT_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")


@dataclass
class ModelJudgeSettings:
    """Settings of a language-model judge. Limits and budgets are the whole run's; ranks share them evenly."""

    base_url: str = "http://127.0.0.1:8000/v1"  # of the server; requests go to base_url/chat/completions
    model: str = ""  # as the server names it; must be given
    api_key_env: str = ""  # name of the environment variable that holds the key; empty sends none
    sees: str = "evidence"  # besides the verified answer: evidence (windows, key times, boxes), frames, both
    max_frames: int = 8  # most frames sent of one medium
    max_chars: int = 12000  # a longer response is cut in its middle before it is shown
    structured: str = "json_schema"  # how the server is asked for JSON: json_schema, json_object, none
    max_tokens: int = 1024  # longest answer of the judge
    temperature: float = 0.0  # of the judge's sampling
    extra_body: dict[str, Any] = field(
        default_factory=dict
    )  # further fields of the request; null leaves one of ours out, as in {max_tokens: null}
    concurrency: int = 16  # most requests under way
    requests_per_minute: float = 0.0  # most requests in any 60 s; 0 sets no limit
    tokens_per_minute: float = 0.0  # most tokens, as estimated before the answer, in any 60 s; 0 sets no limit
    timeout: float = 60.0  # s, of one try
    retries: int = (
        4  # further tries after a time-out, a lost connection, HTTP 408, 409, 425, 429 or 5xx, or an unreadable body
    )
    backoff: float = 1.0  # s before the first retry, doubled before each next one, with jitter
    budget_calls: int = 0  # most requests of the whole run, retries included; 0 sets no limit
    budget_tokens: int = 0  # most tokens of the whole run, prompts included; 0 sets no limit
    budget_usd: float = 0.0  # most money of the whole run; 0 sets no limit
    usd_per_million_prompt: float = 0.0  # price of prompt tokens
    usd_per_million_completion: float = 0.0  # price of answered tokens
    on_failure: str = "feedback"  # what a failed judgement removes: feedback (the teacher's block), teacher (its whole say in that rollout)
    window: int = 256  # judgements, of one rank, that the two rates below are taken over
    max_failure_rate: float = 0.5  # share of failed judgements that stops the run; 1 never does
    max_disagreement: float = (
        0.5  # share of answer scores against the verifiable reward that stops the run; 1 never does
    )
    cache: str = "read_write"  # answers on disk: read_write, read_only (asks no server), off
    cache_dir: str = ""  # folder of the answers; empty takes run.dir/judge

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"judge.{name}: {getattr(self, name)!r} is not one of {', '.join(choices)}.")
        for name in ("max_frames", "max_chars", "max_tokens", "concurrency", "timeout", "window"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"judge.{name}: {getattr(self, name)!r} must be greater than 0.")
        if self.api_key_env and not _ENVIRONMENT_NAME.fullmatch(self.api_key_env):
            # Not repeated here: it may be the key itself.
            raise ConfigError("judge.api_key_env: must be the name of an environment variable, in capitals, not a key.")
        for name in ("max_failure_rate", "max_disagreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"judge.{name}: {getattr(self, name)!r} must lie between 0 and 1.")
        for name in NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ConfigError(f"judge.{name}: {getattr(self, name)!r} must not be negative.")
        try:
            url = httpx.URL(self.base_url)
        except httpx.InvalidURL:
            url = httpx.URL("")
        if url.scheme not in ("http", "https") or not url.host or url.userinfo:
            raise ConfigError("judge.base_url: must be http(s)://host/path, without a user or a password.")
        if self.budget_usd and not (self.usd_per_million_prompt or self.usd_per_million_completion):
            raise ConfigError(
                "judge.budget_usd: needs judge.usd_per_million_prompt and judge.usd_per_million_completion."
            )

    def budget(self, ranks: int) -> Budget:
        """One rank's share."""
        return Budget(
            -(-self.budget_calls // ranks),
            -(-self.budget_tokens // ranks),
            self.budget_usd / ranks,
            self.usd_per_million_prompt,
            self.usd_per_million_completion,
        )
