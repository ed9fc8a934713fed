"""A share of the trials of a search: what one step of a pipeline runs.

The steps of a search run at the same time, on several machines. They share a journal in the work
directory, so each one suggests from the results of all. A step that is tried again, or a later run
of the same search, continues with the trials that are left.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longrec import config_file
from longrec.config import RunConfig
from longrec.data import files
from longrec.nn.rounding import ceil_div
from longrec.study.search_space import SearchSpace
from longrec.study.tune import Row, Search, num_finished, open_study, parse_share, tune
from longrec.study.tune_report import write_results

SEARCHES_FOLDER = "searches"
"""Folder of the searches in a work directory."""
DIGEST_LENGTH = 16


def run_share(
    search: Search,
    num_trials: int,
    *,
    num_workers: int = 1,
) -> Row:
    """Run the trials of a search's share that are left; return what `choose` needs.

    Args:
        search: its `share` is `i/n`, the i-th of n shares.
        num_trials: number of trials of all shares.
        num_workers: number of processes of this share.

    Raises:
        ConfigError: the share is not valid.
    """
    own_trials = _trials_of(search.share, num_trials)
    with tempfile.TemporaryDirectory(prefix="longrec-tune-") as cache_dir:
        own_search = dataclasses.replace(search, cache_dir=cache_dir)
        if num_finished(open_study(search), search.share) < own_trials:
            tune(own_search, own_trials, num_workers=num_workers)
    value = dataclasses.asdict(dataclasses.replace(search, share=""))
    return {**value, "config": search.config.to_dict(), "space": dict(search.space.entries)}


def choose(value: Mapping[str, Any], out_dir: str | Path) -> Row:
    """Write the results of a search whose shares have ended; return the content of tune.json.

    Args:
        value: result of `run_share`.
        out_dir: folder of the results.
    """
    search = Search(
        value["histories_dir"],
        value["out_dir"],
        config_file.build(RunConfig, value["config"]),
        SearchSpace.of(value["space"], "the space of the search"),
        value["seed"],
    )
    study = open_study(search)
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    return write_results(dataclasses.replace(search, out_dir=str(out_dir)), study)


def of_pipeline(
    histories_dir: str,
    workdir: str,
    share: str,
    keys: list[str],
    space: Mapping[str, Any],
    seed: int,
    sections: Mapping[str, Any],
) -> Search:
    """Return the search of a pipeline's parameters; equal parameters have one journal.

    Args:
        histories_dir: histories that all trials train on.
        workdir: the work directory; the journal is in its folder `searches`.
        share: `i/n`, the i-th of n shares.
        keys: fingerprints of data and code.
        space: as in a file of the search space; empty for that of the model's kind.
        seed: of the run, and of the suggestions.
        sections: sections of the configuration.

    Raises:
        ConfigError: a section or the space is not valid.
    """
    config = config_file.build(RunConfig, {**sections, "seed": seed})
    chosen = SearchSpace.of(space, "space") if space else SearchSpace.default(config)
    content = [keys, config.to_dict(), dict(chosen.entries), seed]
    text = json.dumps(content, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]
    folder = Path(workdir) / SEARCHES_FOLDER / digest
    return Search(histories_dir, str(folder), config, chosen, seed, share=share)


def write_share(path: str | Path, row: Row) -> None:
    """Write the result of `run_share` as a file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, row)


def read_share(path: str | Path) -> Row:
    """Return the result of `run_share` in a file."""
    return dict(files.read_json(path))


def _trials_of(share: str, num_trials: int) -> int:
    """Return the number of trials of a share; the first shares may have one more."""
    index, count = parse_share(share)
    return ceil_div(max(num_trials - index + 1, 0), count)
