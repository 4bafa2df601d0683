"""How a bucket is addressed and who we are there, as the provider's own clients find it. No request is made.

S3: [remote.NAME], then AWS_* variables, then the profile in ~/.aws. Without any of these, obstore would ask
the network of the machine for credentials, so that is refused before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path

from builder.remote.transport import NoCredentials
from builder.spec.sharing import Remote

_GIVEN = (  # any of these says who we are without a file
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    ("AWS_WEB_IDENTITY_TOKEN_FILE",),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI",),
)
_SECRETS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}
_TRUE = ("1", "true", "yes")


def s3_settings(remote: Remote, environment: Mapping[str, str] = os.environ) -> dict[str, object]:
    """The settings of obstore's S3Store. Raises NoCredentials."""
    profile = remote.profile or environment.get("AWS_PROFILE")
    said = _profile(profile or "default", environment)
    settings: dict[str, object] = {}
    endpoint = (
        remote.endpoint or environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    )
    region = remote.region or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if endpoint := endpoint or said.get("endpoint_url"):
        settings["endpoint"] = endpoint
        settings["virtual_hosted_style_request"] = False
    settings["region"] = region or said.get("region") or "us-east-1"
    if environment.get("AWS_SKIP_SIGNATURE", "").lower() in _TRUE:
        return {**settings, "skip_signature": True}
    if profile is None and any(all(environment.get(name) for name in names) for names in _GIVEN):
        return settings  # obstore reads them itself
    if secrets := {ours: said[theirs] for theirs, ours in _SECRETS.items() if theirs in said}:
        return {**settings, **secrets}
    if said.get("credential_source") == "Ec2InstanceMetadata":
        return settings
    if profile is not None:
        what = f'The profile "{profile}" in ~/.aws has no aws_access_key_id.'
        raise NoCredentials(remote=remote.name, url=remote.url, hint=what)
    raise NoCredentials(remote=remote.name, url=remote.url)


def _profile(name: str, environment: Mapping[str, str]) -> Mapping[str, str]:
    """What both files of ~/.aws say of a profile. The one with credentials counts more."""
    home = Path.home() / ".aws"
    config = environment.get("AWS_CONFIG_FILE") or home / "config"
    credentials = environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"
    sections = ((config, name if name == "default" else f"profile {name}"), (credentials, name))
    found: dict[str, str] = {}
    for file, section in sections:
        parser = ConfigParser(interpolation=None)
        try:
            parser.read(file, encoding="utf-8")
        except (ConfigError, ValueError, OSError):
            continue
        if parser.has_section(section):
            found |= dict(parser.items(section))
    return found
