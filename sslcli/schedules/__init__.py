"""Learning-rate schedules as pure functions of the step, one file per plugin."""
