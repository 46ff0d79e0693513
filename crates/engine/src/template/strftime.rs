//! `strftime` as Python has it from the C library, in the C locale. Python's `datetime.now()` has no zone, so `%z` and `%Z`
//! are empty.

use jiff::{Zoned, civil::Weekday};

/// More than any date is padded to.
const WIDEST: usize = 64;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

fn weekday(day: Weekday) -> &'static str {
    match day {
        Weekday::Monday => "Monday",
        Weekday::Tuesday => "Tuesday",
        Weekday::Wednesday => "Wednesday",
        Weekday::Thursday => "Thursday",
        Weekday::Friday => "Friday",
        Weekday::Saturday => "Saturday",
        Weekday::Sunday => "Sunday",
    }
}

/// What GNU's flags make of a field.
#[derive(Debug, Clone, Copy, Default)]
struct Flags {
    /// `-` (none), `_` (spaces) or `0`.
    padding: Option<char>,
    upper: bool,
    swapped: bool,
    width: Option<usize>,
}

/// The date in a format. What is no directive stays as it is, as glibc leaves it.
pub(super) fn format(format: &str, now: &Zoned) -> String {
    let mut text = String::with_capacity(format.len());
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        text.push_str(&rest[..start]);
        let directive = &rest[start..];
        let (flags, length) = flags(&directive[1..]);
        let after = &directive[1 + length..];
        let Some(letter) = after.chars().next() else {
            text.push_str(directive);
            return text;
        };
        rest = &after[letter.len_utf8()..];
        match field(letter, flags, now) {
            Some(field) => text.push_str(&field),
            None => text.push_str(&directive[..directive.len() - rest.len()]),
        }
    }
    text.push_str(rest);
    text
}

/// The flags at the start of a directive, and their length.
fn flags(directive: &str) -> (Flags, usize) {
    let mut flags = Flags::default();
    let mut length = 0;
    for character in directive.chars() {
        match character {
            '-' | '_' => flags.padding = Some(character),
            '0' if flags.width.is_none() => flags.padding = Some('0'),
            '^' => flags.upper = true,
            '#' => flags.swapped = true,
            '0'..='9' => {
                let digit = character.to_digit(10).unwrap_or_default() as usize;
                flags.width = Some((flags.width.unwrap_or_default() * 10 + digit).min(WIDEST));
            }
            // Alternative forms, which the C locale has none of.
            'E' | 'O' => {
                length += 1;
                break;
            }
            _ => break,
        }
        length += 1;
    }
    (flags, length)
}

fn field(letter: char, flags: Flags, now: &Zoned) -> Option<String> {
    let number = |value: i64, width: usize, padding: char| numeric(value, width, padding, flags);
    let words = |text: &str| wordy(text, flags, flags.swapped);
    let whole = |pattern: &str| wordy(&format(pattern, now), flags, false);
    let (year, month, day) = (i64::from(now.year()), i64::from(now.month()), i64::from(now.day()));
    let (hour, minute, second) = (i64::from(now.hour()), i64::from(now.minute()), i64::from(now.second()));
    let day_of_year = i64::from(now.day_of_year());
    let from_sunday = i64::from(now.weekday().to_sunday_zero_offset());
    let from_monday = i64::from(now.weekday().to_monday_zero_offset());
    let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
    let month_name = MONTHS.get(usize::try_from(month - 1).ok()?)?;
    let day_name = weekday(now.weekday());
    let iso = now.date().iso_week_date();
    let half = if hour < 12 { "AM" } else { "PM" };
    Some(match letter {
        'a' => words(&day_name[..3]),
        'A' => words(day_name),
        'b' | 'h' => words(&month_name[..3]),
        'B' => words(month_name),
        'c' => whole("%a %b %e %H:%M:%S %Y"),
        'C' => number(year / 100, 2, '0'),
        'd' => number(day, 2, '0'),
        'D' | 'x' => whole("%m/%d/%y"),
        'e' => number(day, 2, '_'),
        'f' => format!("{:06}", now.subsec_nanosecond() / 1000),
        'F' => whole("%Y-%m-%d"),
        'g' => number(i64::from(iso.year()) % 100, 2, '0'),
        'G' => number(i64::from(iso.year()), 4, '0'),
        'H' => number(hour, 2, '0'),
        'I' => number(twelve, 2, '0'),
        'j' => number(day_of_year, 3, '0'),
        'k' => number(hour, 2, '_'),
        'l' => number(twelve, 2, '_'),
        'm' => number(month, 2, '0'),
        'M' => number(minute, 2, '0'),
        'n' => "\n".to_owned(),
        'p' if flags.swapped => wordy(&half.to_lowercase(), flags, false),
        'p' => words(half),
        'P' => words(&half.to_lowercase()),
        'r' => whole("%I:%M:%S %p"),
        'R' => whole("%H:%M"),
        's' => number(now.timestamp().as_second(), 1, '0'),
        'S' => number(second, 2, '0'),
        't' => "\t".to_owned(),
        'T' | 'X' => whole("%H:%M:%S"),
        'u' => number(from_monday + 1, 1, '0'),
        'U' => number((day_of_year + 6 - from_sunday) / 7, 2, '0'),
        'V' => number(i64::from(iso.week()), 2, '0'),
        'w' => number(from_sunday, 1, '0'),
        'W' => number((day_of_year + 6 - from_monday) / 7, 2, '0'),
        'y' => number(year.rem_euclid(100), 2, '0'),
        'Y' => number(year, 4, '0'),
        'z' | 'Z' => String::new(),
        '%' => "%".to_owned(),
        _ => return None,
    })
}

fn numeric(value: i64, width: usize, padding: char, flags: Flags) -> String {
    let width = flags.width.unwrap_or(width);
    match flags.padding.unwrap_or(padding) {
        '-' => value.to_string(),
        '_' => format!("{value:width$}"),
        _ => format!("{value:0width$}"),
    }
}

fn wordy(text: &str, flags: Flags, swapped: bool) -> String {
    let text = if flags.upper || swapped { text.to_uppercase() } else { text.to_owned() };
    let width = flags.width.unwrap_or_default();
    if flags.padding == Some('0') { format!("{text:0>width$}") } else { format!("{text:>width$}") }
}

#[cfg(test)]
mod tests {
    use super::format;

    /// What CPython 3.11 on glibc writes.
    #[test]
    fn dates_are_written_as_python_does() {
        let cases = [
            (
                "2026-11-20T09:05:07",
                "%d %b %Y|%A, %B %d, %Y|%Y-%m-%d",
                "20 Nov 2026|Friday, November 20, 2026|2026-11-20",
            ),
            ("2026-11-20T09:05:07", "%-d %B %Y|%e|%I:%M %p|%H:%M", "20 November 2026|20|09:05 AM|09:05"),
            ("2026-11-20T09:05:07", "%y|%j|%a|%F|%U|%u|%D|%x|%%", "26|324|Fri|2026-11-20|46|5|11/20/26|11/20/26|%"),
            ("2026-11-20T09:05:07", "%c|%X|%r|%R|%T", "Fri Nov 20 09:05:07 2026|09:05:07|09:05:07 AM|09:05|09:05:07"),
            (
                "2027-01-03T00:30:00",
                "%-d|%e|%_d|%3d|%-I|%l|%k|%U|%W|%V|%G|%g|%w",
                "3| 3| 3|003|12|12| 0|01|00|53|2026|26|0",
            ),
            (
                "2027-01-03T13:30:00",
                "%p|%P|%#p|%^a|%^B|%#a|%-m/%-d|%C|%h|%n|%t|",
                "PM|pm|pm|SUN|JANUARY|SUN|1/3|20|Jan|\n|\t|",
            ),
            ("2027-01-03T13:30:00", "%z%Z|%f|%Ey|%Od|%Q|%é|100%", "|000000|27|03|%Q|%é|100%"),
        ];
        for (now, pattern, expected) in cases {
            assert_eq!(format(pattern, &format!("{now}[UTC]").parse().unwrap()), expected, "{pattern}");
        }
        assert!(format("%999999999999999999999d", &"2026-01-01T00:00[UTC]".parse().unwrap()).len() < 1000);
    }
}
