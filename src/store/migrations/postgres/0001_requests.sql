-- One row per POST to an inference endpoint.
CREATE TABLE requests (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_id TEXT NOT NULL,
    trace_id TEXT,
    started_at TIMESTAMPTZ NOT NULL,
    finished_at TIMESTAMPTZ NOT NULL,
    api TEXT NOT NULL,
    operation TEXT NOT NULL,
    requested_model TEXT NOT NULL,
    provider TEXT,
    response_model TEXT,
    stream BOOLEAN NOT NULL,
    outcome TEXT NOT NULL,
    status INTEGER NOT NULL,
    input_tokens BIGINT,
    output_tokens BIGINT,
    cache_read_tokens BIGINT,
    cache_write_tokens BIGINT,
    reasoning_tokens BIGINT,
    usage_source TEXT,
    cost_usd DOUBLE PRECISION,
    queue_ms DOUBLE PRECISION,
    ttft_ms DOUBLE PRECISION,
    duration_ms DOUBLE PRECISION NOT NULL,
    error_kind TEXT,
    error_message TEXT,
    key_id TEXT
);

CREATE INDEX requests_started_at ON requests (started_at);
CREATE INDEX requests_request_id ON requests (request_id);
