"""The errors of publishing. Nothing half-published is visible after any of them."""

from __future__ import annotations

from builder.errors import BuildError


class PublishRefused(BuildError):
    """{target} is not published: {what}."""

    hint = '`doit eval:{target}` shows its figures. To publish it all the same, say why: override = "..."'


class PlaceRefused(BuildError):
    """{to}: {what}. Nothing was changed there."""


class PlaceFailed(BuildError):
    """{to}: {what}."""

    exit_code = 2
    hint = "What was there before is still what is shown. The same command goes on from where this ended."


class NothingPublished(BuildError):
    """artifacts.toml declares no publication "{name}"{near}"""

    exit_code = 3
    hint = 'Add [publish.{name}] with a target and a place: to = "hf://OWNER/NAME".'
