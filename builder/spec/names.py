"""The rules for names in a declaration. People type these names, and folders have these names."""

from __future__ import annotations

from string import ascii_letters, digits

from builder.console.words import quoted

LONGEST = 64
_LEGAL = frozenset(ascii_letters + digits + "._-")
_ALLOWED = 'use letters a-z, digits, ".", "_" and "-"'


def name_problem(name: str) -> str | None:
    """What is wrong with a name, and what to do. None for a good name."""
    if not name:
        return "the name is empty; give it one"
    for char in name:
        if char not in _LEGAL:
            return f"the name has {_described(char)}; {_ALLOWED}"
    if len(name) > LONGEST:
        return f"the name has {len(name)} characters; at most {LONGEST} are possible"
    if name[0] in "._-":
        return f"the name begins with {quoted(name[0])}; begin it with a letter or a digit"
    if ".." in name:
        return 'the name has ".."; use one "."'
    if name.endswith("."):
        return 'the name ends in "."; end it with something else'
    return None


def _described(char: str) -> str:
    """Describes a character, which may be invisible or look like another character."""
    match char:
        case "/" | "\\":
            return f"a {'slash' if char == '/' else 'backslash'} ({quoted(char)})"
        case " ":
            return "a space"
        case "\x00":
            return "a NUL character"
    if ord(char) < 0x20 or ord(char) == 0x7F:
        return f"a control character (U+{ord(char):04X})"
    if char.isascii():
        return quoted(char)
    import unicodedata  # only a wrong file needs it

    known = unicodedata.name(char, "")
    return f"{quoted(char)} (U+{ord(char):04X}{' ' + known if known else ''}), which is not ASCII"
