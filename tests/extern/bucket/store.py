"""gcp-storage-emulator, which says the generation of what it sends, as Google's store does.

    python tests/extern/bucket/store.py start --host=127.0.0.1 --port=PORT --in-memory --default-bucket=NAME

Without the header tensorstore may refuse, in the middle of a save, what it reads again.
"""

from __future__ import annotations

import sys
from typing import Any

from gcp_storage_emulator.handlers import objects

_download = objects.download


def download(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
    """Answer as the emulator does, with one header more."""
    _download(request, response, storage, *args, **kwargs)
    if response.status.value < 300:
        found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = str(found["generation"])


if __name__ == "__main__":
    objects.download = download  # before the server's table of handlers is made
    from gcp_storage_emulator.__main__ import main

    main(sys.argv[1:])
