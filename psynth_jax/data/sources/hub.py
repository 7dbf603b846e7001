"""Data sets on the Hugging Face hub: which files a revision has, and each of them when it is asked for.

Knows nothing of splits and formats.  Files go into the hub's own cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psynth_jax.errors import DataError
from psynth_jax.foreign import first_line, is_raised_by


@dataclasses.dataclass(frozen=True)
class HubDataSet:
    """A data set at one commit: what is listed and what is fetched belong together.  files: paths inside it."""

    name: str
    commit: str
    files: tuple[str, ...]

    def fetch(self, file: str) -> Path:
        """Return where a file is, downloaded if it was not.  Raises `DataError` naming data set and file."""
        import huggingface_hub

        with _explained(f"{self.name}/{file}"):
            return Path(huggingface_hub.hf_hub_download(self.name, file, repo_type="dataset", revision=self.commit))


def find(name: str, revision: str | None) -> HubDataSet:
    """Ask the hub for the files of a data set.  Raises `DataError` saying why they are not to be had."""
    import huggingface_hub

    with _explained(name):
        info = huggingface_hub.HfApi().dataset_info(name, revision=revision)
        files = tuple(file.rfilename for file in info.siblings or ())
        return HubDataSet(name, info.sha or revision or "main", files)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        reason = "it is gated: accept its terms on its page, and log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "there is no such data set, or it is private: log in with `hf auth login`"
    except errors.RevisionNotFoundError:
        reason = "it has no such revision"
    except errors.OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set; unset it, or give the directory that its files were downloaded to"
    except Exception as error:  # its client raises errors of five libraries; ours go on
        if not is_raised_by("huggingface_hub", error):
            raise
        reason = first_line(error)
    else:
        return
    raise DataError(f"{what}: it is no file or directory here, and the Hugging Face hub does not give it: {reason}")
