"""Long trials of what `docs/reliability.md` promises, by `.ci/soak`: kills, fuzzing, long runs, many files."""
