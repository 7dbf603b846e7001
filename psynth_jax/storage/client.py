"""The client of Google Cloud Storage: made once, asked again where that helps, its errors told as the file system's.

What a bucket says against a request is raised as `OSError`, with a reason in `strerror`, so that whoever reads or writes
files needs to know nothing of buckets:

    FileNotFoundError   no such object or bucket
    FileExistsError     the condition of a write or read does not hold: somebody else has written
    BucketError         no credentials, not allowed, no answer; what is transient was tried again for `PATIENCE` seconds
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
_CREDENTIALS_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
_PROGRESS = logging.getLogger("psynth_jax.progress")
_making = threading.Lock()


class BucketError(OSError):
    """A bucket does not give or take anything now: this says nothing about what is in it."""


def check_installed() -> None:
    """Raise `ConfigError`, saying what to install, where the extra `gcs` is missing."""
    with contextlib.suppress(ModuleNotFoundError):  # a parent package is missing
        if importlib.util.find_spec("google.cloud.storage") and importlib.util.find_spec("gcsfs"):
            # gcsfs, with which Orbax and JAX write, warns on every call that it cannot ask for the kind of a bucket.
            logging.getLogger("gcsfs").setLevel(logging.ERROR)
            # Orbax makes clients of its own, which insist on the name of a project, though objects have none.
            os.environ.setdefault("GOOGLE_CLOUD_PROJECT", "none")
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
    from google.cloud import storage

    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return storage.Client()
    credentials = _credentials()
    if credentials is None:
        return storage.Client.create_anonymous_client()
    return storage.Client(project=os.environ["GOOGLE_CLOUD_PROJECT"], credentials=credentials)


def _credentials() -> Any:
    """Return the application's default credentials; None: there are none."""
    import google.auth

    try:
        return google.auth.default(_SCOPES)[0]
    except Exception as error:  # noqa: BLE001 - a file that holds other JSON raises almost anything
        file = os.environ.get(_CREDENTIALS_FILE)
        if file:
            reason = f"no credentials: {_CREDENTIALS_FILE} names {file}: {_first_line(error)}"
            raise BucketError(errno.EACCES, reason) from None
        if not isinstance(error, google.auth.exceptions.DefaultCredentialsError):
            raise BucketError(errno.EACCES, f"{_NO_CREDENTIALS} ({_first_line(error)})") from None
        return None


def retry(patience: float | None = None) -> Retry:
    """Return how a request is repeated: with growing pauses, for so many seconds (`PATIENCE`), and not in silence."""
    from google.api_core.retry import Retry
    from google.cloud.storage.retry import DEFAULT_RETRY

    seconds = PATIENCE if patience is None else patience
    begin = time.monotonic()

    def tell(error: Exception) -> None:
        left = max(seconds - (time.monotonic() - begin), 0)
        _PROGRESS.info("the bucket does not answer (%s); trying again for %.0f s", _first_line(error), left)

    return Retry(DEFAULT_RETRY._predicate, timeout=seconds, on_error=tell)


@contextlib.contextmanager
def asked(address: str) -> Iterator[None]:
    """Raise what the client says of `address` as `OSError`."""
    check_installed()
    import requests
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth
    from google.cloud.storage import exceptions as content

    try:
        yield
    except api.NotFound as error:
        raise FileNotFoundError(errno.ENOENT, _not_found(error, address), address) from None
    except api.PreconditionFailed:
        raise FileExistsError(errno.EEXIST, "somebody else has written it meanwhile", address) from None
    except api.Unauthorized:
        raise BucketError(errno.EACCES, _NO_CREDENTIALS, address) from None
    except api.Forbidden as error:
        raise BucketError(errno.EACCES, f"not allowed: {_first_line(error)}", address) from None
    except (auth.RefreshError, auth.InvalidOperation) as error:  # what is anonymous cannot be refreshed
        raise BucketError(errno.EACCES, f"{_NO_CREDENTIALS} ({_first_line(error)})", address) from None
    except (content.DataCorruption, content.InvalidResponse) as error:
        raise BucketError(errno.EIO, f"what came is not what is stored: {_first_line(error)}", address) from None
    except (api.GoogleAPIError, auth.GoogleAuthError, requests.RequestException) as error:
        reason = _first_line(error.__cause__ or error)
        raise BucketError(errno.EIO, f"the bucket does not answer: {reason}", address) from None


def _not_found(error: Exception, address: str) -> str:
    bucket = address.removeprefix("gs://").partition("/")[0]
    request = getattr(error, "response", None)
    url = "" if request is None else str(request.url).partition("?")[0]
    # A listing, an upload and a question for a bucket address the bucket, everything else an object.
    if url.endswith((f"/b/{bucket}/o", f"/b/{bucket}")) or "bucket does not exist" in str(error):
        return f"there is no bucket {bucket}"
    return os.strerror(errno.ENOENT)


def _first_line(error: BaseException) -> str:
    text = str(getattr(error, "message", "") or error) or type(error).__name__
    return text.splitlines()[0][:300]
