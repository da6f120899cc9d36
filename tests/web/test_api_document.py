"""docs/api.md says what the running application says: routes, fields, refusals, endpoints."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.patience import PATIENCE_S
from tests.web.live_server import Installation, serve, submit
from webui import guard, schemas

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/api.md").read_text(encoding="utf-8")
ROUTES = set(re.findall(r"^\| (GET|POST|DELETE) \| `([^`]+)` \|", TEXT, re.MULTILINE))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    installation = Installation(tmp_path_factory.mktemp("data"))
    with (
        serve(installation) as address,
        httpx.Client(base_url=address, timeout=PATIENCE_S) as client,
    ):
        yield client


def examples() -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)]


def test_every_route_is_listed_and_no_other(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    served = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert served == ROUTES


def test_the_example_of_a_job_has_the_fields_of_an_answer(client: httpx.Client) -> None:
    job, _ = examples()
    answer = submit(client)
    assert answer.status_code == 202
    got = answer.json()
    assert list(job) == list(got)
    same = ("width", "height", "state", "total_frames", "notes", "can_cancel")
    assert {key: job[key] for key in same} == {key: got[key] for key in same}
    urls = [key for key in job if key.endswith("_url") and job[key]]
    assert [re.sub(r"[\w-]{32}", "", job[key]) for key in urls] == [
        re.sub(r"[\w-]{32}", "", got[key]) for key in urls
    ]


def test_the_example_of_a_refusal_is_one(client: httpx.Client) -> None:
    _, refusal = examples()
    answer = submit(client, tier="huge")
    assert (answer.status_code, answer.json()) == (422, refusal)


def test_fields_of_the_form_are_all_named() -> None:
    said = TEXT.partition("Fields of the form are")[2].partition("```")[0]
    assert set(re.findall(r"`(\w+)`", said)) - {"custom"} == set(schemas.FIELDS)


def test_commands_ask_for_routes_that_there_are() -> None:
    asked = re.findall(r"http://127\.0\.0\.1:7860(/[\w./]+)", TEXT)
    known = {re.sub(r"\{\w+\}", "JOB_ID", path) for _, path in ROUTES}
    assert len(asked) >= 6
    assert set(asked) <= known


def test_every_status_of_a_refusal_is_explained() -> None:
    cells = re.findall(r"^\| ((?:\d{3}(?:, )?)+) \|", TEXT, re.MULTILINE)
    explained = {int(status) for cell in cells for status in cell.split(", ")}
    said = {status for _, status in schemas._STATUS}
    for source in (ROOT / "webui").glob("*.py"):
        text = source.read_text(encoding="utf-8")
        said |= {int(n) for n in re.findall(r"RefusalError\(\s*(\d{3}),", text)}
    text = Path(guard.__file__).read_text(encoding="utf-8")
    said |= {int(number) for number in re.findall(r"\b(4\d\d), \(?\s*f?\"", text)}
    assert {404, 421, 422, 507} <= said
    assert said == explained


def test_the_example_of_the_client_is_python_and_gives_every_input() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    named = {
        keyword.value.value: call
        for call in calls
        for keyword in call.keywords
        if keyword.arg == "api_name" and isinstance(keyword.value, ast.Constant)
    }
    assert set(named) == {"/submit", "/status", "/result"}
    source = ast.parse((ROOT / "webui/api.py").read_text(encoding="utf-8"))
    taken = {
        f"/{node.name}": [a.arg for a in node.args.args if a.arg not in ("self", "request")]
        for node in ast.walk(source)
        if isinstance(node, ast.FunctionDef)
    }
    for name, call in named.items():
        assert len(call.args) == len(taken[name]), name
