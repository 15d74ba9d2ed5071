"""The chart's alert rules and dashboard; tests/e2e/test_observability.py runs their queries."""

from __future__ import annotations

import json
import shutil
import subprocess

import yaml

from tests.needs import unavailable
from tests.support.chart import CHART, render

DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())
RULES = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        unavailable(f"{name} is not installed: make deps")
    return found


def test_both_are_off_by_default():
    assert not {"PrometheusRule", "ConfigMap"} & set(render({}).kinds)


def test_the_rules_and_the_dashboard_are_rendered():
    rendered = render({"observability": {"rules": True, "dashboard": True}})
    assert rendered.object("PrometheusRule")["spec"] == RULES
    config = rendered.object("ConfigMap")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["ztunnel.json"]) == DASHBOARD


def test_promtool_accepts_the_rules():
    done = subprocess.run(
        [program("promtool"), "check", "rules", CHART / "files" / "rules.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_do_not_overlap_and_are_described():
    places = [(one["gridPos"]["x"], one["gridPos"]["y"]) for one in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert all(one["description"] and one["title"] for one in DASHBOARD["panels"])
