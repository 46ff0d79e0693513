-- One row per POST to an inference endpoint. Times are RFC 3339 in UTC with microseconds, so that they sort as text.
CREATE TABLE requests (
    id INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL,
    trace_id TEXT,
    started_at TEXT NOT NULL,
    finished_at TEXT NOT NULL,
    api TEXT NOT NULL,
    operation TEXT NOT NULL,
    requested_model TEXT NOT NULL,
    provider TEXT,
    response_model TEXT,
    stream BOOLEAN NOT NULL,
    outcome TEXT NOT NULL,
    status INTEGER NOT NULL,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cache_read_tokens INTEGER,
    cache_write_tokens INTEGER,
    reasoning_tokens INTEGER,
    usage_source TEXT,
    cost_usd REAL,
    queue_ms REAL,
    ttft_ms REAL,
    duration_ms REAL NOT NULL,
    error_kind TEXT,
    error_message TEXT,
    key_id TEXT
);

CREATE INDEX requests_started_at ON requests (started_at);
CREATE INDEX requests_request_id ON requests (request_id);
