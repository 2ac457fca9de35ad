"""Tasks: what one run does. A task is a function whose parameters name the parts it needs."""
