"""Long trials of what `docs/reliability.md` promises, for `.ci/soak`: kills, fuzzing, long runs, many files and runs."""
