"""How a bucket is addressed and who we are there, as the provider's own clients find it. No request is made.

S3: [remote.NAME], then AWS_* variables, then the profile in ~/.aws. Google and Azure: their variables, and
for Google the file of `gcloud auth application-default login`. Without any of these, obstore would ask the
network of the machine for credentials, so that is refused before.
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
_GIVEN_GS = (
    ("GOOGLE_APPLICATION_CREDENTIALS",),
    ("GOOGLE_SERVICE_ACCOUNT",),
    ("GOOGLE_SERVICE_ACCOUNT_PATH",),
    ("GOOGLE_SERVICE_ACCOUNT_KEY",),
    ("GOOGLE_BEARER_TOKEN",),
)
_ACCOUNT = "AZURE_STORAGE_ACCOUNT_NAME"
_GIVEN_AZ = (
    ("AZURE_STORAGE_ACCOUNT_KEY",),
    ("AZURE_STORAGE_ACCESS_KEY",),
    ("AZURE_STORAGE_SAS_KEY",),
    ("AZURE_STORAGE_SAS_TOKEN",),
    ("AZURE_STORAGE_TOKEN",),
    ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"),
    ("AZURE_FEDERATED_TOKEN_FILE",),
    ("AZURE_MSI_ENDPOINT",),
    ("AZURE_IDENTITY_ENDPOINT",),
    ("AZURE_USE_AZURE_CLI",),
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
    if profile is None and _says(environment, _GIVEN):
        return settings  # obstore reads them itself
    if secrets := {ours: said[theirs] for theirs, ours in _SECRETS.items() if theirs in said}:
        return {**settings, **secrets}
    if said.get("credential_source") == "Ec2InstanceMetadata":
        return settings
    if profile is not None:
        what = f'The profile "{profile}" in ~/.aws has no aws_access_key_id.'
        raise NoCredentials(remote=remote.name, url=remote.url, hint=what)
    raise NoCredentials(remote=remote.name, url=remote.url)


def gs_settings(remote: Remote, environment: Mapping[str, str] = os.environ) -> dict[str, object]:
    """The settings of obstore's GCSStore, which reads the variables itself. Raises NoCredentials."""
    if environment.get("GOOGLE_SKIP_SIGNATURE", "").lower() in _TRUE or _says(environment, _GIVEN_GS):
        return {}
    home = Path(environment.get("HOME") or Path.home())
    logged_in = home / ".config" / "gcloud" / "application_default_credentials.json"
    if logged_in.is_file():
        return {"application_credentials": str(logged_in)}
    hint = (
        "Set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`. "
        "For a public bucket set GOOGLE_SKIP_SIGNATURE=true."
    )
    raise NoCredentials(remote=remote.name, url=remote.url, hint=hint)


def az_settings(remote: Remote, environment: Mapping[str, str] = os.environ) -> dict[str, object]:
    """The settings of obstore's AzureStore, which reads the variables itself. Raises NoCredentials."""
    open_to_all = environment.get("AZURE_SKIP_SIGNATURE", "").lower() in _TRUE
    if environment.get(_ACCOUNT) and (open_to_all or _says(environment, _GIVEN_AZ)):
        return {}
    hint = (
        f"Set {_ACCOUNT}, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN. "
        "For a public container set AZURE_SKIP_SIGNATURE=true."
    )
    raise NoCredentials(remote=remote.name, url=remote.url, hint=hint)


def _says(environment: Mapping[str, str], given: tuple[tuple[str, ...], ...]) -> bool:
    """Whether all variables of one group are set."""
    return any(all(environment.get(name) for name in names) for names in given)


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
