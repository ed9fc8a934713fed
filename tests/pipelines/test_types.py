"""Each edge of the compiled pipelines gives a type that its step takes, loop items included.

A server compares these types when a step starts; kfp's local runner does not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from pipelines import compiler

Spec = dict[str, Any]
KINDS = {str: "STRING", bool: "BOOLEAN", int: "NUMBER_INTEGER", float: "NUMBER_DOUBLE"}
KINDS |= {list: "LIST", dict: "STRUCT"}
JSON_NUMBERS = {"NUMBER_INTEGER", "NUMBER_DOUBLE"}
ITEM_TYPE = "STRING"
"""Type of the loop items of these pipelines: shards and trials are texts."""


def load(name: str) -> Spec:
    """Return the graph of a compiled pipeline."""
    spec: Spec = next(yaml.safe_load_all((compiler.FOLDER / f"{name}.yaml").read_text()))
    return spec


def wrong_edges(spec: Spec) -> list[str]:
    """Return a line for each edge whose two ends differ in type."""
    dags = {"root": spec["root"], **spec["components"]}
    return [
        line
        for name, component in dags.items()
        if "dag" in component
        for line in _wrong_in_dag(spec, name, component)
    ]


def _wrong_in_dag(spec: Spec, name: str, dag: Spec) -> Iterator[str]:
    for task_name, task in dag["dag"]["tasks"].items():
        target = spec["components"][task["componentRef"]["name"]]
        for kind, type_key in (("parameters", "parameterType"), ("artifacts", "artifactType")):
            takes = target.get("inputDefinitions", {}).get(kind, {})
            gives = task.get("inputs", {}).get(kind, {})
            for key, source in gives.items():
                if key not in takes:
                    continue
                given = _type_of(spec, dag, source, kind)
                wanted = _plain(takes[key], type_key)
                if not _fits(given, wanted):
                    yield f"{name}.{task_name}.{key}: {given} for {wanted}"
        yield from _wrong_items(name, task_name, task, target)
        missing = {
            key
            for key, value in target.get("inputDefinitions", {}).get("parameters", {}).items()
            if not value.get("isOptional") and not _is_given(task, key)
        }
        for key in sorted(missing):
            yield f"{name}.{task_name}.{key}: nothing"


def _is_given(task: Spec, key: str) -> bool:
    iterator = task.get("parameterIterator", {})
    return key in task.get("inputs", {}).get("parameters", {}) or key == iterator.get("itemInput")


def _wrong_items(dag: str, name: str, task: Spec, target: Spec) -> Iterator[str]:
    """Yield a line if the items of a loop, or what it loops over, have the wrong type."""
    iterator = task.get("parameterIterator")
    if not iterator:
        return
    parameters = target["inputDefinitions"]["parameters"]
    items = parameters[iterator["items"]["inputParameter"]]["parameterType"]
    item = parameters[iterator["itemInput"]]["parameterType"]
    if items != "LIST":
        yield f"{dag}.{name} loops over {items}"
    if item != ITEM_TYPE:
        yield f"{dag}.{name}: items are {item}"


def _type_of(spec: Spec, dag: Spec, source: Spec, kind: str) -> str:
    """Return the type at the beginning of an edge."""
    if "runtimeValue" in source:
        return KINDS[type(source["runtimeValue"]["constant"])]
    if "taskFinalStatus" in source:
        return "TASK_FINAL_STATUS"
    if "componentInputParameter" in source:
        return _plain(dag["inputDefinitions"][kind][source["componentInputParameter"]])
    if "componentInputArtifact" in source:
        return _plain(dag["inputDefinitions"][kind][source["componentInputArtifact"]])
    [edge] = source.values()
    producer = dag["dag"]["tasks"][edge["producerTask"]]
    outputs = spec["components"][producer["componentRef"]["name"]]["outputDefinitions"][kind]
    return _plain(outputs[edge.get("outputParameterKey") or edge["outputArtifactKey"]])


def _plain(declared: Spec, key: str = "") -> str:
    if "artifactType" in declared:
        many = "list of " if declared.get("isArtifactList") else ""
        return many + str(declared["artifactType"].get("schemaTitle"))
    return str(declared["parameterType"])


def _fits(given: str, wanted: str) -> bool:
    if wanted.removeprefix("list of ") == "system.Artifact":  # The base of all types.
        return given.startswith("list of ") == wanted.startswith("list of ")
    return given == wanted or {given, wanted} <= JSON_NUMBERS


@pytest.mark.parametrize("name", compiler.PIPELINES)
def test_both_ends_of_each_edge_have_one_type(name: str) -> None:
    assert wrong_edges(load(name)) == []


def test_a_loop_over_structs_for_a_step_that_takes_them_is_found() -> None:
    """What a server refused: the item was a text, the step took a struct."""
    spec = load("study")
    spec["components"]["comp-trial"]["inputDefinitions"]["parameters"]["trials"] = {
        "parameterType": "STRUCT"
    }
    assert [line.partition(":")[2] for line in wrong_edges(spec)] == [" STRING for STRUCT"]


@pytest.mark.parametrize("name", compiler.PIPELINES)
def test_any_edge_that_is_given_another_type_is_found(name: str) -> None:
    """Each input of each step, changed one at a time."""
    spec = load(name)
    for component, part in spec["components"].items():
        if "executorLabel" not in part:
            continue
        for kind in ("parameters", "artifacts"):
            for key, declared in part.get("inputDefinitions", {}).get(kind, {}).items():
                if declared.get("isOptional"):
                    continue
                changed = copy.deepcopy(spec)
                inputs = changed["components"][component]["inputDefinitions"][kind]
                inputs[key] = _other(declared)
                assert wrong_edges(changed), f"{component}.{key}"


def _other(declared: Spec) -> Spec:
    """Return an input of another type."""
    if "artifactType" in declared:
        return {"artifactType": {"schemaTitle": "system.Other", "schemaVersion": "0.0.1"}}
    other = "STRUCT" if declared["parameterType"] != "STRUCT" else "STRING"
    return {**declared, "parameterType": other}
