"""A Kubeflow Pipelines server: submit and schedule pipelines, read status and logs of runs.

The client uses the server's v2beta1 API. `kfp.Client` is not used: it waits half a minute for a
wrong token, reads settings from the home directory, and prints.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.server.cron import cron_fields
from pipelines.server.errors import PORT_FORWARD_FIX, ServerError, one_line_errors
from pipelines.server.reading import CONNECT_SECONDS, MAX_PAGES, QUIET_SECONDS, Patience, Reader
from pipelines.server.run_status import RunStatus
from pipelines.server.runs import Runs
from pipelines.server.schedules import Schedules
from pipelines.server.versions import Versions

DEFAULT_EXPERIMENT = "longrec"
PAGE_SIZE = 50
EQUALS = 1
"""Operation of a filter in the server's API."""
ENABLED = "ENABLE"


@dataclasses.dataclass(frozen=True, slots=True)
class Submitted:
    """A run or a schedule that the server accepted; `url` is its page."""

    run_id: str
    experiment: str
    url: str


@dataclasses.dataclass(frozen=True, slots=True)
class Submission:
    """A compiled pipeline with its arguments.

    Args:
        spec: a compiled pipeline (`pipelines.compiler.specification`).
        arguments: its parameters.
        name: name of the run or schedule.
        experiment: groups runs on the server.
        service_account: service account of the pods; empty for the server's default.
        pipeline_root: address of the artifacts; empty for the server's default.
        create_experiment: whether a missing experiment is created.
    """

    spec: Mapping[str, Any]
    arguments: Mapping[str, Any]
    name: str
    experiment: str = DEFAULT_EXPERIMENT
    service_account: str = ""
    pipeline_root: str = ""
    create_experiment: bool = False


class Server:
    """A Kubeflow Pipelines server.

    Every method raises a ServerError if nothing answers or if the server refuses the request.

    Args:
        host: its address.
        namespace: namespace on a multi-user server; empty for a single-user one.
        token: sent as `Authorization: Bearer`; empty for none.
        cookie: cookie of a browser's session; empty for none.
        patience: how long a server that does not answer is asked again, by requests that read.
    """

    def __init__(
        self,
        host: str,
        *,
        namespace: str = "",
        token: str = "",
        cookie: str = "",
        patience: Patience = Patience(),  # noqa: B008  (a frozen value)
    ) -> None:
        if not host:
            raise ServerError(
                "the address of the Kubeflow Pipelines server is missing",
                fix=f"Give --host or set KF_PIPELINES_ENDPOINT. {PORT_FORWARD_FIX}",
            )
        import kfp_server_api

        self.host = (host if "://" in host else f"https://{host}").rstrip("/")
        self.namespace = namespace
        self._api = kfp_server_api
        settings = kfp_server_api.Configuration(host=self.host)
        settings.retries = False
        if token:
            settings.api_key = {"authorization": token}
            settings.api_key_prefix = {"authorization": "Bearer"}
        self._client = kfp_server_api.ApiClient(settings, cookie=cookie or None)
        rest = self._client.rest_client
        rest.request = _with_timeout(rest.request)
        self.reader = Reader(self._client, self.host, patience)
        self.runs = Runs(self.reader, namespace)
        self.schedules = Schedules(self.reader, self._client)
        self._runs = kfp_server_api.RunServiceApi(self._client)
        self._experiments = kfp_server_api.ExperimentServiceApi(self._client)
        self._versions = Versions(self.reader, self._client, namespace)
        self._schedules = kfp_server_api.RecurringRunServiceApi(self._client)
        self.reader.patience.repeat(self._check_health)

    def submit(self, submission: Submission) -> Submitted:
        """Upload a pipeline, unless the server has this version, and return the accepted run."""
        with one_line_errors(self.host):
            body = self._api.V2beta1Run(
                display_name=submission.name,
                experiment_id=self._experiment_of(submission),
                pipeline_version_reference=self._versions.reference(submission.spec),
                service_account=submission.service_account or None,
                runtime_config=self._runtime_config(submission),
            )
            run = self._runs.run_service_create_run(body)
        return Submitted(run.run_id, submission.experiment, self.runs.page(run.run_id))

    def schedule(self, submission: Submission, cron: str) -> tuple[Submitted, str]:
        """Create or replace the schedule with the submission's name.

        Return it and `created`, `updated` or `unchanged`. The new schedule is created before the
        old ones are deleted. Missed times are not caught up. A run ends before the next begins:
        both would write to one feature store.

        Args:
            submission: pipeline, arguments and name.
            cron: five fields, or six with the seconds first, in UTC.
        """
        times = cron_fields(cron)
        description = _schedule_digest(submission, times)
        with one_line_errors(self.host):
            experiment_id = self._experiment_of(submission)
            schedules = self._list_schedules(experiment_id)
            old = [entry for entry in schedules if entry.display_name == submission.name]
            if len(old) == 1 and _is_unchanged(old[0], description):
                return self._submitted_schedule(old[0], submission), "unchanged"
            body = self._api.V2beta1RecurringRun(
                display_name=submission.name,
                description=description,
                experiment_id=experiment_id,
                pipeline_version_reference=self._versions.reference(submission.spec),
                mode=ENABLED,
                no_catchup=True,
                max_concurrency="1",
                trigger=self._trigger(times),
                service_account=submission.service_account or None,
                runtime_config=self._runtime_config(submission),
            )
            new = self._schedules.recurring_run_service_create_recurring_run(body)
            for entry in old:
                self._schedules.recurring_run_service_delete_recurring_run(entry.recurring_run_id)
        return self._submitted_schedule(new, submission), "updated" if old else "created"

    def recent(self, experiment: str, limit: int = 10) -> list[RunStatus]:
        """Return the newest runs of an experiment, newest first, without their steps."""
        return self.runs.recent(self.experiment_id(experiment), limit)

    def be_patient(self, seconds: float) -> None:
        """Let requests that read wait for a server that restarts."""
        self.reader.patience = dataclasses.replace(self.reader.patience, seconds=seconds)

    def experiment_id(self, name: str) -> str:
        """Return the id of an experiment; create the default one if it is missing."""

        def find() -> str:
            with one_line_errors(self.host):
                return self._experiment_id(name)

        return self.reader.patience.repeat(find)

    def _check_health(self) -> None:
        """Check that a Kubeflow Pipelines server answers.

        The client takes a login page for an empty list, so the type of the answer is checked.
        """
        with one_line_errors(self.host):
            service = self._api.HealthzServiceApi(self._client)
            health, _, headers = service.healthz_service_get_healthz_with_http_info()
            content_type = headers.get("Content-Type", "")
            if "json" not in content_type:
                raise ValueError(f"a page of type {content_type}; a login?")
        if health.multi_user and not self.namespace:
            raise ServerError(
                f"{self.host} is a multi-user server and needs a namespace",
                fix="Give --namespace or set LONGREC_KFP_NAMESPACE: your profile's.",
            )

    def _experiment_of(self, submission: Submission) -> str:
        """Return the id of the submission's experiment; create a missing one if allowed.

        The default experiment is always created.
        """
        name = submission.experiment
        if submission.create_experiment or name == DEFAULT_EXPERIMENT:
            return self._find_experiment(name) or self._create_experiment(name)
        return self._experiment_id(name)

    def _experiment_id(self, name: str) -> str:
        """Return the id of an experiment; create the default one if it is missing."""
        found = self._find_experiment(name)
        if found:
            return found
        if name == DEFAULT_EXPERIMENT:
            return self._create_experiment(name)
        answer = self._list_experiments(page_size=PAGE_SIZE)
        names = [experiment.display_name for experiment in answer.experiments or ()]
        raise ServerError(
            f"there is no experiment '{name}'",
            expected=", ".join(names) or None,
            fix="Give one of these, or --create-experiment.",
        )

    def _find_experiment(self, name: str) -> str:
        predicate = {"operation": EQUALS, "key": "display_name", "stringValue": name}
        answer = self._list_experiments(filter=json.dumps({"predicates": [predicate]}))
        for experiment in answer.experiments or ():
            return str(experiment.experiment_id)
        return ""

    def _create_experiment(self, name: str) -> str:
        body = self._api.V2beta1Experiment(display_name=name, namespace=self.namespace or None)
        return str(self._experiments.experiment_service_create_experiment(body).experiment_id)

    def _list_experiments(self, **query: Any) -> Any:
        if self.namespace:
            query["namespace"] = self.namespace
        return self._experiments.experiment_service_list_experiments(**query)

    def _list_schedules(self, experiment_id: str) -> list[Any]:
        schedules: list[Any] = []
        token = ""
        for _ in range(MAX_PAGES):
            answer = self._schedules.recurring_run_service_list_recurring_runs(
                experiment_id=experiment_id, page_size=PAGE_SIZE, page_token=token
            )
            schedules += answer.recurring_runs or []
            token = answer.next_page_token or ""
            if not token:
                break
        return schedules

    def _trigger(self, times: str) -> Any:
        return self._api.V2beta1Trigger(cron_schedule=self._api.V2beta1CronSchedule(cron=times))

    def _runtime_config(self, submission: Submission) -> Any:
        return self._api.V2beta1RuntimeConfig(
            parameters=dict(submission.arguments), pipeline_root=submission.pipeline_root or None
        )

    def _submitted_schedule(self, entry: Any, submission: Submission) -> Submitted:
        schedule_id = entry.recurring_run_id
        url = f"{self.host}/#/recurringrun/details/{schedule_id}"
        return Submitted(schedule_id, submission.experiment, url)


def _with_timeout(request: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that sends requests with a timeout, which the API's client has not."""

    def send(*arguments: Any, **options: Any) -> Any:
        timeout = options.get("_request_timeout") or (CONNECT_SECONDS, QUIET_SECONDS)
        return request(*arguments, **{**options, "_request_timeout": timeout})

    return send


def _schedule_digest(submission: Submission, times: str) -> str:
    """Return the description of a schedule; equal descriptions mean equal schedules."""
    content = [
        submission.spec,
        dict(submission.arguments),
        times,
        submission.service_account,
        submission.pipeline_root,
    ]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    return f"longrec {digest.hexdigest()[:16]}"


def _is_unchanged(entry: Any, description: str) -> bool:
    return bool(entry.description == description) and str(entry.mode) == ENABLED
