"""Settings of the service, read from environment variables when a process starts."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import bentoml

from longrec.serving.requests import BodyLimits

logger = logging.getLogger("bentoml.longrec")

ROOT = Path(__file__).resolve().parent.parent
"""Root of a checkout, or of the sources in a packaged bento."""
RELEASE_PATH = ROOT / "release.json"
"""The model of a packaged bento; longrec.release.packaging writes it."""
BASE_BODY_BYTES = 65_536
BYTES_PER_CANDIDATE = 32
BYTES_PER_EVENT = 128
"""Parts of the largest body."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one worker.

    Args:
        max_candidates: candidates of a request.
        max_inline_events: events of a history that comes with a request.
        num_threads: threads that share the chunks of a forward pass (longrec.nn.parallel).
        device: cpu scores in float32; cuda in bfloat16 with CUDA graphs. The KV cache is there too.
        cache_bytes: bytes of the history KV cache.
        timeout_seconds: time for the answer when the request names none.
        store_timeout_seconds: longest wait for the feature store; then the answer is degraded.
        queue_seconds: time that requests may wait, and estimated work in progress; above either one
            others are rejected.
        caller_requests: requests in progress of one caller: the header `x-caller`, or an address.
        keep_alive_seconds: time after which an idle connection is closed.
        log_share: share of the answers written to LONGREC_HOME/requests for the drift job.
        is_pinned: whether the service ignores the registry and serves its own version.
        is_inference_protocol_on: whether there are the paths of the Open Inference Protocol.
    """

    max_candidates: int
    max_inline_events: int
    num_threads: int
    device: str
    cache_bytes: int
    timeout_seconds: float
    store_timeout_seconds: float
    queue_seconds: float
    caller_requests: int
    keep_alive_seconds: int
    log_share: float
    is_pinned: bool
    is_inference_protocol_on: bool

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Return the settings in environment variables."""
        num_cores = os.cpu_count() or 1
        cache_mebibytes = float(environment.get("LONGREC_CACHE_MB", "1024"))
        timeout_ms = float(environment.get("LONGREC_TIMEOUT_MS", "5000"))
        store_timeout_ms = float(environment.get("LONGREC_STORE_TIMEOUT_MS", "500"))
        follows_registry = environment.get("LONGREC_FOLLOW", "1") != "0"
        names_a_model = bool(environment.get("LONGREC_MODEL"))
        return cls(
            max_candidates=int(environment.get("LONGREC_MAX_CANDIDATES", "2048")),
            max_inline_events=int(environment.get("LONGREC_MAX_EVENTS", "16384")),
            num_threads=int(environment.get("LONGREC_THREADS", str(min(2, num_cores)))),
            device=environment.get("LONGREC_DEVICE", "cpu"),
            cache_bytes=int(cache_mebibytes * 2**20),
            timeout_seconds=timeout_ms / 1e3,
            store_timeout_seconds=store_timeout_ms / 1e3,
            queue_seconds=float(environment.get("LONGREC_QUEUE_SECONDS", "1")),
            caller_requests=int(environment.get("LONGREC_CALLER_REQUESTS", "64")),
            keep_alive_seconds=int(environment.get("LONGREC_KEEP_ALIVE_SECONDS", "120")),
            log_share=float(environment.get("LONGREC_LOG_SHARE", "0")),
            is_pinned=names_a_model or not follows_registry,
            is_inference_protocol_on=environment.get("LONGREC_INFERENCE_PROTOCOL", "0") == "1",
        )

    @property
    def body_limits(self) -> BodyLimits:
        """Largest parts of a request."""
        candidates = BYTES_PER_CANDIDATE * self.max_candidates
        events = BYTES_PER_EVENT * self.max_inline_events
        return BodyLimits(
            max_candidates=self.max_candidates,
            max_events=self.max_inline_events,
            max_bytes=BASE_BODY_BYTES + candidates + events,
        )


SETTINGS = Settings.read(os.environ)
BODY_LIMITS = SETTINGS.body_limits


def workdir() -> Path:
    """Return LONGREC_HOME, by default .longrec of a checkout.

    Raises:
        BentoMLException: a packaged bento has no default.
    """
    path = os.environ.get("LONGREC_HOME")
    if path:
        return Path(path).resolve()
    if RELEASE_PATH.is_file():
        raise bentoml.exceptions.BentoMLException(
            "LONGREC_HOME is not set. Set it to the work directory with the feature store."
        )
    return ROOT / ".longrec"


def store_digest() -> str:
    """Return the digest of the published version to serve; empty to follow the current one."""
    return os.environ.get("LONGREC_STORE_DIGEST", "")


def feature_repo() -> Path:
    """Return LONGREC_FEATURE_REPO, by default the one of the checkout or of the bento."""
    path = os.environ.get("LONGREC_FEATURE_REPO")
    return Path(path) if path else ROOT / "feature_repo"


def model_tag() -> str:
    """Return the tag of the own model: that of the bento, else LONGREC_MODEL or the latest."""
    requested = os.environ.get("LONGREC_MODEL")
    if not RELEASE_PATH.is_file():
        return requested or "longrec-ranker:latest"
    release = json.loads(RELEASE_PATH.read_text(encoding="utf-8"))
    tag = str(release["model"])
    if requested not in (None, tag):
        logger.warning(
            "LONGREC_MODEL=%s is ignored: this bento serves its own model %s",
            requested,
            tag,
        )
    return tag
