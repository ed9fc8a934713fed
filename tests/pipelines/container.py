"""A container for the tests: a new root, mounted read-only, and the user of the images.

It stands for `docker run --read-only --tmpfs /tmp --user 10001:10001`. It needs root, as CI has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

USER = 10_001
"""User of both Dockerfiles."""
SYSTEM_FOLDERS = ("/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", sys.base_prefix)
SCRIPT = """
set -eu
root=$1; shift
mount -t tmpfs -o mode=755 tmpfs "$root"
mkdir "$root/tmp"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
attach() { mkdir -p "$root$2"; mount --rbind "$1" "$root$2"; }
while [ "$1" != -- ]; do
    options=$1 source=$2 target=$3; shift 3
    if [ -L "$source" ]; then cp -P "$source" "$root$target"; continue; fi
    attach "$source" "$target"
    [ "$options" = rw ] || mount -o remount,bind,ro "$root$target"
done
shift
attach /dev /dev
attach /proc /proc
mount -o remount,ro "$root"
exec chroot --userspec=USER:USER --groups= "$root" /usr/bin/env --chdir=/tmp -i "$@"
""".replace("USER", str(USER))


@dataclasses.dataclass(frozen=True)
class Container:
    """What a container sees.

    Args:
        root: an empty folder.
        read_only: folder in the container -> folder outside.
        volumes: the same, of writable folders.
        environment: all variables of its process.
    """

    root: Path
    read_only: Mapping[str, Path]
    volumes: Mapping[str, Path]
    environment: Mapping[str, str]

    def run(self, *command: str, seconds: float = 900) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self._command(command), capture_output=True, text=True, timeout=seconds, check=False
        )

    @contextlib.contextmanager
    def started(self, log: Path, *command: str) -> Iterator[subprocess.Popen[Any]]:
        """Start a command, which is stopped at the end of the block."""
        with open(log, "w", encoding="utf-8") as output:
            process = subprocess.Popen(self._command(command), stdout=output, stderr=output)
            try:
                yield process
            finally:
                process.terminate()
                process.wait(60)

    def _command(self, command: Sequence[str]) -> list[str]:
        self.root.mkdir(exist_ok=True)
        mounts = []
        for folder in SYSTEM_FOLDERS:
            if Path(folder).exists():
                mounts += ["ro", folder, folder]
        for target, source in self.read_only.items():
            mounts += ["ro", str(source), target]
        for target, source in self.volumes.items():
            mounts += ["rw", str(source), target]
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        unshare = ["unshare", "--mount", "--propagation", "private", "bash", "-c", SCRIPT, "bash"]
        return [*unshare, str(self.root), *mounts, "--", *variables, *command]


def require_containers() -> None:
    """Skip the test where mounts are not allowed."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.decode().strip()}")


def give_to_user(folder: Path) -> None:
    """Make a folder and all that it holds the user's: `chown -R 10001:10001`."""
    subprocess.run(["chown", "-R", f"{USER}:{USER}", str(folder)], check=True)


def fresh_environment(folder: Path, bento: Path, place: str) -> None:
    """Make a virtual environment of the requirements and the wheel of a bento, and nothing else.

    It stands for `pip install --requirement`: the files of each pinned package are linked from this
    environment, so nothing is downloaded.

    Args:
        folder: the new environment.
        bento: an exported bento.
        place: path of the environment in the container.
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    packages = folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    requirements = bento / "env" / "python" / "requirements.txt"
    for line in requirements.read_text().splitlines():
        name, _, version = line.partition("==")
        distribution = importlib.metadata.distribution(name)
        assert distribution.version == version, line
        for entry in distribution.files or ():
            source = Path(str(distribution.locate_file(entry)))
            if source.is_file():
                _link(source, Path(os.path.normpath(packages / entry)))
    (wheel,) = bento.glob("env/python/wheels/longrec-*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    # With the sources on PYTHONPATH, pip would take longrec for installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, env=environment)
    subprocess.run([*pip, "check"], check=True, env=environment)
    for script in (folder / "bin").iterdir():
        _move_script(script, f"#!{place}/bin/python")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # Another disk.
        shutil.copy2(source, target)


def _move_script(script: Path, first_line: str) -> None:
    """Let a script of Python run by the interpreter of another place."""
    lines = script.read_bytes().splitlines(keepends=True)
    if script.is_symlink() or not lines[0].startswith(b"#!") or b"python" not in lines[0]:
        return
    script.unlink()  # It may be a link to the script of this environment.
    script.write_bytes(b"".join([f"{first_line}\n".encode(), *lines[1:]]))
    script.chmod(0o755)
