"""The commands of whoever operates ganmill: init, doctor, deploy, runs, status. Added to the `ganmill` command by `flows.cli`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a config key, e.g. train.budget.kimg=50.")
]
Json = Annotated[bool, typer.Option("--json", help="The result as one JSON line on stdout, everything human on stderr.")]
Finish = Callable[[Callable[[], dict[str, Any]], bool], None]


def add_commands(app: typer.Typer, finish: Finish) -> None:
    """Adds them to `app`; `finish` runs the work, prints its result and exits."""

    @app.command()
    def deploy(
        config: ConfigFile,
        schedule: Annotated[str | None, typer.Option(
            "--schedule", metavar="CRON", help='When to run: "0 2 * * *" is every night at two; "every 15m" works too.')] = None,
        timezone: Annotated[str | None, typer.Option(
            "--timezone", metavar="ZONE", help="Where the schedule's clock stands, e.g. Europe/Berlin; UTC by default.")] = None,
        name: Annotated[str | None, typer.Option("--name", help="The deployment's name; the dataset's by default.")] = None,
        pool: Annotated[str, typer.Option("--pool", help="Prefect work pool; made (of processes) where there is none.")] = "ganmill",
        paused: Annotated[bool, typer.Option("--paused", help="Leave the schedule switched off.")] = False,
        set_: Overrides = None,
        as_json: Json = False,
    ) -> None:
        """Put the run on the Prefect server of PREFECT_API_URL, with a schedule; again to change it."""
        def work() -> dict[str, Any]:
            from flows.deployment import deploy as deploy_run

            return deploy_run(config, set_ or [], schedule=schedule, timezone=timezone, name=name, pool=pool, paused=paused)

        finish(work, as_json)
