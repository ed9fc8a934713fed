"""The pipelines of a Kubeflow Pipelines server and their versions.

A run or a schedule belongs to a pipeline and a version of it. A version is named by the digest of
its content and uploaded once, so equal submissions run the same version.
"""

import importlib.metadata
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from pipelines.compiler import version_name
from pipelines.server.errors import one_line_errors
from pipelines.server.reading import Reader

BASE = "/apis/v2beta1/pipelines"
EQUALS = 1
"""Operation of a filter in the server's API."""
CONFLICT = 409


class Versions:
    """The pipelines of a server and their versions.

    Args:
        reader: reads the server.
        client: a kfp_server_api.ApiClient, which changes it.
        namespace: namespace on a multi-user server; empty for a single-user one.
    """

    def __init__(self, reader: Reader, client: Any, namespace: str) -> None:
        import kfp_server_api

        self._api = kfp_server_api
        self._reader = reader
        self._namespace = namespace
        self._pipelines = kfp_server_api.PipelineServiceApi(client)
        self._uploads = kfp_server_api.PipelineUploadServiceApi(client)

    def reference(self, spec: Mapping[str, Any]) -> Any:
        """Return the reference to the version of a compiled pipeline; upload it if it is new.

        Args:
            spec: result of `pipelines.compiler.specification`.

        Raises:
            ServerError: the server refuses it.
        """
        version = version_name(spec)
        pipeline_id = self._found_or_made(spec["pipeline_spec"]["pipelineInfo"]["name"])
        path = f"{BASE}/{pipeline_id}/versions"
        version_id = self._find(path, "pipeline_versions", "pipeline_version_id", version)
        return self._api.V2beta1PipelineVersionReference(
            pipeline_id=pipeline_id,
            pipeline_version_id=version_id or self._upload(spec, version, pipeline_id),
        )

    def _found_or_made(self, name: str) -> str:
        """Return the id of a pipeline; create a missing one."""
        query = {"namespace": self._namespace}
        found = self._find(BASE, "pipelines", "pipeline_id", name, **query)
        if found:
            return found
        body = self._api.V2beta1Pipeline(display_name=name, namespace=self._namespace or None)
        with one_line_errors(self._reader.host):
            try:
                made = self._pipelines.pipeline_service_create_pipeline(body)
            except self._api.ApiException as error:
                again = self._find(BASE, "pipelines", "pipeline_id", name, **query)
                if error.status != CONFLICT or not again:
                    raise
                return again
        return str(made.pipeline_id)

    def _upload(self, spec: Mapping[str, Any], version: str, pipeline_id: str) -> str:
        """Upload a version and return its id; servers without tags ignore them."""
        tags = {"longrec": importlib.metadata.version("longrec")}
        with tempfile.TemporaryDirectory() as folder, one_line_errors(self._reader.host):
            package = Path(folder) / f"{version}.yaml"
            package.write_text(_yaml_of(spec), encoding="utf-8")
            made = self._uploads.upload_pipeline_version(
                str(package), name=version, pipelineid=pipeline_id, tags=json.dumps(tags)
            )
        return str(made.pipeline_version_id)

    def _find(self, path: str, entries: str, key: str, name: str, **query: str) -> Optional[str]:
        """Return the id of the entry with a name in a list of the server."""
        predicate = {"operation": EQUALS, "key": "display_name", "stringValue": name}
        wanted = json.dumps({"predicates": [predicate]})
        for entry in self._reader.pages(path, entries, filter=wanted, **query):
            if entry.get("display_name") == name:
                return str(entry[key])
        return None


def _yaml_of(spec: Mapping[str, Any]) -> str:
    """Return the two documents of a package; JSON is YAML, and written faster."""
    documents = (spec["pipeline_spec"], spec["platform_spec"])
    return "\n---\n".join(json.dumps(document, sort_keys=True) for document in documents)
