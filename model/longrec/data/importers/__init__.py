"""Importers: from official log formats, or from any table of events, to a dataset directory."""

from longrec.data.importers.amazon import import_amazon
from longrec.data.importers.event_mapping import EventMapping
from longrec.data.importers.events import import_events
from longrec.data.importers.kuairand import import_kuairand
from longrec.data.importers.lastfm import import_lastfm
from longrec.data.importers.movielens import import_movielens
from longrec.data.importers.requests.grouping import RequestGrouping
from longrec.data.importers.requests.negatives import NegativeSampling
from longrec.data.importers.taobao import import_taobao
from longrec.data.importers.writing.dataset_builder import ImportOptions
from longrec.data.importers.writing.import_report import ImportReport
from longrec.data.importers.yambda import import_yambda

__all__ = [
    "EventMapping",
    "ImportOptions",
    "ImportReport",
    "NegativeSampling",
    "RequestGrouping",
    "import_amazon",
    "import_events",
    "import_kuairand",
    "import_lastfm",
    "import_movielens",
    "import_taobao",
    "import_yambda",
]
