"""What a Kubeflow Pipelines server is asked: to run a compiled pipeline, to run it on a schedule,
how a run stands, what a step wrote.

Over the server's v2beta1 API by its generated client. `kfp.Client` is left aside: it waits half a
minute for a token that is wrong, reads
settings from the work directory directory, and prints.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from longrec.errors import LongrecError

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
DEFAULT_EXPERIMENT = "longrec"
PAGE = 50
_FORWARD = "For a cluster try 'kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80' and --host http://localhost:8080."
_LET_IN = (
    "Give a token in LONGREC_KFP_TOKEN (for example of 'kubectl create token default-editor -n NAMESPACE --audience "
    "pipelines.kubeflow.org') or the cookie of the browser's session in LONGREC_KFP_COOKIE, and your --namespace."
)
_SKEW = "longrec is made for Kubeflow Pipelines 2.14 and newer (kfp {ours}): upgrade the server, or install its kfp and submit again."
_TOO_OLD = ("unknown field", "invalid v2 pipeline spec", "not supported yet", "not implemented yet")
_LOGS = (
    "/apis/v1alpha1/runs/{run}/nodes/{pod}/log",
    "/apis/v2beta1/runs/{run}/nodes/{pod}/log",
    "/k8s/pod/logs?podname={pod}&runid={run}&podnamespace={namespace}&createdat={day}",
)
"""Where a pod's log is: of the API server (2.14 and what comes after 2.17), and of the user
interface, which passes on neither of these.
"""


class ServerError(LongrecError):
    """The Kubeflow Pipelines server cannot be reached or refused the request."""


@dataclasses.dataclass(frozen=True, slots=True)
class Submitted:
    """A run or a schedule that the server accepted; `url` is its page."""

    run_id: str
    experiment: str
    url: str


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """How a step of a run stands."""

    name: str
    state: str
    seconds: Optional[float]
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class RunStatus:
    """How a run stands; `tasks` in the order of their start."""

    run_id: str
    name: str
    state: str
    created: str
    error: str
    tasks: tuple[Task, ...]
    url: str


class Server:
    """A Kubeflow Pipelines server.

    Args:
        host: its address; empty is an error that says what to do.
        namespace: of a multi-user server; empty for a single-user one.
        token: sent as `Authorization: Bearer`; cookie: of a browser's session. Empty for none.

    Raises of every method:
        ServerError: nothing answers, or the server refuses the request.
    """

    def __init__(
        self, host: str, *, namespace: str = "", token: str = "", cookie: str = ""
    ) -> None:
        if not host:
            raise ServerError(
                "no Kubeflow Pipelines server is named",
                fix=f"Give --host or set KF_PIPELINES_ENDPOINT. {_FORWARD}",
            )
        import kfp_server_api

        self.host, self.namespace, self._api = (
            (host if "://" in host else f"https://{host}").rstrip("/"),
            namespace,
            kfp_server_api,
        )
        settings = kfp_server_api.Configuration(host=self.host)
        settings.retries = False
        if token:
            settings.api_key, settings.api_key_prefix = (
                {"authorization": token},
                {"authorization": "Bearer"},
            )
        self._client = kfp_server_api.ApiClient(settings, cookie=cookie or None)
        self._runs, self._experiments = (
            kfp_server_api.RunServiceApi(self._client),
            kfp_server_api.ExperimentServiceApi(self._client),
        )
        self._recurring = kfp_server_api.RecurringRunServiceApi(self._client)
        self._greet()

    def submit(
        self,
        package: Path,
        arguments: Mapping[str, Any],
        *,
        experiment: str,
        name: str,
        service_account: str = "",
        pipeline_root: str = "",
        create_experiment: bool = False,
    ) -> Submitted:
        """Returns the accepted run of a compiled pipeline with arguments."""
        with self._errors():
            body = self._api.V2beta1Run(
                display_name=name,
                experiment_id=self._experiment(experiment, create_experiment),
                pipeline_spec=read_package(package),
                service_account=service_account or None,
                runtime_config=self._runtime(arguments, pipeline_root),
            )
            run = self._runs.run_service_create_run(body)
        return Submitted(run.run_id, experiment, self._page(run.run_id))

    def schedule(
        self,
        package: Path,
        arguments: Mapping[str, Any],
        *,
        experiment: str,
        name: str,
        cron: str,
        service_account: str = "",
        pipeline_root: str = "",
        create_experiment: bool = False,
    ) -> tuple[Submitted, str]:
        """Returns the recurring run called `name` and what was done: `created`, `updated` or
        `unchanged`.

        There is one of a name: another one is created first and the old ones removed then. Missed
        times are not caught up, and one run
        ends before the next begins: both would write to one feature store.

        Args:
            cron: five fields, or six with the seconds first, in UTC.
        """
        spec, times = read_package(package), cron_fields(cron)
        digest = hashlib.sha256(
            json.dumps(
                [spec, dict(arguments), times, service_account, pipeline_root], sort_keys=True
            ).encode()
        )
        mark = f"longrec {digest.hexdigest()[:16]}"
        with self._errors():
            place = self._experiment(experiment, create_experiment)
            old = [each for each in self._schedules(place) if each.display_name == name]
            if len(old) == 1 and old[0].description == mark and str(old[0].mode) == "ENABLE":
                return self._scheduled(old[0], experiment), "unchanged"
            new = self._recurring.recurring_run_service_create_recurring_run(
                self._api.V2beta1RecurringRun(
                    display_name=name,
                    description=mark,
                    experiment_id=place,
                    pipeline_spec=spec,
                    mode="ENABLE",
                    no_catchup=True,
                    max_concurrency="1",
                    trigger=self._api.V2beta1Trigger(
                        cron_schedule=self._api.V2beta1CronSchedule(cron=times)
                    ),
                    service_account=service_account or None,
                    runtime_config=self._runtime(arguments, pipeline_root),
                )
            )
            for each in old:
                self._recurring.recurring_run_service_delete_recurring_run(each.recurring_run_id)
        return self._scheduled(new, experiment), "updated" if old else "created"

    def status(self, run_id: str) -> RunStatus:
        """Returns how a run stands."""
        with self._errors(f"run {run_id}"):
            return self._status(self._runs.run_service_get_run(run_id))

    def recent(self, experiment: str, limit: int = 10) -> list[RunStatus]:
        """Returns the newest runs of an experiment, newest first."""
        with self._errors():
            place = self._experiment(experiment)
            answer = self._runs.run_service_list_runs(
                experiment_id=place, sort_by="created_at desc", page_size=limit
            )
        return [self._status(run) for run in answer.runs or ()]

    def wait(
        self,
        run_id: str,
        on_change: Callable[[RunStatus], None],
        *,
        timeout_seconds: float,
        every_seconds: float = 5.0,
    ) -> RunStatus:
        """Returns the ended run; `on_change` is called whenever it or one of its steps changes.

        Raises:
            ServerError: it has not ended in time; it runs on.
        """
        end, before = time.monotonic() + timeout_seconds, None
        while True:
            now = self.status(run_id)
            if now != before:
                on_change(now)
            if now.state in ENDED:
                return now
            if time.monotonic() >= end:
                raise ServerError(
                    f"run {run_id} has not ended after {timeout_seconds:g} s",
                    found=now.state,
                    fix=f"It runs on: {now.url}",
                )
            before = now
            time.sleep(every_seconds)

    def logs(self, run_id: str, step: str) -> str:
        """Returns what a step wrote, of its last attempt; the step's own container, not the one
        that prepares it.
        """
        with self._errors(f"run {run_id}"):
            run = self._runs.run_service_get_run(run_id)
        tasks = (run.run_details.task_details if run.run_details else None) or []
        nodes = _nodes(tasks, step)
        if not nodes:
            names = sorted({task.display_name for task in tasks if _is_step(task)})
            raise ServerError(
                f"run {run_id} has no step '{step}' that has started",
                found=", ".join(names) or "no step",
                fix="See longrec status RUN.",
            )
        day = str(run.created_at or "")[:10]
        for text in (
            self._last_attempt(run_id, day, pods) for node in nodes for pods in _pods(node)
        ):
            if text is not None:
                return text
        raise ServerError(
            f"the server keeps no log of step '{step}'",
            found=f"nodes {', '.join(nodes)} of the workflow",
            fix=f"While its pod exists: kubectl logs -n {self.namespace or 'kubeflow'} -l pipeline/runid={run_id} -c main "
            "--prefix --tail=-1",
        )

    def _last_attempt(
        self,
        run_id: str,
        day: str,
        pods: Iterable[str],
    ) -> Optional[str]:
        """Returns the log of the last of the pods that has one, all up to it having one; None for
        none.
        """
        last = None
        for pod in pods:
            text = self._log(run_id, day, pod)
            if text is None:
                break
            last = text
        return last

    def _log(
        self,
        run_id: str,
        day: str,
        pod: str,
    ) -> Optional[str]:
        for path in _LOGS:
            text = self._text(
                path.format(
                    run=run_id,
                    pod=pod,
                    namespace=self.namespace,
                    day=day,
                )
            )
            if text is not None:
                return text
        return None

    def _greet(self) -> None:
        """Raises ServerError where something else answers, such as a login page, which the client
        would take for an empty list.
        """
        with self._errors():
            health, _, headers = self._api.HealthzServiceApi(
                self._client
            ).healthz_service_get_healthz_with_http_info()
            if "json" not in headers.get("Content-Type", ""):
                raise ValueError(f"a page of type {headers.get('Content-Type')}; a login?")
        if health.multi_user and not self.namespace:
            raise ServerError(
                f"{self.host} has many users and wants to know whose runs these are",
                fix="Give --namespace or set LONGREC_KFP_NAMESPACE: your profile's.",
            )

    def _text(self, path: str) -> Optional[str]:
        """Returns the text at an address; None where there is none, or a page instead."""
        with self._errors(path):
            try:
                answer = self._client.call_api(
                    path,
                    "GET",
                    header_params={"Accept": "text/plain"},
                    auth_settings=["Bearer"],
                    _preload_content=False,
                    _return_http_data_only=True,
                )
            except self._api.ApiException as error:
                if error.status in (401, 403):
                    raise
                return None
            is_page = "html" in (answer.getheader("Content-Type") or "")
            return None if is_page else str(answer.data.decode("utf-8", "replace"))

    def _experiment(self, name: str, create: bool = False) -> str:
        """Returns the id of an experiment; the default one is made where it is missing, another
        only when asked to.
        """
        predicate = {"operation": 1, "key": "display_name", "stringValue": name}  # 1 is EQUALS
        where = {"namespace": self.namespace} if self.namespace else {}
        answer = self._experiments.experiment_service_list_experiments(
            filter=json.dumps({"predicates": [predicate]}), **where
        )
        for found in answer.experiments or ():
            return str(found.experiment_id)
        if create or name == DEFAULT_EXPERIMENT:
            body = self._api.V2beta1Experiment(display_name=name, namespace=self.namespace or None)
            return str(self._experiments.experiment_service_create_experiment(body).experiment_id)
        known = (
            self._experiments.experiment_service_list_experiments(
                page_size=PAGE, **where
            ).experiments
            or ()
        )
        raise ServerError(
            f"there is no experiment '{name}'",
            expected=", ".join(each.display_name for each in known) or None,
            fix="Give one of these, or --create-experiment.",
        )

    def _schedules(self, experiment_id: str) -> list[Any]:
        found, token, ask = (
            list[Any](),
            "",
            self._recurring.recurring_run_service_list_recurring_runs,
        )
        while True:
            answer = ask(
                experiment_id=experiment_id,
                page_size=PAGE,
                page_token=token,
            )
            found += answer.recurring_runs or []
            token = answer.next_page_token or ""
            if not token:
                return found

    def _runtime(self, arguments: Mapping[str, Any], pipeline_root: str) -> Any:
        return self._api.V2beta1RuntimeConfig(
            parameters=dict(arguments), pipeline_root=pipeline_root or None
        )

    def _page(self, run_id: str) -> str:
        return f"{self.host}/#/runs/details/{run_id}"

    def _scheduled(self, entry: Any, experiment: str) -> Submitted:
        return Submitted(
            entry.recurring_run_id,
            experiment,
            f"{self.host}/#/recurringrun/details/{entry.recurring_run_id}",
        )

    def _status(self, run: Any) -> RunStatus:
        tasks = (run.run_details.task_details if run.run_details else None) or []
        shown = [task for task in tasks if _is_step(task)]
        shown.sort(key=lambda task: (str(task.start_time or "~"), task.display_name))
        return RunStatus(
            run.run_id,
            run.display_name or "",
            str(run.state or "PENDING"),
            str(run.created_at or ""),
            _message(run.error),
            tuple(_task(task) for task in shown),
            self._page(run.run_id),
        )

    @contextlib.contextmanager
    def _errors(self, what: str = "") -> Iterator[None]:
        """Turns whatever goes wrong into one line that says what to do."""
        import urllib3

        try:
            yield
        except self._api.ApiException as error:
            raise self._refusal(error, what) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ServerError(
                f"no Kubeflow Pipelines server answers at {self.host}",
                found=type(error).__name__,
                fix=f"Check the address. {_FORWARD}",
            ) from error
        except ValueError as error:
            if isinstance(error, LongrecError):
                raise
            raise ServerError(
                f"what answers at {self.host} is no Kubeflow Pipelines server of version 2",
                found=str(error)[:200],
                fix=f"{_LET_IN} {_skew()}",
            ) from error

    def _refusal(self, error: Any, what: str) -> ServerError:
        reason = _reason(error)
        if error.status in (401, 403):
            return ServerError(
                f"{self.host} does not let you in", found=f"{error.status} {reason}", fix=_LET_IN
            )
        if error.status == 404 and what:
            return ServerError(
                f"{self.host} knows no {what}",
                found=f"404 {reason}",
                fix="See longrec status for the runs that it knows.",
            )
        if error.status in (404, 405, 501) or any(text in reason for text in _TOO_OLD):
            return ServerError(
                f"{self.host} does not speak this version of the API",
                found=f"{error.status} {reason}",
                fix=_skew(),
            )
        return ServerError(
            f"{self.host} refused the request",
            found=f"{error.status} {reason}",
            fix="Check the parameters, the experiment and the namespace.",
        )


def read_package(path: Path) -> dict[str, Any]:
    """Returns a compiled pipeline as the server takes it: the graph alone, or graph and platform.

    Raises:
        LongrecError: the file is missing.
    """
    import yaml

    if not path.is_file():
        raise LongrecError(f"no compiled pipeline at {path}", fix="Write it with longrec compile.")
    spec, *platform = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    return {"pipeline_spec": spec, "platform_spec": platform[0]} if platform else dict(spec)


def cron_fields(cron: str) -> str:
    """Returns a schedule in the six fields of Kubeflow, seconds first.

    Raises:
        LongrecError: it has neither five fields nor six.
    """
    fields = cron.split()
    if len(fields) not in (5, 6):
        raise LongrecError(
            "a schedule has five fields, or six with the seconds first",
            found=repr(cron),
            fix="For example '0 3 * * *'.",
        )
    return " ".join(["0", *fields][-6:])


def _is_step(task: Any) -> bool:
    name = task.display_name or ""
    return (
        bool(name)
        and name != "root"
        and not name.startswith("executor")
        and not name.endswith("-driver")
    )


def _nodes(tasks: list[Any], step: str) -> list[str]:
    """Returns the nodes of the workflow that may be a step's container: those below the step, then
    the step itself.

    A server names the nodes below a task and no pods. Nodes below an `executor` are those of the
    next steps: they are left alone.
    """
    steps = [task for task in tasks if task.display_name == step]
    below = [child.pod_name for task in steps for child in task.child_tasks or () if child.pod_name]
    return list(dict.fromkeys([*below, *(task.pod_name for task in steps if task.pod_name)]))


def _pods(node: str) -> Iterator[Iterable[str]]:
    """Yields the names that the pod of a workflow's node may have, those of its attempts together.

    Argo names a node WORKFLOW-HASH and its pod WORKFLOW-TEMPLATE-HASH, the hash being FNV-1a of the
    node's path; an attempt's path is the
    node's with `(0)`, `(1)`, ... behind it. The templates are those of Kubeflow's compiler. Source:
    argo-workflows, util.GeneratePodName.
    """
    workflow, _, digest = node.rpartition("-")
    if digest.isdecimal():
        yield (
            f"{workflow}-retry-system-container-impl-{_continued(int(digest), f'({attempt})')}"
            for attempt in itertools.count()
        )
        yield [f"{workflow}-system-container-impl-{digest}"]
    yield [node]


def _continued(digest: int, text: str) -> int:
    """Returns the 32-bit FNV-1a hash of what `digest` is the hash of, with `text` behind it."""
    for byte in text.encode():
        digest = (digest ^ byte) * 16_777_619 % 2**32
    return digest


def _task(task: Any) -> Task:
    ended, began = task.end_time, task.start_time
    seconds = (ended - began).total_seconds() if ended and began and ended > began else None
    return Task(task.display_name, str(task.state or "PENDING"), seconds, _message(task.error))


def _message(error: Any) -> str:
    return str(error.message or "") if error else ""


def _skew() -> str:
    import importlib.metadata

    return _SKEW.format(ours=importlib.metadata.version("kfp"))


def _reason(error: Any) -> str:
    text = str(error.body or error.reason or "").strip()
    with contextlib.suppress(ValueError, AttributeError):
        text = str(json.loads(text).get("message") or text)
    return (text.splitlines() or [""])[0][:300]
