"""What `corom serve` was asked for, handed from the supervisor to the worker."""

from typing import Any, Literal

import msgspec

Warmup = Literal["none", "min", "full"]
CUT_OFF = 143
"""Exit code if requests were lost: --shutdown-timeout had passed, or the worker was killed."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of `corom serve`, checked; its help says what each is for. Seconds, bytes."""

    bundle: str
    encoder: dict[str, Any] = {}
    """Options of ``Encoder``."""
    hostname: str = "127.0.0.1"
    port: int = 3000
    uds_path: str | None = None
    served_model_name: tuple[str, ...] = ()
    max_batch_tokens: int = 16384
    max_queue_tokens: int = 131_072
    max_batch_wait_us: float = 0
    max_concurrent_requests: int | None = None
    max_client_batch_size: int = 16384
    max_connections: int = 20_000
    payload_limit: int = 2_000_000
    body_memory: int = 256_000_000
    vector_memory: int = 512_000_000
    auto_truncate: bool = True
    default_prompt: str | None = None
    default_prompt_name: str | None = None
    queue_timeout: float = 2
    request_timeout: float = 300
    header_timeout: float = 10
    body_timeout: float = 30
    keep_alive_timeout: float = 75
    shutdown_timeout: float = 30
    warmup: Warmup = "min"
    api_keys: tuple[str, ...] = ()
    cors_allow_origin: tuple[str, ...] = ()
    json_output: bool = False
    otlp_endpoint: str | None = None
    otlp_service_name: str = "corom"
    prometheus_port: int | None = None
