"""Loggers: where a run is reported beside its folder."""
