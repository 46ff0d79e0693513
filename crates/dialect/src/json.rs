//! Writing JSON that can't fail to be written.

use bytes::Bytes;
use serde::Serialize;

/// Appends `value` as JSON. Only for types with string keys and without fallible `Serialize`s of their own.
#[expect(clippy::expect_used, reason = "writing plain structs with string keys into memory has no way to fail")]
pub(super) fn write(out: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(out, value).expect("plain data is always JSON");
}

/// `value` as a JSON body.
pub(super) fn bytes(value: &impl Serialize) -> Bytes {
    let mut out = Vec::with_capacity(512);
    write(&mut out, value);
    out.into()
}
