"""ModelScope's own pipeline beside corom's, on the same checkpoint: do they give the same?

Run: python -m corom.benchmarks.modelscope CHECKPOINT BUNDLE --python PYTHON
CHECKPOINT: a folder in ModelScope's layout; BUNDLE: what `corom export` made of it; PYTHON: an
interpreter that has modelscope 1.40.2 with transformers 4, which corom's own environment has not.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from corom.export.parity import read_texts
from corom.runtime import Tasks, pipeline

from .machine import describe_machine

PEER = """
import json, sys
from modelscope.pipelines import pipeline
checkpoint, inputs, outputs = sys.argv[1:]
pipe = pipeline("sentence-embedding", model=checkpoint, sequence_length=128, device="cpu")
results = [pipe(input=item) for item in json.load(open(inputs))]
found = [{"vectors": r["text_embedding"].tolist(), "scores": r["scores"]} for r in results]
json.dump(found, open(outputs, "w"))
"""


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--python", "interpreter", required=True, help="An interpreter with modelscope.")
def main(checkpoint: Path, bundle: Path, interpreter: str) -> None:
    """Print the largest differences, as JSON."""
    texts = read_texts(None, "parity")
    inputs: list[dict[str, list[str]]] = [
        {"source_sentence": texts[:1], "sentences_to_compare": texts[1:140]},
        {"source_sentence": texts[140:]},
        {"source_sentence": texts[:1]},
    ]
    vector_error = score_error = largest_score = 0.0
    with pipeline(Tasks.sentence_embedding, model=bundle, sequence_length=128) as pipe:
        for item, peer in zip(inputs, ask_peer(interpreter, checkpoint, inputs), strict=True):
            ours = pipe(item)
            expected = np.array(peer["vectors"], np.float32)
            vector_error = max(vector_error, float(np.abs(ours["text_embedding"] - expected).max()))
            if peer["scores"]:  # ModelScope 1.40 gives none without sentences to compare
                errors = np.abs(np.subtract(ours["scores"], peer["scores"]))
                score_error = max(score_error, float(errors.max()))
                largest_score = max(largest_score, float(np.abs(peer["scores"]).max()))
    report = {
        "benchmark": "modelscope",
        "texts": len(texts),
        "vector_max_abs_error": vector_error,
        "score_max_abs_error": score_error,
        "largest_score": largest_score,
    }
    click.echo(json.dumps(report | describe_machine()))


def ask_peer(interpreter: str, checkpoint: Path, inputs: list[dict[str, list[str]]]) -> Any:  # noqa: ANN401
    """Return the vectors and scores that ModelScope's pipeline gives for each input."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "inputs.json", Path(folder) / "outputs.json"
        given.write_text(json.dumps(inputs), encoding="utf-8")
        command = [interpreter, "-c", PEER, str(checkpoint), str(given), str(found)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(found.read_bytes())


if __name__ == "__main__":
    main()
