"""Ground truth of the synthetic dataset: the probabilities that its labels are drawn from.

A label depends on one fact: whether the user liked an item of the target's topic before the
request. A model that sees only the last l of n events does not always know it. Its best possible
prediction is the posterior probability

    P(y = 1) = p1                                 with a like on the topic among the last l events
    P(y = 1) = p1 - (p1 - p0) (1 - rho)^(n - l)   without one

where rho = like_rate * share of the topic, the probability that an event is a like on it.

Shape letters: I items, K topics, E events, N targets.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from longrec.data.columns import Int64
from longrec.data.timelines import Mask

TOPIC_STREAM = 0
"""Number of the random stream of the topics; `synthetic` has its own, so that none repeats."""
LATE_HISTORY_SHARE = 0.7
"""Mean number of events of a late history over `events_per_user`.

Users have three quarters of it on average, and late requests are near the end of the timeline.
"""
TOPIC_BIAS = 0.4
"""Standard deviation of the biases of the topics, in logits."""

Float64 = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class GroundTruth:
    """Probabilities behind one synthetic dataset.

    Args:
        topics: int64 [I], topic of each item; item ids are 0 to I - 1.
        topic_shares: float64 [K], share of the items in each topic.
        like_rate: share of events that are likes.
        p1, p0: float64 [K], probability of label 1 with and without a like on the topic.
    """

    topics: Int64
    topic_shares: Float64
    like_rate: float
    p1: Float64
    p0: Float64

    @classmethod
    def draw(
        cls,
        num_items: int,
        num_topics: int,
        *,
        like_rate: float,
        base_p1: float,
        base_p0: float,
        seed: int,
    ) -> GroundTruth:
        """Return the ground truth of a seed.

        Args:
            num_items, num_topics: sizes of the catalogue.
            like_rate: share of events that are likes.
            base_p1, base_p0: probability of label 1 with and without a like, before the topic's
                bias.
            seed: seed of topics and biases.
        """
        rng = np.random.default_rng([seed, TOPIC_STREAM])
        topics = rng.permutation(np.arange(num_items, dtype=np.int64) % num_topics)
        biases = rng.normal(0, TOPIC_BIAS, num_topics)
        return cls(
            topics=topics,
            topic_shares=np.bincount(topics, minlength=num_topics) / num_items,
            like_rate=like_rate,
            p1=_shift_probability(base_p1, biases),
            p0=_shift_probability(base_p0, biases),
        )

    def posterior(
        self,
        topics: Int64,
        last_likes: Int64,
        num_events: Int64,
        length: int,
    ) -> Float64:
        """Return the best possible prediction of a model that sees the last events, float64 [N].

        The model also knows the number of all events.

        Args:
            topics: int64 [N], topic of each target.
            last_likes: int64 [N], the last like on the topic, counted from the end of the
                history (1 is the last event); 0 without a like.
            num_events: int64 [N], number of events before the request.
            length: number of events that the model sees.
        """
        num_unseen = np.maximum(num_events - length, 0)
        p_no_unseen_like = (1 - self.like_rate * self.topic_shares[topics]) ** num_unseen
        sees_like = (last_likes > 0) & (last_likes <= length)
        p1 = self.p1[topics]
        p_without_seen_like = p1 - (self.p1 - self.p0)[topics] * p_no_unseen_like
        return np.where(sees_like, p1, p_without_seen_like)


def default_like_rate(events_per_user: int, num_topics: int) -> float:
    """Return the rate at which half of the late histories hold a like on a given topic.

    Late histories are those of the requests that the best possible AUC is measured on.
    """
    return min(0.5, num_topics * math.log(2) / (LATE_HISTORY_SHARE * events_per_user))


def find_last_likes(
    events: tuple[Int64, Int64, Mask], targets: tuple[Int64, Int64, Int64]
) -> Int64:
    """Return the last like on each target's topic, counted from the end of its history.

    The result is int64 [N]: 1 for the last event of the history, 0 without a like.

    Args:
        events: user, topic and like of each event, [E] each, sorted by (user, time).
        targets: user, topic and number of events before the request, int64 [N] each.
    """
    event_users, event_topics, is_like = events
    target_users, target_topics, num_events = targets
    users = np.unique(target_users)
    first_rows = np.searchsorted(event_users, event_users)  # first event of the user of each
    positions = np.arange(len(event_users)) - first_rows  # in the timeline, from its start
    num_positions = max(_largest(positions), _largest(num_events)) + 1
    num_topics = max(_largest(event_topics), _largest(target_topics)) + 1
    # Each like becomes one number that sorts by (user, topic, position).
    event_groups = np.searchsorted(users, event_users) * num_topics + event_topics
    likes = np.sort((event_groups * num_positions + positions)[is_like])
    if not len(likes):
        return np.zeros(len(target_users), np.int64)
    # The largest like before the request; it counts only if it is of the same (user, topic).
    groups = np.searchsorted(users, target_users) * num_topics + target_topics
    row = np.searchsorted(likes, groups * num_positions + num_events) - 1
    last_group, last_position = np.divmod(likes[np.maximum(row, 0)], num_positions)
    has_like = (row >= 0) & (last_group == groups)
    return np.where(has_like, num_events - last_position, 0).astype(np.int64)


def auc(labels: Int64, scores: Float64) -> float:
    """Return the AUC; 0.5 when all labels are equal."""
    from sklearn.metrics import roc_auc_score

    if labels.all() or not labels.any():
        return 0.5
    return float(roc_auc_score(labels, scores))


def _shift_probability(p: float, biases: Float64) -> Float64:
    """Return a probability after adding biases to its logit."""
    logits = math.log(p / (1 - p)) + biases
    return 1 / (1 + np.exp(-logits))


def _largest(values: Int64) -> int:
    return int(values.max(initial=0))
