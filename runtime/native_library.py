"""corom's own kernels: found, checked to run on this CPU, and called through their C interface.

The structures mirror those of ``native/encoder.cpp``.
"""

import ctypes
import os
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p
from functools import cache
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from .cpus import cpu_flags, cpu_model
from .errors import InputError, UnavailableError
from .native_weights import Linear, NativeWeights
from .vectors import Vectors

NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
"""What the kernels are compiled for, as Linux names it."""
INTERFACE = 2
"""Of the functions and structures below; raised with every change of them."""
MOST_THREADS = 1024
_MODULE = "corom.runtime._native"
_NO_MEMORY, _NOT_ENCODABLE = 1, 2
_AGAIN = (
    "Install one (Debian: apt install g++), then corom again, in a checkout of it: "
    "pip install --force-reinstall --no-deps ."
)


def require_native() -> None:
    """Raise ``UnavailableError`` unless the kernels are installed and this CPU executes them."""
    flags = cpu_flags()
    missing = [flag for flag in NEEDED if flag not in flags]
    if missing:
        raise UnavailableError(
            f"this CPU ({cpu_model()}) has no {', '.join(missing)}, or does not tell: backend "
            "'native' needs AVX-512 with VNNI. Take backend openvino, or another precision."
        )
    if find_spec(_MODULE) is None:
        raise UnavailableError(
            "this installation has no kernels for backend 'native': they are compiled when corom "
            f"is installed on Linux on x86-64 by g++ from version 11 on, or clang++. {_AGAIN}"
        )
    _library()


def native_is_here() -> bool:
    """Say whether ``require_native`` has nothing against it."""
    try:
        require_native()
    except UnavailableError:
        return False
    return True


class _Linear(Structure):
    _fields_ = [("codes", c_void_p), ("scales", c_void_p), ("bias", c_void_p)]


class _Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class _Layer(Structure):
    _fields_ = [
        ("query", _Linear),
        ("key_value", _Linear),
        ("output", _Linear),
        ("inner", _Linear),
        ("outer", _Linear),
        ("attention_norm", _Norm),
        ("output_norm", _Norm),
    ]


class _Model(Structure):
    _fields_ = [
        ("vocabulary", c_int64),
        ("positions", c_int64),
        ("width", c_int64),
        ("inner_width", c_int64),
        ("mean_pooled", c_int64),
        ("epsilon", c_float),
        ("activation_end", c_float),
        ("activation", c_void_p),
        ("words", c_void_p),
        ("position_table", c_void_p),
        ("norm", _Norm),
    ]


@cache
def _library() -> ctypes.CDLL:
    spec = find_spec(_MODULE)
    assert spec is not None
    assert spec.origin is not None
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError as error:  # compiled for another C library
        raise UnavailableError(f"backend 'native' cannot be loaded: {error}. {_AGAIN}") from None
    interface = getattr(library, "corom_interface", None)
    if interface is None or interface() != INTERFACE:
        raise UnavailableError(f"the kernels of backend 'native' are of another corom. {_AGAIN}")
    for name, result, arguments in (
        ("corom_model", c_void_p, [POINTER(_Model)]),
        ("corom_add_layer", c_int, [c_void_p, c_float, POINTER(_Layer)]),
        ("corom_free_model", None, [c_void_p]),
        ("corom_runner", c_void_p, [c_void_p, c_int]),
        ("corom_free_runner", None, [c_void_p]),
        ("corom_run", c_int, [*[c_void_p] * 3, c_int, c_int, c_void_p]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class NativeModel:
    """Weights as the kernels take them; freed with the last reference.

    Raises ``UnavailableError`` without the kernels, and ``MemoryError``.
    """

    def __init__(self, weights: NativeWeights, *, mean_pooled: bool) -> None:
        require_native()
        self._library = _library()
        self._tables = (weights.words, weights.positions)  # used where they are
        self.dimension = weights.words.shape[1]
        epsilon = float(weights.epsilon[0])
        model = _Model(
            vocabulary=len(weights.words),
            positions=len(weights.positions),
            width=self.dimension,
            inner_width=weights.inner.codes.shape[1],
            mean_pooled=mean_pooled,
            epsilon=epsilon,
            activation_end=float(weights.activation[0]),
            activation=weights.activation[1:].ctypes.data,
            words=weights.words.ctypes.data,
            position_table=weights.positions.ctypes.data,
            norm=_norm(weights.norm),
        )
        self.handle = self._library.corom_model(byref(model))
        if self.handle is None:
            raise MemoryError
        for index in range(len(weights.output_norm)):
            layer = _layer(weights, index, self.dimension)
            if self._library.corom_add_layer(self.handle, epsilon, byref(layer)):
                raise MemoryError

    def __del__(self) -> None:
        if getattr(self, "handle", None) is not None:
            self._library.corom_free_model(self.handle)


class NativeRunner:
    """Threads that execute one batch at a time, with the memory that this takes."""

    def __init__(self, model: NativeModel, threads: int) -> None:
        self._library = _library()
        self._model = model
        self._process = os.getpid()
        self._handle = None
        if threads <= MOST_THREADS:
            self._handle = self._library.corom_runner(model.handle, threads)
        if self._handle is None:
            raise UnavailableError(
                f"no {threads} threads can be started here. Ask for fewer: threads=1 (--threads 1)."
            )

    def run(self, input_ids: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Vectors:
        """Return the vectors (B, H) of ids (B, S) of which the first ``lengths`` (B,) count.

        Raises ``InputError`` for ids that the model has no vector for, and ``MemoryError``.
        """
        input_ids = np.ascontiguousarray(input_ids, np.int64)
        lengths = np.ascontiguousarray(lengths, np.int64)
        rows, width = input_ids.shape
        vectors = np.empty((rows, self._model.dimension), np.float32)
        failed = self._library.corom_run(
            self._handle,
            input_ids.ctypes.data,
            lengths.ctypes.data,
            rows,
            width,
            vectors.ctypes.data,
        )
        if failed == _NO_MEMORY:
            raise MemoryError
        if failed == _NOT_ENCODABLE:
            raise InputError("a text has token ids or a length that the model does not have.")
        return vectors

    def __del__(self) -> None:
        # In a forked process there are no threads that could be waited for.
        if getattr(self, "_handle", None) is not None and os.getpid() == self._process:
            self._library.corom_free_runner(self._handle)


def _layer(weights: NativeWeights, index: int, hidden: int) -> _Layer:
    projected = weights.query_key_value
    return _Layer(
        query=_linear(projected, index),
        key_value=_linear(projected, index, first=hidden),
        output=_linear(weights.output, index),
        inner=_linear(weights.inner, index),
        outer=_linear(weights.outer, index),
        attention_norm=_norm(weights.attention_norm[index]),
        output_norm=_norm(weights.output_norm[index]),
    )


def _linear(linear: Linear, index: int, first: int = 0) -> _Linear:
    codes, scales, bias = (part[index, first:] for part in linear)
    return _Linear(codes.ctypes.data, scales.ctypes.data, bias.ctypes.data)


def _norm(weight_and_bias: Vectors) -> _Norm:
    weight, bias = weight_and_bias
    return _Norm(weight.ctypes.data, bias.ctypes.data)
