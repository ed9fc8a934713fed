"""The schedules of a Kubeflow Pipelines server: list, pause, resume and remove them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipelines.server.errors import ServerError, one_line_errors
from pipelines.server.reading import Reader
from pipelines.server.references import References
from pipelines.server.run_status import pipeline_name

BASE = "/apis/v2beta1/recurringruns"
ENABLED = ("ENABLED", "ENABLE")


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule: `cron` has six fields, seconds first, in UTC."""

    schedule_id: str
    name: str
    pipeline: str
    cron: str
    is_paused: bool
    created: str
    url: str


class Schedules:
    """The schedules of a server.

    Args:
        reader: reads the server.
        client: a kfp_server_api.ApiClient, which changes it.
    """

    def __init__(self, reader: Reader, client: Any) -> None:
        import kfp_server_api

        self._reader = reader
        self._references = References(reader)
        self._service = kfp_server_api.RecurringRunServiceApi(client)

    def all_of(self, experiment_id: str) -> list[Schedule]:
        """Return the schedules of an experiment, by name."""
        entries = self._reader.pages(
            BASE,
            "recurringRuns",
            experiment_id=experiment_id,
        )
        found = [self._schedule(entry) for entry in entries]
        return sorted(found, key=lambda schedule: (schedule.name, schedule.created))

    def find(self, experiment_id: str, name: str) -> list[Schedule]:
        """Return the schedules with a name or an id.

        Raises:
            ServerError: there is none.
        """
        schedules = self.all_of(experiment_id)
        found = [entry for entry in schedules if name in (entry.name, entry.schedule_id)]
        if not found:
            raise ServerError(
                f"there is no schedule '{name}'",
                expected=", ".join(entry.name for entry in schedules) or None,
                fix="See longrec schedules.",
            )
        return found

    def pause(self, schedule: Schedule) -> None:
        """Start no more runs; the running one goes on."""
        with one_line_errors(self._reader.host, f"schedule {schedule.name}"):
            self._service.recurring_run_service_disable_recurring_run(schedule.schedule_id)

    def resume(self, schedule: Schedule) -> None:
        """Start runs again; the missed times are not made up for."""
        with one_line_errors(self._reader.host, f"schedule {schedule.name}"):
            self._service.recurring_run_service_enable_recurring_run(schedule.schedule_id)

    def remove(self, schedule: Schedule) -> None:
        """Remove a schedule; its runs stay."""
        with one_line_errors(self._reader.host, f"schedule {schedule.name}"):
            self._service.recurring_run_service_delete_recurring_run(schedule.schedule_id)

    def _schedule(self, entry: Mapping[str, Any]) -> Schedule:
        schedule_id = str(entry["recurring_run_id"])
        trigger = entry.get("trigger") or {}
        cron = trigger.get("cron_schedule") or {}
        state = str(entry.get("status") or entry.get("mode") or "")
        return Schedule(
            schedule_id,
            name=str(entry.get("display_name") or ""),
            pipeline=pipeline_name(entry) or self._references.pipeline_of(entry),
            cron=str(cron.get("cron") or ""),
            is_paused=state not in ENABLED,
            created=str(entry.get("created_at") or ""),
            url=f"{self._reader.host}/#/recurringrun/details/{schedule_id}",
        )
