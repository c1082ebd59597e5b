"""Completion for bash, made from the parser itself, so that it knows what the command knows."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

_SCRIPT = """\
# completion of {program} for bash:  source <({program} completion bash)
_{name}() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} verb= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
{verb_cases}
        esac
    done
    case ${{COMP_WORDS[COMP_CWORD-1]}} in
        -c|--config) COMPREPLY=($(compgen -f -- "$word")); return ;;
        -o|--output) COMPREPLY=($(compgen -W "text json" -- "$word")); return ;;
    esac
    if [[ -z $verb ]]; then
        COMPREPLY=($(compgen -W "{verbs} {options}" -- "$word"))
        return
    fi
    case $verb/$word in
{option_cases}
        completion/*) COMPREPLY=($(compgen -W "bash" -- "$word")) ;;
        *) COMPREPLY=($(compgen -W "$({program} sh-resources 2>/dev/null) all" -- "$word")) ;;
    esac
}}
complete -F _{name} {program}
"""


def bash(parser: argparse.ArgumentParser, verbs: Mapping[str, argparse.ArgumentParser]) -> str:
    option_cases = [
        f'        {verb}/-*) COMPREPLY=($(compgen -W "{" ".join(options(verb_parser))}" -- "$word")) ;;'
        for verb, verb_parser in verbs.items()
    ]
    return _SCRIPT.format(
        program=parser.prog,
        name=parser.prog.replace("-", "_"),
        verbs=" ".join(verbs),
        options=" ".join(options(parser)),
        verb_cases=f"            {'|'.join(verbs)}) verb=${{COMP_WORDS[i]}}; break ;;",
        option_cases="\n".join(option_cases),
    )


def options(parser: argparse.ArgumentParser) -> list[str]:
    """Every long option that is not hidden."""
    return [
        option
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for option in action.option_strings
        if option.startswith("--")
    ]
