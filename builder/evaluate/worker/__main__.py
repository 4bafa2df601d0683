"""The process that holds a model: one JSON request on stdin, one JSON answer on stdout.

`builder.evaluate.process` starts it as `python -m builder.evaluate.worker`. A process of its own gives the
memory of a model back when it ends. A crash of native code becomes an error, and does not end the build.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from builder.console.orphans import end_with_parent
from builder.errors import BuildError, described_error
from builder.evaluate.process import Step, say, telling
from builder.project.result_keys import PRECISION


def main() -> int:
    """Returns 0 and writes {"results": ...}, or returns the error's exit code and writes {"error": ...}."""
    end_with_parent()
    request = json.load(sys.stdin)
    out = sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):  # libraries print
            answer = answer_to(request)
    except BuildError as error:
        json.dump({"error": described_error(error)}, out)
        return error.exit_code
    json.dump(answer, out)
    return 0


def answer_to(request: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of every suite in the request, and how they were made. Raises BuildError."""
    from builder.engine.blas import accelerate
    from builder.evaluate.circumstances import circumstances, device
    from builder.evaluate.run import suite_from

    made = {"blas": accelerate(), "precision": PRECISION, **circumstances(), "device": device()}
    start = time.perf_counter()
    suites = [suite_from(described) for described in request["suites"]]
    if suites[0].kind == "generate":
        results = {suites[0].name: asdict(_generate(request, suites[0]))}
        if request.get("gguf"):
            del made["blas"]
            return {"results": results, "made": {**made, **_llama()}}
        return {"results": results, "made": made | {"precision": PRECISION if on_cpu() else "as stored"}}
    parts = _parts(request, suites)
    if request.get("gguf"):
        del made["blas"]
        return {"results": _in_llama(request, parts, telling()), "made": {**made, **_llama()}}
    batch = min(suite.batch for suite in suites)
    results = _score(request, parts, batch)
    for suite in suites:
        if request["make"].get(suite.name):
            parts[suite.name].save(Path(request["make"][suite.name]))
    made["seconds"] = f"{time.perf_counter() - start:.1f}"
    return {"results": results, "made": made}


def on_cpu() -> bool:
    """Whether mlx computes on the CPU."""
    import mlx.core as mx

    return bool(mx.default_device() == mx.Device(mx.cpu))


def _parts(request: Mapping[str, Any], suites: Sequence[Any]) -> dict[str, Any]:
    from builder.evaluate.worker import measure
    from builder.evaluate.worker.questions import answer_asks, read_rows

    tokenizer = _tokenizer(request)
    parts: dict[str, Any] = {}
    for suite in suites:
        rows = read_rows(suite)
        if request["make"].get(suite.name):
            parts[suite.name] = measure.Reference(answer_asks(suite, rows, tokenizer), suite.top_k)
        else:
            file = request["references"].get(suite.name)
            parts[suite.name] = measure.part(suite, rows, tokenizer, Path(file) if file else None)
    return parts


def _tokenizer(request: Mapping[str, Any]) -> Any:
    """The tokenizer of the target: of its folder, else of its base or adapter."""
    from builder.evaluate.worker.tokens import tokenizer_of, tokenizer_of_files

    trusted = request["base"]["trust_remote_code"]
    if request["directory"] is None and request["tokenizer"]:
        return tokenizer_of_files(request["tokenizer"], trust_remote_code=trusted)
    directory = Path(request["directory"] or request["base"]["directory"])
    return tokenizer_of(directory, trust_remote_code=trusted)


def _generate(request: Mapping[str, Any], suite: Any) -> Any:
    from builder.evaluate.worker.generate import MlxWriter, generate_all
    from builder.evaluate.worker.llama import LlamaCpp, LlamaWriter, longest
    from builder.evaluate.worker.measure import numbers
    from builder.evaluate.worker.parts import rows_of_part
    from builder.evaluate.worker.questions import Ask, prompt, read_rows

    trusted, directory = request["base"]["trust_remote_code"], Path(request["directory"])
    tokenizer = _tokenizer(request)
    every = read_rows(suite)
    chosen = rows_of_part(suite, every)
    rows = [every[index] for index in chosen]
    if not (gguf := request.get("gguf")):
        writer = MlxWriter(directory, tokenizer, trust_remote_code=trusted)
        found = generate_all(suite, rows, tokenizer, writer, step=telling())
        return replace(found, asked=numbers(chosen, every))
    prompts = [tuple(prompt(suite, tokenizer, row)) for row in rows]
    room = (0,) * suite.max_tokens
    model = LlamaCpp(Path(gguf), longest([Ask((*each, *room), len(each)) for each in prompts]))
    try:
        model.check_tokens([Ask(each, len(each)) for each in prompts], tokenizer)
        found = generate_all(suite, rows, tokenizer, LlamaWriter(model, tokenizer), step=telling())
        return replace(found, asked=numbers(chosen, every))
    finally:
        model.close()


def _scorable(request: Mapping[str, Any]) -> Any:
    if request["directory"] is None:
        from builder.evaluate.worker.sources import reference_model, stored_model

        if (stored := request["stored"]) is not None:
            return stored_model(request["base"], request["adapter"], stored["dtype"])
        return reference_model(request["base"], request["adapter"])
    from builder.evaluate.worker.scorable import load_scorable

    trusted = request["base"]["trust_remote_code"]
    return load_scorable(Path(request["directory"]), trust_remote_code=trusted)


def _score(request: Mapping[str, Any], parts: Mapping[str, Any], batch: int) -> dict[str, Any]:
    from builder.evaluate.worker.layerwise import score_larger
    from builder.evaluate.worker.measure import answer
    from builder.evaluate.worker.whole import Whole

    layerwise = request["layerwise"]

    def load() -> Any:
        return _scorable(request)

    def larger(asks: Sequence[Any], take: Any) -> None:
        score_larger(load, asks, take, batch, telling("bytes"), say)

    answer(parts.values(), larger if layerwise else Whole(load, batch, telling, say), at_once=layerwise)
    return {name: asdict(part.result()) for name, part in parts.items()}


def _in_llama(request: Mapping[str, Any], parts: Mapping[str, Any], tell: Step) -> dict[str, Any]:
    """The results of a GGUF. Its tokens must be those of the folder's tokenizer."""
    from builder.evaluate.worker.llama import LlamaCpp, longest, score
    from builder.evaluate.worker.measure import answer

    tokenizer = _tokenizer(request)
    asks = [ask for part in parts.values() for ask in part.asks]
    model = LlamaCpp(Path(request["gguf"]), longest(asks))
    try:
        model.check_tokens(asks, tokenizer)
        answer(parts.values(), lambda asks, take: score(model, asks, take, 1, tell))
        return {name: asdict(part.result()) for name, part in parts.items()}
    finally:
        model.close()


def _llama() -> dict[str, str]:
    """What measured, beside the circumstances of a worker."""
    from builder.gguf.library import TESTED

    return {"llama_cpp": TESTED, "precision": "as stored"}


if __name__ == "__main__":
    sys.exit(main())
