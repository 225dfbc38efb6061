"""The product, as one Prefect flow: labelled images in, a published synthetic dataset out.

Config → Snapshot → Checkpoint → Scorecard → Verdict → [ShardSpec] → [Receipt] → Version
"""

from typing import Any, cast

from prefect import flow

from flows import page, points, stages
from flows.listening import listener
from flows.logs import name_run
from flows.metrics import measured
from pipeline.cluster import alone, check_resources, connected, is_jobs_url
from pipeline.config import Config, parse_config


@flow(name="ganmill", flow_run_name=page.run_name, validate_parameters=False)
def augment(config: Config, run_id: str | None = None) -> stages.Outcome:
    """Trains a GAN on the source, measures whether its images help, and publishes them if they do.

    Args:
        config: as in the YAML file, a dict with `${NAME}` not yet replaced, so that no secret becomes a flow parameter.
            The type gives the form in Prefect's UI and the schema that a deployment's parameters are checked against
            before anything is started; the values are checked here, once the environment is known.
        run_id: continues that run; by default it follows from source, config and code.

    Raises:
        GateRefused: the images did not pass; the report in the run folder says why.
        GanmillError: any other named failure; what was finished is kept for the next start.
    """
    with page.bad_ends(config, run_id) as subject, measured(subject.name) as figures, listener(figures) as progress:
        settings = subject.settings = parse_config(cast(dict[str, Any], config))
        if is_jobs_url(settings.cluster.address):        # the whole run happens on that cluster
            return stages.submit(settings, cast(dict[str, Any], config), run_id, progress)
        check_resources(settings)
        run = stages.begin(settings, run_id, progress)
        subject.run_id = run.run_id
        name_run(run.run_id)
        published = stages.up_to_date(settings, run, progress)
        if published is not None:
            return published
        if settings.source.format == "gaussians":        # points on the plane, not images
            with alone():
                return points.augment(settings, run, progress)

        snapshot = stages.prepare(settings, run, progress)
        with connected(settings):
            checkpoint = stages.train(settings, snapshot, run, progress)
            scorecard = stages.evaluate(settings, snapshot, checkpoint, run, progress)
            verdict = stages.gate(settings, snapshot, checkpoint, scorecard, run, progress)
            plan = stages.plan(settings, snapshot, checkpoint, run, progress)
            receipts = stages.sample(settings, snapshot, checkpoint, plan, run, progress)
        version = stages.publish(settings, snapshot, checkpoint, scorecard, verdict, plan, receipts, run, progress)
        return stages.announce(settings, run, version, progress)
