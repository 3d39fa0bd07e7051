"""What a deployment is watched with: alerts, their pages, the dashboard."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.prometheus import DEPLOY, ROOT, RULES, run

RUNBOOKS = ROOT / "docs" / "runbooks"
HEADINGS = ("## What it means", "## Look at", "## Do")
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "segstream.json"


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


ALERTS = [alert["alert"] for alert in alerts()]


@pytest.mark.parametrize("alert", alerts(), ids=ALERTS)
def test_every_alert_has_its_page_and_says_where_it_is(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"]["summary"]
    page = ROOT / alert["annotations"]["runbook_url"]
    assert page == RUNBOOKS / f"{alert['alert']}.md"
    text = page.read_text()
    assert text.startswith(f"# {alert['alert']}\n")
    places = [text.index(heading) for heading in HEADINGS]
    assert places == sorted(places)


def test_every_page_is_of_an_alert() -> None:
    pages = {page.stem for page in RUNBOOKS.glob("*.md")} - {"README"}
    assert pages == set(ALERTS)
    index = (RUNBOOKS / "README.md").read_text()
    assert [name for name in ALERTS if f"]({name}.md)" not in index] == []


def test_every_alert_fires_in_a_test_and_is_quiet_in_one() -> None:
    tests = yaml.safe_load((DEPLOY / "prometheus" / "rules_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", ())]
    fired = {case["alertname"] for case in cases if case.get("exp_alerts")}
    quiet = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    assert fired == quiet == set(ALERTS)


def test_the_rules_pass_their_own_tests() -> None:
    assert "SUCCESS" in run("promtool", "test", "rules", DEPLOY / "prometheus" / "rules_test.yml")


def test_the_configurations_are_in_order() -> None:
    run("promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    run("amtool", "check-config", DEPLOY / "alertmanager" / "alertmanager.yml")


@pytest.mark.parametrize("severity", ["page", "ticket"])
def test_an_alert_goes_to_the_receiver_of_its_severity(severity: str) -> None:
    config = f"--config.file={DEPLOY / 'alertmanager' / 'alertmanager.yml'}"
    told = run("amtool", "config", "routes", "test", config, f"severity={severity}")
    assert told.split()[0] == severity


def test_the_replicas_are_found_by_their_name() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    [job] = (job for job in config["scrape_configs"] if job["job_name"] == "segstream")
    [discovery] = job["dns_sd_configs"]
    assert (discovery["names"], discovery["port"]) == (["service"], 8080)


def test_the_dashboard_is_what_its_table_makes() -> None:
    made = runpy.run_path(str(DEPLOY / "grafana" / "generate.py"))["text"]()
    assert DASHBOARD.read_text() == made, "run: python deploy/grafana/generate.py"


def test_the_dashboard_is_laid_out_without_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_grafana_finds_datasource_and_dashboards() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    files: dict[str, Any] = {
        path.parent.name: yaml.safe_load(path.read_text()) for path in provisioning.rglob("*.yml")
    }
    [datasource] = files["datasources"]["datasources"]
    dashboard = json.loads(DASHBOARD.read_text())
    used = {panel["datasource"]["uid"] for panel in dashboard["panels"] if "datasource" in panel}
    assert used == {datasource["uid"]}
    [provider] = files["dashboards"]["providers"]
    assert Path(provider["options"]["path"]).name == DASHBOARD.parent.name
