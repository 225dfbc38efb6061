"""A store that ignores conditions: said at the start, and still right as long as one run at a time publishes."""

from pipeline import walk
from tests.pipeline.crashing import assert_whole
from tests.pipeline.small import Notes, SmallRun, config
from tests.servers import S3Server, faulty


def test_a_run_says_that_its_store_ignores_conditions_and_does_without_them(s3_server: S3Server) -> None:
    with faulty(s3_server, strip_conditions=True) as proxy:
        settings, notes = config(f"s3://{s3_server.new_bucket()}/x", proxy.server.options), Notes()
        run = walk.begin(settings, "r1", notes)
        assert any("ignores conditional puts" in text and "let one run at a time publish" in text for text in notes.notes)
        assert run.folder.put_if_absent("once", b"first") and not run.folder.put_if_absent("once", b"second")
        assert run.folder.get("once") == b"first"
        minted = SmallRun(settings, "r1", run.dataset)
        version = minted.finish()
        assert minted.finish() == version                # nothing is put a second time under another name
        assert_whole(minted)


def test_a_store_that_heeds_conditions_is_not_spoken_of(s3_server: S3Server) -> None:
    notes = Notes()
    run = walk.begin(config(f"s3://{s3_server.new_bucket()}/x", s3_server.options), "r1", notes)
    assert run.lacking == "" and len(notes.notes) == 1
