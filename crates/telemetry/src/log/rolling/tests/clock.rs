//! Rotation at the moments at which clocks are difficult.

use super::*;

/// Lets the clock show one moment after the other and writes one line at each. Returns every file's lines as the numbers
/// of the moments, archives by the time in their names.
fn walk(timezone: &str, period: Period, moments: &[&str]) -> Vec<(String, Vec<usize>)> {
    let stage = Stage::new();
    let seconds = |moment: &str| moment.parse::<Timestamp>().unwrap().as_second();
    stage.seconds.store(seconds(moments[0]), Ordering::Relaxed);
    let rotation = Rotation { size: None, every: Some(period) };
    let mut file = stage.open_in(rotation, TimeZone::get(timezone).unwrap());
    for (index, moment) in moments.iter().enumerate() {
        stage.seconds.store(seconds(moment), Ordering::Relaxed);
        // What happens once a second, also when nothing is written.
        file.next_look = Instant::now();
        file.look_after().unwrap();
        put(&mut file, &format!("{index}\n"));
    }
    let lines = |path: &Path| fs::read_to_string(path).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let archives = stage.shelf().list().unwrap();
    let archives = archives.iter().map(|archive| (name(&archive.path), lines(&archive.path)));
    archives.chain([("active".to_owned(), lines(&stage.path()))]).collect()
}

#[track_caller]
fn check((timezone, period): (&str, Period), moments: &[&str], expected: &[(&str, &[usize])]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|(time, lines)| {
            let name = if *time == "active" { "active".to_owned() } else { format!("app.{time}.log") };
            (name, lines.to_vec())
        })
        .collect();
    assert_eq!(walk(timezone, period, moments), expected);
}

fn day(hour: i8, minute: i8) -> Period {
    Period::Day { at: time(hour, minute, 0, 0) }
}

#[test]
fn midnight_and_the_end_of_the_year() {
    check(
        ("UTC", day(0, 0)),
        &["2026-12-30T10:00:00Z", "2026-12-31T00:00:00Z", "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"],
        &[("2026-12-31T00-00-00Z.0001", &[0]), ("2027-01-01T00-00-00Z.0001", &[1, 2]), ("active", &[3])],
    );
    // The machine's new year, in names that stay in UTC.
    check(
        ("Asia/Tokyo", day(0, 0)),
        &["2026-12-31T14:59:59Z", "2026-12-31T15:00:00Z", "2027-01-01T00:00:00Z"],
        &[("2026-12-31T15-00-00Z.0001", &[0]), ("active", &[1, 2])],
    );
    // A week that begins in one year and ends in the next, and a leap day.
    check(
        ("UTC", Period::Week { on: Weekday::Friday, at: time(12, 0, 0, 0) }),
        &["2026-12-30T00:00:00Z", "2027-01-01T11:59:59Z", "2027-01-01T12:00:00Z", "2027-01-08T11:59:59Z"],
        &[("2027-01-01T12-00-00Z.0001", &[0, 1]), ("active", &[2, 3])],
    );
    check(
        ("UTC", day(0, 0)),
        &["2028-02-28T23:59:59Z", "2028-02-29T00:00:00Z", "2028-03-01T00:00:00Z"],
        &[("2028-02-29T00-00-00Z.0001", &[0]), ("2028-03-01T00-00-00Z.0001", &[1]), ("active", &[2])],
    );
}

#[test]
fn days_of_23_and_25_hours() {
    check(
        ("Europe/Berlin", day(0, 0)),
        &["2026-03-28T22:59:59Z", "2026-03-28T23:00:00Z", "2026-03-29T21:59:59Z", "2026-03-29T22:00:00Z"],
        &[("2026-03-28T23-00-00Z.0001", &[0]), ("2026-03-29T22-00-00Z.0001", &[1, 2]), ("active", &[3])],
    );
    check(
        ("Europe/Berlin", day(0, 0)),
        &["2026-10-24T22:00:00Z", "2026-10-25T22:59:59Z", "2026-10-25T23:00:00Z"],
        &[("2026-10-25T23-00-00Z.0001", &[0, 1]), ("active", &[2])],
    );
}

#[test]
fn a_time_of_day_that_is_skipped_or_comes_twice_rotates_once() {
    check(
        ("Europe/Berlin", day(2, 30)),
        &["2026-03-29T01:29:59Z", "2026-03-29T01:30:00Z", "2026-03-30T00:29:59Z", "2026-03-30T00:30:00Z"],
        &[("2026-03-29T01-30-00Z.0001", &[0]), ("2026-03-30T00-30-00Z.0001", &[1, 2]), ("active", &[3])],
    );
    check(
        ("Europe/Berlin", day(2, 30)),
        &["2026-10-25T00:29:59Z", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"],
        &[("2026-10-25T00-30-00Z.0001", &[0]), ("2026-10-26T01-30-00Z.0001", &[1, 2]), ("active", &[3])],
    );
    // Both hours that are called two are hours.
    check(
        ("Europe/Berlin", Period::Hour),
        &["2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:59:59Z", "2026-10-25T02:00:00Z"],
        &[("2026-10-25T01-00-00Z.0001", &[0]), ("2026-10-25T02-00-00Z.0001", &[1, 2]), ("active", &[3])],
    );
}

#[test]
fn a_clock_that_steps_back() {
    // By seconds: the period ends once, and names stay in order.
    check(
        ("UTC", Period::Hour),
        &[
            "2026-11-20T09:59:59Z",
            "2026-11-20T10:00:01Z",
            "2026-11-20T09:59:58Z",
            "2026-11-20T10:00:00Z",
            "2026-11-20T11:00:00Z",
        ],
        &[("2026-11-20T10-00-01Z.0001", &[0]), ("2026-11-20T11-00-00Z.0001", &[1, 2, 3]), ("active", &[4])],
    );
    // By years: the next midnight counts, not the one in years.
    check(
        ("UTC", day(0, 0)),
        &["2030-01-01T12:00:00Z", "2026-11-20T12:00:00Z", "2026-11-20T23:59:59Z", "2026-11-21T00:00:00Z"],
        &[("2026-11-21T00-00-00Z.0001", &[0, 1, 2]), ("active", &[3])],
    );
}
