"""The description of our routes as a page: written on the server, so that it needs no network."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter()

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color-scheme:light dark}code{background:#8882;padding:.1em .35em;border-radius:.3em}
section{border-top:1px solid #8884;padding:.7rem 0}table{border-collapse:collapse}
td{padding:.1rem 1rem .1rem 0;vertical-align:top}h2{font-size:1.05rem;margin:.2rem 0}"""


@router.get("/docs", response_class=HTMLResponse, include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """All routes; programs read `/openapi.json`."""
    schema: dict[str, Any] = request.app.openapi()
    parts = "".join(_sections(schema))
    title = html.escape(f"{schema['info']['title']} {schema['info']['version']}")
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>{html.escape(schema['info']['description'])} For programs: "
        f'<a href="/openapi.json">/openapi.json</a>.</p>{parts}</body></html>'
    )


def _sections(schema: dict[str, Any]) -> Iterator[str]:
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            text = html.escape(operation.get("description", ""))
            rows = "".join(_rows(schema, operation))
            yield (
                f"<section><h2><code>{method.upper()} {html.escape(path)}</code></h2>"
                f"<p>{text}</p><table>{rows}</table></section>"
            )


def _rows(schema: dict[str, Any], operation: dict[str, Any]) -> Iterator[str]:
    for parameter in operation.get("parameters", []):
        yield _row(parameter["name"], parameter["in"], parameter.get("description", ""))
    form = operation.get("requestBody", {}).get("content", {}).get("multipart/form-data", {})
    for name, field in form.get("schema", {}).get("properties", {}).items():
        kind = "file" if field.get("format") == "binary" else field.get("type", "")
        yield _row(name, f"form, {kind}", field.get("description", ""))
    for status, answer in operation.get("responses", {}).items():
        if status.startswith("2"):
            for name, field in _properties(schema, answer):
                yield _row(f"→ {name}", _kind(field), field.get("description", ""))


def _properties(
    schema: dict[str, Any], answer: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    body = answer.get("content", {}).get("application/json", {}).get("schema", {})
    reference = body.get("$ref") or body.get("items", {}).get("$ref", "")
    named = schema.get("components", {}).get("schemas", {}).get(reference.rpartition("/")[2], {})
    yield from named.get("properties", {}).items()


def _kind(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_kind(option) for option in field["anyOf"])
    return str(field.get("type") or field.get("$ref", "").rpartition("/")[2])


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
