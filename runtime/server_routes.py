"""The endpoints: each reads a request, has it encoded and writes the reply.

`server_openai.py` and `server_tei.py` hold what each family asks and is answered.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .server_body import Bodies, check_content_type, check_encoding, decode
from .server_call import Call
from .server_embedding import encode, respond, rows_at_once
from .server_errors import Refusal, not_ready, overloaded
from .server_metrics import Metrics
from .server_openai import EmbeddingsRequest, embeddings_reply, models_reply
from .server_openapi import openapi
from .server_service import Service
from .server_tei import (
    DecodeRequest,
    EmbedRequest,
    SimilarityParameters,
    SimilarityRequest,
    Token,
    TokenizeRequest,
    cosines,
    describe,
    embed_reply,
    tokens_of,
)
from .server_texts import options_of, refuse_mixed, texts_of

Endpoint = Callable[[Request], Awaitable[Response]]
TOKENIZE_CHARACTERS = 65_536
"""What /tokenize takes at once, whose tokens become objects of JSON, and /decode, in ids."""
TEXT_CHARACTERS = 2
"""What a text counts beside its own: as special tokens."""


class Routes:
    """The endpoints, over one service."""

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service, self._settings = service, service.settings
        self._exposition = metrics.exposition
        self._started = int(time.time())
        asked = service.settings
        self._bodies = Bodies(asked.payload_limit, asked.body_timeout, asked.body_memory)

    def table(self) -> list[Route]:
        """Return every route."""
        posts: dict[str, tuple[type, Callable[..., Awaitable[Response]]]] = {
            "/v1/embeddings": (EmbeddingsRequest, self._embeddings),
            "/embeddings": (EmbeddingsRequest, self._embeddings),
            "/embed": (EmbedRequest, self._embed),
            "/": (EmbedRequest, self._embed),
            "/similarity": (SimilarityRequest, self._similarity),
            "/tokenize": (TokenizeRequest, self._tokenize),
            "/decode": (DecodeRequest, self._decode),
        }
        gets: dict[str, Endpoint] = {
            "/v1/models": self._models,
            "/v1/models/{model:path}": self._model,
            "/": self._ready,
            "/info": self._info,
            "/health": self._ready,
            "/ping": self._ready,
            "/health/ready": self._ready,
            "/health/live": self._live,
            "/metrics": self._metrics,
            "/openapi.json": self._openapi,
        }
        return [
            *(Route(p, self._post(kind, f), methods=["POST"]) for p, (kind, f) in posts.items()),
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()),
        ]

    # --- What all that is posted goes through

    def _post(self, kind: type, answer: Callable[..., Awaitable[Response]]) -> Endpoint:
        decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
        service, settings, bodies = self._service, self._settings, self._bodies

        async def endpoint(request: Request) -> Response:
            check_content_type(request.headers.get("content-type"))
            check_encoding(request.headers.get("content-encoding"))
            if service.state == "starting":
                raise not_ready("the model is still loading.")
            most = settings.max_concurrent_requests
            if most is not None and service.in_hand >= most:
                why = f"{most} requests are in hand already (--max-concurrent-requests)."
                raise overloaded(why, service.retry_after_s())
            service.before_reading()
            service.begin(request.scope["corom.call"])
            return await answer(request, decode(await bodies.read(request), decoder))

        return endpoint

    # --- OpenAI

    async def _embeddings(self, request: Request, asked: EmbeddingsRequest) -> Response:
        service, names = self._service, self._service.model_names
        if asked.model is not None:
            self._refuse_unless_served(asked.model)
        texts, single = texts_of(asked.input, "input", self._settings.max_client_batch_size)
        call: Call = request.scope["corom.call"]
        call.single = single
        options = options_of(
            truncate=self._settings.auto_truncate,
            dimensions=asked.dimensions,
            most_dimensions=service.encoder.dimension,
            prompt=self._settings.default_prompt,
            prompt_name=self._settings.default_prompt_name,
        )
        vectors = await encode(request, service, texts, options)
        rows = rows_at_once(vectors.shape[1])
        parts = embeddings_reply(
            vectors, asked.encoding_format or "float", asked.model or names[0], call.usage, rows
        )
        return respond(request, parts, -(-len(vectors) // rows), self._headers(call))

    async def _models(self, _request: Request) -> Response:
        self._refuse_unless_open()
        return as_json(models_reply(self._service.model_names, self._started))

    async def _model(self, request: Request) -> Response:
        self._refuse_unless_open()
        name = request.path_params["model"]
        self._refuse_unless_served(name)
        (model,) = models_reply((name,), self._started).data
        return as_json(model)

    # --- TEI

    async def _embed(self, request: Request, asked: EmbedRequest) -> Response:
        texts, single = texts_of(asked.inputs, "inputs", self._settings.max_client_batch_size)
        call: Call = request.scope["corom.call"]
        call.single = single
        options = self._tei_options(asked, normalize=asked.normalize, dimensions=asked.dimensions)
        vectors = await encode(request, self._service, texts, options)
        rows = rows_at_once(vectors.shape[1])
        parts = embed_reply(vectors, rows)
        return respond(request, parts, -(-len(vectors) // rows), self._headers(call))

    async def _similarity(self, request: Request, asked: SimilarityRequest) -> Response:
        texts, _ = texts_of(
            [asked.inputs.source_sentence, *asked.inputs.sentences],
            "inputs",
            self._settings.max_client_batch_size,
        )
        call: Call = request.scope["corom.call"]
        call.single = False
        options = self._tei_options(asked.parameters or SimilarityParameters())
        vectors = await encode(request, self._service, texts, options)
        return as_json(cosines(vectors), self._headers(call))

    async def _tokenize(self, _request: Request, asked: TokenizeRequest) -> Response:
        texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
        tokenizer = self._service.encoder.tokenizer
        prefix = self._service.prefix(asked.prompt_name)
        each = len(prefix) + TEXT_CHARACTERS
        if sum(len(text) + each for text in texts) > TOKENIZE_CHARACTERS:
            why = f"/tokenize takes {TOKENIZE_CHARACTERS} characters at once, prompts included."
            raise Refusal(413, "Validation", f"{why} Send fewer.")
        special = asked.add_special_tokens

        def tokenize() -> list[list[Token]]:
            given = [prefix + text for text in texts]
            pieces = (tokenizer.pieces(text, add_special_tokens=special) for text in given)
            return [tokens_of(*pair) for pair in zip(given, pieces, strict=True)]

        return as_json(await asyncio.to_thread(tokenize))

    async def _decode(self, _request: Request, asked: DecodeRequest) -> Response:
        given: Any = asked.ids
        refuse_mixed(given, "ids")
        rows = given if given and isinstance(given[0], list) else [given]
        if sum(len(ids) + TEXT_CHARACTERS for ids in rows) > TOKENIZE_CHARACTERS:
            why = f"/decode takes {TOKENIZE_CHARACTERS} ids at once. Send fewer."
            raise Refusal(413, "Validation", why)
        tokenizer = self._service.encoder.tokenizer
        skip = asked.skip_special_tokens

        def decode() -> list[str]:
            return [tokenizer.decode(ids, skip_special_tokens=skip) for ids in rows]

        return as_json(await asyncio.to_thread(decode))

    async def _info(self, _request: Request) -> Response:
        self._refuse_unless_open()
        return as_json(describe(self._service))

    # --- Health and metrics

    async def _live(self, _request: Request) -> Response:
        return Response(b"")

    async def _ready(self, _request: Request) -> Response:
        if self._service.state == "ready":
            return Response(b"")
        words = {
            "starting": "the model is still loading.",
            "draining": "the server is ending.",
            "failed": "the device failed, and the server starts again.",
        }
        raise not_ready(words[self._service.state])

    async def _openapi(self, _request: Request) -> Response:
        self._refuse_unless_open()
        encoder = self._service.encoder
        document = openapi(
            vocabulary_size=encoder.tokenizer.vocabulary_size,
            dimension=encoder.dimension,
            prompts=list(encoder.manifest.prompts),
            needs_key=bool(self._settings.api_keys),
        )
        return as_json(document)

    async def _metrics(self, _request: Request) -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(self._exposition(), media_type=kind)

    # ---

    def _tei_options(
        self,
        asked: EmbedRequest | SimilarityParameters,
        *,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> Any:  # noqa: ANN401
        settings = self._settings
        return options_of(
            truncate=settings.auto_truncate if asked.truncate is None else asked.truncate,
            direction=asked.truncation_direction,
            normalize=normalize,
            dimensions=dimensions,
            most_dimensions=self._service.encoder.dimension,
            prompt_name=settings.default_prompt_name
            if asked.prompt_name is None
            else asked.prompt_name,
            prompt=settings.default_prompt,
        )

    def _refuse_unless_served(self, name: str) -> None:
        names = self._service.model_names
        if name not in names:
            raise Refusal(
                404,
                "NotFound",
                f"the model '{name}' is not served here. Served: {', '.join(names)}.",
                param="model",
                code="model_not_found",
            )

    def _headers(self, call: Call) -> dict[str, str]:
        return call.time_headers(self._service.encoder.device)

    def _refuse_unless_open(self) -> None:
        if self._service.state == "starting":
            raise not_ready("the model is still loading.")


def as_json(content: Any, headers: dict[str, str] | None = None) -> Response:  # noqa: ANN401
    """Return a response of JSON."""
    return Response(msgspec.json.encode(content), headers=headers, media_type="application/json")
