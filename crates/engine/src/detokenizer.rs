//! Text from token ids, piece by piece.
//!
//! A character may be spread over several tokens, and how a token reads may depend on the one before it (a leading
//! space). So a short window of tokens is decoded again at each step: those that were given out last, and the new ones;
//! what the new ones add is the next piece, held back while it ends in an unfinished character.
//!
//! Special tokens are no text and don't show, but for the markers that the parser is to see.

use std::sync::Arc;

use super::{parse::SPECIAL, tokenizer::Tokenizer};

/// Tokens held back at most. An unfinished character is four bytes; more than that in a row is rubbish, and decoding it
/// again and again would cost the square of its length.
const MOST_HELD: usize = 32;

/// Tokens of a text that the answer goes on with that are looked at.
const CONTEXT: usize = 8;

/// What a decoder writes for bytes that are no character, or not yet.
const REPLACEMENT: char = '\u{FFFD}';

/// Turns one answer's token ids into text.
#[derive(Debug)]
pub(crate) struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    window: Vec<u32>,
    /// The first tokens of the window, whose text was given out.
    given: usize,
    /// The text of these.
    given_text: String,
    /// Special tokens that mean something in this answer.
    markers: Vec<(u32, &'static str)>,
}

impl Detokenizer {
    /// `markers` are given out where they come as special tokens. `before` is what the answer goes on with, if it does: how
    /// its first token reads may depend on that.
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, markers: &[&'static str], before: &[u32]) -> Self {
        let window = before[before.len().saturating_sub(CONTEXT)..].to_vec();
        Self {
            given: window.len(),
            given_text: tokenizer.decode(&window),
            window,
            markers: markers.iter().filter_map(|marker| Some((tokenizer.special(marker)?, *marker))).collect(),
            tokenizer,
        }
    }

    /// Takes the next id and gives the text that is now certain, which may be none.
    pub(crate) fn push(&mut self, id: u32) -> String {
        if self.tokenizer.is_special(id) {
            let marker = self.markers.iter().find(|(special, _)| *special == id);
            let Some(&(_, marker)) = marker else { return String::new() };
            let mut text = self.finish();
            text.push(SPECIAL);
            text.push_str(marker);
            return text;
        }
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window);
        let nothing_new = text.ends_with(REPLACEMENT) || text.len() <= self.given_text.len();
        if nothing_new && self.window.len() - self.given < MOST_HELD { String::new() } else { self.give(&text) }
    }

    /// Gives what was held back.
    pub(crate) fn finish(&mut self) -> String {
        if self.window.len() == self.given {
            return String::new();
        }
        let text = self.tokenizer.decode(&self.window);
        self.give(&text)
    }

    fn give(&mut self, text: &str) -> String {
        // Text that was given out can't be taken back. Where later tokens change how earlier ones read (byte tokens that
        // turn out to be no character), the new ones are read alone.
        let new = match text.strip_prefix(self.given_text.as_str()) {
            Some(new) => new.to_owned(),
            None => self.tokenizer.decode(&self.window[self.given..]),
        };
        self.window.drain(..self.given);
        self.given = self.window.len();
        self.given_text = self.tokenizer.decode(&self.window);
        new
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn demo() -> Arc<Tokenizer> {
        Arc::new(Tokenizer::load(Path::new("../../assets/demo-model")).unwrap())
    }

    /// Words with a leading-space mark, and single bytes, as Llama 2's and Mistral's tokenizers have them.
    fn sentence_piece() -> Arc<Tokenizer> {
        let mut vocabulary =
            vec!["<unk>".to_owned(), "▁Hello".into(), "▁world".into(), "s".into(), "▁".into(), "é".into()];
        vocabulary.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
        let vocabulary: serde_json::Map<_, _> =
            vocabulary.into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
        let text = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "vocab": vocabulary, "merges": []},
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), text.to_string()).unwrap();
        Arc::new(Tokenizer::load(folder.path()).unwrap())
    }

    fn pieces(tokenizer: &Arc<Tokenizer>, ids: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), &[], &[]);
        let mut pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
        pieces.push(detokenizer.finish());
        pieces
    }

    #[test]
    fn a_character_in_two_tokens_is_held_back() {
        let tokenizer = demo();
        let ids = tokenizer.encode("Zoë 🦉!").unwrap();
        let pieces = pieces(&tokenizer, &ids);
        assert!(pieces.iter().any(String::is_empty), "{pieces:?}");
        assert!(pieces.iter().all(|piece| !piece.contains(REPLACEMENT)), "{pieces:?}");
        assert_eq!(pieces.concat(), "Zoë 🦉!");
    }

    #[test]
    fn spaces_of_words_survive() {
        let tokenizer = sentence_piece();
        assert_eq!(pieces(&tokenizer, &[1, 2, 3, 4, 2]).concat(), "Hello worlds  world");
        // 🦉 in four byte tokens after a word.
        let owl: Vec<u32> = [1].into_iter().chain("🦉".bytes().map(|byte| u32::from(byte) + 6)).collect();
        assert_eq!(pieces(&tokenizer, &owl), ["Hello", "", "", "", "🦉", ""]);
    }

    #[test]
    fn special_tokens_show_only_as_markers_of_the_answer() {
        let tokenizer = demo();
        let special = |text: &str| tokenizer.special(text).unwrap();
        let word = |text: &str| tokenizer.encode(text).unwrap();
        let spelled = ["<|im", "_end|>"].map(word).concat();
        let ids =
            [word("one "), vec![special("<|endoftext|>")], word("two "), spelled, vec![special("<|im_end|>")]].concat();
        assert_eq!(pieces(&tokenizer, &ids).concat(), "one two <|im_end|>");
        let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer), &["<|im_end|>"], &[]);
        let shown: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
        assert_eq!(shown, format!("one two <|im_end|>{SPECIAL}<|im_end|>"));
    }

    #[test]
    fn an_answer_that_goes_on_keeps_its_space() {
        let tokenizer = sentence_piece();
        let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer), &[], &[1]);
        assert_eq!(detokenizer.push(2) + &detokenizer.finish(), " world");
    }

    #[test]
    fn a_cut_character_is_shown_at_the_end() {
        let tokenizer = sentence_piece();
        assert_eq!(pieces(&tokenizer, &[1, 6 + 0xF0]).concat(), "Hello\u{FFFD}");
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_text(text in "\\PC{0,60}") {
            let tokenizer = demo();
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(pieces(&tokenizer, &ids).concat(), tokenizer.decode(&ids));
        }

        #[test]
        fn whatever_the_ids(mut ids in prop::collection::vec(0u32..1536, 0..60)) {
            let tokenizer = demo();
            ids.retain(|id| !tokenizer.is_special(*id));
            let whole = tokenizer.decode(&ids);
            // Longer runs of rubbish are cut short on purpose.
            prop_assume!(!whole.contains(&REPLACEMENT.to_string().repeat(8)));
            prop_assert_eq!(pieces(&tokenizer, &ids).concat(), whole);
        }

        #[test]
        fn whatever_the_words(ids in prop::collection::vec(0u32..6, 0..40)) {
            let tokenizer = sentence_piece();
            prop_assert_eq!(pieces(&tokenizer, &ids).concat(), tokenizer.decode(&ids));
        }
    }
}
