"""What an operator sees from outside: a run scraped while it goes on, and a server that tells of refused, failed and stale."""

import contextlib
import subprocess
import sys
import time
import urllib.request

import pytest
import yaml

from tests.deploy.files import DEPLOY
from tests.e2e.conftest import Command, api, free_port
from tests.e2e.nightly import make_images
from tests.e2e.test_prefect import eventually
from tests.flows.test_metrics import figures, gateway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
TINY_TRAINING = {"model": "mlp", "budget": {"kimg": 1}}


def test_a_run_is_scraped_while_it_goes_on_and_leaves_its_last_word(command: Command) -> None:
    port = free_port()
    with gateway() as (url, pushed):
        command.env |= {"GANMILL_METRICS_PORT": str(port), "GANMILL_METRICS_PUSHGATEWAY": url}
        config = command.config(train={"model": "dcgan", "budget": {"kimg": 20}, "options": {"width": 8, "metrics_every_s": 0.2}})
        process = command.start("run", str(config), "--json")
        seen: list[dict[str, float]] = []
        while process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
                seen.append(figures(reply.read().decode()))
            time.sleep(0.2)
        _, err = process.communicate()
        assert process.returncode == 0, err
        training = [s for s in seen if s.get("ganmill_stage train") == 1]
        assert max(s["ganmill_images_per_second"] for s in training) > 0
        kimgs = [s.get("ganmill_trained_kimg", 0.0) for s in training]
        assert kimgs == sorted(kimgs) and 0 < kimgs[-1] <= 21
        last = pushed[-1][2]
        assert last["ganmill_shards_done"] == last["ganmill_shards_planned"] > 0 and last["ganmill_queue_depth"] == 0
        assert "ganmill_last_success_timestamp_seconds" in last
        again = command.run("run", str(config))
        assert again.status == 0 and "ganmill_last_success_timestamp_seconds" in pushed[-1][2], "up to date is a success"
        refused = command.run("run", str(command.config(train=TINY_TRAINING, gate={"min_coverage": 1.0, "min_lift_pp": None})))
        assert refused.status == 3 and "ganmill_last_refusal_timestamp_seconds" in pushed[-1][2]
        broken = command.run("run", str(command.config(source={"format": "imagefolder", "url": str(command.folder / "gone")})))
        assert broken.status == 1 and "ganmill_last_failure_timestamp_seconds" in pushed[-1][2]


def test_the_automations_fire_on_a_real_server(command: Command, prefect_server: str) -> None:
    content = yaml.safe_load((DEPLOY / "automations.yaml").read_text())
    content["automations"][2]["trigger"]["within"] = 20          # a day is too long for a test
    (command.folder / "automations.yaml").write_text(yaml.safe_dump(content))
    command.env["PREFECT_API_URL"] = prefect_server
    made = subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", "automation", "create", "--from-file", "automations.yaml"],
                          cwd=command.folder, env=command.env, capture_output=True, text=True, check=False, timeout=240)
    assert made.returncode == 0, made.stdout + made.stderr
    assert command.run("run", str(command.config(train=TINY_TRAINING))).status == 0
    refused = command.config(train=TINY_TRAINING, seed=1, gate={"min_coverage": 1.0, "min_lift_pp": None})
    assert command.run("run", str(refused)).status == 3
    make_images(command.folder / "images", 0, {"round": 6, "square": 6})
    (command.folder / "images/round/bad.png").write_bytes(b"not a picture")
    broken = command.config(source={"format": "imagefolder", "url": str(command.folder / "images")}, prepare={"max_bad": 0.0})
    assert command.run("run", str(broken)).status == 1

    def fired() -> set[str]:
        told = api(prefect_server, "/events/filter", {"filter": {"event": {"name": ["prefect.automation.triggered"]}}})["events"]
        return {event["resource"]["prefect.resource.name"] for event in told}

    assert eventually(lambda: fired() >= {"ganmill refused", "ganmill failed", "ganmill stale"}, within_s=240), fired()
