//! Stop sequences over streamed text.
//!
//! Text that could still become a stop sequence is held back, so that no part of one is ever sent. The result does not
//! depend on how the text is cut: the stop sequence that is complete first wins, and of those that end together the
//! longest.

/// What may be sent after a piece of text was taken in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    /// Text that is no part of a stop sequence.
    pub(crate) text: String,
    /// The stop sequence that ended the answer; all later text is to be ignored.
    pub(crate) matched: Option<String>,
}

/// Looks for stop sequences.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<Stop>,
    held: String,
    done: bool,
}

/// One stop sequence, looked for as Knuth, Morris and Pratt do: each byte of the text is looked at once.
#[derive(Debug)]
struct Stop {
    text: String,
    /// For each length of its beginning, how long another beginning is at the end of that one.
    shorter: Vec<usize>,
    /// How much of it is at the end of the text so far.
    matched: usize,
}

impl Stop {
    fn new(text: &str) -> Self {
        let mut stop = Self { text: text.to_owned(), shorter: vec![0, 0], matched: 0 };
        for byte in text.bytes().skip(1) {
            stop.step(byte);
            stop.shorter.push(stop.matched);
        }
        stop.matched = 0;
        stop
    }

    /// Takes the next byte; true when the sequence is complete.
    fn step(&mut self, byte: u8) -> bool {
        let text = self.text.as_bytes();
        while self.matched > 0 && text[self.matched] != byte {
            self.matched = self.shorter[self.matched];
        }
        self.matched += usize::from(text[self.matched] == byte);
        self.matched == text.len()
    }
}

impl StopMatcher {
    /// Empty sequences never match.
    pub(crate) fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).map(|stop| Stop::new(stop)).collect();
        Self { stops, held: String::new(), done: false }
    }

    /// Takes the next piece of text.
    pub(crate) fn push(&mut self, text: &str) -> Passed {
        if self.done {
            return Passed::default();
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (at, byte) in text.bytes().enumerate() {
            let complete = self.stops.iter_mut().filter_map(|stop| stop.step(byte).then_some(&stop.text));
            // All of them are looked at, so that of those that end here the longest is found.
            if let Some(stop) = complete.max_by_key(|stop| stop.len()) {
                let matched = Some(stop.clone());
                self.held.truncate(before + at + 1 - stop.len());
                self.done = true;
                return Passed { text: std::mem::take(&mut self.held), matched };
            }
        }
        let keep = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        // A sequence begins with a whole character, and so does what is kept of one.
        let rest = self.held.split_off(self.held.len() - keep);
        Passed { text: std::mem::replace(&mut self.held, rest), matched: None }
    }

    /// What was held back and became no stop sequence.
    pub(crate) fn finish(&mut self) -> String {
        for stop in &mut self.stops {
            stop.matched = 0;
        }
        std::mem::take(&mut self.held)
    }
}

/// How many bytes at the end of `text` are the beginning, but not all, of `marker`.
pub(super) fn overlap(text: &str, marker: &str) -> usize {
    let longest = text.len().min(marker.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|&length| text.as_bytes().ends_with(&marker.as_bytes()[..length]))
        // A marker's first byte begins a character, so that equal bytes begin at a character of the text too; only the
        // cut within the marker can be inside a character, and then the text, being whole characters, doesn't match.
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut text = String::new();
        for piece in pieces {
            let passed = matcher.push(piece);
            text.push_str(&passed.text);
            if passed.matched.is_some() {
                return (text, passed.matched);
            }
        }
        text.push_str(&matcher.finish());
        (text, None)
    }

    #[test]
    fn text_before_a_stop_is_sent_and_the_stop_is_not() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), ("one ".into(), Some("END".into())));
        assert_eq!(run(&["END"], &["one E", "N"]), ("one EN".into(), None));
        assert_eq!(run(&["", "\n\n"], &["a\n", "b\n", "\nc"]), ("a\nb".into(), Some("\n\n".into())));
        assert_eq!(run(&["é!"], &["caf", "é", "!"]), ("caf".into(), Some("é!".into())));
    }

    #[test]
    fn the_first_to_be_complete_wins() {
        assert_eq!(run(&["abcd", "bc"], &["xabcd"]), ("xa".into(), Some("bc".into())));
        assert_eq!(run(&["bc", "abc"], &["xabcd"]), ("x".into(), Some("abc".into())));
    }

    #[test]
    fn only_what_could_become_a_stop_is_held_back() {
        let mut matcher = StopMatcher::new(&["aab".to_owned()]);
        assert_eq!(matcher.push("xaaa").text, "xa");
        assert_eq!(matcher.push("c").text, "aac");
    }

    #[test]
    fn many_stops_are_looked_for_at_once() {
        let stops: Vec<String> = (0..1000).map(|speaker| format!("Speaker {speaker}:")).collect();
        let mut matcher = StopMatcher::new(&stops);
        assert_eq!(matcher.push("Well. Speaker 99").text, "Well. ");
        assert_eq!(matcher.push("8").text, "");
        assert_eq!(matcher.push(": no").matched.as_deref(), Some("Speaker 998:"));
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(
            text in "[abé]{0,40}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(0usize..60, 0..8),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| text.is_char_boundary(cut)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
            let whole = run(&stops, &[&text]);
            prop_assert_eq!(&run(&stops, &pieces), &whole);
            // And it is the right thing: nothing that was sent holds a stop sequence.
            prop_assert!(stops.iter().all(|stop| !whole.0.contains(stop)));
            let ends: Vec<usize> = stops.iter().filter_map(|stop| text.find(stop).map(|at| at + stop.len())).collect();
            match (&whole.1, ends.into_iter().min()) {
                (None, None) => prop_assert_eq!(whole.0, text),
                (Some(stop), Some(end)) => prop_assert_eq!(whole.0 + stop, &text[..end]),
                (matched, end) => prop_assert!(false, "{:?} at {:?}", matched, end),
            }
        }
    }
}
