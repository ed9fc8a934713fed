"""Build the wheel of longrec for a bento, and pin what it requires.

In a checkout the wheel is built from the sources. Elsewhere the installed files are packed again.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

from longrec import child
from longrec.release.bento_server import PackagingError, last_log_line

DISTRIBUTION = "longrec"
EXTRA = "serve"
"""Extra of the wheel with the requirements of the service."""
PROVIDED = {"bentoml", DISTRIBUTION}
"""Requirements that are not pinned: BentoML adds itself, and the wheel is longrec."""
SOURCES = (
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "model/longrec",
    "bento",
    "components",
    "configs",
    "feature_repo",
    "pipelines",
)
"""Files and folders of a checkout that the wheel is built from."""
INSTALLER_FILES = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json")
"""Files of the metadata that pip writes at installation; a wheel does not hold them."""
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""Time of all files in a repacked wheel, so equal files give equal wheels."""


def build_wheel(root: Path, out_dir: Path) -> Path:
    """Return the wheel of longrec after writing it to a new folder, without the network.

    Args:
        root: a checkout is built; with any other folder, the installed files are packed.
        out_dir: new folder for the wheel.

    Raises:
        PackagingError: the wheel cannot be built.
    """
    out_dir.mkdir(parents=True)
    if is_checkout(root):
        return _build_from_sources(root, out_dir)
    return repack_installed(importlib.metadata.distribution(DISTRIBUTION), out_dir)


def is_checkout(root: Path) -> bool:
    """Return whether a folder holds the sources of longrec."""
    return (root / "pyproject.toml").is_file() and (root / "model" / "longrec").is_dir()


def _build_from_sources(root: Path, out_dir: Path) -> Path:
    """Build the wheel of a checkout with pip and setuptools.

    The sources are copied first: setuptools writes into the tree that it builds, and would pack the
    leftovers of an older build.
    """
    with tempfile.TemporaryDirectory(prefix="longrec-wheel-") as scratch:
        sources = Path(scratch) / "sources"
        _copy_sources(root, sources)
        command = child.command(
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-index",
            "--no-build-isolation",
            "--wheel-dir",
            str(out_dir),
            str(sources),
        )
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
        )
    wheels = sorted(out_dir.glob("longrec-*.whl"))
    if done.returncode or len(wheels) != 1:
        raise PackagingError(
            "the wheel of longrec cannot be built",
            found=last_log_line(done.stdout + done.stderr) or f"{len(wheels)} wheels",
            fix="Building needs pip and setuptools 77 or newer: pip install 'setuptools>=77'.",
        )
    return wheels[0]


def _copy_sources(root: Path, target: Path) -> None:
    target.mkdir()
    for name in SOURCES:
        source = root / name
        if source.is_dir():
            # feature_repo/data may hold a local feature store.
            ignored = ("__pycache__", "data") if name == "feature_repo" else ("__pycache__",)
            ignore = shutil.ignore_patterns(*ignored)
            shutil.copytree(source, target / name, ignore=ignore)
        elif source.is_file():
            shutil.copyfile(source, target / name)


def repack_installed(distribution: Distribution, out_dir: Path) -> Path:
    """Return a wheel made of the files of an installed distribution.

    The files are those of its RECORD. Scripts and compiled files are left out: pip makes them again
    from the metadata.

    Args:
        distribution: installed by pip, not editable.
        out_dir: folder for the wheel.

    Raises:
        PackagingError: the installation is editable, or a file of it is missing.
    """
    files = dict(_wheel_files(distribution))
    metadata_folder = _metadata_folder(files)
    tag = Parser().parsestr(files[f"{metadata_folder}/WHEEL"].decode())["Tag"]
    name = metadata_folder.removesuffix(".dist-info")
    wheel = out_dir / f"{name}-{tag}.whl"
    record = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in sorted(files.items()):
            _add_file(archive, path, content)
            record.append(f"{path},{_record_hash(content)},{len(content)}\n")
        record_path = f"{metadata_folder}/RECORD"
        record.append(f"{record_path},,\n")
        _add_file(archive, record_path, "".join(record).encode())
    return wheel


def _wheel_files(distribution: Distribution) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the installed files that a wheel holds."""
    for entry in distribution.files or ():
        # Scripts in bin/ are made by pip.
        is_outside = ".." in entry.parts or entry.parts[0] == "bin"
        is_compiled = "__pycache__" in entry.parts
        is_of_installer = entry.parts[0].endswith(".dist-info") and entry.name in INSTALLER_FILES
        if is_outside or is_compiled or is_of_installer:
            continue
        path = Path(str(distribution.locate_file(entry)))
        if not path.is_file():
            raise PackagingError(
                "the installed longrec is incomplete",
                found=f"no {path}",
                fix="Install it again: pip install --force-reinstall longrec.",
            )
        yield entry.as_posix(), path.read_bytes()


def _metadata_folder(files: dict[str, bytes]) -> str:
    """Return the name of the .dist-info folder of a whole installation.

    Raises:
        PackagingError: the library itself is not among the files.
    """
    folders = [path.partition("/")[0] for path in files if path.endswith(".dist-info/WHEEL")]
    has_library = f"{DISTRIBUTION}/__init__.py" in files
    if len(folders) != 1 or not has_library:
        raise PackagingError(
            "the installed longrec cannot be packed into a wheel",
            found="an editable installation, or one without a RECORD",
            expected="a wheel installed by pip, or a checkout",
            fix="Set LONGREC_ROOT to the checkout, or install the wheel: pip install longrec.",
        )
    return folders[0]


def _add_file(archive: zipfile.ZipFile, path: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(path, ZIP_TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)


def _record_hash(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
    return f"sha256={digest.decode().rstrip('=')}"


def pinned_requirements(wheel: Path, extra: str = EXTRA) -> list[str]:
    """Return `name==version` of everything that a wheel needs, as installed here.

    The parity check ran with these versions. A requirement that is not installed is returned as it
    was declared.

    Args:
        wheel: of longrec.
        extra: of the wheel, whose requirements are included.
    """
    from packaging.requirements import Requirement

    (declared,) = importlib.metadata.distributions(path=[str(wheel)])
    pending = [(text, extra) for text in declared.requires or []]
    seen: set[tuple[str, str]] = set()
    pins: dict[str, str] = {}
    while pending:
        text, active_extra = pending.pop()
        requirement = Requirement(text)
        marker = requirement.marker
        is_active = marker is None or marker.evaluate({"extra": active_extra})
        if (text, active_extra) in seen or not is_active:
            continue
        seen.add((text, active_extra))
        name = _normalized(requirement.name)
        try:
            installed = importlib.metadata.distribution(requirement.name)
        except PackageNotFoundError:
            pins.setdefault(name, str(requirement))
            continue
        pins[name] = f"{name}=={_public_version(installed)}"
        # A requirement may ask for extras: follow its own once without, and once with each of them.
        for needed in installed.requires or []:
            for asked_extra in ("", *requirement.extras):
                pending.append((needed, asked_extra))
    return [pins[name] for name in sorted(pins.keys() - PROVIDED)]


def _normalized(name: str) -> str:
    """Return a distribution name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _public_version(distribution: Distribution) -> str:
    """Return a version without its local part: an index has 2.11.0 and not 2.11.0+cpu."""
    return distribution.version.partition("+")[0]
