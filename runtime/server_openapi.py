"""The server's description of itself, OpenAPI 3.1, made from the structs that it decodes.

Exact enough to generate requests from: every status that can come is declared with its body.
"""

from importlib import metadata
from typing import Any

import msgspec

from . import server_openai as openai
from . import server_tei as tei
from .server_errors import OpenAIError, TeiError, is_openai
from .server_gate import is_probe
from .server_texts import texts_schema

Schema = dict[str, Any]
POSTS: dict[str, tuple[str, Any, Any]] = {
    "/v1/embeddings": ("Vectors, as OpenAI", openai.EmbeddingsRequest, openai.EmbeddingsReply),
    "/embeddings": ("Vectors, as OpenAI", openai.EmbeddingsRequest, openai.EmbeddingsReply),
    "/embed": ("Vectors, as TEI", tei.EmbedRequest, list[list[float]]),
    "/": ("Vectors, as TEI", tei.EmbedRequest, list[list[float]]),
    "/similarity": ("Cosines of sentences to one", tei.SimilarityRequest, list[float]),
    "/tokenize": ("Tokens of texts", tei.TokenizeRequest, list[list[tei.Token]]),
    "/decode": ("Texts of token ids", tei.DecodeRequest, list[str]),
}
GETS: dict[str, tuple[str, Any]] = {
    "/v1/models": ("Names of the model", openai.Models),
    "/v1/models/{model}": ("One of them", openai.Model),
    "/info": ("The model and the limits", tei.Info),
    "/": ("Ready?", None),
    "/health": ("Ready?", None),
    "/ping": ("Ready?", None),
    "/health/ready": ("Ready?", None),
    "/health/live": ("Alive?", None),
    "/metrics": ("Metrics, for Prometheus", str),
    "/openapi.json": ("This description", dict[str, Any]),
}
REFUSALS = {
    400: "No valid JSON, or nothing to do",
    401: "No key, or a wrong one",
    404: "No such model",
    408: "The body did not arrive in time",
    413: "Too much for one request",
    415: "Not JSON",
    422: "Not what is asked for here",
    424: "Inference failed",
    429: "Too much waits: see retry-after",
    431: "Too large headers",
    500: "A failure of the server",
    503: "Starting or ending",
    504: "Not answered in time",
}
EXECUTING = {424, 504}
"""Refusals of routes that execute the model."""


def openapi(*, vocabulary_size: int, dimension: int, prompts: list[str], needs_key: bool) -> Schema:
    """Return the document for a model with these ids, vectors and prompts."""
    requests = [request for _, request, _ in POSTS.values()]
    replies = [reply for _, _, reply in POSTS.values()]
    replies += [reply for _, reply in GETS.values() if reply is not None]
    types = [*requests, *replies, TeiError, OpenAIError]
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    by_type = {str(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    _limit(components, vocabulary_size, dimension, prompts)
    paths: Schema = {}
    for path, (summary, request, reply) in POSTS.items():
        body = {"required": True, "content": _json(by_type[str(request)])}
        operation = _operation(path, "post", summary, by_type[str(reply)], by_type, needs_key)
        paths[path] = {"post": operation | {"requestBody": body}}
    for path, (summary, reply) in GETS.items():
        schema = None if reply is None else by_type[str(reply)]
        operation = _operation(path, "get", summary, schema, by_type, needs_key)
        if "{" in path:
            name = path[path.index("{") + 1 : -1]
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            ]
        paths.setdefault(path, {})["get"] = operation
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "corom serve",
            "description": "Vectors of Chinese sentence encoders, proven equal to torch.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "version": metadata.version("corom"),
        },
        "paths": paths,
        "components": {"schemas": components},
    }
    if needs_key:
        scheme = {"key": {"type": "http", "scheme": "bearer"}}
        document["components"]["securitySchemes"] = scheme
    return document


def _operation(
    path: str,
    method: str,
    summary: str,
    reply: Schema | None,
    by_type: dict[str, Schema],
    needs_key: bool,
) -> Schema:
    probe = is_probe(method.upper(), path)
    answer: Schema = {"description": "As asked"}
    if reply is not None:
        kind = "text/plain" if path == "/metrics" else "application/json"
        answer["content"] = {kind: {"schema": reply}}
    statuses = {503} if method == "get" else set(REFUSALS) - {401, 404}
    statuses |= {431, 500, 503}
    if "{" in path:
        statuses.add(404)
    if needs_key and not probe:
        statuses.add(401)
    if path in {"/tokenize", "/decode"}:
        statuses -= EXECUTING
    if method == "post" and is_openai(path):
        statuses = statuses - {422, 424} | {404}
    error = by_type[str(OpenAIError if is_openai(path) else TeiError)]
    responses = {"200": answer} | {
        str(status): {"description": REFUSALS[status], "content": _json(error)}
        for status in sorted(statuses)
    }
    name = method + "".join(letter if letter.isalnum() else "_" for letter in path)
    operation: Schema = {"operationId": name, "summary": summary, "responses": responses}
    if needs_key and not probe:
        operation["security"] = [{"key": []}]
    return operation


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _limit(components: Schema, vocabulary_size: int, dimension: int, prompts: list[str]) -> None:
    """Put what this very model allows where the structs cannot know it."""
    texts = texts_schema(vocabulary_size)
    ids = texts["anyOf"][2] | {"minItems": 0}
    several_ids = {"type": "array", "items": ids}
    prompt: Schema = {"enum": [None, *prompts], "default": None}
    dimensions: Schema = {
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": dimension}, {"type": "null"}],
        "default": None,
    }
    exact: dict[str, Schema] = {
        "EmbeddingsRequest": {"input": texts, "dimensions": dimensions},
        "EmbedRequest": {"inputs": texts, "dimensions": dimensions, "prompt_name": prompt},
        "SimilarityParameters": {"prompt_name": prompt},
        "TokenizeRequest": {"prompt_name": prompt},
        "DecodeRequest": {"ids": {"anyOf": [ids, several_ids]}},
    }
    for name, properties in exact.items():
        components[name]["properties"] |= properties
