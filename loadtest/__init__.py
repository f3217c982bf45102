"""Load on any OpenAI-compatible server, over HTTP only: workloads, runner, measures, report.

This room imports nothing of the others, so that it measures a foreign server as it measures ours.
Times are seconds inside (names end in `_s`); only the report prints milliseconds.
"""
