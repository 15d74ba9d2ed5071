"""What people and programs get to see of the process: logs, access log, metrics, the task tree."""
