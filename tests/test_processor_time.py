"""The line that keeps the quick tests quick: what each file costs, and which of them cost too much."""

from __future__ import annotations

from conftest import Costs


def test_processor_time_is_counted_between_calls() -> None:
    costs, begin = Costs(), Costs.now()
    while Costs.now() - begin < 0.05:
        pass
    assert 0.05 <= costs.since() < 5
    assert costs.since() < 0.05


def test_files_above_the_bound_are_named_and_a_few_tests_have_no_line() -> None:
    costs = Costs()
    costs.by_file.update({"a.py": 1.5 * Costs.BOUND, "b.py": 0.5 * Costs.BOUND})
    assert costs.lines() == []
    costs.by_file["c.py"] = Costs.SHOWN
    total, above, *files = costs.lines()
    assert total == "processor time of the tests: 80 s"
    assert above.startswith("files above 10 s")
    assert [line.split()[-1] for line in files] == ["c.py", "a.py"]
