"""What may stand in artifacts.toml: every table, every key, its type and what it means.

Each key is declared here and nowhere else. `builder.spec.shape` checks a file against these tables. The
reference page and the JSON schema for editors are made from these tables. `builder.spec.parse` decides what a
value means once its type is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from builder.spec.destinations import GGUF_TYPES
from builder.spec.quantizers import CRITERIA, METHODS, MODES, RECIPES, ROUNDINGS
from builder.spec.sharing import DEVICES, PUSHES
from builder.spec.training import KEEPS, OPTIMIZERS, SCHEDULES, TYPES, Training
from builder.spec.types import CHECKS, DTYPES, METRICS, TOKENIZERS

# name: the name of a declared table, of the kind that `refers` says. names: a list of such names, not empty.
# path: relative to the file's folder; `~` is a home. size: "16GB". globs: a table of glob = {...} or false.
# texts: a table of label = "text", where a dotted label needs no quotes. strings: a list of texts, not empty.
# numbers: a list of numbers, not empty. shares: a number, or such a list. table: a table with the keys in
# `entry`.
Kind = Literal[
    "string",
    "path",
    "name",
    "names",
    "strings",
    "bool",
    "integer",
    "number",
    "numbers",
    "shares",
    "size",
    "globs",
    "texts",
    "table",
]


@dataclass(frozen=True)
class Field:
    """One key of a table.

    `choices` are the values that are possible in at least one mode. MODES says which integers go with which
    mode. `example` is a line of TOML. At least one of the keys in `needs` must be given too. None of the keys
    in `excludes` may be given too. `entry` holds the keys of one entry, for the kinds globs and table.
    """

    name: str
    kind: Kind
    doc: str
    default: str | bool | int | float | None = None
    choices: tuple[str | int, ...] = ()
    required: bool = False
    example: str = ""
    refers: str = ""
    needs: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    entry: tuple[Field, ...] = ()


@dataclass(frozen=True)
class Table:
    """The table [key] or, when `named`, any number of tables [key.NAME].

    Exactly one of the keys in `one_of` must be given.
    """

    key: str
    doc: str
    fields: tuple[Field, ...]
    named: bool = True
    one_of: tuple[str, ...] = ()


_BITS = tuple(sorted({bits for allowed, _, _, _ in MODES.values() for bits in allowed}))
_GROUP_SIZES = tuple(sorted({size for _, allowed, _, _ in MODES.values() for size in allowed}))

_QUANTIZATION = (
    Field(
        "bits",
        "integer",
        "Bits per weight. Without `mode` the quantization is affine.",
        choices=_BITS,
        example="bits = 5",
    ),
    Field(
        "group_size",
        "integer",
        "How many weights share one scale. Default: the usual group size of the mode.",
        choices=_GROUP_SIZES,
        example="group_size = 64",
    ),
    Field(
        "mode",
        "string",
        "How weights are quantized. Without `bits` it uses the usual bits of the mode.",
        choices=tuple(MODES),
        example='mode = "affine"',
    ),
)
_BITS_FIELD, _GROUP_SIZE_FIELD, _MODE_FIELD = _QUANTIZATION

STORE = Table(
    "store",
    "Where the store is. It holds everything that is built.",
    (Field("path", "path", "The folder of the store.", default="store", example='path = "store"'),),
    named=False,
)

BUILD = Table(
    "build",
    "How builds are run.",
    (
        Field(
            "strict_toolchain",
            "bool",
            "Build again when the version of mlx or mlx-lm changes.",
            default=False,
            example="strict_toolchain = true",
        ),
        Field(
            "survival",
            "bool",
            "Estimate during a build how much of the adapter is left, from a sample of rows.",
            default=True,
            example="survival = false",
        ),
        Field(
            "memory",
            "size",
            "The most memory that a build may use. Default: no limit.",
            example='memory = "16GB"',
        ),
        Field(
            "device",
            "string",
            "Whose bytes are pulled from a remote: made on `any` kind of device (Metal, CUDA, CPU), or only "
            "on the `same` kind as this machine has.",
            default="any",
            choices=DEVICES,
            example='device = "same"',
        ),
    ),
    named=False,
)

BASE = Table(
    "base",
    "Where the original weights come from.",
    (
        Field(
            "path",
            "path",
            "A folder in Hugging Face layout: config.json, model*.safetensors, the tokenizer's files.",
            example='path = "models/base"',
        ),
        Field(
            "hf",
            "string",
            "A Hugging Face repository. The local cache is searched first.",
            example='hf = "org/name"',
            needs=("revision",),
        ),
        Field(
            "revision",
            "string",
            "The commit, tag or branch of the Hugging Face repository. A commit never changes.",
            example='revision = "main"',
            needs=("hf",),
        ),
        Field(
            "gguf",
            "path",
            "The path of a GGUF file, or `package:file` for a file in an installed Python package.",
            example='gguf = "models/base.gguf"',
        ),
        Field(
            "dequantize",
            "bool",
            "The base is quantized already. Dequantize it first.",
            default=False,
            example="dequantize = true",
        ),
        Field(
            "trust_remote_code",
            "bool",
            "Let the model and the tokenizer run the Python code that comes with them. Read that code first.",
            default=False,
            example="trust_remote_code = true",
        ),
    ),
    one_of=("path", "hf", "gguf"),
)

_SCHEDULE = (
    Field(
        "name",
        "string",
        "A schedule of mlx.optimizers.",
        choices=tuple(SCHEDULES),
        required=True,
        example='name = "cosine_decay"',
    ),
    Field(
        "arguments",
        "numbers",
        "Its arguments, in the order of mlx.optimizers. The first one is the learning rate.",
        required=True,
        example="arguments = [1e-5, 1000]",
    ),
    Field(
        "warmup",
        "integer",
        "So many steps first, in which the rate rises to the first argument.",
        default=0,
        example="warmup = 100",
    ),
    Field(
        "warmup_init",
        "number",
        "The rate at the first step of the warm-up.",
        default=0.0,
        example="warmup_init = 1e-7",
        needs=("warmup",),
    ),
)


def _setting(name: str, kind: Kind, doc: str, example: str, **more: Any) -> Field:
    """One setting of a training run. Its default is that of `Training`."""
    default: Any = next(each.default for each in fields(Training) if each.name == name)
    return Field(name, kind, doc, example=example, default=default, **more)


_TRAIN = (
    Field(
        "data",
        "path",
        "A folder with train.jsonl and valid.jsonl, as mlx_lm.lora reads them: rows of `messages`, of "
        "`prompt` and `completion`, or of `text`.",
        required=True,
        example='data = "data"',
    ),
    Field(
        "on",
        "string",
        "A variant with `bits` or `mode` only. The adapter is trained on the base in that variant (QLoRA), "
        "which takes less memory. It is fused into the unquantized base all the same.",
        example='on = "4bit"',
    ),
    _setting("type", "string", "What is trained.", 'type = "lora"', choices=TYPES),
    _setting("rank", "integer", "The rank of each pair of matrices.", "rank = 8"),
    _setting("scale", "number", "What the product of a pair is multiplied by.", "scale = 20.0"),
    _setting("dropout", "number", "The share of inputs that a pair does not see in a step.", "dropout = 0.0"),
    Field(
        "keys",
        "strings",
        "The modules of a layer that get a pair, such as `self_attn.q_proj`. Default: all that mlx-lm can "
        "adapt.",
        example='keys = ["self_attn.q_proj", "self_attn.v_proj"]',
    ),
    _setting("layers", "integer", "So many of the last layers are trained. -1: all layers.", "layers = 16"),
    _setting("iterations", "integer", "How many batches are trained on.", "iterations = 1000"),
    _setting("batch_size", "integer", "Rows in a batch.", "batch_size = 4"),
    _setting(
        "grad_accumulation_steps",
        "integer",
        "Batches whose gradients are added up for one step of the optimizer.",
        "grad_accumulation_steps = 1",
    ),
    _setting(
        "optimizer", "string", "An optimizer of mlx.optimizers.", 'optimizer = "adam"', choices=OPTIMIZERS
    ),
    _setting(
        "learning_rate",
        "number",
        "The learning rate of the optimizer.",
        "learning_rate = 1e-5",
        excludes=("schedule",),
    ),
    Field(
        "schedule",
        "table",
        "A learning rate that changes. Keys: `name` (a schedule of mlx.optimizers), `arguments`, `warmup` "
        "and `warmup_init`, as lr_schedule of mlx_lm.lora.",
        example='name = "cosine_decay", arguments = [1e-5, 1000]',
        entry=_SCHEDULE,
    ),
    _setting(
        "max_length", "integer", "Tokens of a row that are used. A longer row is cut.", "max_length = 2048"
    ),
    _setting("mask_prompt", "bool", "Learn the last message only, not what is asked.", "mask_prompt = true"),
    _setting(
        "grad_checkpoint",
        "bool",
        "Compute each layer twice instead of keeping what it computed. That takes less memory.",
        "grad_checkpoint = true",
    ),
    _setting("seed", "integer", "The seed of the first matrices and of the order of rows.", "seed = 0"),
    Field(
        "seeds",
        "numbers",
        "Several seeds. Each gives an adapter `NAME-seedN`, and a model `MODEL-seedN` of each model that "
        "uses it.",
        example="seeds = [0, 1, 2]",
        excludes=("seed",),
    ),
    _setting(
        "steps_per_eval",
        "integer",
        "Batches between two measurements of the validation loss. It is also measured before the first batch "
        "and after the last one.",
        "steps_per_eval = 200",
    ),
    _setting(
        "val_batches",
        "integer",
        "Batches of valid.jsonl that a measurement reads. -1: all of them.",
        "val_batches = 25",
    ),
    _setting(
        "save_every",
        "integer",
        "Batches between two checkpoints. A run that was interrupted goes on from the last one.",
        "save_every = 100",
    ),
    _setting(
        "keep",
        "string",
        "Which adapter is kept: `best` has the least validation loss, `last` is what mlx_lm.lora keeps.",
        'keep = "best"',
        choices=KEEPS,
    ),
    Field(
        "patience",
        "integer",
        "Stop after so many measurements of the validation loss without a smaller one. Default: never.",
        example="patience = 3",
    ),
)

ADAPTER = Table(
    "adapter",
    "What was learned on top of a base.",
    (
        Field(
            "base",
            "name",
            "The base that the adapter was trained on.",
            required=True,
            refers="base",
            example='base = "NAME"',
        ),
        Field(
            "path",
            "path",
            "The adapter's folder, in mlx-lm or PEFT layout.",
            example='path = "adapters/NAME"',
        ),
        Field(
            "train",
            "table",
            "The adapter is trained here, from these data.",
            example='data = "data"',
            entry=_TRAIN,
        ),
        Field(
            "tokenizer",
            "string",
            "Whose tokenizer and chat templates targets get, where training saved its own in the adapter's "
            "folder. Default: the base's, with a note of what differs.",
            choices=TOKENIZERS,
            example='tokenizer = "adapter"',
        ),
    ),
    one_of=("path", "train"),
)

VARIANT = Table(
    "variant",
    "How weights are stored. Declared once, used by any model.",
    (
        Field(
            "dtype",
            "string",
            "The type of all weights that stay unquantized. Default: the type in the base.",
            choices=DTYPES,
            example='dtype = "float16"',
        ),
        _BITS_FIELD,
        Field(
            "group_size",
            "integer",
            _GROUP_SIZE_FIELD.doc,
            choices=_GROUP_SIZES,
            example=_GROUP_SIZE_FIELD.example,
            needs=("bits", "mode", "recipe", "target"),
        ),
        _MODE_FIELD,
        Field(
            "recipe",
            "string",
            "A mixed recipe of mlx-lm. It chooses the bits of each layer.",
            choices=RECIPES,
            example='recipe = "mixed_4_6"',
            excludes=("bits", "mode"),
        ),
        Field(
            "target",
            "string",
            'A size: "4.7bpw" (bits per weight) or "18GB" (bytes of the weights). Each weight gets its own '
            "bits and groups, so that the model is never larger and its answers change least. "
            '"smallest" searches the fewest bytes that meet what the model requires.',
            example='target = "4.7bpw"',
            excludes=("bits", "mode", "recipe", "method", "overrides"),
        ),
        Field(
            "rounding",
            "string",
            "For `target` and `experts`: how weights are rounded. With `nearest` the text only chooses the "
            "bits, or the experts. Default: `calibrated`, with `experts` `nearest`.",
            choices=ROUNDINGS,
            example='rounding = "nearest"',
            needs=("target", "experts"),
        ),
        Field(
            "experts",
            "shares",
            "For a mixture of experts: the share of the experts of each layer that is kept. The text says "
            'which ones: `calibration` is needed beside it. With `target = "smallest"` a list, such as '
            "`[1.0, 0.875, 0.75]`: the share with which the fewest bytes meet the requirements.",
            example="experts = 0.75",
            excludes=("method",),
        ),
        Field(
            "criterion",
            "string",
            "For `experts`: which ones are kept. `reap`: those with the largest mean of the router's weight "
            "times the norm of the expert's output. `frequency`: those that are chosen most often. `ean`: "
            "those with the largest sum of norms.",
            choices=CRITERIA,
            default=CRITERIA[0],
            example='criterion = "reap"',
            needs=("experts",),
        ),
        Field(
            "method",
            "string",
            "A learned quantizer of mlx-lm (mlx_lm.quant). It reads the variant that `from` names.",
            choices=METHODS,
            example='method = "dwq"',
            excludes=("recipe", "mode", "overrides", "dtype"),
        ),
        Field(
            "from",
            "name",
            "For `method`: the unquantized variant that it reads. That variant is built when it is needed. "
            "An intermediate is pruned afterwards.",
            refers="variant",
            example='from = "f16"',
            needs=("method",),
        ),
        Field(
            "start",
            "name",
            "For `method` dwq: a quantized variant to improve. Its codes stay, and so does its size. Only "
            "scales and biases are tuned, so that answers come nearer to those of the variant that `from` "
            "names. It is built when it is needed.",
            refers="variant",
            example='start = "4bit"',
            needs=("method",),
            excludes=("bits", "group_size"),
        ),
        Field(
            "calibration",
            "path",
            "A text, such as the training data: a .txt file, or a .jsonl of `text` or `messages`. With "
            "`bits` or `recipe`, weights are rounded so that the model's outputs on this text change least. "
            "For `method`: the text that it learns from. For `experts`: the text to measure them with. For "
            "K-quants (`gguf`): the text of the importance matrix that llama.cpp quantizes with.",
            example='calibration = "data/train.jsonl"',
            needs=("bits", "recipe", "target", "method", "experts", "gguf"),
        ),
        Field(
            "seed",
            "integer",
            "For `method`: the seed of its random choices.",
            default=0,
            example="seed = 0",
            needs=("method",),
        ),
        Field(
            "samples",
            "integer",
            "How many pieces of the calibration text are used at most. Default: 32, for `method` 128.",
            example="samples = 32",
            needs=("calibration",),
        ),
        Field(
            "sequence_length",
            "integer",
            "Tokens in each piece of the calibration text. Default: 256, for `method` 512.",
            example="sequence_length = 256",
            needs=("calibration",),
        ),
        Field(
            "learning_rate",
            "number",
            "For `method` dwq: the learning rate of its optimizer.",
            example="learning_rate = 1e-6",
            needs=("method",),
        ),
        Field(
            "high_bits",
            "integer",
            "For `method` dynamic: the bits of sensitive layers. The other layers have `bits`.",
            choices=_BITS,
            example="high_bits = 8",
            needs=("method",),
        ),
        Field(
            "target_bpw",
            "number",
            "For `method` dynamic: the bits per weight that it aims at.",
            example="target_bpw = 5.0",
            needs=("method",),
        ),
        Field(
            "gguf",
            "string",
            "The variant is a GGUF for llama.cpp with weights of this type. It is made block by block of the "
            'base and the adapter. `"exact"` has the very weights of the variant that `of` names. From '
            "`Q6_K` on, types are mixtures that llama.cpp makes.",
            choices=GGUF_TYPES,
            example='gguf = "Q8_0"',
            excludes=(
                "dtype",
                "bits",
                "group_size",
                "mode",
                "recipe",
                "target",
                "method",
                "experts",
                "intermediate",
                "overrides",
            ),
        ),
        Field(
            "of",
            "name",
            'For `gguf = "exact"`: the variant with the same weights, of 4 or 5 bits. It is built when it is '
            "needed.",
            refers="variant",
            example='of = "5bit"',
            needs=("gguf",),
        ),
        Field(
            "intermediate",
            "bool",
            "The target is kept only while something needs it, or when you build it by name.",
            default=False,
            example="intermediate = true",
        ),
        Field(
            "overrides",
            "globs",
            "Other settings for the module paths that a pattern matches. `false` keeps them unquantized. "
            "The first pattern that matches wins. Settings that an entry leaves out come from the variant.",
            example='"lm_head" = { bits = 8 }',
            needs=("bits", "mode", "recipe"),
            entry=_QUANTIZATION,
        ),
    ),
)

MODEL = Table(
    "model",
    "An adapter, or a plain base, and its variants. Each variant gives one target, MODEL_VARIANT.",
    (
        Field("adapter", "name", "The adapter to fuse.", refers="adapter", example='adapter = "NAME"'),
        Field("base", "name", "The base to use without an adapter.", refers="base", example='base = "NAME"'),
        Field(
            "variants",
            "names",
            "The variants to build.",
            required=True,
            refers="variant",
            example='variants = ["4bit"]',
        ),
        Field(
            "suites",
            "names",
            "The suites that measure each target of the model: `doit eval:TARGET`.",
            refers="suite",
            example='suites = ["routing"]',
        ),
        Field(
            "require",
            "texts",
            "What a target must reach: SUITE.FIGURE, and a comparison (>=, <=, >, <) with a number.",
            example='"routing.accuracy" = ">= 0.95"',
            needs=("suites",),
        ),
    ),
    one_of=("adapter", "base"),
)

SUITE = Table(
    "suite",
    "Questions that measure a target.",
    (
        Field(
            "kind",
            "string",
            "`choice`: is the likeliest candidate the right answer? `exact`: would greedy decoding write the "
            "reference answer? `generate`: the model writes an answer, which is checked and timed. "
            "`perplexity`: of the answers, or of a text. `fidelity`: the distance to the unquantized fused "
            "model. `command`: what your own command measures.",
            choices=tuple(METRICS),
            required=True,
            example='kind = "choice"',
        ),
        Field(
            "data",
            "path",
            "A .jsonl as mlx_lm.lora takes it: `messages` that end with the right answer (and `tools`), or "
            "`prompt` and `completion`. `perplexity` and `fidelity` also take `text`, or a .txt file.",
            example='data = "data/test.jsonl"',
        ),
        Field(
            "candidates",
            "texts",
            "For `choice`: how each possible answer begins. The keys are the labels.",
            example="""tool = '{"tool":', direct = "Answer:\"""",
        ),
        Field(
            "answer",
            "string",
            "For `choice`: the key of a row that holds the right label, or a list of right labels.",
            default="label",
            example='answer = "label"',
        ),
        Field(
            "where",
            "texts",
            "Ask only the rows that hold these values.",
            example='label = "tool"',
        ),
        Field(
            "check",
            "string",
            "For `generate`: how the generated text is compared with the reference answer. `exact`: the same "
            "text. `regex`: the answer is a regular expression for the whole text. `json`: the same JSON "
            "value. `tool_call`: the same JSON objects in the same order. Other text around them does not "
            "matter.",
            choices=CHECKS,
            default="exact",
            example='check = "json"',
        ),
        Field(
            "max_tokens",
            "integer",
            "For `generate`: the longest answer, in tokens.",
            default=256,
            example="max_tokens = 256",
        ),
        Field(
            "top_k",
            "integer",
            "For `fidelity`: how many of the likeliest tokens of the unquantized model are compared at each "
            "position. All other tokens count as one.",
            default=64,
            example="top_k = 64",
        ),
        Field(
            "window",
            "integer",
            "For plain text: it is cut into pieces of so many tokens. Each piece is scored by itself.",
            default=512,
            example="window = 512",
        ),
        Field(
            "batch",
            "integer",
            "How many rows are scored at once at most. Long rows and large vocabularies take fewer.",
            default=8,
            example="batch = 8",
        ),
        Field(
            "command",
            "string",
            "For `command`: a command that prints a JSON object of figures. `{model}` is the target's "
            "folder. It runs again when the command, `data`, or a file that the command names changes. `n` "
            "beside the figures is the number of observations, for all figures or for each "
            '(`"n": {"accuracy": 100}`). A figure from 0 to 1 with an `n` counts as a rate.',
            example='command = "python measure.py {model}"',
        ),
        Field(
            "timeout",
            "integer",
            "For `command`: after so many seconds the command is stopped and counts as failed. Default: no "
            "limit.",
            example="timeout = 3600",
        ),
    ),
)

_PRODUCTION = """The target that `models/production` in the store shows. The former target stays beside it \
as `models/production.former`, for `doit rollback:production`. gc keeps both."""
RELEASE = Table(
    "release",
    "What is in use. `doit release:production` moves it. The target must meet its requirements.",
    (
        Field("production", "string", _PRODUCTION, example='production = "MODEL_VARIANT"'),
        Field(
            "publish",
            "names",
            "Publications of `production` that `doit release:production` makes too. A rollback publishes the "
            "former target there again.",
            refers="publish",
            example='publish = ["NAME"]',
            needs=("production",),
        ),
    ),
    named=False,
)

PUBLISH = Table(
    "publish",
    "Where a target goes: `doit publish:NAME`. The target must meet its requirements.",
    (
        Field(
            "target",
            "string",
            "The target to publish, or `production` for what the release shows.",
            example='target = "MODEL_VARIANT"',
        ),
        Field(
            "model",
            "name",
            "For `gguf`: the model, where no target of it is named. `exact` is then that of the release.",
            refers="model",
            example='model = "NAME"',
            needs=("gguf",),
        ),
        Field(
            "gguf",
            "strings",
            "Send GGUF files instead. `exact`: the target's very weights, which must have 4 or 5 bits. Other "
            "types are made of base and adapter, as the model's unquantized variant would be, which is not "
            "written. Each file is measured with llama.cpp and must meet the requirements. From `Q6_K` on "
            "they are mixtures that llama.cpp makes.",
            choices=GGUF_TYPES,
            example='gguf = ["exact", "Q8_0"]',
        ),
        Field(
            "calibration",
            "path",
            "For K-quants: a text, such as the training data. llama.cpp quantizes with an importance matrix: "
            "how large the inputs of each weight are on this text.",
            example='calibration = "data/train.jsonl"',
            needs=("gguf",),
        ),
        Field(
            "samples",
            "integer",
            "How many pieces of the calibration text are used at most. Default: 32.",
            example="samples = 32",
            needs=("calibration",),
        ),
        Field(
            "sequence_length",
            "integer",
            "Tokens in each piece of the calibration text. Default: 256.",
            example="sequence_length = 256",
            needs=("calibration",),
        ),
        Field(
            "to",
            "string",
            "The place: `hf://OWNER/NAME` (the Hugging Face hub), `lmstudio://PUBLISHER/NAME` (where LM "
            "Studio on this machine looks), `oci://HOST/NAME:TAG` (an OCI registry), "
            "`ollama://NAME` (Ollama on this machine, with `gguf`), or a folder.",
            required=True,
            example='to = "hf://OWNER/NAME"',
        ),
        Field(
            "private",
            "bool",
            "For `hf://`: a repository that does not exist yet is made private. The tool never changes that "
            "of a repository that exists.",
            default=True,
            example="private = true",
        ),
        Field(
            "link",
            "bool",
            "For a folder: hard links to the store where clones are not possible. A program that edits "
            "such a file damages the store.",
            default=False,
            example="link = true",
        ),
        Field(
            "override",
            "string",
            "Why the target is published although it misses a requirement. The card says so.",
            example='override = "a preview for the testers"',
        ),
        Field(
            "license",
            "string",
            "The licence of the model, for the card. Default: that of the base, where its files say it.",
            example='license = "apache-2.0"',
        ),
        Field(
            "base_model",
            "string",
            "The repository of the base, for the card. Default: that of an `hf` base.",
            example='base_model = "OWNER/NAME"',
        ),
        Field(
            "datasets",
            "strings",
            "The repositories of the training data, for the card.",
            example='datasets = ["OWNER/NAME"]',
        ),
        Field(
            "benchmarks",
            "texts",
            "For `hf://`: figures that count for a benchmark of the hub, a dataset with tasks. The hub shows "
            "them beside the model and on the page of the benchmark.",
            example='"routing.greedy" = "OWNER/DATASET:TASK"',
            excludes=("gguf",),
        ),
    ),
    one_of=("target", "model"),
)

REMOTE = Table(
    "remote",
    "A store that a team shares. What it has is pulled, not built. Secrets never stand in this file.",
    (
        Field(
            "url",
            "string",
            "Where it lies: a bucket (`s3://BUCKET/PREFIX`, `gs://`, `az://`), a folder (a path, or "
            "`file://`), or a web server that is only read (`https://`).",
            required=True,
            example='url = "s3://models/kiln"',
        ),
        Field(
            "push",
            "string",
            "When a run pushes: `never`, after a `release`, or `always` after a target was built or "
            "measured. `builder push` pushes in any case.",
            default="never",
            choices=PUSHES,
            example='push = "release"',
        ),
        Field(
            "endpoint",
            "string",
            "For `s3://`: the address of a server that is not Amazon's. Default: AWS_ENDPOINT_URL.",
            example='endpoint = "https://s3.example.org"',
        ),
        Field(
            "region",
            "string",
            "For `s3://`: the region. Default: AWS_REGION, or what ~/.aws says.",
            example='region = "eu-central-1"',
        ),
        Field(
            "profile",
            "string",
            "For `s3://`: the profile in ~/.aws. Default: AWS_ACCESS_KEY_ID or AWS_PROFILE.",
            example='profile = "models"',
        ),
        Field(
            "trust",
            "texts",
            "Public keys, by the name of who holds them. With any, only what one of them signed is pulled. "
            "`builder trust` prints and adds keys.",
            example='ci = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"',
        ),
    ),
)

_TABLES = (STORE, BUILD, BASE, ADAPTER, VARIANT, MODEL, SUITE, RELEASE, PUBLISH, REMOTE)
FIELDS: Mapping[str, Table] = {table.key: table for table in _TABLES}
