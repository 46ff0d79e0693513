//! Packed weights as floats: the same answers, and what the headers said they would take.

use super::*;
use crate::model::{Form, Source, measure};

#[tokio::test]
async fn unpacked_weights_give_the_answers_of_the_reference_and_take_what_was_said() {
    let engine = Handle::start(settings()).unwrap();
    let mut unpacked = 0;
    for (name, (folder, golden)) in goldens() {
        let footprint = measure(&folder, Precision::Float32).unwrap();
        for form in [Form::Stored, Form::Unpacked] {
            let source = Source { folder: folder.clone(), form };
            let info = engine.load(&name, source).await.unwrap();
            // The norms of heads are spread out to all of them.
            let (bytes, told) = (info.bytes, footprint.bytes(form));
            assert_eq!(info.form, form);
            assert!(bytes >= told && bytes - told <= told / 50, "{name} {form:?}: {bytes} bytes, said to be {told}");
            let (tokens, _) = drain(engine.generate(greedy(&name, &golden.prompt_ids, 64))).await;
            assert_eq!(tokens, golden.greedy_ids, "{name} {form:?}");
            engine.unload(&name, "idle").await.unwrap();
        }
        assert_eq!(footprint.has_packed(), name.contains("-q4"), "{name}");
        unpacked += u32::from(footprint.has_packed());
    }
    assert!(unpacked >= 5, "only {unpacked} of them are packed");
}

#[test]
fn logits_of_unpacked_weights_are_those_of_the_reference() {
    for (name, (folder, golden)) in goldens() {
        let model = load_now(Source { folder, form: Form::Unpacked });
        let logits = last_logits(&model, &golden.prompt_ids);
        let largest = golden.last_logits.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
        let difference = logits.iter().zip(&golden.last_logits).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(difference <= 1e-3 * largest, "{name}: {difference} of {largest}");
    }
}
