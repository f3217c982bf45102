"""Two looks at counters, and what is between them."""

from __future__ import annotations

import pytest

from server.top.samples import Samples

TEXT = """# TYPE penstock_tokens counter
penstock_tokens_total{model="a",kind="prompt"} 10.0
penstock_tokens_total{model="a",kind="completion"} 4.0
penstock_tokens_total{model="b",kind="prompt"} 1.0
"""


def histogram(*cumulative: float) -> Samples:
    bounds = ("0.1", "0.2", "0.4", "+Inf")
    return Samples({("t_bucket", frozenset({("le", b)})): n for b, n in zip(bounds, cumulative, strict=True)})


def test_sums_of_series() -> None:
    samples = Samples.parse(TEXT)
    assert samples.total("penstock_tokens_total") == 15
    assert samples.total("penstock_tokens_total", model="a") == 14
    assert samples.total("penstock_tokens_total", model="a", kind="prompt") == 10
    assert samples.total("penstock_tokens") == 0
    assert Samples.sum([samples, samples]).total("penstock_tokens_total") == 30


def test_what_a_counter_has_gained() -> None:
    before, now = Samples.parse(TEXT), Samples.parse(TEXT.replace("10.0", "17.0").replace(" 4.0", " 3.0"))
    gained = now.since(before)
    assert gained.total("penstock_tokens_total", kind="prompt", model="a") == 7
    assert gained.total("penstock_tokens_total", kind="completion") == 3, "it was started again, and has counted 3"
    assert gained.total("penstock_tokens_total", model="b") == 0


@pytest.mark.parametrize(
    ("cumulative", "expected"),
    [((4, 4, 4, 4), 0.05), ((0, 4, 4, 4), 0.15), ((0, 2, 4, 4), 0.2), ((0, 0, 0, 4), 0.4), ((0, 0, 0, 0), None)],
)
def test_the_median(cumulative: tuple[float, ...], expected: float | None) -> None:
    assert histogram(*cumulative).quantile(0.5, "t") == (None if expected is None else pytest.approx(expected))


def test_a_quantile_of_nothing() -> None:
    assert Samples({}).quantile(0.5, "t") is None
