"""Build longrec. A wheel carries the project's folders in `longrec/_project`.

So `pip install longrec` works outside a checkout (`longrec.runs.project`), and no name such as
`pipelines` becomes a top-level package of the environment. pyproject.toml holds the metadata.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PROJECT_FOLDERS = ("bento", "components", "configs", "feature_repo", "pipelines")
IGNORED = shutil.ignore_patterns("__pycache__", "data", "wheels")
"""Generated folders: bytecode, feature_repo/data and bento/wheels."""


class BuildWithProject(build_py):
    """Copies the project's folders next to the modules, except for an editable installation."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "longrec" / "_project"
        shutil.rmtree(target, ignore_errors=True)
        for name in PROJECT_FOLDERS:
            shutil.copytree(ROOT / name, target / name, ignore=IGNORED)


setup(cmdclass={"build_py": BuildWithProject})
