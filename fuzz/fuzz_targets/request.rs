//! Request bodies of both dialects.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use mlx_manager_dialect as dialect;
use mlx_manager_llm::Api;

fuzz_target!(|input: (bool, &[u8])| {
    let api = if input.0 { Api::ChatCompletions } else { Api::Messages };
    let Ok(request) = dialect::decode_head(api, Bytes::copy_from_slice(input.1)) else { return };
    // A body may be refused, but with an error.
    drop(dialect::decode_chat(&request));
    assert_eq!(dialect::prepare(&request, &request.model, false).concat(), input.1);
    let prepared = dialect::prepare(&request, "another", true).concat();
    let again = dialect::decode_head(api, prepared.into()).expect("what a provider gets is a request too");
    assert_eq!((again.model.as_str(), again.stream), ("another", request.stream));
    assert_eq!(again.sampling, request.sampling);
});
