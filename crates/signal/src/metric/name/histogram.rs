//! What is counted by size, with explicit bucket bounds.

use strum::VariantArray;

use super::{Definition, Label};

/// The HTTP conventions' bounds, and three more: answers of models take minutes.
const HTTP_SECONDS: [f64; 18] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 120.0, 300.0];

/// The database conventions' bounds.
const DATABASE_SECONDS: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

/// The GenAI conventions' bounds, doubled on up to eleven minutes.
const OPERATION_SECONDS: [f64; 17] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68, 655.36];

/// The GenAI conventions' bounds for the first token, and two more for long prompts.
const FIRST_TOKEN_SECONDS: [f64; 18] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0];

/// The GenAI conventions' bounds for later tokens, and four smaller ones for small local models.
const PER_TOKEN_SECONDS: [f64; 17] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];

/// The GenAI conventions' bounds for token counts.
const TOKENS: [f64; 14] = [
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0,
    67108864.0,
];

/// What the daemon itself adds to a request: from next to nothing to what a user would notice.
const OVERHEAD_SECONDS: [f64; 13] =
    [0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25];

/// Waits and prompt computations: from nothing at all to minutes.
const ENGINE_SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// From a large model on a small machine to a tiny one on a large machine.
const TOKENS_PER_SECOND: [f64; 17] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 500.0, 1000.0, 2000.0, 5000.0];

/// What one step computes: a token, or a large batch and a long chunk.
const STEP_TOKENS: [f64; 13] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

/// The GenAI conventions' labels, which are attributes of the inference span too.
const GENAI: [Label; 4] =
    [Label::GenAiOperation, Label::GenAiProvider, Label::ManagerProvider, Label::GenAiRequestModel];
const GENAI_ENDED: [Label; 5] =
    [Label::GenAiOperation, Label::GenAiProvider, Label::ManagerProvider, Label::GenAiRequestModel, Label::ErrorType];
const GENAI_TOKENS: [Label; 5] = [
    Label::GenAiOperation,
    Label::GenAiProvider,
    Label::ManagerProvider,
    Label::GenAiRequestModel,
    Label::GenAiTokenType,
];

/// A histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, VariantArray)]
pub enum Histogram {
    /// From a request's first byte in to its last byte out.
    HttpServerRequestDuration,
    /// From a call's start to the first content of a streamed answer, the end of another, or its failure.
    HttpClientRequestDuration,
    /// Time of a database statement.
    DbClientOperationDuration,
    /// Whole duration of an inference by a cloud provider.
    GenAiClientOperationDuration,
    /// From a cloud provider's call to its first generated content.
    GenAiClientTimeToFirstChunk,
    /// Mean time between two streamed chunks of one cloud answer.
    GenAiClientTimePerOutputChunk,
    /// Tokens of one inference by a cloud provider.
    GenAiClientTokenUsage,
    /// The same as the operation's duration, by the conventions' newer name.
    GenAiClientInferenceDuration,
    /// From a streaming cloud provider's call to its first generated content.
    GenAiClientInferenceTimeToFirstChunk,
    /// The same as the operation's time per output chunk, by the conventions' newer name.
    GenAiClientInferenceTimePerOutputChunk,
    /// Input tokens of one inference by a cloud provider.
    GenAiClientInferenceInputTokens,
    /// Output tokens of one inference by a cloud provider.
    GenAiClientInferenceOutputTokens,
    /// Whole duration of an inference by the local engine.
    GenAiServerRequestDuration,
    /// From the local engine's call to its first token: waiting and prefill.
    GenAiServerTimeToFirstToken,
    /// Mean time of a token after the first of one local answer.
    GenAiServerTimePerOutputToken,
    /// Time that the daemon itself took for a request.
    Overhead,
    /// Time a request waited for the local engine.
    QueueWait,
    /// Time to compute a prompt.
    Prefill,
    /// Time to generate an answer, from its first token.
    Decode,
    /// Tokens per second of one sequence after its first token.
    DecodeTokensPerSecond,
    /// Time between two tokens of an answer.
    InterToken,
    /// Time of one step of the local engine.
    Step,
    /// Tokens computed in one step of the local engine.
    StepTokens,
    /// Prompt tokens of a request that the local engine computed.
    SequencePromptTokens,
    /// Tokens generated for a request that the local engine computed.
    SequenceGeneratedTokens,
}

impl Histogram {
    /// All of them.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// What it is.
    pub fn definition(self) -> &'static Definition {
        match self {
            Self::HttpServerRequestDuration => &Definition {
                name: "http_server_request_duration_seconds",
                otlp_name: "http.server.request.duration",
                unit: "s",
                help: "From a request's first byte in to its last byte out.",
                labels: &[Label::Method, Label::Route, Label::StatusCode, Label::ErrorType],
                buckets: &HTTP_SECONDS,
            },
            Self::HttpClientRequestDuration => &Definition {
                name: "http_client_request_duration_seconds",
                otlp_name: "http.client.request.duration",
                unit: "s",
                help: "From a call's start to the first content of a streamed answer, the end of another, or its failure.",
                labels: &[Label::Method, Label::ServerAddress, Label::ServerPort, Label::StatusCode, Label::ErrorType],
                buckets: &HTTP_SECONDS,
            },
            Self::DbClientOperationDuration => &Definition {
                name: "db_client_operation_duration_seconds",
                otlp_name: "db.client.operation.duration",
                unit: "s",
                help: "Time of a database statement.",
                labels: &[Label::DbSystem, Label::DbOperation, Label::DbCollection, Label::ErrorType],
                buckets: &DATABASE_SECONDS,
            },
            Self::GenAiClientOperationDuration => &Definition {
                name: "gen_ai_client_operation_duration_seconds",
                otlp_name: "gen_ai.client.operation.duration",
                unit: "s",
                help: "Whole duration of an inference by a cloud provider, from its call on; a target that fails over to another counts too.",
                labels: &GENAI_ENDED,
                buckets: &OPERATION_SECONDS,
            },
            Self::GenAiClientTimeToFirstChunk => &Definition {
                name: "gen_ai_client_operation_time_to_first_chunk_seconds",
                otlp_name: "gen_ai.client.operation.time_to_first_chunk",
                unit: "s",
                help: "From a cloud provider's call to its first generated content.",
                labels: &GENAI,
                buckets: &OPERATION_SECONDS,
            },
            Self::GenAiClientTimePerOutputChunk => &Definition {
                name: "gen_ai_client_operation_time_per_output_chunk_seconds",
                otlp_name: "gen_ai.client.operation.time_per_output_chunk",
                unit: "s",
                help: "Mean time between two streamed chunks of one cloud answer.",
                labels: &GENAI,
                buckets: &PER_TOKEN_SECONDS,
            },
            Self::GenAiClientTokenUsage => &Definition {
                name: "gen_ai_client_token_usage",
                otlp_name: "gen_ai.client.token.usage",
                unit: "{token}",
                help: "Tokens of one inference by a cloud provider.",
                labels: &GENAI_TOKENS,
                buckets: &TOKENS,
            },
            Self::GenAiClientInferenceDuration => &Definition {
                name: "gen_ai_client_inference_duration_seconds",
                otlp_name: "gen_ai.client.inference.duration",
                unit: "s",
                help: "Whole duration of an inference by a cloud provider, from its call on; the newer name of gen_ai_client_operation_duration_seconds.",
                labels: &GENAI_ENDED,
                buckets: &OPERATION_SECONDS,
            },
            Self::GenAiClientInferenceTimeToFirstChunk => &Definition {
                name: "gen_ai_client_inference_time_to_first_chunk_seconds",
                otlp_name: "gen_ai.client.inference.time_to_first_chunk",
                unit: "s",
                help: "From a cloud provider's call to the first generated content of its streamed answer.",
                labels: &GENAI,
                buckets: &OPERATION_SECONDS,
            },
            Self::GenAiClientInferenceTimePerOutputChunk => &Definition {
                name: "gen_ai_client_inference_time_per_output_chunk_seconds",
                otlp_name: "gen_ai.client.inference.time_per_output_chunk",
                unit: "s",
                help: "Mean time between two chunks; the newer name of gen_ai_client_operation_time_per_output_chunk_seconds.",
                labels: &GENAI,
                buckets: &PER_TOKEN_SECONDS,
            },
            Self::GenAiClientInferenceInputTokens => &Definition {
                name: "gen_ai_client_inference_operation_input_tokens",
                otlp_name: "gen_ai.client.inference.operation.input_tokens",
                unit: "{token}",
                help: "Input tokens of one inference by a cloud provider.",
                labels: &GENAI,
                buckets: &TOKENS,
            },
            Self::GenAiClientInferenceOutputTokens => &Definition {
                name: "gen_ai_client_inference_operation_output_tokens",
                otlp_name: "gen_ai.client.inference.operation.output_tokens",
                unit: "{token}",
                help: "Output tokens of one inference by a cloud provider.",
                labels: &GENAI,
                buckets: &TOKENS,
            },
            Self::GenAiServerRequestDuration => &Definition {
                name: "gen_ai_server_request_duration_seconds",
                otlp_name: "gen_ai.server.request.duration",
                unit: "s",
                help: "Whole duration of an inference by the local engine, from its call on.",
                labels: &GENAI_ENDED,
                buckets: &OPERATION_SECONDS,
            },
            Self::GenAiServerTimeToFirstToken => &Definition {
                name: "gen_ai_server_time_to_first_token_seconds",
                otlp_name: "gen_ai.server.time_to_first_token",
                unit: "s",
                help: "From the local engine's call to its first token: waiting and prefill.",
                labels: &GENAI,
                buckets: &FIRST_TOKEN_SECONDS,
            },
            Self::GenAiServerTimePerOutputToken => &Definition {
                name: "gen_ai_server_time_per_output_token_seconds",
                otlp_name: "gen_ai.server.time_per_output_token",
                unit: "s",
                help: "Mean time of a token after the first of one local answer.",
                labels: &GENAI,
                buckets: &PER_TOKEN_SECONDS,
            },
            Self::Overhead => &Definition {
                name: "mlx_manager_overhead_seconds",
                otlp_name: "mlx_manager.overhead",
                unit: "s",
                help: "Time that the daemon itself took for a request: to decode its head, to find its target, to record its end.",
                labels: &[Label::Phase],
                buckets: &OVERHEAD_SECONDS,
            },
            Self::QueueWait => &Definition {
                name: "mlx_manager_queue_wait_seconds",
                otlp_name: "mlx_manager.queue.wait",
                unit: "s",
                help: "Time a request waited for the local engine.",
                labels: &[],
                buckets: &ENGINE_SECONDS,
            },
            Self::Prefill => &Definition {
                name: "mlx_manager_prefill_seconds",
                otlp_name: "mlx_manager.prefill",
                unit: "s",
                help: "Time to compute a prompt.",
                labels: &[Label::Model],
                buckets: &ENGINE_SECONDS,
            },
            Self::Decode => &Definition {
                name: "mlx_manager_decode_seconds",
                otlp_name: "mlx_manager.decode",
                unit: "s",
                help: "Time to generate an answer, from its first token to its last.",
                labels: &[Label::Model],
                buckets: &ENGINE_SECONDS,
            },
            Self::DecodeTokensPerSecond => &Definition {
                name: "mlx_manager_decode_tokens_per_second",
                otlp_name: "mlx_manager.decode.rate",
                unit: "{token}/s",
                help: "Tokens per second of one sequence after its first token.",
                labels: &[Label::Model],
                buckets: &TOKENS_PER_SECOND,
            },
            Self::InterToken => &Definition {
                name: "mlx_manager_inter_token_seconds",
                otlp_name: "mlx_manager.inter_token",
                unit: "s",
                help: "Time between two tokens of one answer.",
                labels: &[Label::Model],
                buckets: &PER_TOKEN_SECONDS,
            },
            Self::Step => &Definition {
                name: "mlx_manager_step_seconds",
                otlp_name: "mlx_manager.step",
                unit: "s",
                help: "Time of one step of the local engine, by what it was spent on.",
                labels: &[Label::Model, Label::Part],
                buckets: &ENGINE_SECONDS,
            },
            Self::StepTokens => &Definition {
                name: "mlx_manager_step_tokens",
                otlp_name: "mlx_manager.step.tokens",
                unit: "{token}",
                help: "Tokens computed in one step of the local engine: one of each sequence that decodes, and some of prompts.",
                labels: &[Label::Model],
                buckets: &STEP_TOKENS,
            },
            Self::SequencePromptTokens => &Definition {
                name: "mlx_manager_sequence_prompt_tokens",
                otlp_name: "mlx_manager.sequence.prompt_tokens",
                unit: "{token}",
                help: "Prompt tokens of a request that the local engine computed.",
                labels: &[Label::Model],
                buckets: &TOKENS,
            },
            Self::SequenceGeneratedTokens => &Definition {
                name: "mlx_manager_sequence_generated_tokens",
                otlp_name: "mlx_manager.sequence.generated_tokens",
                unit: "{token}",
                help: "Tokens generated for a request that the local engine computed.",
                labels: &[Label::Model],
                buckets: &TOKENS,
            },
        }
    }
}
