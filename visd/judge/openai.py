"""A language model as judge, behind any server that speaks the OpenAI chat-completions protocol.

Requests go out as soon as a rollout is submitted and are answered while others are still being generated. What a step
gets does not depend on the order in which answers arrive: the budget is asked in the order of submission, and settled in
that order once all answers of the step are there.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from visd.config import ConfigError
from visd.judge.base import Judge, JudgeServices
from visd.judge.client import Outcome, Retry
from visd.judge.limits import RateLimiter, Spent, estimated_tokens, share_of
from visd.judge.prompt import Case, Inquiry, case_of, inquiry, pictures_of
from visd.judge.schema import Read, read_answer, response_schema
from visd.judge.server import Address, Server, done, proxy_of
from visd.judge.settings import ModelJudgeSettings
from visd.judge.watch import Watch
from visd.media.errors import DecodeError
from visd.types import JudgeReport, Rollout, RolloutGroup, Sample

log = logging.getLogger(__name__)

NOTHING = Spent()

Key = tuple[str, str, str]
"""Sample id, response, stop reason: what decides a request."""


@dataclass(frozen=True)
class Pending:
    """A judgement under way."""

    outcome: Future[Outcome]
    estimate: Spent = NOTHING  # what the budget was charged for it
    inquiry: Inquiry | None = None  # None: nothing was asked


@dataclass
class OpenAIJudge(ModelJudgeSettings, Judge):
    """Judges by a language model. Its settings are those of `ModelJudgeSettings`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._pending: dict[Key, Pending] = {}
        self._counts: Counter[str] = Counter()
        self._told_budget = False
        self._server: Server | None = None
        self._watch = Watch(self.window, self.max_failure_rate, self.max_disagreement)
        self._budget = self.budget(ranks=1)

    # ------------------------------------------------------------------------------------------ life

    def open(self, services: JudgeServices) -> None:
        if not self.model:
            raise ConfigError("judge.model: name the model as the server does.")
        key = os.environ.get(self.api_key_env, "") if self.api_key_env else ""
        if self.api_key_env and not (key.isascii() and key.isprintable() and key.strip() == key != ""):
            raise ConfigError(f"judge.api_key_env: the environment variable {self.api_key_env} holds no usable key.")
        self._services = services
        self._budget = self.budget(services.ranks)
        folder = Path(self.cache_dir) if self.cache_dir else services.folder
        self._address = Address(
            base_url=self.base_url,
            key=key,
            concurrency=max(1, self.concurrency // services.ranks),
            retry=Retry(self.timeout, self.retries, self.backoff),
            limiter=RateLimiter(self.requests_per_minute / services.ranks, self.tokens_per_minute / services.ranks),
            may_retry=self._budget.admit_retry,
            proxy=proxy_of(self.base_url),
            cache=self.cache,
            cache_file=folder / f"answers-{services.rank:05d}.sqlite",
        )

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    # ------------------------------------------------------------------------------------- judgements

    def submit(self, groups: Sequence[RolloutGroup]) -> None:
        if self._server is None:  # not before: a run that is only checked writes no file
            self._server = Server(self._address)
        for group in groups:
            keyed = {_key(group.sample, rollout): rollout for rollout in group.rollouts}
            new = {key: rollout for key, rollout in keyed.items() if key not in self._pending}
            self._pending |= self._begin(self._server, group.sample, new) if new else {}

    def judge(self, groups: Sequence[RolloutGroup]) -> list[tuple[JudgeReport, ...]]:
        self.submit(groups)
        reads = {key: self._finish(pending) for key, pending in self._pending.items()}
        self._pending.clear()
        if self._server is not None:
            self._server.flush()  # a checkpoint that follows may rely on it
        reports = [tuple(reads[_key(g.sample, rollout)].report for rollout in g.rollouts) for g in groups]
        self._tell(reads)
        judged = [
            (report, group.rewards[i] if group.rewards else None)
            for group, of in zip(groups, reports, strict=True)
            for i, report in enumerate(of)
        ]
        self._watch.update(judged, next((read.why for read in reversed(reads.values()) if read.why), ""))
        return reports

    def removes_target(self, report: JudgeReport) -> bool:
        return self.on_failure == "teacher" and not report.usable

    def _begin(self, server: Server, sample: Sample, rollouts: dict[Key, Rollout]) -> dict[Key, Pending]:
        """Begin to judge rollouts of one sample, in their order."""
        try:
            seen = sample.media if self.sees != "evidence" else ()
            pictures = pictures_of([self._services.frames(media) for media in seen], self.max_frames)
        except DecodeError as error:
            return dict.fromkeys(rollouts, Pending(done(Outcome("skipped", note=str(error), attempts=0))))
        case = case_of(sample, self.sees, pictures)
        return {key: self._send(server, case, rollout) for key, rollout in rollouts.items()}

    def _send(self, server: Server, case: Case, rollout: Rollout) -> Pending:
        asked = inquiry(case, rollout, self.max_chars)
        estimate = Spent(1, estimated_tokens(asked.text_bytes, asked.images), self.max_tokens)
        if not self._budget.admit(estimate):
            return Pending(done(Outcome("over_budget", note="the budget is spent", attempts=0)))
        # Not sorted: servers hold an answer to the schema's order of fields.
        body = json.dumps(self._body(asked)).encode()
        future = server.ask(body, estimate.prompt_tokens + estimate.completion_tokens)
        return Pending(future, estimate, asked)

    def _body(self, asked: Inquiry) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": asked.messages,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        if self.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        if self.structured == "json_schema":
            schema = {"name": "judgement", "strict": True, "schema": response_schema(asked.rubric)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return {name: value for name, value in (body | self.extra_body).items() if value is not None}

    def _finish(self, pending: Pending) -> Read:
        """Wait for a judgement, read it, and put what it took in the place of the estimate."""
        outcome = pending.outcome.result()
        actual = _actual(outcome, pending.estimate)
        # Retries were paid for when they were made; those of a replayed answer are paid for now.
        paid = actual.calls if outcome.replayed else min(actual.calls, 1)
        self._budget.settle(pending.estimate, replace(actual, calls=paid))
        self._count(actual, outcome.replayed)
        if outcome.status != "ok" or pending.inquiry is None:
            return Read(JudgeReport(outcome.status), why=outcome.note)
        read = read_answer(outcome.text, pending.inquiry.rubric, pending.inquiry.shown.whole)
        self._counts["spans_dropped"] += read.dropped_spans
        return read

    # -------------------------------------------------------------------------------------- reporting

    def _count(self, actual: Spent, replayed: bool) -> None:
        self._counts["calls"] += actual.calls
        self._counts["retries"] += max(0, actual.calls - 1)
        self._counts["replayed"] += replayed
        self._counts["prompt_tokens"] += actual.prompt_tokens
        self._counts["completion_tokens"] += actual.completion_tokens

    def _tell(self, reads: dict[Key, Read]) -> None:
        failed = [read for read in reads.values() if not read.report.usable and read.report.status != "over_budget"]
        if failed:
            first = failed[0]
            log.warning(
                "%d of %d judgements failed; the first: %s, %s", len(failed), len(reads), first.report.status, first.why
            )
        if not self._told_budget and any(read.report.status == "over_budget" for read in reads.values()):
            self._told_budget = True
            log.warning("the judge's budget is spent (%s): from here on it is not asked", asdict(self._budget.spent))

    def take_counts(self) -> dict[str, float]:
        names = ("calls", "retries", "replayed", "prompt_tokens", "completion_tokens", "spans_dropped")
        counts = {name: float(self._counts[name]) for name in names}
        spent = Spent(0, int(counts["prompt_tokens"]), int(counts["completion_tokens"]))
        counts["usd"] = self._budget.cost(spent)
        self._counts.clear()
        return counts

    def state_dict(self) -> dict[str, Any]:
        return {"spent": asdict(self._budget.spent), "told": self._told_budget, **self._watch.state_dict()}

    def load_state_dicts(self, states: Sequence[dict[str, Any]]) -> None:
        rank, ranks = self._services.rank, self._services.ranks
        if len(states) == ranks:
            states, rank, ranks = [states[rank]], 0, 1
        self._budget.spent = share_of([Spent(**state["spent"]) for state in states], rank, ranks)
        self._told_budget = any(state["told"] for state in states)
        for state in states[rank::ranks] or [states[rank % len(states)]]:
            self._watch.load_state_dict(state)


def _key(sample: Sample, rollout: Rollout) -> Key:
    return sample.id, rollout.text, rollout.stop_reason


def _actual(outcome: Outcome, estimate: Spent) -> Spent:
    """What a judgement took; where the server does not say, the estimate stands."""
    if not outcome.attempts:
        return NOTHING
    prompt, completion = outcome.prompt_tokens, outcome.completion_tokens
    return Spent(
        outcome.attempts,
        estimate.prompt_tokens if prompt is None else prompt,
        estimate.completion_tokens if completion is None else completion,
    )
