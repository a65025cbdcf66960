from __future__ import annotations

from thinwire.report.charts import MOST_POINTS, Chart, Point, averaged, charts, thinned
from thinwire.report.runs import read_runs


def test_the_curves_of_a_run(make_run) -> None:
    over_time, over_tokens, loss, speed = charts(read_runs([make_run()]))
    assert [point[:2] for point in over_time.series[0].points][-1] == (10.0, 25.0)
    assert [point[:2] for point in over_tokens.series[0].points][-1] == (22.4, 25.0)
    assert over_time.x_label == "training time (s)"
    assert over_tokens.x_label == "training tokens (thousands)"
    assert [point.y for point in loss.series[0].points] == [6.0, 5.5, 5.0, 4.5]
    assert [point.y for point in speed.series[0].points] == [2240.0] * 4


def test_bytes_are_interpolated_between_lines(make_run) -> None:
    line = {"event": "train", "loss": 5.0, "tokens_per_second": 1.0}
    run = make_run(
        lines=[
            {**line, "step": 1, "tokens": 100, "seconds": 1.0, "bytes_sent": 10_000},
            {"event": "valid", "step": 2, "tokens": 150, "seconds": 1.5, "ppl": 90.0},
            {**line, "step": 3, "tokens": 200, "seconds": 2.0, "bytes_sent": 30_000},
        ]
    )
    *_, over_bytes = charts(read_runs([run]))
    assert over_bytes.x_label == "sent by all workers (kB)"
    assert over_bytes.series[0].points[0][:2] == (20.0, 90.0)


def test_an_empty_run_has_empty_charts(make_run) -> None:
    drawn = charts(read_runs([make_run(lines=[])]))
    assert len(drawn) == 4
    assert not any(chart.series[0].points for chart in drawn)


def test_few_points_stand_for_many() -> None:
    points = [Point(float(i), float(abs(i - 1234))) for i in range(5000)]
    some = thinned(points, lambda point: point.y)
    assert len(some) <= MOST_POINTS + 1
    assert {points[0], points[1234], points[-1]} <= {*some}
    means = averaged(points)
    assert len(means) <= MOST_POINTS
    assert means[0] == Point(8.0, 1226.0)


def test_the_axes_leave_room_for_a_flat_curve() -> None:
    for log, from_zero in ((True, False), (False, False), (False, True)):
        for y in (0.0, 7.0) if not log else (7.0,):
            chart = Chart("", "", "", [], "", log=log, from_zero=from_zero)
            chart.series.append(_series(y))
            low, high = chart.y_range
            assert low < high
            assert low <= y <= high


def _series(y: float):
    from thinwire.report.charts import Series

    return Series("run", 0, [Point(0.0, y)])


def test_nce_has_an_axis_of_its_own(make_run) -> None:
    paths = [make_run("sampled"), make_run("nce")]
    with (paths[1] / "config.toml").open("a") as config:
        config.write('[loss]\nkind = "nce"\n')
    by_title = {chart.title: chart for chart in charts(read_runs(paths))}
    assert [series.name for series in by_title["Training loss"].series] == ["sampled"]
    assert [series.name for series in by_title["Training loss of NCE"].series] == ["nce"]
    assert [series.colour for series in by_title["Training loss of NCE"].series] == [1]
