"""What several floors' tests share."""

import os
import signal
from collections.abc import Iterator

os.environ["OMP_NUM_THREADS"] = "1"      # before torch is imported: tests run side by side, and threads that meet wait for both

import pytest
from hypothesis import settings

from tests.servers import S3Server, s3_process

settings.register_profile("ganmill", deadline=None)    # other work on the machine is no fault of the code
settings.load_profile("ganmill")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job has it so, and so would all it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3-protocol server; tests make buckets of their own."""
    with s3_process() as server:
        yield server
