"""The size that the Argo workflow of a run will have at its end, before it is submitted.

Argo stores the nodes of a workflow above 1 MiB compressed. The API server of Kubeflow Pipelines
does not read them, so the tasks of the run stand still from then on. A node repeats what its step
was given: a driver's inputs hold the step's declaration, and its output `pod-spec-patch`, with the
step's inputs, is an input of the nodes below it.

The model builds the nodes with the settings of Kubeflow Pipelines 2.17, where each node is there
twice: as its retries and as an attempt. All branches of the graph are counted, and no step comes
from the cache.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, Optional

MAX_BYTES = 1024 * 1024
"""Size of a workflow above which Argo compresses its nodes."""
SPEC_REPEATS = 2
"""A workflow's specification holds about this many times the text of the pipeline."""
Json = dict[str, Any]
DIGEST = "0123456789abcdef"
"""A text output of a step: in these pipelines a fingerprint."""
UUID = "01234567-89ab-cdef-0123-456789abcdef"
NODE_ID = "4294967295"
TIME = "2026-01-01T00:00:00Z"
STORE = (
    '{"Provider":"minio","Params":{"accessKeyKey":"accesskey","disableSSL":"true",'
    '"endpoint":"seaweedfs.kubeflow:9000","fromEnv":"false","maxRetries":"5","region":"minio",'
    '"secretKeyKey":"secretkey","secretName":"mlpipeline-minio-artifact"}}'
)
"""What the metadata of an artifact says about its store."""
LAUNCHER = [
    "--pod_name",
    "$(KFP_POD_NAME)",
    "--pod_uid",
    "$(KFP_POD_UID)",
    "--ml_pipeline_server_address",
    "ml-pipeline.kubeflow.svc.cluster.local",
    "--ml_pipeline_server_port",
    "8887",
    "--mlmd_server_address",
    "metadata-grpc-service.kubeflow.svc.cluster.local",
    "--mlmd_server_port",
    "8080",
    "--publish_logs",
    "true",
    "--publish_logs",
    "true",
    "--",
]
LOGS = {"artifactType": {"schemaTitle": "system.Artifact"}}
"""Declaration of the output that the launcher adds to each step."""
OUTPUTS = {"STRING": DIGEST, "LIST": [], "STRUCT": {}, "BOOLEAN": True}


@dataclasses.dataclass(frozen=True, slots=True)
class WorkflowSize:
    """The size of a workflow.

    Args:
        num_nodes: number of its nodes.
        num_bytes: bytes of their JSON.
        num_spec_bytes: bytes of its specification, about: it repeats the pipeline's.
    """

    num_nodes: int
    num_bytes: int
    num_spec_bytes: int

    @property
    def is_too_large(self) -> bool:
        """Whether Argo, which measures the whole workflow, will compress the nodes."""
        return self.num_bytes + self.num_spec_bytes > MAX_BYTES


def workflow_size(
    graph: Json,
    platform: Json,
    arguments: Mapping[str, Any],
    *,
    outputs: Optional[Mapping[str, Any]] = None,
) -> WorkflowSize:
    """Return the size of a run's nodes when all its steps have ended.

    Args:
        graph: the compiled pipeline.
        platform: the platform's settings of its steps, the second document of a compiled pipeline.
        arguments: parameters of the run; others have their defaults.
        outputs: by STEP.OUTPUT, lists that loops go through; empty lists otherwise.
    """
    workflow = _Workflow(graph, platform, outputs or {})
    workflow.add_root(arguments)
    num_spec_bytes = SPEC_REPEATS * len(_compact(graph))
    return WorkflowSize(workflow.num_nodes, workflow.num_bytes, num_spec_bytes)


@dataclasses.dataclass(frozen=True, slots=True)
class _Task:
    """A task with its resolved inputs: values by name, and per artifact the number of them."""

    name: str
    spec: Json
    component: Json
    values: Mapping[str, Any]
    counts: Mapping[str, int]


class _Workflow:
    """The nodes of a workflow, added in the order of the graph."""

    def __init__(self, graph: Json, platform: Json, outputs: Mapping[str, Any]) -> None:
        settings = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {})
        self._graph = graph
        self._kubernetes = settings.get("executors", {})
        self._outputs = outputs
        self._name = f"{graph['pipelineInfo']['name']}-abcde"
        self.num_nodes = 0
        self.num_bytes = len("{}")

    def add_root(self, arguments: Mapping[str, Any]) -> None:
        root = self._graph["root"]
        self._add(
            "",
            "entrypoint",
            "DAG",
        )
        config = {"parameterValues": dict(arguments)}
        self._add_dag_driver(
            "root",
            root,
            {},
            runtime=config,
        )
        self._add(
            "root",
            "root",
            "DAG",
        )
        self._add_tasks(root, "root(0)", _defaults(root, arguments), {})

    def _add_tasks(
        self, dag: Json, path: str, values: Mapping[str, Any], counts: Mapping[str, int]
    ) -> None:
        tasks = dag["dag"]["tasks"]
        for name, spec in tasks.items():
            component = self._graph["components"][spec["componentRef"]["name"]]
            inputs = spec.get("inputs", {})
            given = {
                key: self._value(
                    source,
                    values,
                    tasks,
                )
                for key, source in inputs.get("parameters", {}).items()
            }
            artifacts = {
                key: self._count(
                    source,
                    counts,
                    tasks,
                    values,
                )
                for key, source in inputs.get("artifacts", {}).items()
            }
            task = _Task(name, spec, component, _defaults(component, given), artifacts)
            self._add_task(task, self._exit_path(spec, path))

    def _exit_path(self, task: Json, path: str) -> str:
        """Return the path of a task; add the hook around a task that runs at the end."""
        if "ALL_UPSTREAM" not in task.get("triggerPolicy", {}).get("strategy", ""):
            return path
        [handler] = task["dependentTasks"]
        self._add(
            f"{path}.{handler}.onExit",
            "exit-hook-root",
            "DAG",
        )
        return f"{path}.{handler}.onExit(0)"

    def _add_task(self, task: _Task, path: str) -> None:
        where = f"{path}.{task.name}"
        if "executorLabel" in task.component:
            self._add_step(task, where)
        elif "parameterIterator" in task.spec:
            self._add_loop(task, where)
        else:
            self._add_dag_driver(
                where,
                task.component,
                task.spec,
            )
            self._add(
                where,
                task.spec["componentRef"]["name"],
                "DAG",
            )
            self._add_tasks(task.component, f"{where}(0)", task.values, task.counts)

    def _add_loop(self, task: _Task, where: str) -> None:
        template = task.spec["componentRef"]["name"]
        self._add(
            where,
            f"{template}-{task.name}-iterator",
            "DAG",
        )
        self._add_dag_driver(f"{where}(0).iteration", task.component, task.spec)
        iterator = task.spec["parameterIterator"]
        items = task.values[iterator["items"]["inputParameter"]]
        self._add(f"{where}(0).iteration-iterations", template, "TaskGroup", children=len(items))
        for number, item in enumerate(items):
            iteration = f"{where}(0).iteration-iterations({number}:{number})"
            self._add(
                iteration,
                f"{template}-iteration",
                "DAG",
            )
            self._add_dag_driver(f"{iteration}(0).iteration-item", task.component, task.spec)
            self._add(f"{iteration}(0).iteration-item", template, "DAG")
            values = {**task.values, iterator["itemInput"]: item}
            path = f"{iteration}(0).iteration-item(0)"
            self._add_tasks(
                task.component,
                path,
                values,
                task.counts,
            )

    def _add_step(self, task: _Task, where: str) -> None:
        """Add a step: its driver, itself, and its container."""
        label = task.component["executorLabel"]
        container = self._graph["deploymentSpec"]["executors"][label]["container"]
        kubernetes = self._kubernetes.get(label, {})
        patch = {"pod-spec-patch": self._pod_patch(task, container, kubernetes)}
        driver = {
            "component": _compact(task.component),
            "task": _compact(task.spec),
            "container": _compact(container),
            "task-name": task.name,
            "parent-dag-id": "36",
            "iteration-index": "-1",
            "kubernetes-config": _compact(kubernetes),
        }
        result = {**patch, "cached-decision": "false", "condition": "nil"}
        self._add(
            f"{where}-driver",
            "system-container-driver",
            "Pod",
            driver,
            result,
        )
        retries = _retries(task.spec)
        prefix = "retry-" if retries else ""
        decided = {**patch, "cached-decision": "false", **retries}
        self._add(
            where,
            f"{prefix}system-container-executor",
            "DAG",
            decided,
        )
        inputs = {**patch, **retries}
        self._add(f"{where}(0).executor", f"{prefix}system-container-impl", "Pod", inputs, {})

    def _add_dag_driver(
        self, where: str, component: Json, task: Json, runtime: Optional[Json] = None
    ) -> None:
        inputs = {
            "component": _compact(component),
            "runtime-config": _compact(runtime) if runtime else "",
            "task": _compact(task) if task else "",
            "task-name": where.rpartition(".")[2],
            "parent-dag-id": "36",
            "iteration-index": "-1",
            "driver-type": "DAG",
        }
        result = {"execution-id": "36", "iteration-count": "0", "condition": "nil"}
        self._add(
            f"{where}-driver",
            "system-dag-driver",
            "Pod",
            inputs,
            result,
        )

    def _add(
        self,
        where: str,
        template: str,
        kind: str,
        inputs: Optional[Json] = None,
        outputs: Optional[Json] = None,
        *,
        children: int = 1,
    ) -> None:
        """Add a node, and its only attempt unless it is a group."""
        attempts = ("",) if kind == "TaskGroup" else ("", "(0)")
        for attempt in attempts:
            path = f"(0).{where}" if where else ""
            node = {
                "boundaryID": f"{self._name}-{NODE_ID}",
                "children": [f"{self._name}-{NODE_ID}"] * children,
                "displayName": f"{where.rpartition('.')[2]}{attempt}",
                "finishedAt": TIME,
                "id": f"{self._name}-{NODE_ID}",
                "name": f"{self._name}{path}{attempt}",
                "phase": "Succeeded",
                "progress": "1/1",
                "resourcesDuration": {"cpu": 0, "memory": 10},
                "startedAt": TIME,
                "templateName": template,
                "templateScope": f"local/{self._name}",
                "type": kind if attempt else "Retry",
            }
            if attempt:
                node["nodeFlag"] = {"retried": True}
                node |= _ATTEMPT_FIELDS[kind]
            if inputs is None and where:
                inputs = {"parent-dag-id": "36"}
            if inputs:
                node["inputs"] = {"parameters": _parameters(inputs, _INPUT_FIELDS)}
            if outputs is not None:
                node["outputs"] = self._node_outputs(template, outputs)
            self.num_nodes += 1
            self.num_bytes += len(json.dumps({node["id"]: node}, separators=(",", ":")))

    def _node_outputs(self, template: str, outputs: Json) -> Json:
        day = TIME[:10].replace("-", "/")
        pod = f"{self._name}-{template}-{NODE_ID}"
        key = f"private-artifacts/kubeflow/{self._name}/{day}/{pod}/main.log"
        logs = {"artifacts": [{"name": "main-logs", "s3": {"key": key}}], "exitCode": "0"}
        if not outputs:
            return logs
        return {**logs, "parameters": _parameters(outputs, _OUTPUT_FIELDS)}

    def _pod_patch(self, task: _Task, container: Json, kubernetes: Json) -> str:
        """Return the output of a step's driver: what the pod gets from the step."""
        component = {**task.component, "outputDefinitions": _with_logs(task.component)}
        command = [
            "/kfp-launcher/launch",
            *("--pipeline_name", self._graph["pipelineInfo"]["name"]),
            *("--run_id", UUID, "--execution_id", "54"),
            *("--executor_input", _spaced(self._executor_input(task, component))),
            *("--component_spec", _spaced(component)),
            *LAUNCHER,
        ]
        image = container["image"]
        main = {
            "name": "main",
            "image": image,
            "command": command,
            "args": [*container.get("command", ()), *container.get("args", ())],
            "env": [*container.get("env", ()), *_secrets(kubernetes)],
            "resources": container.get("resources", {}),
        }
        return _compact({"containers": [main], **_volumes(kubernetes)})

    def _executor_input(self, task: _Task, component: Json) -> Json:
        root = f"mlpipeline/v2/artifacts/{self._graph['pipelineInfo']['name']}/{UUID}"
        artifacts = {
            key: {"artifacts": [_artifact(key, f"minio://{root}/{key}/{UUID}/{key}")] * count}
            for key, count in task.counts.items()
        }
        outputs = component["outputDefinitions"]
        folder = f"{root}/{task.name}/{UUID}"
        made = {
            key: {"artifacts": [_output_artifact(key, declared, f"minio://{folder}/{key}")]}
            for key, declared in outputs.get("artifacts", {}).items()
        }
        values = {
            key: {"outputFile": f"/tmp/kfp/outputs/{key}"}  # noqa: S108  (a path on a cluster)
            for key in outputs.get("parameters", {})
        }
        return {
            "inputs": {"artifacts": artifacts, "parameterValues": dict(task.values)},
            "outputs": {
                "artifacts": made,
                "parameters": values,
                "outputFile": f"/minio/{folder}/output_metadata.json",
            },
        }

    def _value(self, source: Json, values: Mapping[str, Any], tasks: Json) -> Any:
        """Return the value of a parameter inside a graph."""
        if "runtimeValue" in source:
            return source["runtimeValue"]["constant"]
        if "componentInputParameter" in source:
            return values.get(source["componentInputParameter"])
        if "taskOutputParameter" not in source:
            return {}
        edge = source["taskOutputParameter"]
        name = f"{edge['producerTask']}.{edge['outputParameterKey']}"
        if name in self._outputs:
            return self._outputs[name]
        producer = self._graph["components"][tasks[edge["producerTask"]]["componentRef"]["name"]]
        declared = producer["outputDefinitions"]["parameters"][edge["outputParameterKey"]]
        return OUTPUTS.get(declared["parameterType"], 0)

    def _count(
        self,
        source: Json,
        counts: Mapping[str, int],
        tasks: Json,
        values: Mapping[str, Any],
    ) -> int:
        """Return the number of artifacts of an input: one, or one for each item of a loop."""
        if "componentInputArtifact" in source:
            return counts[source["componentInputArtifact"]]
        producer = tasks[source["taskOutputArtifact"]["producerTask"]]
        iterator = producer.get("parameterIterator")
        if not iterator:
            return 1
        items = producer["inputs"]["parameters"][iterator["items"]["inputParameter"]]
        return len(self._value(items, values, tasks))


_ATTEMPT_FIELDS: dict[str, Json] = {
    "Pod": {"hostNodeName": "node1", "taskResultSynced": True},
    "DAG": {"outboundNodes": [f"longrec-training-abcde-{NODE_ID}"]},
}
_INPUT_FIELDS: dict[str, Json] = {
    "iteration-index": {"default": "-1"},
    "kubernetes-config": {"default": ""},
    "runtime-config": {"default": ""},
    "cached-decision": {"default": "false"},
}
_OUTPUT_FIELDS: dict[str, Json] = {
    name: {"valueFrom": {"default": "", "path": f"/tmp/outputs/{name}"}}  # noqa: S108
    for name in (
        "pod-spec-patch",
        "cached-decision",
        "condition",
        "execution-id",
        "iteration-count",
    )
}


def _defaults(component: Json, values: Mapping[str, Any]) -> Json:
    """Return the parameters of a component, missing ones with their defaults."""
    declared = component.get("inputDefinitions", {}).get("parameters", {})
    defaults = {
        key: value["defaultValue"] for key, value in declared.items() if "defaultValue" in value
    }
    return {**defaults, **values}


def _retries(task: Json) -> Json:
    policy = task.get("retryPolicy")
    if not policy:
        return {}
    return {
        "retry-max-count": str(policy["maxRetryCount"]),
        "retry-backoff-duration": policy["backoffDuration"],
        "retry-backoff-factor": str(policy["backoffFactor"]),
        "retry-backoff-max-duration": policy["backoffMaxDuration"],
    }


def _with_logs(component: Json) -> Json:
    outputs = component.get("outputDefinitions", {})
    return {**outputs, "artifacts": {**outputs.get("artifacts", {}), "executor-logs": LOGS}}


def _artifact(name: str, uri: str) -> Json:
    metadata = {"display_name": name, "store_session_info": STORE}
    return {"name": "52", "type": {"instanceSchema": ""}, "uri": uri, "metadata": metadata}


def _output_artifact(name: str, declared: Json, uri: str) -> Json:
    return {"name": name, "type": declared["artifactType"], "uri": uri}


def _secrets(kubernetes: Json) -> Iterator[Json]:
    for secret in kubernetes.get("secretAsEnv", ()):
        for entry in secret["keyToEnv"]:
            reference = {"name": secret["secretName"], "key": entry["secretKey"], "optional": False}
            yield {"name": entry["envVar"], "valueFrom": {"secretKeyRef": reference}}


def _volumes(kubernetes: Json) -> Json:
    """Return the volumes of a pod and where they are mounted, and all else that it is given."""
    volumes = []
    mounts = []
    for mount in kubernetes.get("pvcMount", ()):
        claim = {"claimName": mount["constant"]}
        volumes.append({"name": mount["constant"], "persistentVolumeClaim": claim})
        mounts.append({"name": mount["constant"], "mountPath": mount["mountPath"]})
    others = {
        key: value for key, value in kubernetes.items() if key not in ("pvcMount", "secretAsEnv")
    }
    return {"volumes": volumes, "volumeMounts": mounts, **others}


def _parameters(values: Json, fields: Mapping[str, Json]) -> list[Json]:
    return [
        {"name": name, "value": value, **fields.get(name, {})} for name, value in values.items()
    ]


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _spaced(value: Any) -> str:
    """Return the JSON of a protobuf message, which has spaces."""
    return json.dumps(value, separators=(", ", ":"))
