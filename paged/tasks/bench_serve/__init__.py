"""task=bench_serve: load on a running OpenAI-compatible server, and what its clients see."""
