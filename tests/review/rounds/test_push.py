"""How records travel to a server."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from stairdata_review.rounds.push import BATCH_BYTES, BATCH_RECORDS, batches


@given(st.lists(st.integers(1, BATCH_BYTES), max_size=30), st.integers(0, 1200))
def test_batches_are_small_and_lose_nothing(sizes: list[int], many: int) -> None:
    records = [({"text": "x" * size}, 0) for size in [*sizes[:6], *[1] * many]]
    found = list(batches(records))
    assert [record for batch in found for record in batch] == records
    for batch in found:
        assert 0 < len(batch) <= BATCH_RECORDS
        assert len(batch) == 1 or sum(len(json.dumps(record)) for record, _ in batch) <= BATCH_BYTES
