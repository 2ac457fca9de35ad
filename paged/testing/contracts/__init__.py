"""Contract tests of the interfaces, for any implementation (see paged.testing.plugin)."""
