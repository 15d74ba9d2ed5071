"""What people and programs see of the process: logs, access log, metrics, the task tree."""
