"""From [remote.NAME] to a transport. Only this module decides which kind a `url` means."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from builder.console.words import one_line
from builder.remote import layout
from builder.remote.bucket import BucketTransport
from builder.remote.credentials import az_settings, gs_settings, s3_settings
from builder.remote.folder import FolderTransport
from builder.remote.transport import ExtraMissing, NoRemoteStore, RemoteError, Transport
from builder.spec.sharing import Remote
from builder.store import seals

FORMAT = 1
# A whole request may take long over a slow line. That nothing arrives for half a minute is another matter.
_CLIENT = {"timeout": "1h", "read_timeout": "30s", "connect_timeout": "5s"}
_RETRIES: dict[str, Any] = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {
        "base": 2,
        "init_backoff": timedelta(milliseconds=200),
        "max_backoff": timedelta(seconds=5),
    },
}


class RemoteFormat(RemoteError):
    """remote {remote}: the store at {url} has format {found}, this version knows {known}."""


def connect(remote: Remote) -> Transport:
    """The transport of a remote, whether or not a store is there. Makes no request. Raises RemoteError."""
    if remote.folder is not None:
        return FolderTransport(remote.name, remote.url, remote.folder)
    try:
        from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store
    except ImportError:
        raise ExtraMissing(remote=remote.name) from None
    scheme = remote.url.partition("://")[0]
    client: Any = dict(_CLIENT)
    retry: Any = _RETRIES
    try:
        if scheme in ("http", "https"):
            client |= {"allow_http": True} if scheme == "http" else {}
            web = HTTPStore.from_url(remote.url, client_options=client, retry_config=retry)
            return BucketTransport(remote.name, remote.url, web, writes=False, lists=False)
        if scheme == "s3":
            settings: Any = s3_settings(remote)
            client |= {"allow_http": True} if str(settings.get("endpoint", "")).startswith("http://") else {}
            settings["checksum_algorithm"] = "SHA256"  # the server looks at what it receives
            store: Any = S3Store.from_url(remote.url, client_options=client, retry_config=retry, **settings)
        elif scheme == "gs":
            settings = gs_settings(remote)
            store = GCSStore.from_url(remote.url, client_options=client, retry_config=retry, **settings)
        else:
            settings = az_settings(remote)
            store = AzureStore.from_url(remote.url, client_options=client, retry_config=retry, **settings)
    except RemoteError:
        raise
    except Exception as error:  # a setting in the environment that obstore does not take
        what = one_line(str(error).partition("Debug source:")[0], 160)
        raise RemoteError(remote=remote.name, what=what) from error
    return BucketTransport(remote.name, remote.url, store, writes=True)


def open_remote(remote: Remote) -> Transport:
    """The transport of a remote that has a store. Raises RemoteError, NoRemoteStore, RemoteFormat."""
    transport = connect(remote)
    if isinstance(transport, FolderTransport):
        transport.require()
    require_store(transport)
    return transport


def require_store(transport: Transport) -> dict[str, Any]:
    """What v1/format says. Raises NoRemoteStore, RemoteFormat, RemoteError."""
    data = transport.read(layout.FORMAT)
    if data is None:
        raise NoRemoteStore(remote=transport.name, url=transport.url)
    text = seals.unsealed(data)
    try:
        said: dict[str, Any] = json.loads(text or "")
        found = said["format"]
    except (ValueError, KeyError, TypeError):
        raise RemoteError(remote=transport.name, what=f"{layout.FORMAT} is damaged") from None
    if found != FORMAT:
        raise RemoteFormat(remote=transport.name, url=transport.url, found=found, known=FORMAT)
    return said
