"""README.md of a bundle: what it is, how to use it, how exact it is, whose weights these are."""

from corom.runtime.manifest import Manifest
from corom.runtime.parity_table import parity_markdown, variant_rows

from .recipe import Recipe


def bundle_readme(manifest: Manifest, recipe: Recipe) -> str:
    """Return the text of README.md, Markdown."""
    source = manifest.source
    revision = f", revision {source.revision}" if source.revision else ""
    scale = "scaled to length 1" if manifest.normalize else "not normalized"
    rows = variant_rows(manifest.variants)
    description = f"\n{recipe.description}\n" if recipe.description else ""
    prompts = "".join(f"- prompt `{name}`: {text!r}\n" for name, text in manifest.prompts.items())
    texts = max((p.texts for v in manifest.variants for p in v.parity.values()), default=0)
    return f"""# {manifest.name}
{description}
A corom bundle: a sentence encoder in forms that run without torch, each proven equal to it.

- weights: {source.uri}{revision} (sha256 `{source.weights_sha256}`)
- licence of the weights: {source.license or "not stated by the source; ask their authors"}
- vectors: {manifest.dimension} dimensions, {manifest.pooling} pooling, {scale}
- similarity: {manifest.similarity}; texts are cut to {manifest.max_length} tokens
{prompts}
## Use

```sh
pip install corom
corom embed . 上消化道出血手术大约多久
```

```python
from corom.runtime import Encoder

with Encoder(".") as encoder:
    vectors = encoder.encode(["一句话", "另一句话"])  # (2, {manifest.dimension}) float32
```

`corom verify .` checks the files and, on your machine, the vectors.

## Parity with the torch reference

Measured at export on un-normalized vectors of {texts} texts, each alone and in batches of its
length, some padded to the longest. Bounds stand below what was measured.

{parity_markdown(rows)}"""
