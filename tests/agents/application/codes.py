"""Exit codes by name, as the manager sees them."""

OK, ERROR, INSTALLED, CONFIGURED, NOT_RUNNING, DEGRADED = 0, 1, 5, 6, 7, 190
