"""[adapter.NAME.train] is checked when the file is read, and has the defaults of mlx_lm.lora."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.spec.parse import parse_spec
from builder.spec.training import Schedule, Training
from tests.spec.refused import problems

HEAD = """\
[base.b]
path = "base"
[variant.f16]
dtype = "float16"
[model.m]
adapter = "a"
variants = ["f16"]
[adapter.a]
base = "b"
"""
# Our name -> that of mlx_lm.lora
NAMES = {
    "type": "fine_tune_type",
    "rank": "rank",
    "scale": "scale",
    "dropout": "dropout",
    "layers": "num_layers",
    "iterations": "iters",
    "batch_size": "batch_size",
    "grad_accumulation_steps": "grad_accumulation_steps",
    "optimizer": "optimizer",
    "learning_rate": "learning_rate",
    "max_length": "max_seq_length",
    "mask_prompt": "mask_prompt",
    "grad_checkpoint": "grad_checkpoint",
    "seed": "seed",
    "steps_per_eval": "steps_per_eval",
    "val_batches": "val_batches",
    "save_every": "save_every",
}
TRAIN = '[adapter.a.train]\ndata = "data"\n'


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("", "artifacts.toml:8: [adapter.a] needs path or train"),
        ('path = "a"\n' + TRAIN, "path and train exclude each other; keep one"),
        ("train = 3\n", 'train: expected a table such as { data = "data" }, found the integer 3'),
        ("[adapter.a.train]\n", '[adapter.a.train] data is missing; add, for example, data = "data"'),
        (TRAIN + "rnak = 8", 'artifacts.toml:12: [adapter.a.train] unknown key "rnak"; did you mean "rank"?'),
        (TRAIN + "rank = 0", "rank = 0 is too small; it must be from 1"),
        (TRAIN + "layers = 0", "layers = 0 is not possible; write 1 or more, or -1 for all layers"),
        (TRAIN + "dropout = 1.0", "dropout = 1.0 is too large"),
        (TRAIN + "learning_rate = nan", "learning_rate = nan is not a number that can be used"),
        (TRAIN + 'type = "lara"', 'type = "lara" is not possible; did you mean "lora"?'),
        (TRAIN + 'type = "full"\nrank = 8', "rank is not for type full; remove it"),
        (TRAIN + 'on = "f17"', 'variant "f17" is not declared; did you mean "f16"?'),
        (TRAIN + 'on = "f16"', "an adapter is trained on a variant that has bits or mode, and no more"),
        (TRAIN + 'keep = "first"', 'keep = "first" is not possible'),
        (TRAIN + "schedule = { name = 'cosine_decay' }", "arguments is missing"),
        (
            TRAIN + "schedule = { name = 'step_decay', arguments = [1e-4] }",
            "[adapter.a.train.schedule] step_decay takes 3 arguments, found 1",
        ),
        (
            TRAIN + "learning_rate = 1e-4\nschedule = { name = 'cosine_decay', arguments = [1e-4, 9] }",
            "learning_rate excludes schedule",
        ),
        (TRAIN + "schedule = { name = 'cosine_decay', arguments = ['x'] }", "expected a list of numbers"),
    ],
)
def test_what_cannot_be_trained(settings: str, says: str) -> None:
    assert says in problems(HEAD + settings)


def test_settings_are_read() -> None:
    text = TRAIN + (
        "keys = ['self_attn.q_proj']\npatience = 2\nscale = 2\n"
        "schedule = { name = 'cosine_decay', arguments = [1e-4, 100], warmup = 5 }\n"
    )
    read = parse_spec(Path("artifacts.toml"), (HEAD + text).encode()).adapters["a"].train
    assert read is not None
    assert read.data == Path("data").absolute()
    assert read.keys == ("self_attn.q_proj",)
    assert read.schedule == Schedule("cosine_decay", (1e-4, 100.0), 5)
    assert "learning_rate" not in read.settings  # the schedule replaces it
    assert "save_every" not in read.settings  # it changes no byte
    assert (read.scale, read.patience) == (2.0, 2)


def test_seeds_are_several_adapters_and_models() -> None:
    """Two adapters that differ in the seed only, and a model of each."""
    read = parse_spec(Path("artifacts.toml"), (HEAD + TRAIN + "seeds = [3, 5]").encode())
    assert [target.name for target in read.targets] == ["m-seed3_f16", "m-seed5_f16"]
    found = [adapter.train for adapter in read.adapters.values()]
    assert found == [Training(Path("data").absolute(), seed=seed) for seed in (3, 5)]
    assert {model.adapter for model in read.models.values()} == {"a-seed3", "a-seed5"}
    assert [model.seed_of for model in read.models.values()] == ["m", "m"]
    assert "seeds excludes seed" in problems(HEAD + TRAIN + "seed = 1\nseeds = [0]")
    assert "seeds: 0.5 is not a whole number" in problems(HEAD + TRAIN + "seeds = [1, 0.5]")
    assert "seeds has 1 twice" in problems(HEAD + TRAIN + "seeds = [1, 1]")
    taken = TRAIN + 'seeds = [1]\n[adapter.a-seed1]\nbase = "b"\npath = "a"'
    assert 'one seed of it is the adapter "a-seed1"' in problems(HEAD + taken)
    both = TRAIN + 'seeds = [1]\n[model.m_f16]\nbase = "b"\nvariants = ["f16"]'
    assert '"m_f16", which means all its seeds, is the name of the model "m_f16" too' in problems(HEAD + both)


def test_the_defaults_are_those_of_mlx_lm() -> None:
    from mlx_lm.lora import CONFIG_DEFAULTS

    theirs = CONFIG_DEFAULTS | CONFIG_DEFAULTS["lora_parameters"]
    ours = Training(Path("data"))
    for name, their_name in NAMES.items():
        assert getattr(ours, name) == theirs[their_name], name
