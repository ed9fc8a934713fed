"""Time the evaluation of all served lengths against that of the longest one alone.

    PYTHONPATH=model python model/benchmarks/served_lengths.py --events 10000 --users 16

Both score the same requests, one after the other, several times; the medians are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from harness.encoded_files import write_encoded_histories
from harness.ranking_case import make_scorer
from longrec.config import EvaluateConfig, ModelConfig
from longrec.data.encoder import Encoder
from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.evaluation.sample import draw_sample, score_sample_at

LENGTH_SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Served lengths as shares of the longest one: those of the defaults."""


def main() -> None:
    """Print the median seconds and their ratio."""
    options = _arguments()
    lengths = [max(1, round(options.events * share)) for share in LENGTH_SHARES]
    device = torch.device(options.device)
    config = ModelConfig(width=options.width, num_layers=options.layers)
    with tempfile.TemporaryDirectory() as folder:
        write_encoded_histories(
            Path(folder), options.users, options.events, num_items=options.items
        )
        scorer = make_scorer(config, options.items, options.events, device)
        encoded = _fit(EncodedHistories.open(folder), scorer.bundle.encoder)
        sample = draw_sample(encoded, EvaluateConfig(bootstrap_samples=1), 0, split="train")
        alone, together = [], []
        for _ in range(options.repeats):
            for asked, seconds in ((lengths[-1:], alone), (lengths, together)):
                started = time.perf_counter()
                score_sample_at(scorer, encoded, sample, asked)
                seconds.append(time.perf_counter() - started)
    _print(lengths, alone, together)


def _fit(encoded: EncodedHistories, encoder: Encoder) -> EncodedHistories:
    """Return the histories with all indices inside the tables of an encoder."""
    num_items = len(encoder.item_table)
    return dataclasses.replace(
        encoded,
        event_items=encoded.event_items % num_items,
        target_items=encoded.target_items % num_items,
        event_features=encoded.event_features % encoder.sizes["event"][0],
        user_features=encoded.user_features % encoder.sizes["user"][0],
    )


def _print(lengths: Sequence[int], alone: Sequence[float], together: Sequence[float]) -> None:
    longest = statistics.median(alone)
    every = statistics.median(together)
    print(f"{lengths[-1]:,} events alone: {longest:.2f} s")
    print(f"{', '.join(f'{length:,}' for length in lengths)} events: {every:.2f} s")
    print(f"ratio {every / longest:.2f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=16, help="requests, each of another user")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
