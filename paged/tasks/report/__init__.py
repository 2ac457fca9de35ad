"""task=report: tables, plots and a trace of runs that are there already."""
