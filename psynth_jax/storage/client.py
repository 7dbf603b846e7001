"""The client of Google Cloud Storage: made once, asked again where that helps, its errors told as the file system's.

What a bucket says against a request is raised as `OSError`, with a reason in `strerror`, so that whoever reads or writes
files needs to know nothing of buckets:

    FileNotFoundError   no such object or bucket
    FileExistsError     the condition of a write or read does not hold: somebody else has written
    BucketError         no credentials, not allowed, no answer; what is transient was tried again for `PATIENCE` seconds
"""

from __future__ import annotations

import base64
import contextlib
import errno
import importlib.util
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psynth_jax.errors import ConfigError

if TYPE_CHECKING:
    from google.api_core.retry import Retry

_BLOCK = 1 << 20  # bytes read at a time
PATIENCE = 60.0  # seconds for which a transient failure is tried again
_NO_CREDENTIALS = "no credentials: run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
_CREDENTIALS_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
_PROGRESS = logging.getLogger("psynth_jax.progress")
_making = threading.Lock()
_made: tuple[int, Any] | None = None  # the process that made a client, and the client


class BucketError(OSError):
    """A bucket does not give or take anything now: this says nothing about what is in it."""


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
    global _made
    pid = os.getpid()  # a forked process must not share connections
    with _making:
        if _made is None or _made[0] != pid:
            _made = pid, _make_client()
        return _made[1]


def _forget_client() -> None:
    """Look for credentials again at the next request: these were not enough."""
    global _made
    with _making:
        _made = None


def _make_client() -> Any:
    from google.cloud import storage

    if os.environ.get("STORAGE_EMULATOR_HOST"):
        _name_project(None)
        return storage.Client()
    credentials, project = _credentials()
    _name_project(project)
    if credentials is None:
        return storage.Client.create_anonymous_client()
    return storage.Client(project=os.environ["GOOGLE_CLOUD_PROJECT"], credentials=credentials)


def _name_project(project: str | None) -> None:
    """Name a project for Orbax's own clients, which insist on one though objects have none."""
    os.environ.setdefault("GOOGLE_CLOUD_PROJECT", project or "none")


def _credentials() -> tuple[Any, str | None]:
    """Return the application's default credentials, and their project; None: there are none."""
    import google.auth

    try:
        found: tuple[Any, str | None] = google.auth.default(_SCOPES)
    except Exception as error:  # noqa: BLE001 - a file that holds other JSON raises almost anything
        file = os.environ.get(_CREDENTIALS_FILE)
        if file:
            reason = f"no credentials: {_CREDENTIALS_FILE} names {file}: {_first_line(error)}"
            raise BucketError(errno.EACCES, reason) from None
        if not isinstance(error, google.auth.exceptions.DefaultCredentialsError):
            raise BucketError(errno.EACCES, f"{_NO_CREDENTIALS} ({_first_line(error)})") from None
        return None, None
    return found


def retry(patience: float | None = None) -> Retry:
    """Return how each request is repeated: with growing pauses, for so many seconds (`PATIENCE`), and not in silence."""
    from google.api_core.retry import Retry
    from google.cloud.storage.retry import DEFAULT_RETRY

    seconds = PATIENCE if patience is None else patience

    def tell(error: Exception) -> None:
        _PROGRESS.info("the bucket does not answer (%s); trying again, for %.0f s at most", _first_line(error), seconds)

    return Retry(DEFAULT_RETRY._predicate, timeout=seconds, on_error=tell)


def check_sum(file: Path, expected: str | None) -> None:
    """Compare a file with the CRC32C that the store tells, in base64; None: it tells none.

    Raises `BucketError`.
    """
    import google_crc32c

    if expected is None:
        return
    found = google_crc32c.Checksum()
    with file.open("rb") as content:
        for _ in found.consume(content, _BLOCK):
            pass
    if base64.b64encode(found.digest()).decode() != expected:
        raise BucketError(errno.EIO, "what came is not what is stored: its checksum is another", str(file))


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
        _forget_client()
        raise BucketError(errno.EACCES, _NO_CREDENTIALS, address) from None
    except api.Forbidden as error:
        _forget_client()
        raise BucketError(errno.EACCES, f"not allowed: {_first_line(error)}", address) from None
    except (auth.RefreshError, auth.InvalidOperation) as error:  # what is anonymous cannot be refreshed
        _forget_client()
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
