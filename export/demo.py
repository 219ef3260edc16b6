"""`make demo`: a real checkpoint to a proven bundle, and ModelScope's example on it."""

from pathlib import Path

import click
from rich.console import Console

from corom.runtime.cli import GuardedCommand, main
from corom.runtime.errors import CoromError
from corom.runtime.manifest import Manifest, load_manifest
from corom.runtime.parity_table import parity_table, variant_rows
from corom.runtime.pipeline import Tasks, pipeline

from .recipe import load_recipe

EXAMPLE = {
    "source_sentence": ["上消化道出血手术大约多久"],
    "sentences_to_compare": [
        "上消化道出血手术大约要2-3个小时左右。手术后应观察血压、体温、脉搏、呼吸的变化。"
        "污染被服应随时更换，以避免不良刺激。出血停止后按序给予温凉流质、半流质及易消化的软饮食。",
        "胃出血一般住院30-60天。胃出血一般需要住院的时间需要注意根据情况来看，"
        "要看是胃溃疡引起，还是有无肝硬化门静脉高压引起的出血的情况，"
        "待消化道出血完全停止后病情稳定就可以出院，因此住院时间并不固定。",
    ],
}
"""The example of CoROM-medical's model card."""


@click.command(cls=GuardedCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
def run_demo(bundle: Path) -> None:
    """Make the demo bundle unless it is there, show its parity, run the model card's example."""
    manifest = _existing(bundle)
    if manifest is None:
        from .bundle import export_bundle  # torch: seconds that a second demo need not spend

        click.echo(f"Exporting the demo checkpoint to {bundle} (once; about a minute)")
        manifest = export_bundle("demo", bundle, overwrite=True, say=lambda s: click.echo(f"  {s}"))
    click.echo(_WEIGHTS.format(license=manifest.source.license))
    rows = variant_rows(manifest.variants)
    Console().print(parity_table(rows, "Parity with the torch reference"))
    with pipeline(Tasks.sentence_embedding, model=bundle, sequence_length=128) as pipe:
        result = pipe(EXAMPLE)
    vectors, scores = result["text_embedding"], result["scores"]
    click.echo(f"\n{EXAMPLE['source_sentence'][0]}")
    click.echo(f"text_embedding: {vectors.shape} {vectors.dtype}")
    for score, sentence in zip(scores, EXAMPLE["sentences_to_compare"], strict=True):
        click.echo(f"score {score:8.3f}  {sentence[:24]}…")
    click.echo(_NEXT.format(bundle=bundle))


def _existing(bundle: Path) -> Manifest | None:
    """Return the manifest of a bundle of the demo's own weights; None for anything else."""
    try:
        manifest = load_manifest(bundle)
    except CoromError:
        return None
    return (
        manifest if manifest.source.weights_sha256 == load_recipe("demo").weights_sha256 else None
    )


_WEIGHTS = """
These are the weights of m3e-small (a trained Chinese BERT), which stand in for CoROM's here.
Licence of the weights: {license}
To do the same with CoROM from ModelScope:
    corom export modelscope:iic/nlp_corom_sentence-embedding_chinese-tiny-medical -o corom-tiny
"""
_NEXT = """
Next, in Python:
    from corom.runtime import Encoder
    vectors = Encoder("{bundle}").encode(["一句话", "另一句话"])
"""

if __name__ == "__main__":
    main(run_demo)
