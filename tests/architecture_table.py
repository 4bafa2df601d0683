"""`python -m tests.architecture_table` compares every architecture and writes docs/architectures.md."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from tests.architectures import REGISTRY
from tests.comparison import VARIANTS, Comparison, compare

TABLE = Path(__file__).resolve().parent.parent / "docs" / "architectures.md"

HEAD = """# Architectures

What `tests/engine/test_architectures.py` compares for every model in mlx-lm {version}: a tiny random
checkpoint, a LoRA on two thirds of the paths that can carry one, and {variants}; once by this project, block
by block, and once by `mlx_lm.fuse` followed by `mlx_lm.convert`. Every tensor must have the same bytes, and
config.json must say the same. Written by `python -m tests.architecture_table`.

`tests/engine/test_architectures_adapted.py` compares these models with DoRA, with a full fine-tune and with a
LoRA on a dequantized base, but for the few marked below and llama-biased. mlx-lm cannot dequantize the latent
attention of deepseek_v3, deepseek_v32, glm4_moe_lite, glm_moe_dsa, kimi_k25, kimi_k3, kimi_linear, kimi_vl,
longcat_flash, longcat_flash_ngram and mistral4: that is refused by name.

`original` checkpoints have the names and shapes of Hugging Face, the others those of mlx-lm.

| architecture | kind | adapted paths | tensors compared | variants | result |
|---|---|---|---|---|---|
"""
NOTES = """
- *changed again*: mlx-lm's `sanitize` normalises the output head of this model each time it is loaded, so
  fuse followed by convert does it twice. Here it is done once; the comparison is with the code of mlx-lm's
  fuse and convert, run without writing the fused model and reading it again.
- mlx_lm.convert reads `torch_dtype` (or `text_config.dtype`), not `dtype`. Without it, layers that DoRA or a
  full fine-tune made float32 stay so. Here a variant without `dtype` keeps the type of the base.
- *packed*: the checkpoint is quantized already; adapters and new bits on top of it are refused.
"""


def row(result: Comparison) -> str:
    """One line of the table."""
    cells = (
        result.architecture.name,
        result.architecture.kind,
        str(result.adapted),
        str(result.tensors),
        ", ".join(result.variants),
        verdict(result),
    )
    return f"| {' | '.join(cells)} |"


def verdict(result: Comparison) -> str:
    if result.differences:
        return f"**differs**: {result.differences[0]}"
    said = ["identical"] if result.variants else []
    said += ["changed again"] if result.changed_again else []
    said += ["packed"] if result.variants == ("f16",) and not result.failures else []
    said += [f"mlx-lm fails: {failure}" for failure in result.failures]
    return "; ".join(said)


def table(results: Iterable[Comparison]) -> str:
    variants = "the variants " + ", ".join(variant.name for variant in VARIANTS)
    head = HEAD.format(version=version("mlx-lm"), variants=variants)
    return head + "\n".join(row(result) for result in results) + "\n" + NOTES


def main() -> None:
    results = []
    for architecture in REGISTRY:
        with tempfile.TemporaryDirectory() as folder:
            results.append(compare(architecture, Path(folder)))
        print(row(results[-1]), flush=True)
    TABLE.write_text(table(results))


if __name__ == "__main__":
    main()
