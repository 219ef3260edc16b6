"""README.md of a Triton model repository: what it serves, how to start it, how to call it."""

from .triton_options import Serving
from .triton_tensors import EMBEDDING, TEXT, TRUNCATED

IMAGE = "nvcr.io/nvidia/tritonserver:25.10-py3"


def repository_readme(serving: Serving, version: str) -> str:
    """Return the text of README.md, Markdown. ``version``: corom's."""
    manifest, name = serving.manifest, serving.name
    scale = "scaled to length 1" if manifest.normalize else "not normalized"
    long = (
        f"cut to {serving.max_length} tokens"
        if serving.asked.truncate
        else f"answered with an error beyond {serving.max_length} tokens"
    )
    gpus = "--gpus all " if serving.device == "cuda" else ""
    wheel, extra = f"corom-{version}-*.whl", _extra(serving)
    prompts = "".join(f"- prompt `{key}`: {text!r}\n" for key, text in manifest.prompts.items())
    return f"""# {name}: a model repository for NVIDIA Triton

Made by corom {version} from the bundle `{manifest.name}` ({manifest.source.uri}).
Licence of the weights: {manifest.source.license or "not stated by the source; ask their authors"}.

- `{name}` (the ensemble to call): `{TEXT}` (B, 1) of UTF-8 text → `{EMBEDDING}`
  (B, {manifest.dimension}) float32, {scale}, and `{TRUNCATED}` (B, 1), true for texts that were cut
- similarity: {manifest.similarity}; texts are {long}
- up to {serving.max_batch_size} texts a request
- the encoder: {_encoder_line(serving)}
{prompts}
## Start it

Triton's Python needs corom {version} (Python 3.11 or newer: images from 24.11 on). No torch. NumPy
below 2 for older images, whose Python backend (before 24.12) reads no arrays of NumPy 2. In a
folder with corom's wheel and no other (`python -m build --wheel` makes it, in a checkout of corom):

```sh
docker build -t {name.lower()}-triton -f - . <<'DOCKERFILE'
FROM {IMAGE}
COPY {wheel} /tmp/
RUN pip install --break-system-packages "$(ls /tmp/{wheel}){extra}" 'numpy<2'{_gpu_runtime(serving)}
DOCKERFILE
```

Then in this folder:

```sh
docker run --rm {gpus}--shm-size=1g -p 8000:8000 -p 8001:8001 -p 8002:8002 \\
    -v "$PWD":/models:ro {name.lower()}-triton tritonserver --model-repository=/models
```

{_image_line(serving)}It is ready (`/v2/health/ready`) once the models have executed their warm-up.

## Call it

```python
import numpy as np
import tritonclient.http as triton  # pip install 'tritonclient[http]'

texts = ["上消化道出血手术大约多久", "胃出血一般住院30-60天。"]
text = triton.InferInput("{TEXT}", [len(texts), 1], "BYTES")
text.set_data_from_numpy(np.array([[t.encode()] for t in texts], dtype=object))
with triton.InferenceServerClient("localhost:8000") as client:
    answer = client.infer("{name}", [text])
vectors = answer.as_numpy("{EMBEDDING}")  # ({manifest.dimension} values a text)
answer.as_numpy("{TRUNCATED}")  # which texts were cut
```

Parameters of a request: `truncate` ("error" refuses texts that are too long), `prompt_name` and
`prompt`, as for corom's `Encoder.encode`: `client.infer(..., parameters={{"truncate": "error"}})`.
Texts that were cut are counted in Triton's metrics too: `corom_truncated_texts_total`.

`{name}_tokenizer` and `{name}_encoder` are its parts. `config.pbtxt` may be edited: instances,
queue delay, batch sizes. `corom-triton.json` holds the sha256 of every file as it was written.
"""


def _encoder_line(serving: Serving) -> str:
    if serving.engine is not None:
        sidecar = serving.engine.sidecar
        return (
            f"a TensorRT {sidecar.version} plan in {sidecar.precision} for {sidecar.gpu}, by "
            "Triton's TensorRT backend"
        )
    if serving.asked.encoder == "onnxruntime":
        return f"the {serving.variant.precision} ONNX graph on {serving.device}, by ONNX Runtime"
    return (
        f"corom.runtime in Triton's Python backend (backend {serving.asked.backend}, precision "
        f"{serving.asked.precision}, on {serving.device})"
    )


def _extra(serving: Serving) -> str:
    backend, device = serving.asked.backend, serving.device
    if serving.asked.encoder != "python":
        return ""
    if backend in {"openvino", "tensorrt"}:
        return f"[{backend}]"
    return "[gpu]" if device == "cuda" else ""


def _gpu_runtime(serving: Serving) -> str:
    if _extra(serving) != "[gpu]":
        return ""
    return """ \\
    && pip uninstall --break-system-packages -y onnxruntime onnxruntime-gpu \\
    && pip install --break-system-packages 'onnxruntime-gpu[cuda,cudnn]' 'numpy<2'
# The CPU's ONNX Runtime, which corom brings, and the GPU's share a folder: the last one stays."""


def _image_line(serving: Serving) -> str:
    if serving.asked.encoder == "python" and serving.asked.backend == "tensorrt":
        return (
            "An engine opens only with the TensorRT it was built by: add `'tensorrt==VERSION'` to "
            "the pip line (`corom inspect BUNDLE` lists engines).\n"
        )
    if serving.engine is None:
        return ""
    sidecar = serving.engine.sidecar
    return (
        f"Take the image whose TensorRT is {sidecar.version} (NVIDIA's support matrix lists them): "
        f"a plan runs on the version and the GPU it was built for, {sidecar.gpu}.\n"
    )
