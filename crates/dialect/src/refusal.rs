//! What a provider's error answer says, in whichever dialect.

/// An error answer, read.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The provider's words.
    pub message: Option<String>,
    /// A status within the body: how servers report an error after the stream began.
    pub status: Option<u16>,
    /// The most telling of its type and code.
    pub name: Option<String>,
}
