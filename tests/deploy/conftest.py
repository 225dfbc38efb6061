"""The command as a process of its own, shared with the end-to-end tests."""

from tests.e2e.conftest import command

__all__ = ["command"]
