"""Baselines of every evaluation: scores that need no network, fitted on the training window.

    item rate           smoothed mean label of the item
    item count          events of the item
    item and user rate  item rate, shifted by the user's own mean label
    recency of F        time since the user's last event with the target's value of item feature F
    frequency of F      events of the history with that value
    boosted trees       LightGBM on all of these

F is the item itself and each item feature that is an id or a category. Each value is taken from
what was known before the request. `comparison` measures all of them on the evaluated targets.
"""
