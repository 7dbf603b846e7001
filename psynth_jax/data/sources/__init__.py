"""Sources of training and evaluation data: rows as somebody published them -> records.

`SOURCES` has them by name; `rows.read_rows` reads their files; `source.py` says what a source is; docs/data.md tells of
each.
"""

from collections.abc import Mapping
from types import MappingProxyType

from psynth_jax.data.sources.attempts import ATTEMPTS
from psynth_jax.data.sources.chats import LMSYS_CHAT, SHAREGPT, ULTRACHAT, WILDCHAT
from psynth_jax.data.sources.dta_tool import DTA_TOOL
from psynth_jax.data.sources.flan import FLAN, FLAN_COT
from psynth_jax.data.sources.multihop import HOTPOTQA, TWO_WIKI
from psynth_jax.data.sources.prepared import BROWSECOMP, RECORDS
from psynth_jax.data.sources.rows import read_rows
from psynth_jax.data.sources.source import Dropped, Source, convert_rows
from psynth_jax.data.sources.squad import SQUAD
from psynth_jax.data.sources.toucan import TOUCAN_MULTI, TOUCAN_SINGLE

__all__ = ["SOURCES", "Dropped", "Source", "convert_rows", "read_rows"]

_ALL = (
    *(WILDCHAT, ULTRACHAT, LMSYS_CHAT, SHAREGPT),
    *(TOUCAN_SINGLE, TOUCAN_MULTI, DTA_TOOL),
    *(FLAN, FLAN_COT),
    *(TWO_WIKI, HOTPOTQA, SQUAD),
    *(ATTEMPTS, BROWSECOMP, RECORDS),
)
SOURCES: Mapping[str, Source] = MappingProxyType({source.name: source for source in _ALL})
