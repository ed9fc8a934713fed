"""LiteralRanker: the ranker of one target at a time, from raw parameters, for comparison.

There are no batches and no torch: one head and one event after another.
"""

from __future__ import annotations

import datetime
import math
from typing import Any

import numpy as np

from longrec.config import ModelConfig
from longrec.data.batch import RequestBatch
from longrec.nn.ranker import Ranker
from longrec.schema import Feature, Schema

Array = np.ndarray[Any, np.dtype[np.float64]]
LAST_GAP_BUCKET = 31
EPOCH = datetime.date(1970, 1, 1)
GROUPS = {"items": "item", "users": "user", "actions": "event"}
"""Schema group of each embedding of the ranker."""


class LiteralRanker:
    """Logits by the text of the spec, sections 1 to 3."""

    def __init__(
        self,
        model: Ranker,
        config: ModelConfig,
        schema: Schema,
        sizes: dict[str, tuple[int, ...]],
    ) -> None:
        state = model.state_dict()
        self.parameters = {name: tensor.double().numpy() for name, tensor in state.items()}
        self.config = config
        self.schema = schema
        self.sizes = sizes

    def linear(self, name: str, x: Array) -> Array:
        y: Array = self.parameters[f"{name}.weight"] @ x
        bias = self.parameters.get(f"{name}.bias")
        return y if bias is None else y + bias

    def ffn(self, name: str, x: Array) -> Array:
        v = self.linear(f"{name}.w_v", x)
        u = self.linear(f"{name}.w_u", x)
        return self.linear(f"{name}.w_o", v / (1 + np.exp(-v)) * u)

    def norm(self, name: str, x: Array) -> Array:
        normed = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        scaled: Array = normed * self.parameters[f"{name}.weight"]
        return scaled + self.parameters[f"{name}.bias"]

    def embed(self, group: str, features: tuple[Feature, ...], indices: list[int]) -> Array:
        ids = [np.zeros(0)]
        others = [np.zeros(0)]
        first_id = 0
        first_other = 0
        for feature, size, index in zip(
            features,
            self.sizes[GROUPS[group]],
            indices,
            strict=True,
        ):
            if feature.kind == "id":
                ids.append(self.parameters[f"{group}.ids.weight"][first_id + index])
                first_id += size
            else:
                others.append(self.parameters[f"{group}.others.weight"][first_other + index])
                first_other += size
        return np.concatenate([*ids, *others])

    def item(self, row: int) -> Array:
        indices = self.parameters["item_table"][row].astype(int).tolist()
        return self.linear("item_part", self.embed("items", self.schema.item, indices))

    def gap_bucket(self, request_time: int, time: int) -> int:
        seconds = (request_time - time) / 1000
        if seconds < 1:
            return 0
        return min(LAST_GAP_BUCKET, 1 + math.floor(math.log2(seconds)))

    def event(self, row: int, features: list[int], bucket: int) -> Array:
        item = self.item(row)
        action = self.embed("actions", self.schema.event, features)
        if self.config.recency == "token":
            action = np.concatenate([action, self.parameters["gap.weight"][bucket]])
        action_part = self.linear("action_part", action)
        if not self.config.fusion:
            return item + action_part
        return item + self.ffn("fusion", np.concatenate([item, action_part]))

    def z(self, target: Array, events: list[Array], buckets: list[int]) -> Array:
        outputs: list[Array] = []
        for i in range(self.config.num_layers):
            query_input = target
            if i > 0:
                fused = outputs if self.config.query_fusion else outputs[-1:]
                query_input = self.linear(f"stca.fuse.{i - 1}", np.concatenate([*fused, target]))
            outputs.append(self.layer(f"stca.layers.{i}", query_input, events, buckets))
        joined = self.linear("stca.join", np.concatenate([*outputs, target]))
        z = self.ffn("stca.out", joined)
        if self.config.output_residual:
            z = z + joined
        return self.norm("stca.out_norm", z) if self.config.output_norm else z

    def layer(
        self,
        layer: str,
        query_input: Array,
        events: list[Array],
        buckets: list[int],
    ) -> Array:
        head_width = self.config.width // self.config.num_heads
        is_shared = f"{layer}.query_norm.weight" not in self.parameters
        query_ffn = f"{layer}.ffn" if is_shared else f"{layer}.query_ffn"
        query_norm = f"{layer}.norm" if is_shared else f"{layer}.query_norm"
        query = self.norm(query_norm, self.ffn(query_ffn, query_input))
        query = query @ self.parameters[f"{layer}.w_q"]
        encoded = [self.norm(f"{layer}.norm", self.ffn(f"{layer}.ffn", x)) for x in events]
        keys = [x @ self.parameters[f"{layer}.w_k"] for x in encoded]
        values = [x @ self.parameters[f"{layer}.w_v"] for x in encoded]
        output = np.zeros(self.config.width)
        for h in range(self.config.num_heads):
            head = slice(h * head_width, (h + 1) * head_width)
            logits = [float(query[head] @ key[head]) / math.sqrt(head_width) for key in keys]
            if self.config.recency == "bias":
                gap_bias = self.parameters[f"{layer}.gap_bias"][:, h]
                for j, bucket in enumerate(buckets):
                    logits[j] += gap_bias[bucket]
            exponentials = [math.exp(logit - max(logits)) for logit in logits]
            for exponential, value in zip(exponentials, values, strict=True):
                output[head] += exponential / sum(exponentials) * value[head]
        result: Array = output @ self.parameters[f"{layer}.w_o"]
        return result

    def mix(self, tokens: list[Array]) -> Array:
        count = len(tokens)
        for i in range(self.config.mixer_layers):
            block = f"mixer.blocks.{i}"
            heads = [token.reshape(count, -1) for token in tokens]
            updated = []
            for t, token in enumerate(tokens):
                mixed = np.concatenate([heads[other][t] for other in range(count)])
                state = self.norm(f"{block}.norm_mix", mixed + token)
                updated.append(self.norm(f"{block}.norm_ffn", self.mlp(block, t, state) + state))
            tokens = updated
        return sum(tokens, np.zeros(self.config.width)) / count

    def mlp(self, block: str, token: int, state: Array) -> Array:
        hidden = state @ self.parameters[f"{block}.w_in"][token]
        hidden = hidden + self.parameters[f"{block}.b_in"][token, 0]
        gelu = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        output: Array = gelu @ self.parameters[f"{block}.w_out"][token]
        return output + self.parameters[f"{block}.b_out"][token, 0]

    def context(self, request_time: int) -> Array:
        when = datetime.datetime.fromtimestamp(request_time / 1000, datetime.UTC)
        weekday = (when.date() - EPOCH).days % 7
        hour: Array = self.parameters["hour.weight"][when.hour]
        return hour + self.parameters["day.weight"][weekday]

    def logits(self, batch: RequestBatch) -> tuple[list[Array], list[Array]]:
        """Return the logits and the auxiliary logits of all targets."""
        main = []
        auxiliary = []
        for r in range(batch.num_requests):
            request_time = int(batch.request_timestamps[r])
            events = []
            buckets = []
            for i in range(*batch.event_offsets[r : r + 2].tolist()):
                bucket = self.gap_bucket(request_time, int(batch.event_timestamps[i]))
                features = batch.event_features[i].tolist()
                events.append(self.event(int(batch.event_items[i]), features, bucket))
                buckets.append(bucket)
            context = self.context(request_time)
            user_features = batch.user_features[r].tolist()
            user = self.linear("user_part", self.embed("users", self.schema.user, user_features))
            for t in range(*batch.target_offsets[r : r + 2].tolist()):
                target = self.item(int(batch.target_items[t]))
                z = self.z(target, events, buckets)
                main.append(self.linear("head", self.mix([z, user, target, context])))
                if "aux_head.weight" in self.parameters:
                    auxiliary.append(self.linear("aux_head", z))
        return main, auxiliary
