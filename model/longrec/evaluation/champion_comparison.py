"""Compare a ranker with the champion, the model that is served now, on the same requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt

from longrec.data.loading.encoded_histories import EncodedHistories
from longrec.errors import SchemaMismatch
from longrec.evaluation import bootstrap
from longrec.evaluation.bootstrap import Estimate, TaskMetrics
from longrec.evaluation.sample import EvaluationInputs, EvaluationSample, score_sample
from longrec.scoring.scorer import Scorer

Array: TypeAlias = npt.NDArray[Any]
Row: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class ChampionScores:
    """The champion's scores of the sample.

    Args:
        description: `version` and `served_length`, or `problem`; {} without a champion.
        scores: float32 [N, K]; None without a champion or if it cannot be compared.
    """

    description: Row
    scores: Array | None

    @classmethod
    def compute(
        cls,
        bundle_dir: str | Path | None,
        inputs: EvaluationInputs,
        cache_dir: Path,
    ) -> ChampionScores:
        """Return the champion's scores, encoded by its own encoder, at its own served length.

        A champion of another schema cannot be compared; the description then holds the problem.

        Args:
            bundle_dir: the champion's bundle; None without a champion.
            inputs: of the evaluated ranker.
            cache_dir: folder for the encoded histories.
        """
        if bundle_dir is None:
            return cls({}, None)
        histories = inputs.histories
        try:
            scorer = Scorer.load(
                bundle_dir,
                inputs.scorer.device,
                schema=histories.schema,
            )
        except SchemaMismatch as error:
            return cls({"problem": str(error)}, None)
        bundle = scorer.bundle
        encoded = EncodedHistories.encode(
            histories,
            bundle.encoder,
            cache_dir,
        )
        scores = score_sample(
            scorer,
            encoded,
            inputs.sample,
            bundle.served_length,
        )
        description = {"version": bundle.version, "served_length": bundle.served_length}
        return cls(description, scores)

    @property
    def problem(self) -> str:
        """Why the champion could not be compared; empty if it could."""
        return str(self.description.get("problem", ""))

    def differences(
        self,
        measured: Mapping[str, TaskMetrics],
        sample: EvaluationSample,
        metric: str,
    ) -> dict[str, Estimate]:
        """Return task -> metric of the ranker minus the champion's, on the same resamples.

        Args:
            measured: task -> metrics of the ranker, in the order of the score columns.
            sample: evaluated requests.
            metric: `auc` or `gauc`.
        """
        if self.scores is None:
            return {}
        differences = {}
        for column, (task, ours) in enumerate(measured.items()):
            labels = sample.labels[:, column]
            theirs = bootstrap.measure(
                labels,
                self.scores[:, column],
                sample.resamples,
            )
            differences[task] = bootstrap.paired_difference(
                ours,
                theirs,
                metric,
            )
        return differences

    def to_dict(
        self,
        differences: Mapping[str, Estimate],
        metric: str,
    ) -> Row:
        """Return the JSON form; {} without a champion.

        Args:
            differences: see `differences`.
            metric: the compared metric.
        """
        if not self.description:
            return {}
        rows = {task: dataclasses.asdict(estimate) for task, estimate in differences.items()}
        return {**self.description, "metric": metric, "differences": rows}
