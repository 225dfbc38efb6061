"""The product, as one Prefect flow: labelled images in, a published synthetic dataset out.

Config → Snapshot → Checkpoint → Scorecard → Verdict → [ShardSpec] → [Receipt] → Version
"""

from typing import Any

from prefect import flow

from flows import stages
from flows.listening import listener
from pipeline.cluster import check_resources, connected
from pipeline.config import parse_config


@flow(name="ganmill", flow_run_name="{run_id}", validate_parameters=False)
def augment(config: dict[str, Any], run_id: str | None = None) -> stages.Outcome:
    """Trains a GAN on the source, measures whether its images help, and publishes them if they do.

    Args:
        config: as in the YAML file, `${NAME}` not yet replaced, so that no secret becomes a flow parameter.
        run_id: continues that run; by default it follows from source, config and code.

    Raises:
        GateRefused: the images did not pass; the report in the run folder says why.
        GanmillError: any other named failure; what was finished is kept for the next start.
    """
    settings = parse_config(config)
    check_resources(settings)
    with listener() as progress:
        run = stages.begin(settings, run_id, progress)
        published = stages.up_to_date(settings, run, progress)
        if published is not None:
            return published

        snapshot = stages.prepare(settings, run, progress)
        with connected(settings):
            checkpoint = stages.train(settings, snapshot, run, progress)
            scorecard = stages.evaluate(settings, snapshot, checkpoint, run, progress)
            verdict = stages.gate(settings, snapshot, checkpoint, scorecard, run, progress)
            plan = stages.plan(settings, snapshot, checkpoint, run, progress)
            receipts = stages.sample(settings, snapshot, checkpoint, plan, run, progress)
        version = stages.publish(settings, snapshot, checkpoint, scorecard, verdict, plan, receipts, run, progress)
        return stages.announce(settings, run, version, progress)
