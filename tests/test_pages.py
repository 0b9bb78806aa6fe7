"""The pages for people and scrapers: GET /, /docs, /openapi.json and /metrics."""

from __future__ import annotations

import html
import json
import re
import subprocess
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from conftest import ServerProcess
from prometheus_client.parser import text_string_to_metric_families

INPUT = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}


class Links(HTMLParser):
    """Everything a page would load or link to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("href", "src", "action") and value]


def links(page: str) -> list[str]:
    parser = Links()
    parser.feed(page)
    return parser.found


def curls(page: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<pre>(curl .*?)</pre>", page, re.DOTALL)]


def test_the_page_says_what_is_served(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = answer.text
    for text in ("affine", "version 2", "FP32", "[-1, 4]", "classifier", "probabilities", "fixed"):
        assert text in page
    assert "one of <code>clerk</code>, <code>fixed</code>, <code>other</code>" in page
    assert all(not link.startswith(("http:", "https:", "//")) for link in links(page))


def test_fields_are_described_with_range_categories_and_example(client: httpx.Client) -> None:
    page = client.get("/").text
    assert "seen from 20 to 40" in page
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["people-record"] == {
        "type": "object",
        "additionalProperties": False,
        "required": ["age", "job"],
        "properties": {
            "age": {"type": "number", "description": "Seen from 20 to 40", "x-range": [20, 40], "example": 30},
            "job": {"type": "string", "description": "Known values: clerk, fixed, other", "example": "clerk",
                    "x-known-values": ["clerk", "fixed", "other"]},
        },
    }  # fmt: skip
    assert schemas["lenient-record"]["additionalProperties"] is True


def test_an_unknown_field_is_refused_with_the_nearest_name_or_passed_over(client: httpx.Client) -> None:
    records = {"records": [{"age": 31.5, "job": "fixed"}, {"age": 31.5, "jop": "fixed", "job": "fixed"}]}
    refused = client.post("/v1/models/people:predict", json=records)
    assert refused.status_code == 400
    assert refused.json() == {
        "error": "record 1 has the unknown field 'jop', did you mean 'job'?; the model takes 'age', 'job'",
        "code": "invalid_record",
        "at": "$.records[1]",
    }
    answer = client.post("/v1/models/lenient:predict", json=records).json()
    assert answer["predictions"][0] == answer["predictions"][1]
    lacking = client.post("/v1/models/lenient:predict", json={"records": [{"age": 31.5, "jop": "fixed"}]})
    assert lacking.json()["error"] == "record 0 lacks the field 'job'"
    assert lacking.json()["at"] == "$.records[0].job"


def test_every_curl_of_the_page_works_when_pasted(client: httpx.Client) -> None:
    commands = curls(client.get("/").text)
    assert len(commands) > 10
    for command in commands:
        done = subprocess.run(["bash", "-c", command.replace("curl -s", "curl -sf")], capture_output=True, timeout=60)
        assert done.returncode == 0, command
        assert done.stdout, command


@pytest.mark.parametrize("host", ['"><script>alert(1)</script>', "a'; rm -rf /; '", "evil.example/path", "$(reboot)"])
def test_a_forged_host_neither_marks_up_nor_runs(client: httpx.Client, host: str) -> None:
    page = client.get("/", headers={"Host": host}).text
    assert host not in page
    assert html.escape(host) not in page


def test_pages_have_a_policy_that_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    for path in ("/", "/docs"):
        policy = client.get(path).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "http" not in policy


def test_docs_load_only_what_this_server_has(client: httpx.Client) -> None:
    page = client.get("/docs").text
    found = links(page)
    assert len(found) == 4
    for link in found:
        answer = client.get("/" + link)
        assert answer.status_code == 200
        assert len(answer.content) > 100
    script = client.get("/docs/start.js").text
    assert re.search(r"validatorUrl:\s*null", script)  # else the page asks a validator elsewhere
    shown = re.search(r'url: "([^"]+)"', script)
    assert shown is not None
    assert client.get("/" + shown.group(1)).json()["openapi"].startswith("3.0.")


@pytest.mark.parametrize("name", ["index.html", "swagger-ui.js", "..%2f__init__.py", "%2e%2e"])
def test_docs_serve_no_other_file(client: httpx.Client, name: str) -> None:
    assert client.get(f"/docs/{name}").status_code == 404


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [found for each in value.values() for found in references(each)]
    return [found for each in value for found in references(each)] if isinstance(value, list) else []


def test_the_openapi_document_is_whole(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    schemas = document["components"]["schemas"]
    assert references(document)
    assert all(reference.removeprefix("#/components/schemas/") in schemas for reference in references(document))
    assert "/v1/models/affine:predict" in document["paths"]
    assert "/v1/models/affine/versions/1:predict" in document["paths"]
    for path in document["paths"].values():
        for operation in path.values():
            assert {"200", "default"} <= set(operation["responses"])


def test_every_example_of_the_document_is_answered(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    asked = 0
    for path, item in document["paths"].items():
        body = item.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        if "example" in body:
            answer = client.post(path, json=body["example"])
            assert answer.status_code == 200, (path, answer.text)
            asked += 1
    assert asked > 10


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_what_was_asked(client: httpx.Client) -> None:
    def value(found: dict[Any, float], name: str, **labels: str) -> float:
        return found.get((name, frozenset(labels.items())), 0.0)

    before = samples(client.get("/metrics").text)
    tensor = {**INPUT, "shape": [3, 4], "data": list(range(12))}
    client.post("/v2/models/affine/versions/1/infer", json={"inputs": [tensor]}).raise_for_status()
    client.post("/v2/models/affine/versions/1/infer", json={"inputs": []})
    client.post("/v2/models/nobody-knows-this/infer", json={"inputs": []})
    answer = client.get("/metrics")
    after = samples(answer.text)
    assert answer.headers["content-type"].startswith("text/plain")
    model = {"model": "affine", "version": "1"}

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("fastinfer_requests_total", **model, status="200", lane="fast") == 1
    assert grown("fastinfer_requests_total", **model, status="400", lane="standard") == 1
    assert grown("fastinfer_requests_total", model="", version="", status="404", lane="standard") == 1
    assert grown("fastinfer_rows_total", **model) == 3
    assert grown("fastinfer_batches_total", **model) == 1
    for phase in ("queue", "preprocess", "run", "total"):
        assert grown(f"fastinfer_{phase}_seconds_count", **model) == 1
        assert grown(f"fastinfer_{phase}_seconds_bucket", **model, le="+Inf") == 1
    assert grown("fastinfer_total_seconds_sum", **model) > 0
    assert value(after, "fastinfer_ready") == 1
    assert value(after, "fastinfer_requests_in_flight") == 0
    assert value(after, "fastinfer_body_bytes_in_flight") == 0
    assert value(after, "process_resident_memory_bytes") > 0
    assert "nobody-knows-this" not in answer.text


def test_metrics_as_openmetrics(client: httpx.Client) -> None:
    answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_starting_says_what_where_and_how(server: ServerProcess) -> None:
    said = "\n".join(server.out)
    assert server.url in said
    assert "affine version 2" in said
    command = next(line.strip() for line in server.out if line.startswith("  curl "))
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60)
    assert json.loads(done.stdout)["model_name"]
