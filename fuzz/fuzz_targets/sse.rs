//! Any chunking of a stream gives the same frames, and they are all of it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mlx_manager_dialect::sse::{Frame, Parser, SseError};

const LIMIT: usize = 256;

/// Frames, the one that the end left unfinished included, or why there are no more.
fn parse<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<Frame>, Option<SseError>) {
    let mut parser = Parser::new(LIMIT);
    let mut frames = Vec::new();
    for chunk in chunks {
        parser.push(chunk);
        loop {
            match parser.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    let pending = parser.pending();
    let last = parser.finish();
    assert_eq!(last.as_ref().map_or(0, |last| last.raw.len()), pending);
    assert_eq!((parser.finish(), parser.pending()), (None, 0));
    frames.extend(last);
    (frames, None)
}

fuzz_target!(|input: (Vec<u8>, &[u8])| {
    let (lengths, stream) = input;
    let mut rest = stream;
    let mut chunks = Vec::new();
    for length in lengths {
        let (chunk, after) = rest.split_at(usize::from(length).min(rest.len()));
        chunks.push(chunk);
        rest = after;
    }
    chunks.push(rest);

    let whole = parse(std::iter::once(stream));
    assert_eq!(whole, parse(chunks.into_iter()));
    let joined: Vec<u8> = whole.0.iter().flat_map(|frame| frame.raw.to_vec()).collect();
    assert!(stream.starts_with(&joined));
    assert!(whole.1.is_some() || stream == joined);
});
