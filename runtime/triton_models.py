"""The Python models of a Triton repository, as Triton's Python backend calls them.

Imported inside Triton only, which brings ``triton_python_backend_utils``; `triton_steps.py` is what
they compute. A request that cannot be answered gets an error of its own; the others are answered.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from .errors import CoromError
from .triton_steps import EncoderStep, Ids, TokenizerStep
from .triton_tensors import TRUNCATED
from .vectors import normalize


class _Model(ABC):
    """What the models share: where they lie, and what config.pbtxt says."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open what the model needs; an error here keeps the server from being ready."""
        self._config: dict[str, Any] = json.loads(args["model_config"])
        self._name = self._config["name"]
        self._folder = Path(args["model_repository"]) / args["model_version"]
        parameters = self._config.get("parameters", {})
        self._settings = {key: value["string_value"] for key, value in parameters.items()}
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Open what the model needs."""


class TokenizerModel(_Model):
    """TEXT to what the encoder takes, and TRUNCATED; counts the texts that were cut."""

    def _open(self) -> None:
        widths = [int(width) for width in self._settings["widths"].split()]
        truncate = self._settings["truncate"]
        self._step = TokenizerStep(
            self._folder,
            int(self._settings["max_length"]),
            True if truncate == "true" else truncate,
            widths,
        )
        self._outputs = [
            (output["name"], triton.triton_string_to_numpy(output["data_type"]))
            for output in self._config["output"]
        ]
        family = triton.MetricFamily(
            name="corom_truncated_texts_total",
            description="Texts that were longer than the maximum length and were cut",
            kind=triton.MetricFamily.COUNTER,
        )
        self._truncated = family.Metric(labels={"model": self._name})
        self._family = family  # the metric goes with it

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return a response for each request, in order."""
        return [_answer(self._tokenize, request) for request in requests]

    def _tokenize(self, request: Any) -> list[Any]:  # noqa: ANN401  # a class of Triton's
        parameters = request.parameters()
        arrays = self._step(_array(request, "TEXT"), json.loads(parameters) if parameters else {})
        if cut := int(arrays[TRUNCATED].sum()):
            self._truncated.increment(cut)
        return [triton.Tensor(name, arrays[name].astype(kind)) for name, kind in self._outputs]


class EncoderModel(_Model):
    """Ids of all requests that wait to vectors, cut into batches by their tokens."""

    def _open(self) -> None:
        settings: dict[str, Any] = dict(self._settings)
        if "threads" in settings:
            settings["threads"] = int(settings["threads"])
        elif settings["device"] == "cpu":
            settings["threads"] = _share(self._config)
        self._step = EncoderStep(self._folder / "bundle", **settings)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return a response for each request, in order."""
        try:
            ids = [self._ids(request) for request in requests]
            return [_response([_vectors(found)]) for found in self._step(ids)]
        except Exception:  # one of them is at fault: each alone, so that the others are answered
            return [_answer(self._encode, request) for request in requests]

    def finalize(self) -> None:
        """Release the encoder."""
        self._step.close()

    def _ids(self, request: Any) -> Ids:  # noqa: ANN401
        return Ids(_array(request, "input_ids"), _array(request, "lengths"))

    def _encode(self, request: Any) -> list[Any]:  # noqa: ANN401
        return [_vectors(self._step([self._ids(request)])[0])]


class NormalizeModel(_Model):
    """Vectors to vectors of length 1, behind an encoder that Triton executes itself."""

    def _open(self) -> None:
        """Nothing to open."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return a response for each request, in order."""
        return [_answer(self._normalize, request) for request in requests]

    def _normalize(self, request: Any) -> list[Any]:  # noqa: ANN401
        return [_vectors(normalize(_array(request, "sentence_embedding")))]


def _share(config: dict[str, Any]) -> int:
    """Return the CPU threads of one of several instances."""
    from .cpus import available_cpus

    instances = sum(int(group["count"]) for group in config["instance_group"])
    return max(1, available_cpus() // max(1, instances))


def _answer(compute: Callable[[Any], list[Any]], request: Any) -> Any:  # noqa: ANN401
    try:
        return _response(compute(request))
    except CoromError as error:
        return _refusal(str(error), triton.TritonError.INVALID_ARG)
    except Exception as error:  # what a library raises; the server lives on
        return _refusal(f"{type(error).__name__}: {error}", triton.TritonError.INTERNAL)


def _response(tensors: list[Any]) -> Any:  # noqa: ANN401
    return triton.InferenceResponse(output_tensors=tensors)


def _refusal(message: str, code: int) -> Any:  # noqa: ANN401
    return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(message, code))


def _array(request: Any, name: str) -> Any:  # noqa: ANN401
    return triton.get_input_tensor_by_name(request, name).as_numpy()


def _vectors(found: Any) -> Any:  # noqa: ANN401
    return triton.Tensor("sentence_embedding", np.ascontiguousarray(found))
