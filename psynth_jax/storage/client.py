"""The client of Google Cloud Storage: made once, asked again where that helps, its errors told as the file system's.

What a bucket says against a request is raised as `OSError`, with a reason in `strerror`, so that whoever reads or writes
files needs to know nothing of buckets:

    FileNotFoundError   no such object or bucket
    PermissionError     no credentials, or not allowed
    FileExistsError     a conditional write came too late
    OSError             anything else; what is transient was tried again for `PATIENCE` seconds
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from psynth_jax.errors import ConfigError

if TYPE_CHECKING:
    from google.api_core.retry import Retry

PATIENCE = 60.0  # seconds for which a transient failure is tried again
_NO_CREDENTIALS = "no credentials: run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
_PROGRESS = logging.getLogger("psynth_jax.progress")
_making = threading.Lock()


def check_installed() -> None:
    """Raise `ConfigError`, saying what to install, where the extra `gcs` is missing."""
    with contextlib.suppress(ModuleNotFoundError):  # a parent package is missing
        if importlib.util.find_spec("google.cloud.storage") and importlib.util.find_spec("gcsfs"):
            # gcsfs, with which Orbax and JAX write, warns on every call that it cannot ask for the kind of a bucket.
            logging.getLogger("gcsfs").setLevel(logging.ERROR)
            return
    raise ConfigError("gs:// addresses need further packages: pip install 'psynth-jax[gcs]'")


def client() -> Any:
    """Return the `google.cloud.storage.Client` of this process.

    It has the application's default credentials.  Without any it is anonymous, which public buckets allow.
    """
    with _making:
        return _make_client(os.getpid())


@functools.lru_cache(maxsize=1)
def _make_client(_: int) -> Any:  # a forked process must not share connections
    check_installed()
    import google.auth
    from google.cloud import storage

    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return storage.Client()
    try:
        credentials, project = google.auth.default(["https://www.googleapis.com/auth/devstorage.read_write"])
    except google.auth.exceptions.DefaultCredentialsError:
        return storage.Client.create_anonymous_client()
    # Objects belong to buckets, not to projects, but the client insists on the name of one.
    return storage.Client(project=project or "none", credentials=credentials)


def retry() -> Retry:
    """Return how a request is repeated: with growing pauses, for at most `PATIENCE` seconds, and not in silence."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    begin = time.monotonic()

    def told(error: Exception) -> None:
        left = max(PATIENCE - (time.monotonic() - begin), 0)
        _PROGRESS.info("the bucket does not answer (%s); trying again for %.0f s", _first_line(error), left)

    again: Retry = DEFAULT_RETRY.with_timeout(PATIENCE)
    again._on_error = told  # the only way to set it on a copy of the client's own policy
    return again


@contextlib.contextmanager
def asked(address: str) -> Iterator[None]:
    """Raise what the client says of `address` as `OSError`."""
    check_installed()
    import requests
    from google.api_core import exceptions as said
    from google.auth import exceptions as auth

    try:
        yield
    except said.NotFound as error:
        raise FileNotFoundError(errno.ENOENT, _not_found(error, address), address) from None
    except said.PreconditionFailed:
        raise FileExistsError(errno.EEXIST, "somebody else has written it meanwhile", address) from None
    except said.Unauthorized:
        raise PermissionError(errno.EACCES, _NO_CREDENTIALS, address) from None
    except said.Forbidden as error:
        raise PermissionError(errno.EACCES, f"not allowed: {_first_line(error)}", address) from None
    except (auth.DefaultCredentialsError, auth.RefreshError) as error:
        raise PermissionError(errno.EACCES, f"{_NO_CREDENTIALS} ({_first_line(error)})", address) from None
    except (said.GoogleAPIError, auth.GoogleAuthError, requests.RequestException) as error:
        reason = _first_line(error.__cause__ or error)
        raise OSError(errno.EIO, f"the bucket does not answer: {reason}", address) from None


def _not_found(error: Exception, address: str) -> str:
    bucket = address.removeprefix("gs://").partition("/")[0]
    request = getattr(error, "response", None)
    url = "" if request is None else str(request.url)
    # A listing and an upload address the bucket, everything else an object.
    if url.partition("?")[0].endswith(f"/b/{bucket}/o") or "bucket does not exist" in str(error):
        return f"there is no bucket {bucket}"
    return os.strerror(errno.ENOENT)


def _first_line(error: BaseException) -> str:
    text = str(getattr(error, "message", "") or error) or type(error).__name__
    return text.splitlines()[0][:300]
