"""Decides how a variant quantizes each path of a structure, as mlx_lm.utils.quantize_model does. Pure."""

from __future__ import annotations

from builder.errors import BuildError
from builder.sources.facts import BaseFacts
from builder.spec.types import Quantization, Target, Variant
from builder.weights import overrides
from builder.weights.structure import Structure


class PlanError(BuildError):
    """[{table}] {what}"""

    exit_code = 2


def resolve(structure: Structure, variant: Variant) -> tuple[dict[str, Quantization], tuple[str, ...]]:
    """Path -> how it is quantized, and the paths that stay unquantized because of their width.

    The rules are the rules of mlx_lm.utils.quantize_model. A path is left alone if the variant's group size
    does not divide its width. For other paths the first matching override decides, then the recipe, then the
    model's own quant_predicate.

    Raises PlanError for:
    - a recipe that mlx-lm cannot apply to this architecture,
    - a group size, of an override or of the model's own rule, that does not divide a path,
    - an override of a path that mlx-lm leaves alone,
    - a pattern that matches nothing and is a misspelling of a pattern that matches.
    """
    if not variant.is_quantized:
        return {}, ()
    if variant.recipe and (problem := structure.recipe_errors.get(variant.recipe)):
        raise PlanError(
            table=f"variant.{variant.name}",
            what=f'recipe "{variant.recipe}" does not fit model type "{structure.model_type}": {problem}',
            hint="Use plain `bits`, or name paths in `overrides`.",
        )
    for override in overrides.idle(structure, variant):
        if override.slip:
            raise PlanError(
                table=f"variant.{variant.name}",
                what=override.text,
                hint=f'A pattern stands for the whole path of a module (of "{structure.model_type}").',
            )
    widths = {p.tensor.name: p.tensor.shape[-1] for p in structure.parameters if p.tensor.shape}
    default = variant.quantization
    group = variant.common_group
    chosen: dict[str, Quantization] = {}
    skipped = []
    for module in structure.quantizable:
        width = widths[f"{module.path}.weight"]
        rule = overrides.deciding(variant, module.path)
        if width % group:
            if rule is None:
                skipped.append(module.path)
            elif rule.quantization is not None:
                raise PlanError(
                    table=f"variant.{variant.name}",
                    what=f'override "{rule.pattern}" does nothing for "{module.path}": mlx-lm leaves it'
                    f" alone, because the variant's groups of {group} do not divide its {width} columns.",
                    hint="Give the variant a `group_size` that divides, or first set that path to `false`.",
                )
            continue
        if rule is not None:
            how = rule.quantization
        elif variant.recipe:
            how = Quantization(module.recipes[variant.recipe], group)
        elif isinstance(module.rule, Quantization):
            how = module.rule
        else:
            how = default if module.rule else None
        if how is not None:
            if width % how.group_size:
                raise PlanError(
                    table=f"variant.{variant.name}",
                    what=f'groups of {how.group_size} do not divide the {width} columns of "{module.path}".',
                    hint="Give that path another `group_size` in `overrides`, or `false`.",
                )
            chosen[module.path] = how
    return chosen, tuple(skipped)


def refuse_packed(target: Target, base: BaseFacts) -> None:
    """Raises PlanError for a quantized base: mlx-lm would silently lose the adapter or keep the old bits."""
    model = target.model
    if not base.structure.quantized:
        return
    if model.adapter is not None:
        what = f'adapter "{model.adapter}" would be rounded away: base "{model.base}" is quantized already.'
    elif target.variant.is_quantized or target.variant.gguf is not None:
        variant = target.variant.name
        what = f'variant "{variant}" would keep the old bits: base "{model.base}" is quantized already.'
    else:
        return
    raise PlanError(
        table=f"model.{model.name}",
        what=what,
        hint=f"Set `dequantize = true` in [base.{model.base}], or take the original weights as the base.",
    )
