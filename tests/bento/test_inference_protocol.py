"""docs/guides/inference-protocol.md: its commands and a published client, with a real service."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.bento.requests_and_scores import LATE_MS, rank
from tests.bento.served_page import Reader
from tests.clients.page import read_sections
from tests.conftest import ROOT, VERSION, ServedWorld

pytestmark = pytest.mark.slow
SECTIONS = read_sections(ROOT / "docs" / "guides" / "inference-protocol.md")
TOOLS = ROOT / ".tools" / "bin" / "python"
"""Python of the environment with Triton's client; `make tools` makes it."""
MODEL = "/v2/models/longrec-ranker"
TASK = "label"


@pytest.fixture(scope="module")
def reader(served_world: ServedWorld, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    return Reader(served_world, folder, {"client/bin/python": str(TOOLS)})


@pytest.fixture(scope="module")
def client(reader: Reader) -> Iterator[httpx.Client]:
    with reader.serve(SECTIONS["Turn it on"]) as client:
        yield client


def tensor(name: str, *values: int | str) -> dict:
    """Return a tensor of a request."""
    datatype = "BYTES" if isinstance(values[0], str) else "INT64"
    return {"name": name, "shape": [len(values)], "datatype": datatype, "data": list(values)}


def infer(client: httpx.Client, *inputs: dict) -> httpx.Response:
    """Send a request."""
    return client.post(f"{MODEL}/infer", json={"inputs": inputs})


def scores_of(answer: dict) -> list[float]:
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"]) == (TASK, "FP32")
    assert output["shape"] == [len(output["data"])]
    return output["data"]


def test_the_command_of_the_page_gets_the_scores_of_rank(client, reader: Reader) -> None:
    answer = json.loads(reader.run(SECTIONS["Send a request with curl"]))
    expected = rank(client, user_id=1, candidates=[11, 12, 13])
    assert scores_of(answer) == pytest.approx(expected["scores"][TASK], abs=1e-5)
    assert (answer["model_name"], answer["model_version"]) == ("longrec-ranker", VERSION)


def test_tritons_client_gets_the_scores_of_rank(client, reader: Reader) -> None:
    if not TOOLS.exists():
        pytest.skip("run `make tools`: it installs Triton's client")
    section = SECTIONS["Send a request with Triton's client"]
    printed = reader.run(section)
    expected = rank(client, user_id=1, candidates=[11, 12, 13])
    assert json.loads(printed) == pytest.approx(expected["scores"][TASK], abs=1e-5)


@pytest.mark.parametrize("kind", [int, str])
def test_equal_requests_have_exactly_equal_scores_and_facts(client, user, items, kind) -> None:
    fields = {"user_id": user.id, "candidates": items, "request_time": LATE_MS, "length": 5}
    expected = rank(client, **fields)
    answer = infer(
        client,
        tensor("user_id", kind(user.id)),
        tensor("candidates", *map(kind, items)),
        tensor("request_time", LATE_MS),
        tensor("length", 5),
    ).json()
    assert scores_of(answer) == expected["scores"][TASK]
    for name, value in answer["parameters"].items():
        assert expected[name] == value
    assert answer["parameters"]["history_length"] == 5


def test_the_model_describes_itself_and_only_the_version_that_answers(client) -> None:
    assert client.get("/v2").json()["name"] == "longrec"
    described = client.get(MODEL).json()
    assert described == client.get(f"{MODEL}/versions/{VERSION}").json()
    assert described["versions"] == [VERSION]
    assert [tensor["name"] for tensor in described["inputs"]] == ["user_id", "candidates"]
    assert described["outputs"] == [{"name": TASK, "datatype": "FP32", "shape": [-1]}]
    assert client.get(f"{MODEL}/versions/{VERSION}/ready").json()["ready"] is True
    response = client.get(f"{MODEL}/versions/other/ready")
    assert response.status_code == 404
    assert response.json()["error"] == f"version 'other' does not answer here; '{VERSION}' does"


def test_probes_and_counts(client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    infer(client, tensor("user_id", 1), tensor("candidates", 2)).raise_for_status()
    text = client.get("/metrics").text
    labels = 'endpoint="/v2/models/{name}/infer",http_response_code="200"'
    assert f"bentoml_service_request_total{{{labels}}}" in text


def test_it_has_the_bounds_and_the_deadline_of_rank(client) -> None:
    many = infer(client, tensor("user_id", 1), tensor("candidates", *range(2_049)))
    assert many.status_code == 400
    assert "candidates: should have at most 2048 items, not 2049" in many.json()["error"]
    large = infer(client, tensor("user_id", 1), tensor("candidates", *["9" * 1000] * 3_000))
    assert large.status_code == 413
    early = tensor("request_time", 5)
    refused = infer(client, tensor("user_id", 1), tensor("candidates", 2), early)
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("request_time")
