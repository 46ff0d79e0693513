//! Which traces are exported for sure. The rest is recorded too, so that the tail rule can still change its mind.

use opentelemetry::{
    Context, KeyValue, TraceId,
    trace::{Link, SpanKind, TraceContextExt},
};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};

#[derive(Debug, Clone)]
pub(super) enum Sampler {
    /// Ids and nothing else.
    Never,
    /// A share of all traces. One whose remote parent is sampled is kept whatever the share; a remote parent that is not
    /// sampled does not hide a trace, for what is visible is the operator's choice and not the client's.
    ///
    /// What only has links belongs to the traces that they lead to, and is in the share if one of them is.
    Share(f64),
}

impl ShouldSample for Sampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        _: &str,
        _: &SpanKind,
        _: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let parent = parent.map(|context| context.span().span_context().clone()).filter(|parent| parent.is_valid());
        let sampled = match (self, &parent) {
            (Self::Never, _) => None,
            (Self::Share(_), Some(parent)) if parent.is_sampled() => Some(true),
            (Self::Share(_), Some(parent)) if !parent.is_remote() => Some(false),
            (Self::Share(_), None) if !links.is_empty() => {
                Some(links.iter().any(|link| link.span_context.is_sampled()))
            }
            (Self::Share(share), _) => Some(in_share(trace_id, *share)),
        };
        SamplingResult {
            decision: match sampled {
                None => SamplingDecision::Drop,
                Some(false) => SamplingDecision::RecordOnly,
                Some(true) => SamplingDecision::RecordAndSample,
            },
            attributes: Vec::new(),
            trace_state: parent.map(|parent| parent.trace_state().clone()).unwrap_or_default(),
        }
    }
}

/// Decides by the 56 bits of a trace id that W3C Trace Context wants to be random, so that every process that sees the
/// trace decides alike.
fn in_share(trace_id: TraceId, share: f64) -> bool {
    const RANDOM: u128 = (1 << 56) - 1;
    let position = (u128::from_be_bytes(trace_id.to_bytes()) & RANDOM) as f64;
    position < share * (RANDOM as f64 + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_share() {
        let kept = |share: f64| {
            (0..10_000_u128)
                .map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
                .filter(|&id| in_share(TraceId::from(id), share))
                .count()
        };
        assert_eq!(kept(0.0), 0);
        assert_eq!(kept(1.0), 10_000);
        assert!((2_300..2_700).contains(&kept(0.25)), "{}", kept(0.25));
    }
}
