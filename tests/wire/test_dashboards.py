"""deploy/'s dashboard and alert rules ask for what a running server tells."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from server.metrics import Metrics

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "penstock.json").read_text())
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"][0]["rules"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PANEL_EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
EXPRESSIONS = PANEL_EXPRESSIONS + [rule["expr"] for rule in ALERTS]
VARIABLES = {"$__rate_interval": "5m", "$model": ".*"}
OF_A_SCRAPE = {"job", "instance", "le"}
PARTS = ("_sum", "_count", "_bucket", "_created")
NOT_SHOWN = {"penstock_cache_bytes", "penstock_model_state"}  # the latter is in the alerts


def parsed(expression: str) -> Any:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return promql_parser.parse(expression)


def nodes(expression: Any) -> Iterator[Any]:
    """All of a tree."""
    yield expression
    children = [getattr(expression, name, None) for name in ("lhs", "rhs", "expr", "param", "vector_selector")]
    for child in [*children, *(getattr(expression, "args", None) or ())]:
        if child is not None:
            yield from nodes(child)


@pytest.fixture(scope="module")
def labels(admin: httpx.Client) -> dict[str, set[str]]:
    """Of every sample's name that a server can show."""
    known: dict[str, set[str]] = {"up": set()}
    declared = {f"{made._name}": set(made._labelnames) for made in Metrics().registry._collector_to_names}  # type: ignore[attr-defined]
    for family in text_string_to_metric_families(admin.get("/metrics").text):
        of_samples = {label for sample in family.samples for label in sample.labels}
        for suffix in {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""]):
            known[family.name + suffix] = declared.get(family.name, set()) | of_samples
    return known


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_asks_for_what_there_is(expression: str, labels: dict[str, set[str]]) -> None:
    allowed = set(OF_A_SCRAPE)
    tree = list(nodes(parsed(expression)))
    selectors = [node for node in tree if isinstance(node, promql_parser.VectorSelector)]
    assert selectors
    for selector in selectors:
        assert selector.name in labels
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert matched <= labels[selector.name] | OF_A_SCRAPE
        allowed |= labels[selector.name]
    grouped = {label for node in tree for label in getattr(getattr(node, "modifier", None), "labels", None) or ()}
    assert grouped <= allowed


def test_every_metric_is_on_the_dashboard(labels: dict[str, set[str]]) -> None:
    shown = {
        node.name
        for expression in PANEL_EXPRESSIONS
        for node in nodes(parsed(expression))
        if isinstance(node, promql_parser.VectorSelector)
    }
    families = {name for name in labels if name != "up" and not name.endswith(PARTS)}
    histograms = {name.removesuffix("_bucket") for name in labels if name.endswith("_bucket")}
    missing = {name for name in families if name not in shown} | {
        name for name in histograms if not any(f"{name}{part}" in shown for part in ("_bucket", "_sum"))
    }
    assert missing == NOT_SHOWN


def test_the_dashboards_form() -> None:
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${datasource}"}
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "model"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, f"{panel['title']} lies on another one"
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_alert_says_what_it_is() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
