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
    for add in (_add_init, _add_doctor, _add_deploy, _add_runs, _add_status):
        add(app, finish)


def _add_init(app: typer.Typer, finish: Finish) -> None:
    @app.command(short_help="Write a commented config for labelled images.")
    def init(
        url: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder or URL of labelled images, or `digits`.", show_default=False)],
        out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The config to write.")] = Path("ganmill.yaml"),
        source_format: Annotated[str | None, typer.Option(
            "--format", help="imagefolder | parquet | idx | webdataset; guessed by default.")] = None,
        publish: Annotated[str | None, typer.Option("--publish", metavar="URL", help="Where versions go; asked by default.")] = None,
        yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing, take what is guessed.")] = False,
        force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
        as_json: Json = False,
    ) -> None:
        """Look at labelled images and write a commented config for them."""
        def work() -> dict[str, Any]:
            from flows.starting import init as write

            def ask(question: str, proposed: str) -> str:
                return str(typer.prompt(question, default=proposed, err=True))

            return write(url, out, source_format=source_format, publish=publish, yes=yes, force=force, ask=ask)

        finish(work, as_json)


def _add_doctor(app: typer.Typer, finish: Finish) -> None:
    @app.command(short_help="Is everything there? Each fault with a remedy.")
    def doctor(
        config: Annotated[Path | None, typer.Argument(
            metavar="[CONFIG]", help="A config whose source, store and cluster shall be tried too.")] = None,
        ray: Annotated[bool, typer.Option("--ray", help="Start a local Ray to see whether it comes up (some seconds).")] = False,
        set_: Overrides = None,
        as_json: Json = False,
    ) -> None:
        """Check versions, machine, GPU, store, Prefect and Ray; each line is ok or brings a remedy. Exit 1 on a fault."""
        def work() -> dict[str, Any]:
            from flows.doctor import examine

            return examine(config, set_ or [], start_ray=ray)

        finish(work, as_json)


def _add_deploy(app: typer.Typer, finish: Finish) -> None:
    @app.command(short_help="Put the run on a Prefect server, scheduled.")
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


def _add_runs(app: typer.Typer, finish: Finish) -> None:
    @app.command(short_help="A dataset's runs, and how far they are.")
    def runs(
        place: Annotated[str | None, typer.Argument(
            metavar="[PLACE]", help="A config, or a dataset's URL <publish.url>/<name>; every dataset below ./out by default.")] = None,
        as_json: Json = False,
    ) -> None:
        """The runs of a dataset: stage, progress, when, and the version published."""
        def work() -> dict[str, Any]:
            from flows.overview import show_runs

            return show_runs(place)

        finish(work, as_json)


def _add_status(app: typer.Typer, finish: Finish) -> None:
    @app.command(short_help="One run: stage, progress, how it ended.")
    def status(
        run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its folder's URL.", show_default=False)],
        place: Annotated[str | None, typer.Option("--in", metavar="PLACE", help="Where to look for the id: as for `runs`.")] = None,
        as_json: Json = False,
    ) -> None:
        """One run: its stage, how far it is, when, and how it ended."""
        def work() -> dict[str, Any]:
            from flows.overview import show_status

            return show_status(run, place)

        finish(work, as_json)
