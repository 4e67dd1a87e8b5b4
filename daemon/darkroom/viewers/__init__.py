"""Those who are shown what the daemon does: the page, figures, a command, a webhook. None is worth a job."""
