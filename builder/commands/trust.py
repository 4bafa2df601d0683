"""`builder trust [NAME KEY]`: prints this user's public key, or declares whose signatures count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from doit.exceptions import InvalidCommand

from builder.commands.base import OPT_JSON, ProjectCommand, print_json
from builder.commands.guard import writing
from builder.commands.remotes import OPT_REMOTE, chosen_remotes
from builder.errors import BuildError
from builder.project.project import Project
from builder.spec.remotes import public_bytes

OPT_NEW: Mapping[str, Any] = {
    "name": "new",
    "long": "new",
    "type": bool,
    "default": False,
    "help": "make a key for this user. What is pushed from then on is signed",
}


OPT_KEYCHAIN: Mapping[str, Any] = {
    "name": "keychain",
    "long": "keychain",
    "type": bool,
    "default": False,
    "help": "with --new: keep the key in the keychain of the system, not in a file",
}


class NotAKey(BuildError):
    """ "{text}" is not a public key of Ed25519."""

    exit_code = 3
    hint = 'It looks like "ssh-ed25519 AAAA...". `builder trust` prints the key of a user.'


class Trust(ProjectCommand):
    name = "trust"
    doc_purpose = "print this user's public key and who is trusted, or trust one more key"
    doc_usage = "[NAME KEY]"
    doc_description = "NAME KEY adds the key to [remote.NAME.trust] of artifacts.toml."
    cmd_options = (OPT_NEW, OPT_KEYCHAIN, OPT_REMOTE, OPT_JSON)

    def run(self, project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
        from builder.remote.signing import kept_in, new_signer, own_signer, public_line

        if names:
            return _trust(project, options, names)
        new = options["new"] or options["keychain"]
        signer = new_signer(in_keychain=options["keychain"]) if new else own_signer()
        line = public_line(signer) if signer else None
        if options["json"]:
            trusted = {remote.name: dict(remote.trust) for remote in project.spec.remotes.values()}
            print_json("trust", key=line, file=kept_in(), trusted=trusted)
            return 0
        if signer is None:
            print("You have no key, so what you push is not signed. `builder trust --new` makes one.")
        else:
            print(line)
        for remote in project.spec.remotes.values():
            for name, key in remote.trust.items():
                mine = " (you)" if signer and public_bytes(key) == signer.public else ""
                print(f"{remote.name} trusts {name}{mine}: {key}")
            if not remote.trust:
                print(f"{remote.name} trusts everybody who may write there")
        return 0


def _trust(project: Project, options: Mapping[str, Any], names: Sequence[str]) -> int:
    """Adds a key to the declaration. The key may come as one word or as two."""
    from builder.scaffold.edit import read_exactly, replace_checked
    from builder.scaffold.trust import add_trust

    if len(names) < 2:
        raise InvalidCommand('trust takes a NAME and a KEY, for example: trust ci "ssh-ed25519 AAAA..."')
    name, key = names[0], " ".join(names[1:])
    if public_bytes(key) is None:
        raise NotAKey(text=key)
    remotes = [remote.name for remote in chosen_remotes(project, options["remote"])]
    text = read_exactly(project.spec.file)
    for remote in remotes:
        text = add_trust(text, remote, name, key)
    with writing(project.spec.file):
        replace_checked(project.spec.file, text)
    for remote in remotes:
        print(f"{remote} trusts {name} now: commit artifacts.toml")
    return 0
