"""`python -m tests.architecture_table` compares every architecture and writes docs/architectures.md."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from tests.architectures import REGISTRY
from tests.comparison import VARIANTS, Comparison, compare

EXPERTS = "## Without some experts"  # the section that tests.pruned_table writes
TABLE = Path(__file__).resolve().parent.parent / "docs" / "architectures.md"

HEAD = """# Architectures

Does this project make the same bytes as mlx-lm? Yes, for {identical} of {all} checkpoints. {differs}
differ. mlx-lm {version} cannot load the rest here.

Each row is a tiny random checkpoint with a LoRA on two thirds of the paths that can carry a LoRA. It is
built twice in {variants}: once by this project, block by block, and once by `mlx_lm.fuse` followed by
`mlx_lm.convert`. Every tensor must have the same bytes, and config.json must say the same. The test is
`tests/engine/test_architectures.py`. This page is written by `python -m tests.architecture_table`.

`tests/engine/test_architectures_adapted.py` compares the same models with DoRA, with a full fine-tune, and
with a LoRA on a dequantized base. It leaves out the few that are marked below, and llama-biased. mlx-lm
cannot dequantize the latent attention of deepseek_v3, deepseek_v32, glm4_moe_lite, glm_moe_dsa, kimi_k25,
kimi_k3, kimi_linear, kimi_vl, longcat_flash, longcat_flash_ngram and mistral4. This project refuses that with
an error that names the part.

A checkpoint named `original` has the names and shapes of Hugging Face. The others have those of mlx-lm.

| architecture | kind | adapted paths | tensors compared | variants | result |
|---|---|---|---|---|---|
"""
NOTES = """
- *changed again*: mlx-lm's `sanitize` normalises the output head of this model each time it is loaded. So
  fuse followed by convert normalises it twice. This project normalises it once. It is compared with the
  code of mlx-lm's fuse and convert, run without writing the fused model and reading it again.
- mlx_lm.convert reads `torch_dtype` (or `text_config.dtype`), and not `dtype`. Without `torch_dtype`,
  layers that DoRA or a full fine-tune made float32 stay float32. Here a variant without `dtype` keeps the
  type of the base.
- *packed*: the checkpoint is quantized already. Adapters and new bits on top of it are refused.
- *mlx-lm fails*: mlx-lm itself cannot load or quantize this model in that variant.
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
    rows = [row(result) for result in results]
    differs = sum("**differs**" in line for line in rows)
    identical = sum("identical" in line for line in rows)
    counts = {"all": len(rows), "identical": identical, "differs": differs or "None"}
    head = HEAD.format(version=version("mlx-lm"), variants=variants, **counts)
    return head + "\n".join(rows) + "\n" + NOTES


def main() -> None:
    results = []
    for architecture in REGISTRY:
        with tempfile.TemporaryDirectory() as folder:
            results.append(compare(architecture, Path(folder)))
        print(row(results[-1]), flush=True)
    _, _, experts = TABLE.read_text().partition(EXPERTS)
    TABLE.write_text(table(results) + (f"\n{EXPERTS}{experts}" if experts else ""))


if __name__ == "__main__":
    main()
