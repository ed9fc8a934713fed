# %% [markdown]
# # Quickstart: from a CSV to scores and explanations
#
# This script uses the public names of `longrec`. `longrec run` does the same steps, and adds checks
# of the data, a promotion gate and packaging.
#
#     python examples/quickstart.py
#
# `quickstart.ipynb` holds the same cells. On two CPU cores they take about a minute.

# %%
import tempfile
from pathlib import Path

import make_clicks
import numpy as np

import longrec

folder = Path(tempfile.mkdtemp(prefix="longrec-quickstart-"))

# %% [markdown]
# ## Import a CSV
#
# The log has a row for each item that a user was shown. Each user likes two of ten genres, and
# clicks mostly there. The label `clicked` is also an event feature, so histories hold it.

# %%
make_clicks.main(folder)
mapping = longrec.EventMapping(
    user="uid",
    item="iid",
    timestamp="ts",
    timestamp_unit="s",
    labels=("clicked",),
    features=("clicked:category",),
    items=folder / "items.csv",
    item_features=("genre:category",),
)
report = longrec.import_events(folder / "clicks.csv", folder / "dataset", mapping)
print(f"{report.num_events:,} events of {report.num_users} users, {report.num_requests:,} requests")

# %% [markdown]
# ## Build features and publish them to the feature store
#
# `retrieve` joins each request with the events strictly before it.

# %%
repo_dir = Path(longrec.__file__).parents[2] / "feature_repo"
data = longrec.DataConfig(max_history=1024)
longrec.build_features(folder / "dataset", folder / "features", data)
longrec.publish(folder / "features", folder / "workdir", repo_dir)
retrieved = longrec.retrieve(
    folder / "dataset", folder / "workdir", repo_dir, folder / "histories", data, seed=0
)
print(f"{retrieved.num_requests:,} requests with their histories")

# %% [markdown]
# ## Train

# %%
training = longrec.train(
    folder / "histories",
    folder / "bundle",
    longrec.ModelConfig(width=64, num_layers=1, num_heads=2, aux_loss_weight=0.2),
    lengths=longrec.LengthConfig("full"),
    train=longrec.TrainConfig(
        epochs=3,
        token_budget=8192,
        learning_rate=0.002,
        embedding_learning_rate=0.01,
        device="cpu",
    ),
    served_lengths=[1024],
    seed=0,
)
print(f"{training.num_steps} steps in {training.seconds:.0f} s")

# %% [markdown]
# ## Evaluate
#
# The latest 20 % of the requests were not trained on. Popularity is the baseline.

# %%
evaluation = longrec.evaluate(
    folder / "bundle",
    folder / "histories",
    folder / "evaluation",
    config=longrec.EvaluateConfig(lengths=(16, 64, 1024), served_length=1024),
    gate=longrec.GateConfig(min_auc=0.6),
    seed=0,
)
auc = evaluation.metrics["clicked"]["auc"]
popularity_auc = evaluation.popularity["clicked"]["auc"]
print(f"AUC {auc:.3f}, popularity {popularity_auc:.3f}")
for row in evaluation.lengths:
    print(f"  {row['length']:>5} events: {row['auc']:.3f}")

# %% [markdown]
# ## Score candidates of a user
#
# The online store returns the history that the service would read.

# %%
store = longrec.OnlineStore(folder / "workdir")
user = store.fetch([1])[0]
now_ms = user.history.column("timestamp")[-1].as_py() + 1
candidates = np.arange(1, 11)
request = longrec.RequestRows(user.history, user.features, now_ms, candidates)
scorer = longrec.Scorer.load(folder / "bundle")
scores = scorer.score([request])[0][:, 0]
for item, score in sorted(zip(candidates, scores, strict=True), key=lambda pair: -pair[1]):
    print(f"item {item:>3}, genre {(item - 1) % 10}: {score:.3f}")

# %% [markdown]
# ## Explain a score
#
# Attention weights tell which past events made the score of the best candidate.

# %%
cached = scorer.keys_values([user.history], [now_ms])[0]
weights = scorer.attention(request, cached)  # layers, heads, candidates, events
best = int(scores.argmax())
event_weights = weights.mean(axis=(0, 1))[best]
print(f"item {candidates[best]}, genre {(candidates[best] - 1) % 10}, because of")
for event in event_weights.argsort()[::-1][:5]:
    item = user.history.column("item_id")[int(event)].as_py()
    clicked = user.history.column("clicked")[int(event)].as_py()
    print(f"  weight {event_weights[event]:.3f}: genre {(item - 1) % 10}, clicked {clicked}")
