"""The server's log: lines for people, or JSON for machines. Never the text of a request."""

import logging
import sys

from .json_lines import json_line
from .server_call import Call

logger = logging.getLogger("corom.serve")
requests = logging.getLogger("corom.serve.request")


class JsonLines(logging.Formatter):
    """One JSON object a line; what a record carries as ``fields`` stands beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        fields: dict[str, object] = getattr(record, "fields", {})
        if record.exc_info:
            fields = fields | {"traceback": self.formatException(record.exc_info)}
        message = record.getMessage()
        return json_line(record.created, record.levelname, record.name, message, **fields)


def set_up_log(*, as_json: bool) -> None:
    """Write warnings of every library, and what corom says, to stderr; requests only as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("corom").setLevel(logging.INFO)
    requests.setLevel(logging.INFO if as_json else logging.WARNING)
    # A port that is scanned would fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def log_request(call: Call) -> None:
    """Write the line of a request, if requests are logged."""
    if not requests.isEnabledFor(logging.INFO):
        return
    usage = call.usage
    fields: dict[str, object] = {
        "id": call.id,
        "method": call.method,
        "route": call.path,
        "status": call.status,
        "total_ms": _ms(call.seconds),
    }
    if usage.texts:
        fields |= {
            "texts": usage.texts,
            "tokens": usage.tokens,
            "truncated_texts": usage.truncated,
            "tokenization_ms": _ms(usage.tokenization_s),
            "queue_ms": _ms(usage.queue_s),
            "inference_ms": _ms(usage.inference_s),
        }
    if call.failure is not None:
        fields["failure"] = call.failure
    requests.info("request", extra={"fields": fields})


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
