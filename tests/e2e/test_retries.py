"""A stage that Prefect tries again after trouble with the store: what it finished is not done twice."""

import re
from collections import Counter

import pytest

from pipeline.store.objects import MAX_TRIES
from tests.e2e.conftest import Command, api
from tests.servers import S3Server, faulty


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_store_in_trouble_costs_another_try_and_no_work(command: Command, prefect_server: str, s3_server: S3Server) -> None:
    failed = Counter[str]()

    def fault(n: int, method: str, path: str) -> str | None:
        """The second shard and the manifest fail until the store room gives up, once each."""
        for name in ("train-00001", "manifest.json"):
            if method == "PUT" and name in path and failed[name] < MAX_TRIES:
                failed[name] += 1
                return "503"
        return None

    with faulty(s3_server, fault) as proxy:
        bucket = s3_server.new_bucket()
        command.env |= {"PREFECT_API_URL": prefect_server, **proxy.server.environment}
        ended = command.run("run", str(command.config(publish={"url": f"s3://{bucket}/sets"}, train={
            "model": "mlp", "budget": {"kimg": 1}}, sample={"rows_per_shard": 20, "workers": 1})), "--json", timeout_s=600)
        assert ended.status == 0 and ended.result["status"] == "published", ended.err
        assert set(failed.values()) == {MAX_TRIES} and len(failed) == 2
        tries = {t["name"].rsplit("-", 1)[0]: t["run_count"] for t in api(prefect_server, "/task_runs/filter")}
        assert (tries["sample"], tries["publish"], tries["train"], tries["evaluate"]) == (2, 2, 1, 1), tries
        puts = [path.partition("?")[0].rpartition("/")[2] for method, path in proxy.seen if method == "PUT"]
        gave_up = [i for i, name in enumerate(puts) if name.startswith("train-00001")][MAX_TRIES - 1]
        finished = {int(name.removesuffix(".json")) for name in puts[:gave_up] if re.fullmatch(r"\d{5}\.json", name)}
        again = {int(name[6:11]) for name in puts[gave_up + 1:] if name.startswith("train-")}
        assert 0 in finished and 1 in again and not finished & again, "a shard with a receipt was put again"
        assert command.run("verify", ended.result["dataset_url"], "--deep", "--orphans").status == 0
