"""Finds the files of a base, chooses those that matter, and makes the digest of the weights.

A base directory is what mlx_lm.utils.load_model reads: config.json and model*.safetensors, plus the
files that are copied into every target as they are (tokenizer, chat template, generation config). Hidden
files count nowhere: macOS leaves `._tokenizer.json` and the like on exFAT and network disks.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.errors import SourceInvalid, SourceMissing
from builder.keys import Digest, Key, digest_bytes, make_key
from builder.sources import hub
from builder.sources.contents import (
    CONFIG,
    INDEX,
    TEMPLATES,
    TOKENIZER_CONFIG,
    is_copied,
    is_shard,
    is_template,
    makes_tokens,
)
from builder.sources.facts import BaseIdentity
from builder.spec.types import Base, HfSource, PathSource
from builder.store.disk.names import is_hidden
from builder.store.types import FileEntry

# Keys of config.json that no model of mlx-lm reads (a test looks through all of them): editing them changes
# no weight.
IGNORED = frozenset(
    {
        "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "unk_token_id", "mask_token_id",
        "decoder_start_token_id", "transformers_version", "use_cache", "id2label", "label2id", "problem_type",
        "return_dict", "output_hidden_states", "output_attentions", "torchscript", "finetuning_task",
        "tokenizer_class", "prefix", "task_specific_params", "max_length", "min_length", "do_sample",
        "temperature", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
        "num_beams", "num_beam_groups", "num_return_sequences", "diversity_penalty", "early_stopping",
        "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
        "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "output_scores",
        "return_dict_in_generate", "encoder_no_repeat_ngram_size", "hidden_dropout", "resid_pdrop",
        "embd_pdrop", "attn_pdrop", "_attn_implementation", "_attn_implementation_autoset",
        "router_aux_loss_coef", "output_router_logits", "unsloth_version", "unsloth_fixed",
    }
)  # fmt: skip
QUANTIZED_ELSEWHERE = "hf_quant_config.json"  # ModelOpt's quantization_config, which mlx-lm reads
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class BaseFiles:
    """A base on disk. `weights` are all files that decide the tensors, config.json among them.

    `copied` are the files that every target gets as they are.
    """

    directory: Path
    weights: tuple[Path, ...]
    copied: tuple[Path, ...]

    def name(self, path: Path) -> str:
        """The name of a file in the folder of the base, and of its copy in the folder of a target."""
        return path.relative_to(self.directory).as_posix()


def locate(base: Base) -> Path | None:
    """The directory of a `path` or `hf` base. None for a repository that is not whole in the local cache.

    Raises SourceMissing for a path that does not exist.
    """
    source = base.source
    if isinstance(source, PathSource):
        if not source.path.is_dir():
            raise SourceMissing(table=f"base.{base.name}", path=source.path)
        return source.path
    if isinstance(source, HfSource):
        return hub.snapshot(source.repo, source.revision)
    raise TypeError(f"a GGUF base is located after its import: {base.name}")


def list_files(base: Base, directory: Path) -> BaseFiles:
    """The files that matter, checked against each other.

    Raises SourceInvalid if config.json is missing, if safetensors are missing, if the folder holds only
    pickles, if it lacks a shard that the index names, and if it holds a stale shard. mlx-lm would load a
    stale shard although the index does not name it.
    """
    table = f"base.{base.name}"
    names = sorted(e.name for e in directory.iterdir() if e.is_file() and not is_hidden(e.name))
    if CONFIG not in names:
        raise SourceInvalid(table=table, path=directory, what="holds no config.json")
    shards = [name for name in names if is_shard(name)]
    if not shards:
        pickled = [name for name in names if name.endswith(_PICKLES)]
        what = f"holds {pickled[0]} but no model*.safetensors" if pickled else "holds no model*.safetensors"
        hint = "Pickles run code when loaded: convert them to safetensors first." if pickled else ""
        raise SourceInvalid(table=table, path=directory, what=what, hint=hint)
    if INDEX in names:
        _check_index(table, directory, set(shards))
    code = [name for name in names if name.endswith(".py")] if base.trust_remote_code else []
    weights = [CONFIG, *(n for n in names if n == QUANTIZED_ELSEWHERE), *code, *shards]
    copied = [name for name in (*names, *_templates(directory)) if is_copied(name)]
    return BaseFiles(
        directory, tuple(directory / name for name in weights), tuple(directory / name for name in copied)
    )


def _templates(directory: Path) -> list[str]:
    """The chat templates besides the first one, by their names in the folder."""
    folder = directory / TEMPLATES
    if not folder.is_dir():
        return []
    return sorted(f"{TEMPLATES}/{entry.name}" for entry in folder.iterdir() if entry.is_file())


def _check_index(table: str, directory: Path, shards: set[str]) -> None:
    path = directory / INDEX
    try:
        named = {
            _text(value) for value in json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"is not an index of shards ({str(error)[:80]})"
        raise SourceInvalid(table=table, path=path, what=what) from error
    if missing := sorted(named - shards):
        raise SourceInvalid(table=table, path=directory, what=f"lacks {missing[0]}, which {INDEX} names")
    if stale := sorted(shards - named):
        raise SourceInvalid(
            table=table,
            path=directory,
            what=f"holds {stale[0]}, which {INDEX} does not name",
            hint="mlx-lm would load it too. Remove this old shard.",
        )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"weight_map holds {reprlib.repr(value)} where the name of a file must be")
    return value


def identity_of(
    weights: Sequence[tuple[str, Digest]],
    copied: Sequence[FileEntry],
    read: Callable[[str], bytes],
    *,
    dequantize: bool,
    trusted: bool,
    imported: Key | None = None,
) -> BaseIdentity:
    """The identity of a base from the digests of its files. Raises OSError from `read`.

    weights: names and digests of config.json, the shards and what else decides the tensors. read: the bytes
    of a small file. trusted: the model's own code is run, and it may read any setting.
    """
    by_name = dict(weights)
    config = by_name.pop(CONFIG)
    settings = config if trusted else _without(_read(read, CONFIG, config), IGNORED)
    vocabulary, prompts = prompts_of(copied, read)
    return BaseIdentity(
        weights=Digest(make_key("base/2", sorted(by_name.items()), settings, dequantize)),
        config=Digest(make_key("base-config/1", config, dequantize)),
        vocabulary=vocabulary,
        prompts=prompts,
        aux=tuple(copied),
        imported=imported,
        former=None if imported else Digest(make_key("base/1", sorted(weights), dequantize)),
    )


def prompts_of(copied: Sequence[FileEntry], read: Callable[[str], bytes]) -> tuple[Digest, Digest]:
    """The identities of the vocabulary, and of all that makes prompts. Raises OSError from `read`."""
    words, prompts = [], []
    for entry in copied:
        name, digest = entry.name, entry.blob.digest
        if makes_tokens(name):
            words.append([name, digest])
        elif name == TOKENIZER_CONFIG:
            words.append([name, _without(_read(read, name, digest), frozenset({"chat_template"}))])
            prompts.append([name, digest])
        elif is_template(name):
            prompts.append([name, digest])
    return Digest(make_key("vocabulary/1", words)), Digest(make_key("prompts/1", words, prompts))


def _read(read: Callable[[str], bytes], name: str, digest: Digest) -> bytes:
    """Raises OSError for a file that is not any more what its digest says."""
    data = read(name)
    if digest_bytes(data) != digest:
        raise OSError(f"{name} has just been replaced")
    return data


def _without(text: bytes, ignored: frozenset[str]) -> Digest:
    """The digest of a JSON object without some of its keys, also in its text_config; of the bytes if it is
    none.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return digest_bytes(text)
    if not isinstance(data, dict):
        return digest_bytes(text)
    kept = {key: value for key, value in data.items() if key not in ignored}
    if isinstance(inner := kept.get("text_config"), dict):
        kept["text_config"] = {key: value for key, value in inner.items() if key not in ignored}
    return digest_bytes(json.dumps(kept, sort_keys=True).encode())


def digest_all(
    paths: tuple[Path, ...], digest_of: Callable[[Path], Digest | None]
) -> list[tuple[str, Digest]] | None:
    """(name, digest) of each path. None if `digest_of` does not know the digest of some path."""
    found = []
    for path in paths:
        digest = digest_of(path)
        if digest is None:
            return None
        found.append((path.name, digest))
    return found
