"""ModelManager: follows the registry of a work directory, and replaces engines under load.

    registry.json --read every second--> load the new version --warm--> swap
                                                             \\-- failed: the old version stays
    the old engine finishes its requests, then it is closed

An engine is whatever `load` returns; this module calls none of its methods. A request uses one
engine from start to end (`acquire`): its answer and its `model_version` belong together.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from longrec.data import files
from longrec.errors import LongrecError
from longrec.release.registry import ModelRegistry, read_registry, registry_path
from longrec.serving.file_version import FileVersion, file_version
from longrec.serving.rollout.listener import NullListener, RolloutListener
from longrec.serving.rollout.loaded_model import LoadedModel
from longrec.serving.rollout.shadow import Scores, Shadow
from longrec.serving.rollout.worker_reports import HEARTBEAT_SECONDS, report_path

log = logging.getLogger("bentoml.longrec.rollout")

Engine = TypeVar("Engine")
POLL_SECONDS = 1.0
"""Time between two looks at the registry."""
RETRY_SECONDS = 30.0
"""Time until a failed version is loaded again: its files may have been on the way."""
NEVER = float("inf")


class ModelManager(Generic[Engine]):
    """The engines of one worker.

    Args:
        workdir: LONGREC_HOME, with the registry.
        own_version: served when the registry names no version, or one that cannot be loaded.
        load: returns a warm engine of a version, or raises LongrecError. It is called from another
            thread while the old engine answers.
        score: returns the scores of a request by an engine; called from the shadow's thread.
        close: closes an engine that no request uses.
        activate: called with an engine before it answers its first caller.
        listener: observes the rollout.
        is_pinned: whether the registry is ignored and the own version is served.
    """

    def __init__(
        self,
        workdir: str | Path,
        own_version: str,
        load: Callable[[str], Engine],
        *,
        score: Callable[[Engine, Any], Scores],
        close: Callable[[Engine], None] = lambda _: None,
        activate: Callable[[Engine], None] = lambda _: None,
        listener: RolloutListener | None = None,
        is_pinned: bool = False,
    ) -> None:
        self._workdir = Path(workdir)
        self._own_version = own_version
        self._load = load
        self._close = close
        self._activate = activate
        self._listener = listener or NullListener()
        self._is_pinned = is_pinned
        self._registry = ModelRegistry()
        self._registry_file: FileVersion | None = None
        self._retry_at = NEVER
        self._report_path = report_path(workdir)
        self._report_at = 0.0
        self._lock = threading.Lock()
        self._is_stopped = threading.Event()
        self._current: LoadedModel[Engine] | None = None
        self.load_errors = dict[str, str]()
        self.num_swaps = 0
        self.shadow = Shadow(load, score, self._close_in_background, self._listener)
        self._current = self._load_first()
        self._activate(self._current.engine)
        self._listener.model_activated(self._current.version, None)

    @property
    def version(self) -> str:
        """Version that answers the next request."""
        return self._loaded.version

    @property
    def engine(self) -> Engine:
        """Engine of that version, to read facts from; use `acquire` to score."""
        return self._loaded.engine

    def start(self) -> None:
        """Follow the registry, in threads of their own."""
        threads = [
            threading.Thread(target=self._follow_registry, name="rollout", daemon=True),
            threading.Thread(
                target=self.shadow.run,
                args=(self._is_stopped,),
                name="shadow",
                daemon=True,
            ),
        ]
        for thread in threads:
            thread.start()

    def stop(self) -> None:
        """Stop following the registry; engines stay open for their requests."""
        self._is_stopped.set()

    @contextlib.contextmanager
    def acquire(self) -> Iterator[tuple[str, Engine]]:
        """Yield the current version and its engine, which stays open until the block ends."""
        with self._lock:
            model = self._loaded
            model.num_requests += 1
        try:
            yield model.version, model.engine
        finally:
            with self._lock:
                model.num_requests -= 1
                is_unused = model.is_replaced and model.num_requests == 0
            if is_unused:
                self._close_in_background(model.engine)

    def sync_with_registry(self) -> None:
        """Serve the versions of the registry, if it changed or a failed one is due for a retry."""
        found = self._find_registry_file()
        is_unchanged = found == self._registry_file
        if is_unchanged and time.monotonic() < self._retry_at:
            return
        self._registry_file = found
        self._retry_at = NEVER
        try:
            registry = read_registry(self._workdir)
        except LongrecError as error:
            self._report_load_error("registry", error)
            return
        self.load_errors.clear()
        self._registry = registry
        self._switch_to(registry.champion or self._own_version)
        self._compare_with(registry.challenger, registry.mirror_share)
        self._write_report()

    @property
    def _loaded(self) -> LoadedModel[Engine]:
        assert self._current is not None
        return self._current

    def _load_first(self) -> LoadedModel[Engine]:
        """Return the champion, or the own version if there is none or it cannot be loaded."""
        champion = self._first_champion()
        if champion != self._own_version:
            try:
                return LoadedModel(champion, self._load(champion))
            except LongrecError as error:
                self._report_load_error(champion, error)
        return LoadedModel(self._own_version, self._load(self._own_version))

    def _first_champion(self) -> str:
        if self._is_pinned:
            return self._own_version
        try:
            champion = read_registry(self._workdir).champion
        except LongrecError as error:
            self._report_load_error("registry", error)
            return self._own_version
        return champion or self._own_version

    def _switch_to(self, version: str) -> None:
        if version == self.version:
            return
        try:
            model = self.shadow.take_challenger(version)
            if model is None:
                model = LoadedModel(version, self._load(version))
        except Exception as error:
            # Whatever is wrong with a new version, the old one must go on.
            self._report_load_error(version, error)
            return
        self._activate(model.engine)
        with self._lock:
            replaced = self._loaded
            replaced.is_replaced = True
            self._current = model
            is_unused = replaced.num_requests == 0
        self.num_swaps += 1
        self._listener.model_activated(version, replaced.version)
        log.info("serving %s instead of %s", version, replaced.version)
        if is_unused:
            self._close_in_background(replaced.engine)

    def _compare_with(self, challenger: str | None, mirror_share: float) -> None:
        try:
            self.shadow.compare(self.version, challenger, mirror_share)
        except Exception as error:
            self._report_load_error(str(challenger), error)

    def _report_load_error(self, version: str, error: Exception) -> None:
        reason = str(error)
        if not isinstance(error, LongrecError):
            reason = f"{type(error).__name__}: {reason}"
        self.load_errors[version] = reason
        self._retry_at = time.monotonic() + RETRY_SECONDS
        self._listener.load_failed()
        log.error("%s cannot be served: %s", version, reason)
        if self._current is not None:
            self._write_report()

    def _follow_registry(self) -> None:
        while not self._is_stopped.wait(POLL_SECONDS):
            try:
                if not self._is_pinned:
                    self.sync_with_registry()
                if time.monotonic() >= self._report_at:
                    self._write_report()
            except Exception:
                log.exception("the registry of %s cannot be followed", self._workdir)

    def _find_registry_file(self) -> FileVersion | None:
        try:
            return file_version(registry_path(self._workdir))
        except OSError:
            return None

    def _close_in_background(self, engine: Engine) -> None:
        """Close an engine in a thread: closing waits for its requests."""
        thread = threading.Thread(
            target=self._close,
            args=(engine,),
            name="close-engine",
            daemon=True,
        )
        thread.start()

    def _write_report(self) -> None:
        """Write what this worker serves; serving goes on where the directory is read-only."""
        self._report_at = time.monotonic() + HEARTBEAT_SECONDS
        comparison = self.shadow.last_comparison
        now = datetime.datetime.now(datetime.UTC)
        report = {
            "at": now.isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "serving": self.version,
            "pinned": self._is_pinned,
            "generation": self._registry.generation,
            "refused": self.load_errors,
            "shadow": None if comparison is None else comparison.to_dict(),
        }
        try:
            files.write_json(self._report_path, report)
        except OSError as error:
            log.warning("no report in %s: %s", self._report_path.parent, error)
            self._report_at = NEVER
