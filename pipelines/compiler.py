"""Compile the pipelines to pipelines/compiled/, and check that those files are up to date."""

import dataclasses
import hashlib
import importlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Optional, TypeAlias

from longrec.errors import LongrecError
from pipelines.platform_config import PlatformConfig

PIPELINES = ("training", "refresh", "drift", "study", "tune")
FOLDER = Path(__file__).resolve().parent / "compiled"
DIGEST_LENGTH = 12
Writer: TypeAlias = Callable[[str, Path, PlatformConfig], Path]
"""Writes a pipeline to a folder for a platform; returns the path."""


def pipeline(name: str, platform: Optional[PlatformConfig]) -> Any:
    """Return a pipeline with the platform's settings; None for one machine.

    Raises:
        LongrecError: there is no such pipeline.
    """
    if name not in PIPELINES:
        raise LongrecError(f"there is no pipeline '{name}'", expected=", ".join(PIPELINES))
    return importlib.import_module(f"pipelines.{name}").make(platform)


def specification(made: Any) -> dict[str, Any]:
    """Return a pipeline as a server takes it: the graph, and the platform's settings."""
    from google.protobuf import json_format  # type: ignore[import-untyped]

    return {
        "pipeline_spec": json_format.MessageToDict(made.pipeline_spec),
        "platform_spec": json_format.MessageToDict(made.platform_spec),
    }


def version_name(spec: Mapping[str, Any]) -> str:
    """Return the name of a version of a pipeline: the pipeline's, and a digest of its content.

    Args:
        spec: result of `specification`.
    """
    content = json.dumps(spec, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:DIGEST_LENGTH]
    return f"{spec['pipeline_spec']['pipelineInfo']['name']}-{digest}"


def compile_to(name: str, path: Path, platform: PlatformConfig) -> Path:
    """Write a pipeline to a file: the graph, then the platform's settings of its steps."""
    from kfp import compiler

    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline(name, platform), str(path))
    return path


def write_package(name: str, folder: Path, platform: PlatformConfig) -> Path:
    """Write a pipeline as the file that one uploads to a server."""
    return compile_to(name, folder / f"{name}.yaml", platform)


@dataclasses.dataclass(frozen=True, slots=True)
class Manifests:
    """Writes pipelines as the manifests of a Pipeline and a PipelineVersion, for GitOps.

    A server that stores its pipelines in Kubernetes takes them with `kubectl apply`.

    Args:
        namespace: namespace of both objects; empty for that of `kubectl apply`.
    """

    namespace: str = ""

    def __call__(self, name: str, folder: Path, platform: PlatformConfig) -> Path:
        """Write the manifests of a pipeline; return their path."""
        from kfp import compiler

        made = pipeline(name, platform)
        options = compiler.KubernetesManifestOptions(
            pipeline_version_name=version_name(specification(made)),
            namespace=self.namespace or None,
            include_pipeline_manifest=True,
        )
        path = folder / f"{name}-manifests.yaml"
        compiler.Compiler().compile(
            made,
            str(path),
            kubernetes_manifest_format=True,
            kubernetes_manifest_options=options,
        )
        return path


def compile_all(
    names: Iterable[str] = PIPELINES,
    folder: Path = FOLDER,
    platform: Optional[PlatformConfig] = None,
    write: Writer = write_package,
) -> list[Path]:
    """Write pipelines for a platform (None for the default one); return their paths."""
    settings = platform or PlatformConfig()
    folder.mkdir(parents=True, exist_ok=True)
    return [write(name, folder, settings) for name in names]


def check_compiled(
    names: Iterable[str] = PIPELINES,
    folder: Path = FOLDER,
    platform: Optional[PlatformConfig] = None,
    write: Writer = write_package,
) -> list[Path]:
    """Check that the compiled files equal what compiling would write; return their paths.

    Raises:
        LongrecError: a file is missing or differs.
    """
    paths = []
    with tempfile.TemporaryDirectory() as temporary:
        for fresh in compile_all(names, Path(temporary), platform, write):
            committed = folder / fresh.name
            if not committed.is_file() or committed.read_bytes() != fresh.read_bytes():
                raise LongrecError(
                    f"{committed} is not up to date",
                    fix="Run 'make compile' and commit the result.",
                )
            paths.append(committed)
    return paths
