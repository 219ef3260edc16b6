"""`corom serve`: a bundle over HTTP, for the clients of OpenAI and of TEI."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec

from .cli_options import Number, bundle_argument, encoder_options
from .errors import InputError, missing_extra
from .manifest import load_manifest
from .server_process import supervise
from .server_settings import Settings

PACKAGES = ("starlette", "uvicorn", "httptools", "uvloop", "prometheus_client", "orjson")
TRACING_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
SECONDS = Number(0, min_open=True)
FIELDS = msgspec.structs.fields(Settings)


def serving_options(command: Any) -> Any:  # noqa: ANN401
    """Add the options of ``Settings``; their defaults are its defaults."""
    options = [
        _option("--hostname", help="Address to listen on."),
        _option("--port", "-p", type=click.IntRange(0, 65535), help="0 takes a free one."),
        _option("--uds-path", help="Listen on this Unix socket instead."),
        _option(
            "--served-model-name",
            multiple=True,
            help="Name that requests may call the model by, repeatable; default: the bundle's.",
        ),
        _option(
            "--max-batch-tokens",
            type=click.IntRange(1),
            help="Most tokens of one execution, with padding; a backend that is faster with less "
            "takes less.",
        ),
        _option(
            "--max-queue-tokens",
            type=click.IntRange(1),
            help="Tokens that may wait, of all requests; more is answered with 429.",
        ),
        _option(
            "--max-batch-wait-us",
            type=Number(0),
            help="Microseconds a busy worker waits for a batch to fill up.",
        ),
        _option(
            "--max-concurrent-requests",
            type=click.IntRange(1),
            help="Requests in hand at once; more is answered with 429. Default: no limit.",
        ),
        _option(
            "--max-client-batch-size",
            type=click.IntRange(1),
            help="Texts of one request; more is answered with 413.",
        ),
        _option(
            "--max-connections",
            type=click.IntRange(1),
            help="Open connections; beyond it the longest quiet one is closed.",
        ),
        _option(
            "--payload-limit",
            type=click.IntRange(1),
            help="Bytes of a request's body; more is answered with 413.",
        ),
        _option(
            "--body-memory",
            type=click.IntRange(1),
            help="Bytes of all bodies that are being read; more is answered with 429.",
        ),
        _option(
            "--vector-memory",
            type=click.IntRange(1),
            help="Bytes of all vectors that are computed or written; more is answered with 429.",
        ),
        _option(
            "--auto-truncate/--no-auto-truncate",
            help="Cut texts that are too long, and say so in x-truncated-texts; or refuse them.",
        ),
        _option("--default-prompt", help="Put before each text, unless prompt_name is asked for."),
        _option("--default-prompt-name", help="The same, by its name in the bundle."),
        _option(
            "--queue-timeout",
            type=SECONDS,
            help="Seconds that all that waits may take, as measured; more is answered with 429.",
        ),
        _option(
            "--request-timeout",
            type=SECONDS,
            help="Seconds a request may take, or less by its x-request-timeout; then 504.",
        ),
        _option("--header-timeout", type=SECONDS, help="Seconds a client has to send its headers."),
        _option(
            "--body-timeout",
            type=SECONDS,
            help="Seconds a client has to send its body, and to take an answer at 16 KiB a second.",
        ),
        _option("--keep-alive-timeout", type=SECONDS, help="Seconds a connection may stay idle."),
        _option(
            "--shutdown-timeout",
            type=SECONDS,
            help="Seconds that SIGTERM leaves to what was admitted.",
        ),
        _option(
            "--warmup",
            type=click.Choice(["none", "min", "full"]),
            help="What is executed before the server is ready.",
        ),
        _option(
            "--cors-allow-origin",
            multiple=True,
            help="Origin whose pages may call, repeatable; * for all. Default: none.",
        ),
        _option("--json-output", is_flag=True, help="Log JSON, one line a request."),
        _option("--otlp-endpoint", help="Send traces to this OpenTelemetry collector, over HTTP."),
        _option("--otlp-service-name", help="Name of this service in traces."),
        _option(
            "--prometheus-port",
            type=click.IntRange(1, 65535),
            help="Serve /metrics on this port as well, without a key.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _option(flag: str, *more: str, **attributes: Any) -> Any:  # noqa: ANN401
    name = flag.partition("/")[0].removeprefix("--").replace("-", "_")
    default = next(f.default for f in FIELDS if f.name == name)
    shown = default not in (None, (), False)
    return click.option(flag, *more, default=default, show_default=shown, **attributes)


def with_variables(command: click.Command) -> click.Command:
    """Give every option the environment variable COROM_ and its flag."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            flag = max(parameter.opts, key=len).removeprefix("--")
            parameter.envvar = "COROM_" + flag.upper().replace("-", "_")
            parameter.show_envvar = True
    return command


@with_variables
@click.command()
@bundle_argument
@serving_options
@click.option("--api-key", help="Key that requests must bring; better by its variable or a file.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File with the keys, one a line.",
)
@encoder_options
@click.pass_context
def serve(
    context: click.Context,
    /,
    bundle: Path,
    api_key: str | None,
    api_key_file: Path | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Serve BUNDLE over HTTP, for the clients of OpenAI and of text-embeddings-inference.

    Routes: /v1/embeddings, /v1/models, /v1/models/NAME, /embed, /similarity, /tokenize, /decode,
    /info, /health, /health/live, /health/ready, /metrics, /openapi.json. SIGTERM answers what was
    admitted.
    """
    _refuse_if_missing(PACKAGES, "serve", "corom serve")
    if options["otlp_endpoint"] is not None:
        _refuse_if_missing(TRACING_PACKAGES, "otlp", "--otlp-endpoint")
        _check_endpoint(options["otlp_endpoint"])
    if options["default_prompt"] is not None and options["default_prompt_name"] is not None:
        raise click.UsageError("--default-prompt and --default-prompt-name exclude each other.")
    load_manifest(bundle)  # what is no bundle is said at once
    serving = {field.name: options.pop(field.name) for field in FIELDS if field.name in options}
    settings = Settings(
        bundle=str(bundle), encoder=options, api_keys=_keys(api_key, api_key_file), **serving
    )
    context.exit(supervise(settings))


def _keys(api_key: str | None, file: Path | None) -> tuple[str, ...]:
    for variable in ("COROM_API_KEY", "COROM_API_KEY_FILE"):
        # click takes an empty one for none: a secret that is missing would open the server to all.
        if os.environ.get(variable) == "":
            raise InputError(f"{variable} is set and empty. Give it a value, or unset it.")
    keys = [] if api_key is None else [("--api-key", api_key)]
    if file is not None:
        try:
            lines = file.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise InputError(f"--api-key-file '{file}' is not UTF-8. One key a line.") from None
        numbered = enumerate(map(str.strip, lines), 1)
        found = [(f"'{file}', line {number}", key) for number, key in numbered if key]
        if not found:
            raise InputError(f"--api-key-file '{file}' holds no key.")
        keys += found
    for place, key in keys:
        if not key.isascii() or not key.isprintable() or " " in key or not key:
            raise InputError(
                f"{place}: an API key is empty, or has characters that a header cannot carry: "
                "ASCII without spaces."
            )
    return tuple(key for _, key in keys)


def _check_endpoint(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InputError(
            f"--otlp-endpoint is '{endpoint}'; it must be the collector's address for OTLP over "
            "HTTP, such as http://localhost:4318 (4317 is gRPC's)."
        )


def _refuse_if_missing(modules: tuple[str, ...], extra: str, what: str) -> None:
    for module in modules:
        try:
            found = find_spec(module) is not None
        except ModuleNotFoundError:  # of a parent
            found = False
        if not found:
            raise missing_extra(module.replace("_", "-").replace(".", "-"), extra, what)
