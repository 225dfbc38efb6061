"""The `ganmill` command. Heavy packages are imported in the commands, so that `--help` answers at once."""

import contextlib
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.operating import add_commands

app = typer.Typer(
    name="ganmill", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Train a GAN on a labelled image dataset, measure whether its images help, publish them exactly once.",
)

STOP_WITHIN_S = 20.0         # of SIGTERM: container platforms kill after thirty

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a config key, e.g. train.budget.kimg=50.")
]
RunId = Annotated[
    str | None, typer.Option("--run-id", metavar="ID", help="Continue that run; by default it follows from source, config and code.")
]
Json = Annotated[bool, typer.Option("--json", help="Events and result as JSON lines on stdout, everything human on stderr.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and print the plan; write nothing.")]


def _version(asked: bool) -> None:
    if not asked:
        return
    from pipeline.runs import SOFTWARE_VERSION, code_digest

    typer.echo(f"ganmill {SOFTWARE_VERSION} (code {code_digest()})")
    raise typer.Exit


@app.callback()
def every_command(
    version: Annotated[bool, typer.Option("--version", help="Show version and code digest.", is_eager=True, callback=_version)] = False,
) -> None:
    """What holds before any command."""


@app.command(short_help="The whole job: images in, published dataset out.")
def run(
    config: ConfigFile, set_: Overrides = None, run_id: RunId = None, dry_run: DryRun = False, as_json: Json = False
) -> None:
    """The whole job: prepare, train, evaluate, gate, plan, sample, publish, report."""
    if dry_run:
        _finish(lambda: _validate(config, set_), as_json, resume=None)
        return
    _finish(lambda: _augment(config, set_, run_id, as_json), as_json, resume=_resume_command(config, set_, run_id))


@app.command(short_help="Check config and source; write nothing.")
def validate(config: ConfigFile, set_: Overrides = None, as_json: Json = False) -> None:
    """Check config and source, print the resolved config and the plan; write nothing."""
    _finish(lambda: _validate(config, set_), as_json, resume=None)


def _stage_command(name: str, short: str, text: str) -> None:
    def command(config: ConfigFile, set_: Overrides = None, run_id: RunId = None, as_json: Json = False) -> None:
        def work() -> dict[str, Any]:
            from flows.single import stage_here

            return _listened(lambda progress: stage_here(name, config, set_ or [], run_id, progress), as_json)

        _finish(work, as_json, resume=_resume_command(config, set_, run_id, name))

    command.__doc__ = text
    app.command(name, short_help=short)(command)


_stage_command("train", "One stage: prepare data, train the generator.", "One stage of a run: prepare the data and train the generator.")
_stage_command("evaluate", "One stage: measure; the gate decides.", "One stage of a run: measure the generator and let the gate decide.")
_stage_command("sample", "One stage: mint the images, publish.", "One stage of a run: mint the planned images and publish them.")
_stage_command("report", "One stage: write the report again.", "One stage of a run: write its report again.")


@app.command(short_help="What a published dataset holds.")
def show(
    url: Annotated[str, typer.Argument(help="A dataset's URL, <publish.url>/<name>, or a version's below it.")],
    as_json: Json = False,
) -> None:
    """What a published dataset holds: versions, rows per class, scores, source, generator."""

    def work() -> dict[str, Any]:
        from flows.inspection import show_dataset

        return show_dataset(url)

    _finish(work, as_json, resume=None)


@app.command(short_help="Check every shard against its manifest.")
def verify(
    url: Annotated[str, typer.Argument(help="A dataset's URL, <publish.url>/<name>, or a version's below it.")],
    deep: Annotated[bool, typer.Option("--deep", help="Decode every row too: labels, uids, images.")] = False,
    orphans: Annotated[bool, typer.Option("--orphans", help="List objects that no version refers to.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="With --orphans: remove them, if the version is sound.")] = False,
    as_json: Json = False,
) -> None:
    """Check size and sha256 of every shard of a version against its manifest; exit 1 on the first fault, naming it."""

    def work() -> dict[str, Any]:
        from flows.inspection import verify_dataset

        return verify_dataset(url, deep, orphans, remove)

    _finish(work, as_json, resume=None)


@app.command(short_help="`run` on the digits example, out of the box.")
def demo(set_: Overrides = None, run_id: RunId = None, as_json: Json = False) -> None:
    """`run` on the digits example: no download, no server, no GPU."""
    config = _demo_config()
    _finish(lambda: _augment(config, set_, run_id, as_json), as_json, resume=_resume_command(config, set_, run_id))


def _demo_config() -> Path:
    """`examples/digits.yaml` of a checkout, or the copy inside the package."""
    checkout = Path(__file__).resolve().parent.parent / "examples" / "digits.yaml"
    return checkout if checkout.exists() else Path(__file__).resolve().parent / "digits.yaml"


def _loaded(path: Path, overrides: list[str] | None) -> Any:
    from pipeline.config import load_config

    return load_config(path, overrides or [])


def _listened(work: Callable[[Any], dict[str, Any]], as_json: bool) -> dict[str, Any]:
    from flows.console import console_progress

    progress = console_progress(as_json)
    try:
        return work(progress)
    finally:
        progress.close()


def _augment(path: Path, overrides: list[str] | None, run_id: str | None, as_json: bool) -> dict[str, Any]:
    from flows.single import augment_here

    return _listened(lambda progress: augment_here(path, overrides or [], run_id, progress), as_json)


def _validate(path: Path, overrides: list[str] | None) -> dict[str, Any]:
    from flows.inspection import validate_config

    return validate_config(_loaded(path, overrides))


def _resume_command(config: Path, overrides: list[str] | None, run_id: str | None, command: str = "run") -> str:
    import shlex

    words = ["ganmill", command, str(config)]
    for override in overrides or []:
        words += ["--set", override]
    return shlex.join(words + (["--run-id", run_id] if run_id else []))


def _finish(work: Callable[[], dict[str, Any]], as_json: bool, resume: str | None) -> None:
    """Runs `work`, prints its one-line result (or its one clear message) and exits with its status."""
    from pipeline.errors import GanmillError, Interrupted

    stopped = "stopped; everything finished is kept" + (f". Continue with: {resume}" if resume else "")
    try:
        with _stopped_like_ctrl_c(lambda: _give_up(stopped, as_json)):
            result = work()
    except (KeyboardInterrupt, Interrupted):
        _fail(130, stopped, as_json)
    except GanmillError as e:
        _fail(e.exit_status, str(e), as_json, kind=type(e).__name__, **getattr(e, "details", {}))
    except BrokenPipeError:
        # whoever read our output has gone: nothing more to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except Exception as e:  # noqa: BLE001  the process's boundary: no user should meet a traceback alone
        _fail(1, _unexpected(e), as_json, kind=type(e).__name__)
    else:
        text = result.pop("text", "")
        if as_json:
            typer.echo(json.dumps({"event": "result", "status": "done", **result}))
            typer.echo(text, err=True)
        else:
            typer.echo(text)


@contextlib.contextmanager
def _stopped_like_ctrl_c(give_up: Callable[[], None]) -> Iterator[None]:
    """SIGTERM (a service manager's stop, `timeout`, a container's end) and SIGHUP (a terminal that closes) end what is inside as Ctrl-C
    does, so that nothing stays behind; but where somebody handles or ignores them already, as `nohup` does.

    Args:
        give_up: called if that takes too long: all of a command's processes may have been sent the signal, and Ray waits for its own
            for minutes. Must end this process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield                                        # only there may handlers be set
        return
    ours = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    told, tell = os.pipe()                           # of every signal, whoever handles it by then: Prefect has a handler of its own
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(told, frozenset(ours), give_up), daemon=True, name="stop")
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(tell)
        watch.join()
        os.close(told)
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _watch(told: int, deadly: frozenset[int], give_up: Callable[[], None]) -> None:
    """Gives up so long after a deadly signal was told of, unless the pipe ends before."""
    while number := os.read(told, 1):
        if number[0] in deadly and not select.select([told], [], [], STOP_WITHIN_S)[0]:
            give_up()


def _give_up(message: str, as_json: bool) -> None:
    """Ends the process at once, and what it started of Ray."""
    from pipeline.cluster import leave_nothing

    leave_nothing()
    try:
        _fail(130, message, as_json)
    finally:
        os._exit(1)


def _unexpected(error: Exception) -> str:
    """A fault without a name of its own: its last words, and where the traceback is."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="ganmill-", suffix=".log", delete=False) as log:
        log.write("".join(traceback.format_exception(error)))
    return f"unexpected {type(error).__name__}: {error}. This is a fault of ganmill; please report it with {log.name}"


def _fail(status: int, message: str, as_json: bool, kind: str = "Interrupted", **details: Any) -> None:
    words = {1: "failed", 2: "bad usage", 3: "refused", 130: "stopped"}[status]
    if as_json:
        typer.echo(json.dumps({"event": "result", "status": words, "error": kind, "message": message, **details}))
    from flows.logs import FORMAT, line

    structured = os.environ.get(FORMAT) == "json"
    typer.echo(line("ERROR", message, kind=kind, status=words) if structured else f"ganmill: {words}: {message}", err=True)
    raise SystemExit(1 if status == 130 else status)


add_commands(app, lambda work, as_json: _finish(work, as_json, resume=None))


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
