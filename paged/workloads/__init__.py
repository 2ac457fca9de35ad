"""Workloads: what is asked of the engine. One file each.

A workload is an iterable of items with a `prompt` and the fields of `SamplingParams` they set
(`prompts.WorkItem`); traces yield `request.Request`, which also has arrival times and lengths.
"""
