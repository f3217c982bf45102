"""What padding would cost if all that run were one batch, as long as the longest."""

from collections.abc import Sequence

from loadtest.records import RequestRecord


def mixed_waste(records: Sequence[RequestRecord]) -> float:
    """Query-key pairs added, as a share of those asked for: over the moments at which a token came, of all requests
    that were being answered then. Prompts, by the server's count or as planned, and what was generated."""
    asked = added = 0
    for moment in sorted(time for record in records for time in record.content_times_s):
        lengths = [_length(record, moment) for record in records if _is_running(record, moment)]
        asked += sum(lengths)
        added += max(lengths) * len(lengths) - sum(lengths)
    return added / asked if asked else 0.0


def _is_running(record: RequestRecord, moment: float) -> bool:
    times = record.content_times_s
    return bool(times) and times[0] <= moment <= times[-1]


def _length(record: RequestRecord, moment: float) -> int:
    prompt = record.prompt_tokens if record.prompt_tokens is not None else record.planned.input_tokens
    return prompt + sum(time <= moment for time in record.content_times_s)
