"""`builder completion SHELL`: prints the script that makes a shell complete commands and targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from doit.cmd_base import Command
from doit.exceptions import InvalidCommand

from builder.commands.base import AnyOrder
from builder.commands.usage import OneScreen

BASH = r"""_builder_complete() {
    local line="${COMP_LINE:0:COMP_POINT}" last
    local -a words
    read -r -a words <<< "$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    last="${words[${#words[@]}-1]}"
    local IFS=$'\n'
    COMPREPLY=($(builder _complete "${words[0]##*/}" "${words[@]:1}" 2>/dev/null))
    if [[ "$last" == *:* && "$COMP_WORDBREAKS" == *:* ]]; then  # bash splits words at colons
        COMPREPLY=("${COMPREPLY[@]#"${last%"${last##*:}"}"}")
    fi
}
complete -F _builder_complete builder
complete -o bashdefault -o default -F _builder_complete doit  # files where nothing of this project fits
"""

ZSH = r"""#compdef builder doit
_builder() {
    local -a found
    found=("${(@f)$(builder _complete "${words[1]:t}" "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "$found[1]" ]]; then
        compadd -- $found
    elif [[ "${words[1]:t}" == doit ]]; then  # files where nothing of this project fits
        _files
    fi
}
if [ "$funcstack[1]" = "_builder" ]; then _builder "$@"; else compdef _builder builder doit; fi
"""

FISH = r"""function __builder_complete
    set -l words (commandline -opc) (commandline -ct)
    builder _complete (basename $words[1]) $words[2..-1] 2>/dev/null
end
complete -c builder -f -a "(__builder_complete)"
complete -c doit -f -n "test -f artifacts.toml -o -f dodo.py" -a "(__builder_complete)"
"""

SCRIPTS: Mapping[str, str] = {"bash": BASH, "zsh": ZSH, "fish": FISH}


class Completion(AnyOrder, OneScreen, Command):  # type: ignore[misc]
    name = "completion"
    doc_purpose = "print a script that completes commands and targets of `builder` and `doit`"
    doc_usage = "bash|zsh|fish"
    doc_description = 'For example in ~/.bashrc: eval "$(builder completion bash)"'

    def execute(self, opt_values: Mapping[str, Any], pos_args: Sequence[str]) -> int:
        if len(pos_args) != 1 or pos_args[0] not in SCRIPTS:
            raise InvalidCommand(f"completion takes one of {', '.join(SCRIPTS)}")
        print(SCRIPTS[pos_args[0]], end="")
        return 0
