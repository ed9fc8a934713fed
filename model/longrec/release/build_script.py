"""Run bento/build.py, which builds and imports bentos, in a process of its own.

This module does not import BentoML.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import subprocess
from pathlib import Path
from typing import Any

from longrec import child
from longrec.data import files
from longrec.release.bento_server import PackagingError, last_log_line
from longrec.release.build_context import BUILD_SCRIPT, StagedBento, project_root

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class BuildScript:
    """The script bento/build.py of a project folder.

    Its commands work on the BentoML store of BENTOML_HOME. All of them raise PackagingError if the
    script fails.
    """

    path: Path

    @classmethod
    def of_project(cls, repo_dir: str | Path) -> BuildScript:
        """Return the script of the project folder around a feature repository."""
        return cls(project_root(repo_dir) / BUILD_SCRIPT)

    def check(self, tag: str) -> None:
        """Check that the store has neither a model nor a bento of this tag."""
        self._run("check", tag=tag)

    def build(
        self,
        staged: StagedBento,
        bundle_dir: str | Path,
        out_dir: Path,
        *,
        store: Path,
    ) -> None:
        """Build a bento in a new store and export it to a new folder.

        Args:
            staged: the build context.
            bundle_dir: the model.
            out_dir: the exported folder.
            store: the new store.
        """
        store.mkdir()
        self._run(
            "build",
            store=store,
            tag=staged.tag,
            bundle=str(Path(bundle_dir).resolve()),
            context=staged.path,
            labels=dict(staged.labels),
            out=str(out_dir.resolve()),
        )

    def import_folder(self, tag: str, folder: Path, *, replace: bool) -> None:
        """Add an exported bento to the store.

        With `replace`, first remove the model and the bento of this tag.
        """
        self._run("import", tag=tag, folder=str(folder.resolve()), replace=replace)

    def _run(self, command: str, *, store: Path | None = None, **arguments: Any) -> None:
        environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "True"}
        if store is not None:
            environment["BENTOML_HOME"] = str(store)
        done = subprocess.run(
            child.command(str(self.path), command, json.dumps(arguments)),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            log.info("%s", done.stdout + done.stderr)
            # BentoML lists every file that it could not copy.
            if any(words in done.stderr for words in files.DISK_FULL_WORDS):
                raise PackagingError(
                    f"no space is left to {command} {arguments['tag']}",
                    found=os.strerror(errno.ENOSPC),
                    fix="Free some space and run it again.",
                )
            raise PackagingError(
                f"bentoml could not {command} {arguments['tag']}",
                found=last_log_line(done.stderr) or f"exit code {done.returncode}",
                fix="Give the run another id." if command == "check" else "",
            )
