"""Dashboard, alert rules, scrape file and automations, against the figures and events that the code really has."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import page
from flows.metrics import STAGES, RunMetrics
from tests.deploy.files import DEPLOY, compose

FOLDER = DEPLOY / "monitoring"
PROMTOOL = shutil.which("promtool")


def dashboard() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "grafana-dashboard.json").read_text()))


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]


def ours() -> set[str]:
    """Every name that a run can show."""
    run = RunMetrics("x")
    for how in ("success", "refusal", "failure", "stop"):
        run.ended(how)
    return {family.name + ("_total" if family.type == "counter" else "") for family in run.registry.collect()}


def names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:ganmill|ray)_[a-z_]+", expression))


def rays() -> str:
    import ray.dashboard.modules.reporter.reporter_agent as reporter

    return Path(str(reporter.__file__)).read_text()


def missing(expressions: list[str]) -> set[str]:
    """Figures that nobody has."""
    known, source = ours(), rays()
    asked = set().union(*map(names, expressions))
    return {n for n in asked if n not in known and f'"{n.removeprefix("ray_")}"' not in source}


def test_every_figure_of_the_dashboard_and_the_rules_exists() -> None:
    shown = [t["expr"] for panel in dashboard()["panels"] for t in panel["targets"]]
    assert missing(shown) == set() and missing([rule["expr"] for rule in rules()]) == set()
    assert missing(["ganmill_queue_depht", "ray_node_cpu_utilisation"]) == {"ganmill_queue_depht", "ray_node_cpu_utilisation"}
    told = set().union(*map(names, shown))
    assert ours() - {"ganmill_run_started_timestamp_seconds", "ganmill_last_stop_timestamp_seconds"} <= told, "a figure that no panel shows"


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    content = dashboard()
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= set(content) and "id" not in content
    variables = {v["name"] for v in content["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)\}?", json.dumps(content["panels"]))) - {"__all"} <= variables
    ids = [panel["id"] for panel in content["panels"]]
    assert len(set(ids)) == len(ids) > 8
    taken: set[tuple[int, int]] = set()
    for panel in content["panels"]:
        assert panel["type"] in ("stat", "timeseries") and panel["title"] and panel["targets"]
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells


def test_the_rules_watch_for_refused_failed_and_stale() -> None:
    assert {"GanmillRefused", "GanmillFailed", "GanmillStale"} <= {rule["alert"] for rule in rules()}
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"} and rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} == set(rule["annotations"])
        for page_ in re.findall(r"docs/[\w-]+\.md", rule["annotations"]["description"]):
            assert (DEPLOY.parent / page_).exists()


def promtool(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(PROMTOOL), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool (Debian: apt-get install prometheus): the rules' language is not parsed here")
def test_promtool_takes_the_rules_and_they_fire_when_they_should(tmp_path: Path) -> None:
    for what, file in (("rules", "alerts.yaml"), ("config", "prometheus.yaml")):
        checked = promtool("check", what, *(["--syntax-only"] if what == "config" else []), str(FOLDER / file))
        assert checked.returncode == 0, checked.stdout + checked.stderr

    def fires(alert: str, hour: int) -> bool:
        """An hour a sample: a success at 1 h; a refusal at 9 h."""
        series = [{"series": f'ganmill_last_{how}_timestamp_seconds{{dataset="pets"}}', "values": values}
                  for how, values in (("success", "3600x60"), ("refusal", "_x9 32400x50"))]
        case = {"interval": "1h", "input_series": series, "alert_rule_test": [{"eval_time": f"{hour}h", "alertname": alert}]}
        (tmp_path / "case.yaml").write_text(json.dumps({"rule_files": [str(FOLDER / "alerts.yaml")], "tests": [case]}))
        told = promtool("test", "rules", str(tmp_path / "case.yaml"))
        assert told.returncode == 0 or f"alertname: {alert}" in told.stdout + told.stderr, told.stdout + told.stderr
        return told.returncode != 0                  # the test file expects silence

    assert [fires("GanmillRefused", hour) for hour in (7, 11)] == [False, True]
    assert [fires("GanmillStale", hour) for hour in (26, 29)] == [False, True]
    assert not fires("GanmillFailed", 29)


def test_what_is_scraped_is_what_compose_opens() -> None:
    jobs = {j["job_name"]: j for j in yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]}
    services = compose()["services"]
    assert jobs["ganmill"]["static_configs"][0]["targets"] == [
        f"prefect-worker:{services['prefect-worker']['environment']['GANMILL_METRICS_PORT'].rpartition(':')[2]}"]
    for target in jobs["ray"]["static_configs"][0]["targets"]:
        name, _, port = target.partition(":")
        assert f"--metrics-export-port={port}" in services[name]["command"]
    assert jobs["prefect"]["metrics_path"] == "/api/metrics"
    assert services["prefect-server"]["environment"]["PREFECT_SERVER_METRICS_ENABLED"] == "true"


def test_the_automations_are_prefects_and_name_our_events() -> None:
    from prefect.events.schemas.automations import AutomationCore

    made = [AutomationCore.model_validate(a) for a in yaml.safe_load((DEPLOY / "automations.yaml").read_text())["automations"]]
    assert [a.name for a in made] == ["ganmill refused", "ganmill failed", "ganmill stale"]
    known = {page.PUBLISHED_EVENT, page.UP_TO_DATE_EVENT, page.REFUSED_EVENT, page.FAILED_EVENT}
    expected = [trigger.expect | trigger.after for a in made for trigger in [a.trigger]]        # type: ignore[union-attr]
    assert set().union(*expected) == known


def test_the_stages_are_those_of_the_flow() -> None:
    from flows import stages

    assert all(hasattr(stages, name) for name in STAGES)
