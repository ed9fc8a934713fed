"""Cron schedules in the form that a server accepts."""

from longrec.errors import LongrecError


def cron_fields(cron: str) -> str:
    """Return a schedule in the six fields of Kubeflow, seconds first.

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
    if len(fields) == 5:
        fields = ["0", *fields]
    return " ".join(fields)
