"""Importers: official log formats, or any table with a mapping of its columns, to a dataset
directory.
"""

from longrec.data.importers.amazon import import_amazon
from longrec.data.importers.assembly import ImportOptions, ImportReport
from longrec.data.importers.events import EventMapping, import_events
from longrec.data.importers.kuairand import import_kuairand
from longrec.data.importers.lastfm import import_lastfm
from longrec.data.importers.movielens import import_movielens
from longrec.data.importers.requests import NegativeRule, RequestRule
from longrec.data.importers.taobao import import_taobao
from longrec.data.importers.yambda import import_yambda

__all__ = [
    "EventMapping",
    "ImportOptions",
    "ImportReport",
    "NegativeRule",
    "RequestRule",
    "import_amazon",
    "import_events",
    "import_kuairand",
    "import_lastfm",
    "import_movielens",
    "import_taobao",
    "import_yambda",
]
