"""build-features: feature tables of some shards of a dataset, a packed history per user."""

from kfp.dsl import Dataset, Output

from components import component


@component
def build_features(
    data_uri: str,
    data_key: str,
    code_key: str,
    shards: str,
    data: dict,
    features: Output[Dataset],
):
    """Write the feature tables, a folder for each shard."""
    from longrec.config import DataConfig
    from longrec.config_file import build
    from longrec.data.features import build_features as build_tables
    from longrec.data.location import local_directory
    from longrec.data.shards import parse_shards

    config = build(DataConfig, data, where="data")
    for shard in parse_shards(shards):
        with local_directory(data_uri, shard) as dataset:
            build_tables(dataset, shard.folder(features.path), config, shard=shard)
