"""ONNX Runtime, imported from here alone, so that it reports to nobody.

Since 1.29 it sends names and hashes of models to its makers, and writes an id of the machine into
the user's cache, unless this variable is set before it is first imported.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

# If it was imported before, this leaves out what it still can. A user's "0" is a user's wish.
if os.environ["ORT_DISABLE_TELEMETRY"] != "0":
    onnxruntime.disable_telemetry_events()

__all__ = ["onnxruntime"]
